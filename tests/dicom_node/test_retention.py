"""Retention: what goes, what never goes, and what remains known of it."""

import shutil
from datetime import timedelta

import pytest
from pydicom.uid import RLELossless

from dicom_node import assembly, intake, retention, service
from dicom_node.errors import ConflictingInstance, FilesGone
from dicom_node.pixel_files import sha256_of
from dicom_node.states import FINAL, HeldBy, JobState
from dicom_node.store import Reference
from dicom_node.store.lots import DERIVED, ORIGINALS
from tests.dicom_node.aged import COMMITTING, LONG, PACS, SERIES, aged_node, image
from tests.rigs import MR, NOW, SOURCE, due_at, rig_settings

DAY = timedelta(days=1)
LATER = NOW + LONG
FORWARD = {"name": "all", "when": {"modality": ["MR"]}, "action": "forward"}
ENHANCE = FORWARD | {"action": "enhance"}


@pytest.fixture
def node(tmp_path):
    with aged_node(tmp_path) as made:
        yield made


def with_settings(node, **sections):
    """Return the settings of `node`, otherwise."""
    peers = {"peers": [SOURCE, COMMITTING]}
    return rig_settings(node.settings.node.state_dir, **peers | sections)


def kinds(gone):
    return sorted(one.lot.kind for one in gone)


def skipped(node):
    node.store.jobs.transition(node.received().id, "skip", NOW)


def cancelled(node):
    node.received()
    node.store.jobs.cancel(node.held(HeldBy.QUALITY).id, NOW)


def dead(node):
    node.received()
    node.store.jobs.transition(node.published().id, "fail", NOW)


def superseded(node):
    node.delivered()
    node.take(image(9))


ENDS = [  # how it ended, how long its files are kept, what goes then
    (lambda node: node.delivered(), 14, [DERIVED, ORIGINALS]),
    (skipped, 30, [ORIGINALS]),
    (cancelled, 60, [DERIVED, ORIGINALS]),
    (dead, 90, [DERIVED, ORIGINALS]),
    (superseded, 30, [DERIVED]),  # the newer generation wants the originals
]


@pytest.mark.parametrize(
    ("end", "days", "goes"), ENDS, ids=lambda one: getattr(one, "__name__", "")
)
def test_files_go_at_their_age_and_not_a_minute_before(node, end, days, goes):
    end(node)
    before = node.paths("in") + node.paths("out")

    assert node.purge(NOW + timedelta(days=days, minutes=-1)) == []
    assert node.paths("in") + node.paths("out") == before
    gone = node.purge(NOW + timedelta(days=days, minutes=1))

    assert kinds(gone) == goes
    assert all(f"_days = {days}." in one.reason for one in gone)
    assert node.paths("out") == []
    assert bool(node.paths("in")) == (ORIGINALS not in goes)


ALIVE = {
    "RECEIVING": lambda node: None,
    "QUEUED": lambda node: node.store.jobs.transition(node.job().id, "enqueue", NOW),
    "RUNNING": lambda node: node.running(),
    "DERIVED": lambda node: node.published(),
    "DERIVED, sent and not committed": lambda node: node.sent(node.published()),
    **{f"HELD by {by}": lambda node, by=by: node.held(by) for by in HeldBy},
}


@pytest.mark.parametrize("way", ALIVE)
def test_what_is_not_at_its_end_never_goes(node, way):
    node.received()
    ALIVE[way](node)
    before = node.paths("in") + node.paths("out")

    assert node.job().state.value == way.split()[0].rstrip(",")
    assert node.purge() == []
    assert node.paths("in") + node.paths("out") == before


def test_delivered_is_not_enough_where_the_destination_is_to_commit(tmp_path):
    with aged_node(tmp_path, peers=[SOURCE, PACS]) as node:
        node.received()
        assert node.sent(node.published(), commitment=False).state is JobState.DELIVERED
        strict = with_settings(node)  # the site learns that its archive can commit

        assert list(retention.purge(node.store, strict, LATER)) == []
        assert kinds(node.purge()) == [DERIVED, ORIGINALS]


