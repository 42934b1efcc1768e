"""MPPS and instance availability notifications: who names a series ends the waiting for it."""

from datetime import UTC, datetime, timedelta

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE
from pynetdicom.sop_class import InstanceAvailabilityNotification, ModalityPerformedProcedureStep

from dicom_node import assembly
from dicom_node.intake import submit_file
from dicom_node.states import HeldBy, JobState
from tests import phantoms
from tests.dicom_node.nodes import ANY_MR, PACS
from tests.rigs import SOURCE, running_node

MPPS_UID = "1.2.826.0.1.4711"


@pytest.fixture
def node(tmp_path):
    sections = {"assembly": {"idle_s": 600.0, "min_slices": 2}, "rules": [ANY_MR]}
    with running_node(tmp_path / "state", peers=[SOURCE, PACS], **sections) as running:
        yield running


@pytest.fixture
def scan(tmp_path):
    """The files of a series, its UID, and the UIDs of its instances."""
    paths = phantoms.corner_series(tmp_path / "scan").paths
    headers = [dcmread(path, stop_before_pixels=True) for path in paths]
    return paths, str(headers[0].SeriesInstanceUID), [str(one.SOPInstanceUID) for one in headers]


class Scanner:
    """An association of a modality."""

    def __init__(self, node, title="MR1"):
        ae = AE(ae_title=title)
        ae.add_requested_context(ModalityPerformedProcedureStep)
        ae.add_requested_context(InstanceAvailabilityNotification)
        self.association = ae.associate("127.0.0.1", node.scp.port, ae_title="SRNODE")
        assert self.association.is_established

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.association.release()

    def begin(self, uid=MPPS_UID, state="IN PROGRESS"):
        said = Dataset()
        said.PerformedProcedureStepStatus = state
        said.PatientName = "Rig^Patricia"
        status, _ = self.association.send_n_create(said, ModalityPerformedProcedureStep, uid)
        return status.Status

    def update(self, state, series_uid="", uids=(), uid=MPPS_UID):
        said = Dataset()
        said.PerformedProcedureStepStatus = state
        if series_uid:
            said.PerformedSeriesSequence = [
                series_item(series_uid, uids, "ReferencedImageSequence")
            ]
        status, _ = self.association.send_n_set(said, ModalityPerformedProcedureStep, uid)
        return status.Status

    def notify(self, series_uid, uids, unavailable=()):
        said = Dataset()
        said.StudyInstanceUID = "1.2.3"
        said.ReferencedSeriesSequence = [
            series_item(series_uid, [*uids, *unavailable], "ReferencedSOPSequence")
        ]
        for item in said.ReferencedSeriesSequence[0].ReferencedSOPSequence:
            gone = item.ReferencedSOPInstanceUID in unavailable
            item.InstanceAvailability = "UNAVAILABLE" if gone else "ONLINE"
        status, _ = self.association.send_n_create(
            said, InstanceAvailabilityNotification, "1.2.826.0.1.5"
        )
        return status.Status


def series_item(series_uid, uids, keyword):
    item = Dataset()
    item.SeriesInstanceUID = series_uid
    references = []
    for uid in uids:
        reference = Dataset()
        reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        reference.ReferencedSOPInstanceUID = uid
        references.append(reference)
    setattr(item, keyword, references)
    return item


def receive(node, paths):
    for path in paths:
        submit_file(path, node.files, node.store, datetime.now(UTC))


def decide(node, series_uid, later_s=0.0):
    """Let the node look; return the series' newest job."""
    assembly.tick(node.store, node.settings, datetime.now(UTC) + timedelta(seconds=later_s))
    return node.store.jobs.of_series(series_uid)[-1]


def test_a_series_that_an_mpps_names_wholly_does_not_wait(node, scan):
    paths, series_uid, uids = scan
    with Scanner(node) as scanner:
        assert scanner.begin() == 0x0000
        receive(node, paths[:-1])
        assert scanner.update("IN PROGRESS", series_uid, uids[:3]) == 0x0000
        assert decide(node, series_uid).state is JobState.RECEIVING
        assert scanner.update("COMPLETED", series_uid, uids) == 0x0000
    assert decide(node, series_uid).state is JobState.RECEIVING, "one image is to come"
    receive(node, paths[-1:])

    assert decide(node, series_uid).state is JobState.QUEUED


