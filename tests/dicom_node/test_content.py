"""What a data set says does not depend on how it is encoded."""

from io import BytesIO

import pytest
from pydicom import Dataset, Sequence, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.comparison import same_pixels
from dicom_node.content import (
    as_file,
    attributes_digest,
    parse,
    refuse_short_pixels,
    split_file,
    uid_of,
)
from dicom_node.errors import InstanceRejected, NotAnInstance
from dicom_node.headers import header_of
from dicom_node.rules import HEADER_KEYS
from tests.rigs import PATIENT, encoded, make_instance

SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]


def with_sequences() -> Dataset:
    """Return an instance with nested, private and text elements of many kinds."""
    dataset = make_instance(SpecificCharacterSet="ISO_IR 100", StudyDescription="Schädel")
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-A0100", "Brain"
    outer = Dataset()
    outer.AnatomicRegionModifierSequence = Sequence([inner])
    outer.FloatingPointValue = 0.25
    dataset.AnatomicRegionSequence = Sequence([outer])
    dataset.ProcedureCodeSequence = Sequence([])
    dataset.AcquisitionMatrix = [0, 256, 192, 0]
    block = dataset.private_block(0x0019, "RIG 1.0", create=True)
    block.add_new(0x01, "LO", "odd")
    block.add_new(0x02, "SQ", Sequence([inner]))
    block.add_new(0x03, "SQ", Sequence([]))
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
def test_digest_and_pixels_are_equal_in_every_lossless_encoding(syntax):
    original = encoded(with_sequences())
    other = encoded(with_sequences(), syntax)

    assert attributes_digest(parse(other)) == attributes_digest(parse(original))
    assert same_pixels(original, other) and same_pixels(other, original)
    refuse_short_pixels(parse(other))


def test_real_scan_in_seven_encodings_has_one_digest_and_one_image(shared_series):
    files = [path.read_bytes() for path in sorted(shared_series("p20").iterdir())]
    del files[4]  # that one says in its attributes that it was re-encoded
    digests = set()
    for file in files:
        dataset = parse(file)
        del dataset[0x00080018], dataset[0x00200011]  # all that tells the nine files apart
        digests.add(attributes_digest(dataset))

    assert len(digests) == 1
    assert all(same_pixels(files[0], file) for file in files[1:])


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("EchoTime", "3.1"),
        ("PatientName", "Other^Name"),
        ("ImagePositionPatient", [0, 0, 1.5]),
        ("AcquisitionMatrix", [0, 256, 192, 1]),
        ("ProcedureCodeSequence", [Dataset()]),
    ],
)
def test_every_attribute_counts(keyword, value):
    other = with_sequences()
    setattr(other, keyword, value)

    assert attributes_digest(parse(encoded(other))) != attributes_digest(
        parse(encoded(with_sequences()))
    )


def test_one_grey_value_makes_another_image():
    changed = make_instance()
    changed.PixelData = b"\x01" + changed.PixelData[1:]

    assert not same_pixels(encoded(make_instance()), encoded(changed))
    assert not same_pixels(encoded(make_instance()), encoded(changed, RLELossless))


def test_pixels_that_cannot_be_decoded_are_not_the_same():
    broken = parse(encoded(make_instance(), JPEG2000Lossless))
    broken.PixelData = broken.PixelData[:40] + b"\x00" * (len(broken.PixelData) - 40)

    assert not same_pixels(encoded(make_instance()), encoded_as_is(broken))


def encoded_as_is(dataset: Dataset) -> bytes:
    """Return a data set as a file without touching its pixels."""
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_objects_without_pixels_are_compared_by_attributes_alone():
    report = make_instance()
    del report.PixelData, report.Rows, report.Columns

    assert same_pixels(encoded(report), encoded(report))
    assert not same_pixels(encoded(report), encoded(make_instance()))
    refuse_short_pixels(parse(encoded(report)))


@pytest.mark.parametrize(
    "file",
    [b"", b"\x00" * 200, b"GET / HTTP/1.0\r\n\r\n" * 20, b"\x00" * 128 + b"DICM" + b"\xff" * 99],
    ids=["empty", "zeros", "text", "bare preamble"],
)
def test_junk_is_no_instance(file, tmp_path):
    path = tmp_path / "junk"
    path.write_bytes(file)

    with pytest.raises(InstanceRejected):
        uid_of(parse(file), "SOPInstanceUID")
    with pytest.raises(NotAnInstance, match="no DICOM file"):
        split_file(path)


