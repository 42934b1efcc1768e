"""Demographic corrections: the corrected image takes the old one's place, whatever crashes."""

import struct
from datetime import UTC, datetime, timedelta

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from dicom_node import retention, withdrawal
from dicom_node.content import attributes_digest, parse, split_file
from dicom_node.corrections import corrects
from dicom_node.errors import ConflictingInstance, CorrectedSince
from dicom_node.examination import Incoming
from dicom_node.intake import recover, take_in
from dicom_node.pixel_files import PixelFiles
from dicom_node.sender import Sender
from dicom_node.states import JobState
from dicom_node.worker import Worker
from tests.dicom_node.nodes import copying_engine, queued_node
from tests.rigs import encoded, make_instance

RIGHT = {"PatientName": "Right^Person", "PatientID": "RIGHT-1"}


@pytest.fixture
def node(tmp_path, archive):
    peer = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
    made = queued_node(tmp_path, peers=[peer | {"roles": ["destination"]}])
    yield made
    made.store.close()


def enhance_and_send(node) -> None:
    assert Worker(node.settings, node.store, engine=copying_engine()).run_once()
    Sender(node.store, node.settings).run_once(datetime.now(UTC))


def corrected(node, path, tmp_path, **values):
    dataset = pydicom.dcmread(path)
    for keyword, value in (RIGHT | values).items():
        setattr(dataset, keyword, value)
    copy = tmp_path / f"corrected-{path.name}"
    dataset.save_as(copy)
    return copy


def arrive(node, path):
    """Take a file in as a scanner brings it."""
    syntax, encoded = split_file(path)
    incoming = Incoming(encoded=encoded, transfer_syntax=syntax, calling_ae="MR1")
    return take_in(incoming, node.files, node.store, datetime.now(UTC))


def correct_all(node, tmp_path, paths=None):
    for path in paths or node.paths:
        node.submit(corrected(node, path, tmp_path))
    node.assemble()


def test_a_correction_withdraws_the_result_and_makes_it_again(node, archive, tmp_path):
    enhance_and_send(node)
    old = node.job

    correct_all(node, tmp_path)
    assert node.job.state is JobState.QUEUED and node.job.generation == 2
    withdrawal.send_notes(node.store, node.settings, datetime.now(UTC))
    enhance_and_send(node)

    assert node.store.jobs.get(old.id).withdrawn_at is not None
    assert node.job.state is JobState.DELIVERED
    kept = [pydicom.dcmread(path, force=True) for path in archive.paths()]
    [note] = [each for each in kept if each.Modality == "KO"]
    [series] = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == old.derived_series_uid
    again = [each for each in kept if each.SeriesInstanceUID == node.job.derived_series_uid]
    assert {each.PatientID for each in again} == {"RIGHT-1"}
    assert len(node.store.series.instances(node.job.series_id)) == len(node.paths)
    assert node.store.ledger().balanced


def test_only_one_file_of_each_image_is_left_and_verify_knows_it(node, tmp_path):
    correct_all(node, tmp_path)

    rows = node.store.series.instances(node.job.series_id)
    assert sorted(row.path for row in rows) == node.files.paths()
    assert {pydicom.dcmread(row.path).PatientID for row in rows} == {"RIGHT-1"}
    assert recover(node.files, node.store) == []
    node.submit(corrected(node, node.paths[0], tmp_path))  # known by now
    assert node.store.series.ledger().acknowledged == len(node.paths)


def test_the_image_before_its_correction_does_not_come_back(node, tmp_path):
    correct_all(node, tmp_path)

    with pytest.raises(CorrectedSince, match=r"^was corrected since: .* older version") as refused:
        arrive(node, node.paths[0])

    assert refused.value.status == 0xC000  # 0x0111 would say "it is there"
    row = node.store.series.instances(node.job.series_id)[0]
    assert pydicom.dcmread(row.path).PatientID == "RIGHT-1"


def test_a_person_may_put_the_image_back_as_it_was_before_its_correction(node, tmp_path):
    correct_all(node, tmp_path)

    node.submit(node.paths[0])

    row = node.store.series.find_instance(pydicom.dcmread(node.paths[0]).SOPInstanceUID)
    assert pydicom.dcmread(row.path) == pydicom.dcmread(node.paths[0])
    assert node.job.state is JobState.RECEIVING
    arrive(node, node.paths[0])  # known by now
    with pytest.raises(CorrectedSince):
        arrive(node, tmp_path / f"corrected-{node.paths[0].name}")
    assert recover(node.files, node.store) == [] and node.store.ledger().balanced