def test_a_missing_end_slice_is_noticed_by_the_list_of_the_mpps(node, scan):
    paths, series_uid, uids = scan
    with Scanner(node) as scanner:
        scanner.begin()
        scanner.update("COMPLETED", series_uid, uids)
    receive(node, paths[:-1])

    job = decide(node, series_uid, later_s=601)

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.COMPLETENESS)
    assert f"1 of the {len(uids)} instances that the MPPS of scanner names" in job.reason
    receive(node, paths[-1:])
    assert decide(node, series_uid).state is JobState.QUEUED


def test_a_notification_counts_what_can_be_had(node, scan):
    paths, series_uid, uids = scan
    receive(node, paths)
    assert decide(node, series_uid).state is JobState.RECEIVING
    with Scanner(node) as scanner:
        assert scanner.notify(series_uid, uids, unavailable=["1.2.3.99"]) == 0x0000

    assert decide(node, series_uid).state is JobState.QUEUED


def renamed(path, folder):
    """Return a copy of an image that names another patient."""
    image = dcmread(path)
    image.PatientName, image.PatientID = "Right^Person", "RIGHT-1"
    copy = folder / f"renamed-{path.name}"
    image.save_as(copy)
    return copy


def test_a_hint_ends_no_waiting_for_corrections_or_for_what_nobody_named(node, scan, tmp_path):
    paths, series_uid, uids = scan
    with Scanner(node) as scanner:
        scanner.begin()
        scanner.update("COMPLETED", series_uid, uids[:-1])
    receive(node, paths)
    assert decide(node, series_uid).state is JobState.RECEIVING, "the list has fewer"
    assert decide(node, series_uid, later_s=601).state is JobState.QUEUED
    with Scanner(node) as scanner:
        scanner.begin("1.2.826.0.1.4712")
        scanner.update("COMPLETED", series_uid, uids, "1.2.826.0.1.4712")
    copies = [renamed(path, tmp_path) for path in paths]

    receive(node, copies[:1])
    assert decide(node, series_uid).state is JobState.RECEIVING, "the others still name the wrong"
    receive(node, copies[1:])
    assert decide(node, series_uid).state is JobState.RECEIVING
    assert decide(node, series_uid, later_s=601).state is JobState.QUEUED


def test_a_discontinued_step_says_nothing_about_the_series(node, scan):
    paths, series_uid, uids = scan
    receive(node, paths)
    with Scanner(node) as scanner:
        scanner.begin()
        assert scanner.update("DISCONTINUED", series_uid, uids) == 0x0000

    assert decide(node, series_uid).state is JobState.RECEIVING
    assert decide(node, series_uid, later_s=601).state is JobState.QUEUED


def test_without_any_hint_the_idle_time_decides(node, scan):
    paths, series_uid, _ = scan
    receive(node, paths)

    assert decide(node, series_uid).state is JobState.RECEIVING
    assert decide(node, series_uid, later_s=601).state is JobState.QUEUED


def test_the_life_of_a_procedure_step_is_that_of_the_standard(node, scan):
    _, series_uid, uids = scan
    with Scanner(node) as scanner:
        assert scanner.update("COMPLETED", series_uid, uids) == 0x0112, "nobody has begun it"
        assert scanner.begin(state="COMPLETED") == 0x0106
        assert scanner.begin() == 0x0000
        assert scanner.begin() == 0x0111
        assert scanner.update("FINISHED") == 0x0106
        assert scanner.update("COMPLETED", series_uid, uids) == 0x0000
        assert scanner.update("COMPLETED", series_uid, uids) == 0x0110


def test_another_peer_neither_ends_the_step_nor_sends_hints_without_the_role(tmp_path, scan):
    _, series_uid, uids = scan
    other = SOURCE | {"name": "other", "ae_title": "MR2"}
    viewer = PACS | {"name": "viewer", "ae_title": "VIEWER", "host": "localhost"}
    with running_node(tmp_path / "state", peers=[SOURCE, other, viewer]) as node:
        with Scanner(node) as scanner:
            scanner.begin()
        with Scanner(node, "MR2") as scanner:
            assert scanner.update("COMPLETED", series_uid, uids) == 0x0112
        with Scanner(node, "VIEWER") as scanner:
            assert scanner.begin("1.2.3") == 0x0124
            assert scanner.notify(series_uid, uids) == 0x0124


def test_no_patient_stands_in_what_is_kept(node, scan):
    with Scanner(node) as scanner:
        scanner.begin()

    assert "Patricia" not in str(node.store.audit.listing())