def test_one_destination_of_two_that_has_not_committed_keeps_everything(tmp_path):
    second = COMMITTING | {"name": "second"}
    with aged_node(tmp_path, peers=[SOURCE, COMMITTING, second]) as node:
        node.received()
        job = node.sent(node.published(to=("pacs", "second")))
        wanted = node.store.commitments.due(NOW)
        node.store.commitments.waive(wanted[1].delivery_id, NOW)
        node.committed(job)

        assert node.job().state is JobState.DELIVERED
        assert node.purge() == []


def test_the_only_copy_of_a_result_never_goes(node):
    node.received()
    job = node.published(to=())

    assert job.state is JobState.DELIVERED
    assert node.purge() == []


def test_custody_keeps_what_was_received(node):
    node.delivered()
    settings = with_settings(node, files={"min_free_bytes": 0, "custody": True})

    gone = list(retention.purge(node.store, settings, LATER))

    assert kinds(gone) == [DERIVED]
    assert len(node.paths("in")) == 3


def promise(node, status, how="paid"):
    """Put on record what a scanner that asked for commitment of image 2 was told."""
    image_2 = Reference(sop_uid=f"{SERIES}.2", sop_class=MR)
    node.store.debts.accept("scanner", "2.25.5", [image_2], NOW)
    (debt,) = node.store.debts.due(NOW)
    if how == "paid":
        node.store.debts.paid(debt, {image_2.sop_uid: status}, NOW)
    elif how == "told, and no answer came":
        node.store.debts.promise(debt, {image_2.sop_uid: status})
        node.store.debts.postpone(debt, "no answer", NOW, None)


@pytest.mark.parametrize(
    ("status", "how", "stays"),
    [
        (0x0000, "paid", True),
        (0x0000, "told, and no answer came", True),
        (None, "asked", True),
        (0x0110, "paid", False),
    ],
)
def test_an_image_that_a_scanner_may_have_deleted_stays_after_custody(node, status, how, stays):
    node.delivered()
    promise(node, status, how)

    assert (ORIGINALS not in kinds(node.purge())) == stays
    assert bool(node.paths("in")) == stays


def forwarded(node):
    """Forward a received series; return its job, DELIVERED."""
    job = node.received()
    count = len(node.paths("in"))
    node.store.jobs.decide(job.id, "forward", NOW, count, reason="on", destinations=["pacs"])
    return node.committed(node.sent(job))


def test_a_promise_ends_when_an_archive_has_committed_the_image(node):
    forwarded(node)
    promise(node, 0x0000)

    assert kinds(node.purge()) == [ORIGINALS]
    assert node.paths("in") == []
    assert node.store.debts.kept_by_a_destination([f"{SERIES}.2"])


def test_rows_ledger_and_trail_stay(node):
    job = node.delivered()
    before = node.store.ledger(), node.store.series.listing(), node.events()

    node.purge()

    assert (node.store.ledger(), node.store.series.listing()) == before[:2]
    assert node.store.ledger().balanced
    assert node.events() == before[2] + [
        "retention.decided",
        "retention.deleted",
        "retention.decided",
        "retention.study_deleted",
    ]
    assert node.store.audit.prove().broken == ""
    fields = node.store.audit.listing(job_id=job.id)[-1].fields
    assert (fields["count"], fields["counts"]) == (3, {MR: 3})
    assert "retention.delivered_days" in fields["reason"]
    assert node.purge() == []


def test_the_folders_go_with_their_last_file(node):
    node.delivered()
    node.purge()

    state = node.settings.node.state_dir
    assert [path.name for path in (state / "in").iterdir()] == [".locks"]
    assert list((state / "out").iterdir()) == []


def test_retention_that_is_off_deletes_nothing(node):
    node.delivered()
    settings = with_settings(node, retention={"enabled": False})

    assert list(retention.purge(node.store, settings, LATER)) == []
    assert node.paths("in") and node.paths("out")