def test_missing_file_is_named_as_missing(tmp_path):
    with pytest.raises(NotAnInstance, match="No such file"):
        split_file(tmp_path / "nowhere")


@pytest.mark.parametrize("syntax", SYNTAXES[:2], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("cut", [1, 100, 700])
def test_data_set_that_ends_early_is_refused(syntax, cut):
    with pytest.raises(InstanceRejected) as refused:
        dataset = parse(encoded(make_instance(), syntax)[:-cut])
        attributes_digest(dataset)
        refuse_short_pixels(dataset)
    assert refused.value.status == 0xC000


@pytest.mark.parametrize("syntax", SYNTAXES[4:], ids=lambda uid: uid.keyword)
def test_compressed_pixels_that_end_early_are_refused(syntax):
    with pytest.raises(InstanceRejected, match="cut short"):
        parse(encoded(make_instance(), syntax)[:-100])


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (b"", "0 of 2 frames"),
        (b"\xfe\xff\x00\xe0\x00\x00\x00\x00", "0 of 2 frames"),
        (b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 2, "1 of 2 frames"),
        (b"\xfe\xff\x00\xe0\x09\x00\x00\x00", "cut short in fragment 1"),
        (b"junkjunk", "cannot be read"),
        (b"\xfe\xff\x00\xe0", "cannot be read"),
    ],
)
def test_fragments_that_hold_too_little_are_refused(items, reason):
    dataset = parse(encoded(make_instance(NumberOfFrames=2)))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = items

    with pytest.raises(InstanceRejected, match=reason):
        refuse_short_pixels(dataset)


def test_missing_pixels_are_refused():
    dataset = make_instance()
    del dataset.PixelData

    with pytest.raises(InstanceRejected, match="0 of 3072 bytes"):
        refuse_short_pixels(parse(encoded(dataset)))


def test_file_meta_comes_out_as_it_went_in(tmp_path):
    path = tmp_path / "a.dcm"
    data = b"\x08\x00\x18\x00\x00\x00\x00\x00"
    path.write_bytes(as_file("1.2.840.10008.5.1.4.1.1.4", "1.2.03", "1.2.840.10008.1.2", data))

    assert split_file(path) == ("1.2.840.10008.1.2", data)


def test_header_holds_what_rules_want_and_no_patient():
    header = header_of(parse(encoded(with_sequences())))

    assert header["MagneticFieldStrength"] == 1.5
    assert header["ImageType"] == ["ORIGINAL", "PRIMARY"]
    assert header["ImagePositionPatient"] == [0.0, 0.0, 1.0]
    assert header["private_creators"] == ["RIG 1.0"]
    assert set(header) <= {*HEADER_KEYS, "private_creators"}
    assert PATIENT not in str(header)


def test_value_that_cannot_be_read_counts_as_absent():
    file = encoded(make_instance(EchoTime="2.5")).replace(b"2.5 ", b"x.5 ")

    assert "EchoTime" not in header_of(parse(file))


def test_element_of_an_unknown_vr_inside_functional_groups_counts_as_absent():
    dataset = parse(encoded(with_sequences()))
    item, odd = Dataset(), 0x00189114
    item[odd] = RawDataElement(BaseTag(odd), "ZZ", 2, b"xx", 0, False, True)
    dataset.SharedFunctionalGroupsSequence = [item]
    plain = parse(encoded(with_sequences()))

    assert header_of(dataset) == header_of(plain)


def test_functional_groups_that_are_text_count_as_absent():
    dataset, groups = parse(encoded(with_sequences())), 0x52009230
    dataset[groups] = RawDataElement(BaseTag(groups), "LO", 2, b"xx", 0, False, True)

    assert "frames" not in header_of(dataset)


def test_enhanced_header_tells_frames_apart(shared_series):
    path = next(shared_series("p04").iterdir())
    header = header_of(dcmread(path))

    positions = {tuple(frame["ImagePositionPatient"]) for frame in header["frames"]}
    assert len(header["frames"]) == len(positions) == 96
    assert header["PixelSpacing"] == [2.0, 2.0]
    assert len(header["ImageOrientationPatient"]) == 6
