"""Recalls, rejection notes, corrections: what was derived is withdrawn, and archives are told."""

import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa

from dicom_node import assembly, housekeeping, withdrawal
from dicom_node.cli import main
from dicom_node.rejection_notes import (
    KEY_OBJECT_SELECTION,
    QUALITY,
    SAFETY,
    TITLES,
    WRONG_ENTRY,
    Code,
    Note,
    identity_path,
    write_note,
)
from dicom_node.sender import Sender
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.worker import Worker
from dicom_node.worker.weights import load_bundle
from tests import phantoms
from tests.dicom_node.nodes import copying_engine, queued_node
from tests.rigs import due_at, pacs
from tests.validators import errors

ARTIFACT = Code(value="111207", meaning="Image artifact(s)")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def node(tmp_path, archive):
    """A node whose only series has been enhanced and sent to the archive."""
    peer = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
    made = queued_node(tmp_path, peers=[peer | {"roles": ["source", "destination"]}])
    enhance(made)
    send(made)
    yield made
    made.store.close()


def enhance(node) -> None:
    assert Worker(node.settings, node.store, engine=copying_engine()).run_once()


def send(node) -> None:
    Sender(node.store, node.settings).run_once(now())


def series_job_of(node, series_uid: str):
    return node.store.jobs.of_series(series_uid)[-1]


def series_job(node):
    """Return the newest generation of the phantom series."""
    [row] = [row for row in node.store.series.listing() if row["modality"] == "MR"]
    return node.store.jobs.of_series(row["series_uid"])[-1]


def notes_of(node):
    return node.store.jobs.notes(series_job(node).series_id)


def kept_notes(archive) -> list[pydicom.Dataset]:
    # The loopback archive writes the encoded data set as it comes, without a file's head.
    kept = [pydicom.dcmread(path, force=True) for path in archive.paths()]
    return [each for each in kept if each.Modality == "KO"]


def tell(node, tmp_path: Path, title: str, uids, modifiers=(), number: int = 1) -> None:
    """Let a note about `uids` arrive as if a peer had sent it."""
    image = pydicom.dcmread(node.paths[0])
    note = Note(
        title=title,
        modifiers=tuple(modifiers),
        reason="wrong patient on the table",
        series_uid=str(image.SeriesInstanceUID),
        instances=[
            (str(image.SOPClassUID), str(uid), str(image.SeriesInstanceUID)) for uid in uids
        ],
        at=now() + timedelta(seconds=number),
    )
    path = tmp_path / f"note{number}.dcm"
    path.write_bytes(write_note(note, image))
    node.submit(path)
    assembly.tick(node.store, node.settings, now())


def source_uids(node) -> list[str]:
    return [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in node.paths]


def recall(node, reason="lesions were missed"):
    return withdrawal.recall(node.store, series_job(node).weights_sha256, reason, now())


def test_a_recall_withdraws_the_result_and_the_archive_gets_one_note(node, archive):
    before = series_job(node)
    assert before.state is JobState.DELIVERED

    [found] = recall(node)
    assert (found.job_id, found.destinations) == (before.id, ("pacs",))
    for _ in range(3):  # whoever comes next finds nothing left to do
        withdrawal.send_notes(node.store, node.settings, now())
        send(node)

    job, [note] = series_job(node), notes_of(node)
    assert job.state is JobState.CANCELLED
    assert "lesions were missed" in job.reason
    assert (note.state, note.reason) == ("DELIVERED", "The rejection note was sent to pacs.")
    [row] = node.store.series.listing()
    assert [each.get("content") for each in row["deliveries"]] == [None, "rejection note"]
    [kept] = kept_notes(archive)
    image = pydicom.dcmread(node.paths[0])
    assert kept.SOPClassUID == KEY_OBJECT_SELECTION
    assert kept.ConceptNameCodeSequence[0].CodeValue == SAFETY
    assert (kept.PatientID, kept.PatientName) == (image.PatientID, image.PatientName)
    assert kept.StudyInstanceUID == image.StudyInstanceUID
    assert kept.SeriesInstanceUID not in (image.SeriesInstanceUID, before.derived_series_uid)
    [series] = kept.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == before.derived_series_uid
    referenced = {each.ReferencedSOPInstanceUID for each in series.ReferencedSOPSequence}
    assert referenced == {one.sop_uid for one in node.store.jobs.derived(job.id)}
    assert node.store.ledger().balanced
    events = [one.event for one in node.store.audit.listing()]
    assert events.count("weights.recalled") == events.count("job.withdraw") == 1
    [written] = node.store.jobs.derived(note.id)
    assert errors("dciodvfy", written.path) == set()


