"""What a signature covers, and what an archive may do to a file without breaking it."""

import hashlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from sr_engine.dicom.kinds import COMPANIONS
from sr_engine.dicom.reader import read_series
from sr_engine.dicom.seal import Signer, signature_of, statement
from tests import phantoms

KINDS = ["classic", "enhanced", *(f"classic+{name}" for name in COMPANIONS)]
IMAGES = ("classic", "enhanced", "classic+spread")


def sign(content: bytes) -> bytes:
    """Return something only those bytes give; the real key is the service's."""
    return hashlib.sha512(content).digest()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seal")
    source = read_series(phantoms.corner_series(folder / "in", "double-oblique").paths)
    signer = Signer(key="ab" * 32, sign=sign)
    outputs = phantoms.derive(source, folder / "out", kinds=KINDS, signer=signer).outputs
    return {one.kind: one.paths[0] for one in outputs}


def holds(dataset):
    """Return whether the signature in the dataset is that of what it says now."""
    found = signature_of(dataset)
    assert found is not None
    return found == (sign(statement(dataset)), "ab" * 32)


def stored_again(dataset, syntax):
    """Return what an archive gives back that keeps the dataset in another transfer syntax."""
    if syntax.is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    buffer = BytesIO()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=True, force_encoding=True
    )
    return pydicom.dcmread(BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_what_was_signed(kind, files):
    assert holds(pydicom.dcmread(files[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_implicit_vr_and_another_patient_name_leave_the_seal_whole(kind, files):
    dataset = pydicom.dcmread(files[kind])
    dataset.PatientName, dataset.StudyInstanceUID = "CORRECTED^NAME", "1.2.3"

    assert holds(stored_again(dataset, ImplicitVRLittleEndian))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("kind", IMAGES)
def test_lossless_compression_leaves_the_seal_whole(kind, syntax, files):
    assert holds(stored_again(pydicom.dcmread(files[kind]), syntax))


@pytest.mark.parametrize("kind", IMAGES)
def test_one_other_pixel_breaks_the_seal(kind, files):
    dataset = pydicom.dcmread(files[kind])
    stored = np.frombuffer(dataset.PixelData, "<u2").copy()
    stored[-1] ^= 1
    dataset.PixelData = stored.tobytes()

    assert not holds(dataset)


def moved(dataset):
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    place = frames[0].PlanePositionSequence[0] if frames else dataset
    place.ImagePositionPatient = [1, 2, 3]


def relabelled(dataset):
    text = dataset.GraphicAnnotationSequence[0].TextObjectSequence[0]
    text.UnformattedTextValue = "original image 99"


def other_figure(dataset):
    for item in dataset.ContentSequence:
        item.ValueType = "TEXT"


CHANGES = {
    "classic": moved,
    "enhanced": moved,
    "classic+spread": moved,
    "classic+key_objects": lambda d: d.ContentSequence.pop(),
    "classic+presentation": relabelled,
    "classic+report": other_figure,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_meaning_breaks_the_seal(kind, files):
    dataset = pydicom.dcmread(files[kind])
    CHANGES[kind](dataset)

    assert not holds(dataset)


def test_another_window_or_instance_breaks_the_seal(files):
    for keyword, value in (("WindowWidth", 7), ("SOPInstanceUID", "1.2.3"), ("Rows", 40)):
        dataset = pydicom.dcmread(files["classic"])
        setattr(dataset, keyword, value)
        assert not holds(dataset)


IDENTIFYING = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "SyntheticData": "NO",
    "Modality": "CT",
    "SeriesDescription": "t1_mpr",
    "Manufacturer": "another",
    "AcquisitionDate": "20200101",
    "ContentTime": "000000",
    "DerivationDescription": "none",
}


@pytest.mark.parametrize("keyword", IDENTIFYING)
def test_another_identity_of_the_image_breaks_the_seal(keyword, files):
    dataset = pydicom.dcmread(files["classic"])
    assert keyword in dataset
    setattr(dataset, keyword, IDENTIFYING[keyword])

    assert not holds(dataset)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_that_moves_with_its_references_leaves_the_seal_whole(kind, files):
    dataset = pydicom.dcmread(files[kind])
    old = str(dataset.StudyInstanceUID)

    def move(items, element):
        if element.keyword == "StudyInstanceUID" and element.value == old:
            element.value = "1.2.3"

    dataset.walk(move)
    for keyword, value in (("StudyDate", "20200101"), ("AccessionNumber", "7")):
        setattr(dataset, keyword, value)
    dataset.SpecificCharacterSet = "ISO_IR 192"

    assert holds(dataset)


def test_nobody_signs_without_a_signer(tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)

    written = phantoms.derive(source, tmp_path / "out").written

    assert signature_of(pydicom.dcmread(written.paths[0])) is None