def test_a_dry_run_says_what_the_next_run_does_and_touches_nothing(node):
    node.delivered()
    node.received(2, "1.2.9")
    node.store.jobs.transition(node.job("1.2.9").id, "skip", NOW)
    before = node.paths("in") + node.paths("out"), node.events()

    said = node.purge(dry=True)

    assert (node.paths("in") + node.paths("out"), node.events()) == before
    assert len(said) == 3 and said == node.purge()
    assert node.paths("in") + node.paths("out") == []


def test_a_file_outside_of_the_state_folder_is_never_touched(node, tmp_path):
    node.delivered()
    foreign = tmp_path / "elsewhere.dcm"
    foreign.write_bytes(b"x")
    with node.store.database.transaction() as work:
        work.connection.exec_driver_sql(
            "UPDATE instance SET path = ? WHERE id = 1", (str(foreign),)
        )

    assert kinds(node.purge()) == [DERIVED]
    assert kinds(node.purge(dry=True)) == []
    assert foreign.exists() and len(node.paths("in")) == 3


def test_a_part_of_the_state_folder_may_lie_on_another_disk(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with aged_node(tmp_path) as node:
        shutil.rmtree(node.files.root)
        node.files.root.symlink_to(other)
        (other / ".locks").mkdir()
        node.delivered()

        assert kinds(node.purge()) == [DERIVED, ORIGINALS]
    assert [path.name for path in other.iterdir()] == [".locks"]


def test_a_folder_that_refuses_keeps_no_other_from_going(node):
    node.delivered()
    node.received(1, "1.2.9")
    node.store.jobs.transition(node.job("1.2.9").id, "skip", NOW)
    (path,) = [path for path in node.paths("in") if path.parent.name == "1.2.9"]
    path.unlink()
    path.mkdir()  # no file any more: it cannot be unlinked

    assert len(node.purge()) == 2
    assert len(node.store.removals.unfinished()) == 1
    path.rmdir()
    node.purge()
    assert node.store.removals.unfinished() == []


def test_a_run_that_has_no_time_left_begins_nothing_and_loses_nothing(node):
    skipped(node)

    assert node.purge(most_s=0.0) == []
    assert node.store.removals.unfinished() == []
    (removal,) = decided(node)
    assert not retention.carry_out(removal, node.store, node.settings, LATER, until=0.0)
    assert len(node.paths("in")) == 3

    node.purge()

    assert node.paths("in") == []


def test_an_image_that_nobody_can_decode_goes_too_and_is_known_by_its_bytes(node):
    unreadable = image(BitsAllocated=16, PixelData=b"", Rows=0)
    node.take(unreadable)
    node.store.jobs.transition(node.job().id, "skip", NOW)

    node.purge()

    assert node.store.series.find_instance(f"{SERIES}.1").pixels_sha256 == ""
    assert node.take(unreadable, LATER).outcome == "restored"


@pytest.mark.parametrize(
    ("seconds", "hours_ago", "waits"),
    [(1e8, 23, True), (-1e8, 1, True), (1e8, 25, False), (600, 1, False), (1e8, -1, False)],
)
def test_nothing_goes_for_a_day_after_the_clock_was_set(node, seconds, hours_ago, waits):
    node.delivered()
    node.store.audit.record("clock.set", LATER - timedelta(hours=hours_ago), seconds=seconds)

    assert bool(node.purge(dry=True)) == (not waits)
    assert bool(node.purge()) == (not waits)
    assert bool(node.paths("in")) == waits


@pytest.mark.parametrize(("later", "noted"), [(LONG, True), (-LONG, True), (DAY / 2, False)])
def test_a_start_far_from_the_end_of_the_trail_makes_the_clock_doubtful(node, later, noted):
    node.delivered()

    service.note_clock(node.store, NOW + later)

    assert ("clock.set" in node.events()) == noted
    assert retention.is_clock_doubtful(node.store, NOW + later) == noted


def test_what_a_command_wrote_before_the_start_hides_no_step_of_the_clock(node):
    node.delivered()
    for minutes in (30, 20):
        node.store.audit.record("token.added", LATER - timedelta(minutes=minutes))

    service.note_clock(node.store, LATER)

    assert "clock.set" in node.events()
    assert not list(node.purge())


def test_other_rows_push_no_step_of_the_clock_out_of_sight(node):
    node.delivered()
    node.store.audit.record("clock.set", LATER - timedelta(hours=1), seconds=1e8)
    with node.store.database.transaction() as work:
        for _ in range(10_001):
            work.record("instance.conflict", LATER)

    assert retention.is_clock_doubtful(node.store, LATER)
    assert not list(node.purge())


def decided(node):
    """Return the decisions about everything that may go, none of them carried out."""
    limits = retention.limits_of(node.settings, LATER)
    lots = node.store.removals.lots(limits)
    return [node.store.removals.decide(lot, limits, "test", LATER) for lot in lots]


def test_a_decision_is_carried_out_by_the_next_run_even_if_retention_is_off_by_then(node):
    node.delivered()
    decided(node)
    settings = with_settings(node, retention={"enabled": False})

    list(retention.purge(node.store, settings, LATER))

    assert node.paths("in") + node.paths("out") == []
    assert node.store.removals.unfinished() == []


def test_what_arrives_between_decision_and_deletion_stays(node):
    node.delivered()
    decided(node)

    assert node.take(image(2), LATER, RLELossless).outcome == "restored"
    retention.finish(node.store, node.settings, LATER)

    assert [path.stem for path in node.paths("in")] == [f"{SERIES}.2"]
    assert node.store.removals.unfinished() == []


def test_a_job_that_goes_on_meanwhile_is_not_decided_about(node):
    node.delivered()
    limits = retention.limits_of(node.settings, LATER)
    (derived, originals) = sorted(node.store.removals.lots(limits), key=lambda lot: lot.kind)
    node.take(image(9), LATER)

    assert node.store.removals.decide(originals, limits, "test", LATER) is None
    assert node.store.removals.decide(derived, limits, "test", LATER) is None
    assert node.store.removals.unfinished() == []


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLELossless])
def test_the_same_image_is_known_again_without_its_file_and_kept_anew(node, syntax):
    job = node.delivered()
    node.purge()

    taken = node.take(image(2), LATER, syntax)

    assert (taken.status, taken.outcome) == (0x0000, "restored")
    row = node.store.series.find_instance(f"{SERIES}.2")
    assert (row.removal_id, row.transfer_syntax) == (None, syntax)
    assert row.sha256 == sha256_of(row.path)
    assert node.store.ledger().acknowledged == 3
    assert node.job() == node.store.jobs.get(job.id)  # nothing is computed again by itself
    assert node.take(image(2), LATER).outcome == "duplicate"


