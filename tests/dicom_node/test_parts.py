"""One job for a series of several volumes: all are made, gated, held and sent, or none."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pydicom
import pytest

from dicom_node import retention, withdrawal
from dicom_node.cli import main
from dicom_node.errors import GateRefused
from dicom_node.network.archive import LoopbackArchive
from dicom_node.sender import Sender
from dicom_node.states import HeldBy, JobState
from dicom_node.store.audit_export import AuditExport
from dicom_node.worker import Worker, attempts_dir, release
from dicom_node.worker.decisions import requeue_job
from dicom_node.worker.orders import carry_out, orders_of
from dicom_node.worker.outputs import source_of
from dicom_node.worker.sources import Source
from sr_engine.dicom.provenance import Provenance, from_dataset
from sr_engine.errors import GeometryError
from tests import phantoms, variants
from tests.dicom_node.nodes import copying_engine, queued_node
from tests.dicom_node.test_performer import UID, Line
from tests.rigs import due_at
from tests.ups_manager import task_manager

NAMES = ["axial", "sagittal"]
KINDS = ["classic", "classic+key_objects"]


def now() -> datetime:
    return datetime.now(UTC)


def two_planes(folder, **second):
    """Return a series of an axial and a sagittal stack, as one scanner writes it."""
    stacks = [
        phantoms.corner_series(folder / name, name, **(second if name == "sagittal" else {})).paths
        for name in NAMES
    ]
    return variants.one_series(*stacks)


@pytest.fixture
def node(tmp_path, archive):
    peer = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
    peer |= {"roles": ["destination"], "companions": ["key_objects"], "commitment": False}
    made = queued_node(tmp_path, paths=two_planes(tmp_path / "scan"), peers=[peer])
    yield made
    made.store.close()


def work(node, engine=None):
    assert Worker(node.settings, node.store, engine=engine or copying_engine()).run_once()
    return node.store.jobs.get(node.job.id)


def delivered(node):
    work(node)
    Sender(node.store, node.settings).run_once(now())
    assert node.job.state is JobState.DELIVERED
    return node.job


def series_of(node) -> dict[str, list]:
    """Return the files of each series of the newest result, in the order in which it is kept."""
    found: dict[str, list] = {}
    for one in node.store.jobs.derived(node.job.id):
        found.setdefault(one.series_uid, []).append(one)
    return found


def for_part(name, change):
    """Return an engine that spoils the result of one volume."""

    def run(order, settings, progress):
        result = copying_engine()(order, settings, progress)
        return change(order, result) if order.part.name == name else result

    return run


def test_one_job_makes_a_series_of_each_volume(node):
    assert node.job.reason.startswith("Complete with 24 slices in 2 volumes (axial; sagittal)")

    job = work(node)

    assert job.state is JobState.DERIVED
    made = series_of(node)
    assert [files[0].kind for files in made.values()] == KINDS * 2
    assert next(iter(made)) == job.derived_series_uid
    first = [pydicom.dcmread(files[0].path) for files in made.values()]
    assert [one.SeriesDescription for one in first[::2]] == [
        "t1_mpr axial AI-SR RESEARCH",
        "t1_mpr sagittal AI-SR RESEARCH",
    ]
    assert len({one.SeriesNumber for one in first}) == 4
    assert len({one.path for files in made.values() for one in files}) == 26
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in node.paths]
    for image, mine in zip(first[::2], (headers[:12], headers[12:]), strict=True):
        named = {item.ReferencedSOPInstanceUID for item in image.SourceImageSequence}
        assert named == {one.SOPInstanceUID for one in mine}
        assert image.ImageOrientationPatient == mine[0].ImageOrientationPatient
    assert set(job.figures["quality"]) == {"residual (axial)", "residual (sagittal)"}


def test_one_doubtful_volume_holds_the_job_and_release_sends_both(node):
    def doubt(order, result):
        report = replace(result.report, passed=False, findings=("The residual is large.",))
        return replace(result, report=report)

    job = work(node, for_part("sagittal", doubt))

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.QUALITY)
    assert job.reason == "The result is doubtful: sagittal: The residual is large."
    assert release(node.store, job.id, now()) is JobState.DERIVED
    [task] = due_at(node.store, now())
    assert set(task.by_series) == set(series_of(node))


def test_the_gate_looks_at_each_volume_with_its_own_source(node):
    def spoil(order, result):
        for path in result.written.paths:
            phantoms.edit(path, lambda dataset: setattr(dataset, "MagneticFieldStrength", 7))
        return result

    job = work(node, for_part("sagittal", spoil))

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.GATE)
    assert "its rule magnetic_field_strength: sagittal: MagneticFieldStrength of" in job.reason


def test_volumes_of_two_persons_are_never_sent(tmp_path):
    paths = two_planes(tmp_path / "scan", PatientID="SOMEBODY-ELSE")
    node = queued_node(tmp_path, paths=paths)

    job = work(node)

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.GATE)
    assert "patient_and_study" in job.reason
    node.store.close()


def test_a_refused_volume_ends_the_job_and_is_named(node):
    def refuse(order, result):
        raise GeometryError("slices 3 and 4 are one")

    job = work(node, for_part("sagittal", refuse))

    assert job.state is JobState.DEAD
    assert "cannot be processed: sagittal: slices 3 and 4 are one" in job.reason
    assert node.store.jobs.derived(job.id) == []


def test_a_failure_in_one_volume_leaves_nothing_and_is_tried_again(node):
    def fail(order, result):
        raise RuntimeError

    job = work(node, for_part("sagittal", fail))

    assert job.state is JobState.QUEUED
    assert node.store.jobs.derived(job.id) == []
    assert list(attempts_dir(node.settings).glob("*/*")) == []


def test_a_repeated_attempt_writes_the_same_bytes(node):
    def contents():
        return [one.path.read_bytes() for one in node.store.jobs.derived(node.job.id)]

    work(node, copying_engine(passed=False))
    before = contents()
    node.store.jobs.cancel(node.job.id, now())
    requeue_job(node.settings, node.store, node.job.id, now())
    work(node)

    assert contents() == before


def volumes(*sop_uids):
    return [
        Source(name=name, sop_uids=frozenset([uid]), paths=())
        for name, uid in zip(NAMES, sop_uids, strict=True)
    ]


def test_progress_is_that_of_all_volumes_together():
    told = []

    def engine(order, settings, progress):
        progress("student", 0.5)

    orders = list(orders_of(volumes("1.1", "1.2"), None, None, KINDS, ()))
    carry_out(orders, engine, None, lambda *said: told.append(said))

    assert told == [("student (1 of 2)", 0.25), ("student (2 of 2)", 0.75)]


def test_a_new_generation_names_for_each_volume_the_one_it_replaces(node):
    delivered(node)
    before = [uid for uid, files in series_of(node).items() if files[0].kind == "classic"]
    requeue_job(node.settings, node.store, node.job.id, now())
    work(node)

    after = [files[0] for files in series_of(node).values() if files[0].kind == "classic"]
    related = [
        [item.SeriesInstanceUID for item in pydicom.dcmread(one.path).RelatedSeriesSequence]
        for one in after
    ]
    assert related == [[node.job.series_uid, uid] for uid in before]
    assert not set(before) & {one.series_uid for one in after}


def test_a_volume_that_comes_late_makes_a_generation_of_both(tmp_path):
    paths = two_planes(tmp_path / "scan")
    node = queued_node(tmp_path, paths=paths[:12])
    first = work(node).derived_series_uid

    for path in paths[12:]:
        node.submit(path)
    node.assemble()
    work(node)

    assert node.job.generation == 2
    images = [pydicom.dcmread(files[0].path) for files in series_of(node).values()]
    assert len(images) == 2
    for image in images:  # nobody knows which of them took the place of the old one
        assert first in [item.SeriesInstanceUID for item in image.RelatedSeriesSequence]
    node.store.close()


def test_a_hole_in_one_volume_holds_the_series(tmp_path):
    paths = two_planes(tmp_path / "scan")
    node = queued_node(tmp_path, paths=[*paths[:18], *paths[19:]])

    assert (node.job.state, node.job.held_by) == (JobState.HELD, HeldBy.COMPLETENESS)
    assert "Held: sagittal: slice missing at" in node.job.reason
    node.submit(paths[18])
    node.assemble()
    assert node.job.state is JobState.QUEUED
    node.store.close()


# --- whatever lists results ---------------------------------------------------------------------


def test_lists_and_recalls_name_every_series(node, archive, tmp_path, capsys):
    job = delivered(node)
    made = list(series_of(node))

    [row] = node.store.series.listing()
    assert (row["derived_series_uid"], row["derived_series_uids"]) == (made[0], made)
    [delivery] = row["deliveries"]
    assert delivery["sent"] == 26
    assert node.store.ledger().balanced
    sent = AuditExport(node.store.database).sent(job.id, "pacs")
    assert list(sent.series_uids) == made
    for files in series_of(node).values():
        document = from_dataset(pydicom.dcmread(files[0].path, stop_before_pixels=True))
        assert files[0].series_uid in document.series.values()
    capsys.readouterr()
    state = str(tmp_path / "state")
    recall = ["recall", "--state-dir", state, "--weights", job.weights_sha256, "--reason", "wrong"]
    assert main([*recall, "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["series"]
    assert told["derived_series_uids"] == made
    assert main(recall) == 0
    table = capsys.readouterr().out
    assert all(uid in table for uid in made)
    check_note(node, archive)


def check_note(node, archive) -> None:
    """The archive gets one rejection note, which names each instance in its own series."""
    Sender(node.store, node.settings).run_once(now())
    notes = [pydicom.dcmread(path, force=True) for path in archive.paths()]
    [note] = [one for one in notes if one.get("SeriesNumber") == 9900]
    [study] = note.CurrentRequestedProcedureEvidenceSequence
    told = {
        series.SeriesInstanceUID: [
            item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence
        ]
        for series in study.ReferencedSeriesSequence
    }
    assert told == {uid: [one.sop_uid for one in files] for uid, files in series_of(node).items()}


def test_a_note_about_one_volume_withdraws_all_of_them(node):
    delivered(node)
    [_, _, third, _] = series_of(node).values()

    grounds = withdrawal.Grounds(title="113037", reason="wrong side")
    node.store.withdrawals.reject([third[0].sop_uid], "PACS", grounds, now())

    assert node.job.state is JobState.CANCELLED


def test_retention_takes_the_files_of_all_volumes_together(node):
    delivered(node)
    made = series_of(node)
    paths = [one.path for files in made.values() for one in files]

    later = now() + timedelta(days=1000)
    gone = [one.lot.kind for one in retention.purge(node.store, node.settings, later)]

    assert sorted(gone) == ["derived", "originals"]
    assert not any(path.exists() for path in paths)
    trail = node.store.audit.listing(job_id=node.job.id)
    [row] = [
        one
        for one in trail
        if one.event.startswith("retention.")
        and one.fields.get("kind") == "derived"
        and "counts" in one.fields
    ]
    assert row.fields["series"] == ", ".join(made)


def test_a_task_is_completed_with_the_series_of_every_volume(tmp_path):
    paths = two_planes(tmp_path / "scan")
    with (
        task_manager(paths) as manager,
        LoopbackArchive(tmp_path / "archive") as archive,
    ):
        line = Line(tmp_path / "state", manager, archive)
        manager.schedule(UID)
        line.look(2)
        line.enhance()
        line.send()
        line.look()

        assert manager.state(UID) == "COMPLETED"
        outputs = manager.performed(UID)["00404033"]["Value"]
        [row] = line.store.series.listing()
        line.store.close()
    assert [one["0020000E"]["Value"][0] for one in outputs] == row["derived_series_uids"]


def test_what_no_rule_takes_may_still_be_queued_by_a_person(tmp_path):
    """A stack beside a smaller one: the rules leave it alone, a person may not."""
    node = queued_node(tmp_path, paths=two_planes(tmp_path / "scan"), assembly={"idle_s": 1.0})
    assert node.job.state is JobState.SKIPPED

    requeue_job(node.settings, node.store, node.job.id, now())
    work(node)

    assert len(series_of(node)) == 2
    node.store.close()


def test_what_was_made_of_no_volume_of_the_series_is_not_released():
    fields = dict.fromkeys(
        ("bundle_name", "bundle_sha256", "created", "job_id", "recipe_digest", "software_name"), ""
    )
    made = Provenance(
        source_study_uid="1.2",
        source_series_uid="1.3",
        source_sop_uids=("1.1",),
        recipe={},
        software_version="",
        **fields,
    )

    assert source_of(made, volumes("1.0", "1.1")).name == "sagittal"
    with pytest.raises(GateRefused, match="no volume of 1.3"):
        source_of(made, volumes("1.0", "1.2"))