def test_nothing_is_made_with_recalled_weights(node, tmp_path):
    recall(node)
    again = node.store.jobs.requeue(series_job(node).id, now())
    enhance(node)  # as a worker that had begun when the recall came

    job = node.store.jobs.get(again)
    assert job.state is JobState.DEAD and "were recalled: lesions were missed" in job.reason
    assert node.store.jobs.derived(again) == []


def test_a_worker_with_recalled_weights_takes_no_job_and_the_queue_says_why(node):
    configured = load_bundle(node.settings.engine.weights, "").sha256
    withdrawal.recall(node.store, configured, "lesions were missed", now())
    again = node.store.jobs.requeue(series_job(node).id, now())
    worker = Worker(node.settings, node.store, engine=copying_engine())

    assert not worker.run_once()
    waiting = node.store.jobs.get(again)
    assert waiting.state is JobState.QUEUED and "Configure other ones" in waiting.reason
    assert "takes the place of derived series" in waiting.reason
    node.store.withdrawals.lift(configured, "it was another file", now())
    assert worker.run_once()


def test_requeue_after_a_recall_makes_a_generation_that_names_the_old_one(node):
    old = series_job(node)
    recall(node)

    again = node.store.jobs.requeue(old.id, now())

    job = node.store.jobs.get(again)
    assert (job.generation, job.state, job.withdrawn_at) == (2, "QUEUED", None)
    assert old.derived_series_uid in job.reason
    with node.store.database.transaction() as work:  # as if other weights were configured
        work.connection.exec_driver_sql("DELETE FROM recall")
    enhance(node)
    [first, *_] = node.store.jobs.derived(again)
    assert errors("dciodvfy", first.path) <= errors("dciodvfy", node.paths[0])
    related = pydicom.dcmread(first.path).RelatedSeriesSequence
    assert [each.SeriesInstanceUID for each in related] == [job.series_uid, old.derived_series_uid]


@pytest.mark.parametrize("quickly", [True, False])
def test_the_sweep_of_dead_attempts_leaves_notes_alone(node, monkeypatch, quickly):
    """They lie in no folder of their job; deleted, the archive could not be told any more."""
    recall(node)
    withdrawal.send_notes(node.store, node.settings, now())
    [note] = notes_of(node)
    [one] = node.store.jobs.derived(note.id)
    dead = one.path.parent.with_name("0-dead")
    dead.mkdir()
    if not quickly:
        monkeypatch.setattr(housekeeping, "result_places", lambda database, job_ids: set())

    housekeeping.sweep_attempts(node.store, node.settings, now() + timedelta(days=1))

    assert (one.path.is_file(), dead.exists()) == (True, False)
    assert all(each.path.is_file() for each in node.store.jobs.derived(series_job(node).id))