def test_half_a_correction_is_not_computed(node, tmp_path):
    """Some images of one patient and some of another never make one volume."""
    from sr_engine.dicom.reader import read_series
    from sr_engine.errors import UnsupportedInput

    correct_all(node, tmp_path, node.paths[:3])

    rows = node.store.series.instances(node.job.series_id)
    with pytest.raises(UnsupportedInput, match="more than one PatientID") as refused:
        read_series([row.path for row in rows])
    assert "RIGHT-1" not in str(refused.value)


def test_a_correction_long_after_the_files_have_gone_withdraws_the_result_too(node, tmp_path):
    enhance_and_send(node)
    old, later = node.job, datetime.now(UTC) + timedelta(days=400)
    node.store.waits.restart(later, timedelta(seconds=60), not_after=later)
    assert list(retention.purge(node.store, node.settings, later))
    other = pydicom.dcmread(corrected(node, node.paths[1], tmp_path))
    other.EchoTime = 4711
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(ConflictingInstance):
        node.submit(tmp_path / "other.dcm")
    assert node.job.state is JobState.DELIVERED

    correct_all(node, tmp_path)

    assert node.store.jobs.get(old.id).withdrawn_at is not None
    assert (node.job.state, node.job.generation) == (JobState.QUEUED, 2)


@pytest.mark.parametrize("change", ["pixels", "study", "position"])
def test_other_content_is_no_correction(node, tmp_path, change):
    path = corrected(node, node.paths[0], tmp_path)
    dataset = pydicom.dcmread(path)
    if change == "pixels":
        dataset.PixelData = dataset.PixelData[:-2] + b"\x05\x05"
    elif change == "study":
        dataset.StudyInstanceUID = "1.2.3.4711"
    else:
        dataset.ImagePositionPatient = [0, 0, 4711]
    dataset.save_as(path)

    with pytest.raises(ConflictingInstance):
        node.submit(path)
    assert node.job.state is JobState.QUEUED


def test_a_correction_of_a_series_that_a_person_cancelled_does_not_undo_that(node, tmp_path):
    enhance_and_send(node)
    again = node.store.jobs.requeue(node.job.id, datetime.now(UTC))
    node.store.jobs.cancel(again, datetime.now(UTC))

    correct_all(node, tmp_path)

    assert node.job.state is JobState.CANCELLED
    assert withdrawal.send_notes(node.store, node.settings, datetime.now(UTC)) == 1


@pytest.mark.parametrize("step", ["settle", "move_file", "discard"])
def test_a_crash_in_the_middle_leaves_one_whole_file(node, tmp_path, monkeypatch, step):
    def crash(*arguments):
        raise KeyboardInterrupt

    owner = type(node.store.series) if step == "move_file" else PixelFiles
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(owner, step, crash)
        node.submit(corrected(node, node.paths[0], tmp_path))

    recover(node.files, node.store)
    sop_uid = pydicom.dcmread(node.paths[0], stop_before_pixels=True).SOPInstanceUID
    row = node.store.series.find_instance(sop_uid)
    assert row.path.is_file() and pydicom.dcmread(row.path).PatientID == "RIGHT-1"
    node.submit(corrected(node, node.paths[0], tmp_path))  # the sender had no answer
    assert len(node.files.paths()) == len(node.paths)


@pytest.mark.parametrize(
    ("values", "is_one"),
    [
        ({"PatientName": "Other^Name"}, True),
        ({"AccessionNumber": "4711"}, True),
        ({"PatientName": "Other^Name", "SpecificCharacterSet": "ISO_IR 192"}, True),
        ({"SpecificCharacterSet": "ISO_IR 192"}, False),
        ({"SeriesDescription": "other"}, False),
        ({"PatientName": "Other^Name", "EchoTime": "99"}, False),
        ({}, False),
    ],
)
def test_a_correction_changes_whose_image_it_is_and_nothing_else(values, is_one):
    assert corrects(encoded(make_instance()), encoded(make_instance(**values))) == is_one


@pytest.mark.parametrize("empty", ["SmallestImagePixelValue", "PixelPaddingValue"])
def test_an_empty_value_of_unclear_type_is_no_reason_to_fail(empty):
    sign = struct.pack("<HHLH", 0x0028, 0x0103, 2, 0)  # PixelRepresentation

    def image(**values):
        file = encoded(make_instance(**{empty: None}, **values), ImplicitVRLittleEndian)
        assert sign in file
        return file.replace(sign, b"")

    known = image()
    assert corrects(known, image(PatientName="Other^Name"))
    assert not corrects(known, image(EchoTime="99"))
    assert attributes_digest(parse(known)) != attributes_digest(parse(image(EchoTime="99")))