@pytest.mark.parametrize("changes", [{"EchoTime": "9"}, {"PixelData": b"\x07" * 32 * 48 * 2}])
def test_another_image_under_a_known_uid_is_a_conflict_without_its_file(node, changes):
    node.delivered()
    node.purge()

    with pytest.raises(ConflictingInstance) as refused:
        node.take(image(2, **changes), LATER)

    assert refused.value.status == 0x0111
    assert node.paths("in") == []


def test_what_was_kept_anew_is_kept_as_long_again(node):
    node.delivered()
    node.purge(NOW + 15 * DAY)
    node.take(image(1), NOW + 100 * DAY)

    assert node.purge(NOW + 113 * DAY) == []
    assert kinds(node.purge(NOW + 115 * DAY)) == [ORIGINALS]


@pytest.mark.parametrize("end", [end for end, _, goes in ENDS if ORIGINALS in goes])
def test_a_job_without_its_files_is_not_requeued_and_says_why(node, end):
    end(node)
    job = node.job()
    node.purge()

    with pytest.raises(FilesGone, match="3 of its 3 received images were deleted by retention"):
        node.store.jobs.requeue(job.id, LATER)
    assert node.store.jobs.get(job.id) == job

    for number in (1, 2, 3):
        with pytest.raises(FilesGone, match=f"{4 - number} of its 3"):
            node.store.jobs.requeue(job.id, LATER)
        node.take(image(number), LATER)
    again = node.store.jobs.requeue(job.id, LATER, ["pacs"])

    assert node.store.jobs.get(again).state is JobState.QUEUED