def test_a_destination_that_turns_out_later_to_have_it_is_told_too(node):
    """An image that was under way while its series was withdrawn still gets its note."""
    recall(node)
    withdrawal.send_notes(node.store, node.settings, now())
    send(node)
    job = series_job(node)
    with node.store.database.transaction() as work:
        from dicom_node.store.moves import create_deliveries

        create_deliveries(work, job.id, ["research"])
    [_, late] = node.store.deliveries.of_job(job.id)
    assert withdrawal.send_notes(node.store, node.settings, now()) == 0  # it has nothing
    one = node.store.deliveries.of_job(job.id)[1]["id"]
    node.store.deliveries.record_present(
        one, [each.sop_uid for each in node.store.jobs.derived(job.id)][:1], now()
    )

    assert withdrawal.send_notes(node.store, node.settings, now()) == 1
    [note] = notes_of(node)
    assert note.state is JobState.DERIVED
    names = [row["destination"] for row in node.store.deliveries.of_job(note.id)]
    assert names == ["pacs", "research"] and late["destination"] == "research"


def test_a_result_that_nobody_has_needs_no_note(tmp_path):
    node = queued_node(tmp_path)
    enhance(node)

    recall(node)

    assert withdrawal.send_notes(node.store, node.settings, now()) == 0
    assert series_job(node).state is JobState.CANCELLED
    assert due_at(node.store, now()) == []
    node.store.close()


def test_a_note_that_is_refused_is_dead_and_requeue_sends_it_again(tmp_path):
    answers = [0x0000]
    with pacs(lambda event: answers[0]) as peer:  # knows no Key Object Selection
        described = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": peer.port}
        node = queued_node(tmp_path, peers=[described | {"roles": ["destination"]}])
        enhance(node)
        send(node)
        recall(node)
        withdrawal.send_notes(node.store, node.settings, now())
        send(node)
        [note] = notes_of(node)
        assert note.state is JobState.DEAD and "by hand" in note.reason

        assert node.store.jobs.requeue(note.id, now()) == note.id
        assert node.store.jobs.get(note.id).state is JobState.DERIVED
        assert series_job(node).state is JobState.CANCELLED
        node.store.close()


@pytest.mark.parametrize("title", [QUALITY, WRONG_ENTRY])
def test_a_rejection_note_about_a_source_withdraws_what_was_derived(node, archive, tmp_path, title):
    modifiers = [ARTIFACT] if title == QUALITY else []
    tell(node, tmp_path, title, source_uids(node)[3:4], modifiers)
    withdrawal.send_notes(node.store, node.settings, now())
    send(node)

    job = series_job(node)
    assert job.state is JobState.CANCELLED
    assert TITLES[title] in job.reason
    [kept] = kept_notes(archive)
    assert kept.ConceptNameCodeSequence[0].CodeValue == title
    stated = [each.ConceptCodeSequence[0].CodeValue for each in kept.ContentSequence
              if "ConceptCodeSequence" in each]  # fmt: skip
    assert stated == [each.value for each in modifiers]
    [document] = [row for row in node.store.series.listing() if row["modality"] == "KO"]
    assert document["state"] == "SKIPPED" and f"job {job.id}" in document["reason"]


def test_our_own_note_that_comes_back_changes_nothing(node, archive, tmp_path):
    recall(node)
    withdrawal.send_notes(node.store, node.settings, now())
    send(node)
    derived = [one.sop_uid for one in node.store.jobs.derived(series_job(node).id)]
    reason = series_job(node).reason

    tell(node, tmp_path, SAFETY, derived)

    assert withdrawal.send_notes(node.store, node.settings, now()) == 0
    assert series_job(node).reason == reason


def test_a_note_about_our_own_result_withdraws_it_everywhere(node, archive, tmp_path):
    derived = [one.sop_uid for one in node.store.jobs.derived(series_job(node).id)]

    tell(node, tmp_path, QUALITY, derived[:1], [ARTIFACT])

    assert series_job(node).state is JobState.CANCELLED
    assert withdrawal.send_notes(node.store, node.settings, now()) == 1


def test_a_series_that_waits_for_a_worker_is_not_begun_after_its_rejection(tmp_path):
    node = queued_node(tmp_path)

    tell(node, tmp_path, SAFETY, source_uids(node))

    assert series_job(node).state is JobState.CANCELLED
    assert not Worker(node.settings, node.store, engine=copying_engine()).run_once()
    node.store.close()


def test_a_series_that_comes_after_its_rejection_is_not_used(tmp_path):
    node = queued_node(tmp_path)
    others = phantoms.corner_series(tmp_path / "other", "sagittal").paths
    heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in others]
    tell(node, tmp_path, SAFETY, [each.SOPInstanceUID for each in heads[:2]])

    for path in others:
        node.submit(path)
    node.assemble()

    assert series_job_of(node, heads[0].SeriesInstanceUID).state is JobState.SKIPPED
    reason = series_job_of(node, heads[0].SeriesInstanceUID).reason
    assert "2 of its images were rejected by SUBMIT" in reason
    node.store.close()


def test_a_result_that_a_worker_published_during_the_recall_is_withdrawn_too(node):
    """PostgreSQL lets both commit without seeing each other."""
    weights = series_job(node).weights_sha256
    with node.store.database.transaction() as work:
        row = {"weights_sha256": weights, "reason": "recalled.", "at": now()}
        work.execute(sa.insert(schema.recall).values(**row))

    assert withdrawal.send_notes(node.store, node.settings, now()) == 1
    assert series_job(node).state is JobState.CANCELLED


@pytest.mark.parametrize("spoil", ["other title", "cut short"])
def test_a_key_object_that_rejects_nothing_withdraws_nothing(node, tmp_path, spoil):
    image = pydicom.dcmread(node.paths[0])
    note = Note(
        title=SAFETY, modifiers=(), reason="", series_uid="1.2.3", at=now(),
        instances=[(str(image.SOPClassUID), uid, "1.2.3") for uid in source_uids(node)],
    )  # fmt: skip
    dataset = pydicom.dcmread(BytesIO(write_note(note, image)))
    if spoil == "other title":
        dataset.ConceptNameCodeSequence[0].CodeValue = "113000"  # Of Interest
    else:
        del dataset.CurrentRequestedProcedureEvidenceSequence, dataset.ContentSequence
    dataset.save_as(tmp_path / "note.dcm")
    node.submit(tmp_path / "note.dcm")

    assembly.tick(node.store, node.settings, now())

    assert series_job(node).state is JobState.DELIVERED
    [document] = [row for row in node.store.series.listing() if row["modality"] == "KO"]
    assert document["state"] == "SKIPPED"
    assert ("nothing was withdrawn" in document["reason"]) == (spoil == "cut short")


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_note_that_names_no_uid_does_no_harm(node, tmp_path):
    """PostgreSQL takes no NUL: one inside a UID raised for ever, and held up every series."""
    tell(node, tmp_path, SAFETY, ["1.2.3.4.5.6"])
    content = (tmp_path / "note1.dcm").read_bytes().replace(b"1.2.3.4.5.6", b"1.2.3\x004.5.7")
    (tmp_path / "odd.dcm").write_bytes(content.replace(b"2.25.", b"2.26."))
    node.submit(tmp_path / "odd.dcm")

    assembly.tick(node.store, node.settings, now())

    with node.store.database.reading() as connection:
        named = connection.execute(sa.select(schema.rejection.c.sop_uid)).scalars().all()
    assert named == ["1.2.3.4.5.6"]
    last = [row for row in node.store.series.listing() if row["modality"] == "KO"][-1]
    assert last["state"] == "SKIPPED" and "job none" in last["reason"]


def test_a_recall_after_retention_still_has_its_note(node, archive):
    """Weights prove wrong long after the pixel files have gone."""
    from dicom_node import retention

    later = now() + timedelta(days=400)
    node.store.waits.restart(later, timedelta(seconds=60), not_after=later)
    gone = list(retention.purge(node.store, node.settings, later))
    assert {one.lot.kind for one in gone} == {"originals", "derived"}
    kept = pydicom.dcmread(identity_path(node.settings.node.state_dir, series_job(node).id))
    assert "PixelData" not in kept and kept.PatientID

    recall(node)
    withdrawal.send_notes(node.store, node.settings, later)
    Sender(node.store, node.settings, clock=lambda: later).run_once(later)

    [note] = kept_notes(archive)
    assert note.PatientID == kept.PatientID