def test_a_result_that_is_gone_is_computed_again_where_the_originals_are_kept(node):
    dead(node)
    job = node.job()
    settings = with_settings(node, files={"min_free_bytes": 0, "custody": True})
    list(retention.purge(node.store, settings, LATER))

    again = node.store.jobs.requeue(job.id, LATER)

    assert again != job.id
    assert node.store.jobs.get(again).state is JobState.QUEUED


def tick(node, action):
    """Let the idle time pass; `action` decides about every MR series."""
    sections = {"assembly": {"idle_s": 1.0, "min_slices": 2}, "rules": [action]}
    return assembly.tick(node.store, with_settings(node, **sections), LATER + DAY)


def test_a_late_slice_of_a_deleted_series_is_held_until_all_images_are_back(node):
    node.delivered()
    node.purge()
    node.take(image(4), LATER)
    tick(node, ENHANCE)

    held = node.job()
    assert (held.state, held.held_by) == (JobState.HELD, HeldBy.COMPLETENESS)
    assert "3 of its 4 images were deleted by retention" in held.reason
    with pytest.raises(FilesGone):
        node.store.jobs.release(held.id, LATER)

    for number in (1, 2, 3):
        node.take(image(number), LATER)
    assert node.job().state is JobState.RECEIVING
    tick(node, ENHANCE)

    assert (node.job().id, node.job().state) == (held.id, JobState.QUEUED)


def test_a_late_slice_of_a_deleted_forwarded_series_is_forwarded_alone(node):
    forwarded(node)
    node.purge()
    node.take(image(4), LATER)

    tick(node, FORWARD)

    (task,) = due_at(node.store, LATER + DAY)
    assert [one.sop_uid for one in task.instances] == [f"{SERIES}.4"]
    assert "3 of its 4 images were deleted by retention and are not sent again" in node.job().reason


def test_a_series_that_was_skipped_and_deleted_can_be_forwarded_in_part(node):
    skipped(node)
    node.purge()
    node.take(image(4), LATER)

    tick(node, FORWARD)

    (task,) = due_at(node.store, LATER + DAY)
    assert [one.sop_uid for one in task.instances] == [f"{SERIES}.4"]


def test_a_decision_about_a_series_is_void_when_a_deleted_image_comes_back_meanwhile(node):
    skipped(node)
    node.purge()
    node.take(image(4), LATER)
    job = node.job()
    node.take(image(1), LATER)

    assert not node.store.jobs.decide(job.id, "hold", LATER, 4, gone=3, reason="late")
    assert node.store.jobs.decide(job.id, "hold", LATER, 4, gone=2, reason="in time")


def test_recovery_takes_a_file_away_whose_row_says_that_it_is_gone(node):
    node.delivered()
    path = node.paths("in")[0]
    content = path.read_bytes()
    node.purge()
    node.received(1, "1.2.9")
    path.parent.mkdir()
    path.write_bytes(content)  # a crash between file and row of an image that came back

    assert intake.recover(node.files, node.store) == [path]
    assert len(node.paths("in")) == 1


def test_recovery_leaves_to_retention_what_is_decided(node):
    node.delivered()
    decided(node)

    assert intake.recover(node.files, node.store) == []
    assert len(node.paths("in")) == 3


def test_every_end_of_a_job_has_an_age():
    assert set(retention.AGES) == FINAL