DAMAGED = bytes(128) + b"DICM" + b"\xff" * 99  # not InvalidDicomError, which is the usual one


@pytest.mark.parametrize("left", [1, 0])
def test_damaged_files_are_passed_over_and_a_note_that_cannot_be_made_says_so(node, left):
    files = [one.path for one in node.store.jobs.derived(series_job(node).id)]
    for path in files[left:]:
        path.write_bytes(DAMAGED)
    files[-1].write_bytes(bytes(128) + b"DICM")
    recall(node)

    assert withdrawal.send_notes(node.store, node.settings, now()) == left

    assert ("No rejection note can be made" in series_job(node).reason) is not bool(left)
    assert withdrawal.send_notes(node.store, node.settings, now()) == 0


def test_a_disk_that_gives_nothing_delays_a_note_and_does_not_prevent_it(node):
    files = [one.path for one in node.store.jobs.derived(series_job(node).id)]
    kept = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
        path.symlink_to(path)  # ELOOP
    recall(node)
    with pytest.raises(OSError, match="symbolic links"):
        withdrawal.send_notes(node.store, node.settings, now())

    for path, content in kept.items():
        path.unlink()
        path.write_bytes(content)

    assert withdrawal.send_notes(node.store, node.settings, now()) == 1


def test_one_file_that_the_disk_withholds_is_not_waited_for(node):
    first, *_ = [one.path for one in node.store.jobs.derived(series_job(node).id)]
    first.unlink()
    first.symlink_to(first)  # ELOOP
    recall(node)

    assert withdrawal.send_notes(node.store, node.settings, now()) == 1


def test_retention_takes_damaged_results_and_puts_on_record_what_it_could_not_keep(node):
    from dicom_node import retention

    job, later = series_job(node), now() + timedelta(days=400)
    files = [one.path for one in node.store.jobs.derived(job.id)]
    for path in files:
        path.write_bytes(DAMAGED)
    node.store.waits.restart(later, timedelta(seconds=60), not_after=later)

    gone = list(retention.purge(node.store, node.settings, later))

    assert {one.lot.kind for one in gone} == {"originals", "derived"}
    assert not any(path.exists() for path in files)
    assert not identity_path(node.settings.node.state_dir, job.id).exists()
    trail = node.store.audit.listing()
    [row] = [each for each in trail if each.event == "retention.no_identity"]
    assert row.fields["job"] == job.id


def test_a_result_of_which_nothing_is_left_says_that_a_person_must_reject_it(node):
    for one in node.store.jobs.derived(series_job(node).id):
        one.path.unlink()

    recall(node)

    assert withdrawal.send_notes(node.store, node.settings, now()) == 0
    assert withdrawal.send_notes(node.store, node.settings, now()) == 0
    assert "reject it in the archive" in series_job(node).reason


def test_the_command_lists_what_it_withdraws(node, tmp_path, capsys):
    job = series_job(node)
    config = tmp_path / "node.toml"
    config.write_text("")
    options = ["--config", str(config), "--state-dir", str(node.settings.node.state_dir)]

    assert main(["recall", *options, "--weights", job.weights_sha256[:12], "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)["series"]
    assert listed["derived_series_uid"] == job.derived_series_uid
    assert main(["recall", *options, "--weights", job.weights_sha256]) == 0
    assert job.series_uid in capsys.readouterr().out
    assert main(["recall", *options, "--weights", "deadbeef"]) == 1
    assert "begins with deadbeef" in capsys.readouterr().err
    lift = ["recall", *options, "--weights", job.weights_sha256, "--lift"]
    assert [main(lift), main(lift)] == [0, 1]
    assert node.store.withdrawals.recalled() == {}
    capsys.readouterr()
    assert main(["jobs", *options]) == 0
    assert "CANCELLED" in capsys.readouterr().out
