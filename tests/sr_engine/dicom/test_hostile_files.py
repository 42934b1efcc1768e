"""Whatever stands in a file, the reader reads it or refuses it in a sentence."""

import random
import struct

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from sr_engine.dicom.headers import read_dataset
from sr_engine.dicom.proportion import MOST_INFLATED_BYTES
from sr_engine.dicom.reader import read_series
from sr_engine.errors import InputRefused, NotDicom, PixelDecodeError
from tests import phantoms
from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_data import TEXTS, VALUE_TAGS, Maker, deflated, identity
from tests.faults.fuzz_trees import raw

NUMBER_TAGS = tuple((tag, "US") for tag in (*range(0x00280100, 0x00280104), 0x00280010, 0x00280011))
LIES = st.lists(
    st.tuples(
        st.sampled_from((*VALUE_TAGS, *NUMBER_TAGS)),
        st.sampled_from((*TEXTS, *(wire.us(number) for number in wire.NUMBERS))),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Return the files of a small series."""
    return phantoms.corner_series(tmp_path_factory.mktemp("hostile")).paths[:5]


def dicom_file(body: bytes, syntax: str) -> bytes:
    """Return an encoded data set behind the least file meta information."""
    meta = raw(0x00020010, "UI", wire.even(syntax.encode()))
    length = raw(0x00020000, "UL", struct.pack("<L", len(meta)))
    return bytes(128) + b"DICM" + length + meta + body


def with_value(file: bytes, tag: int, vr: str, value: bytes) -> bytes:
    """Return the file with another value in an element of short length, if it has that."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    at = file.find(head)
    if at < 0:
        return file
    end = at + 8 + int.from_bytes(file[at + 6 : at + 8], "little")
    return file[:at] + raw(tag, vr, wire.even(value[:60000])) + file[end:]


def read_or_refuse(paths, folder, file: bytes) -> None:
    """Read a series in which one file is replaced; a refusal has words."""
    changed = folder / "changed.dcm"
    changed.write_bytes(file)
    try:
        read_series([*paths[:2], changed, *paths[3:]])
    except InputRefused as refused:
        assert len(str(refused)) > 10


@seed(4)
@settings(max_examples=60, deadline=None, database=None)
@given(lies=LIES)
def test_values_that_lie_are_read_or_refused(slices, tmp_path_factory, lies):
    file = slices[2].read_bytes()
    for (tag, vr), value in lies:
        file = with_value(file, tag, vr, value)

    read_or_refuse(slices, tmp_path_factory.getbasetemp(), file)


def test_damaged_headers_are_read_or_refused(slices, tmp_path):
    file, rng = slices[2].read_bytes(), random.Random(3)

    for _ in range(60):
        read_or_refuse(slices, tmp_path, wire.mangle(file[:1500], rng) + file[1500:])


def test_data_sets_of_the_fuzzer_are_refused(tmp_path):
    maker, path = Maker(5, trees=20), tmp_path / "x.dcm"

    for number in range(120):
        subject = maker.make(random.Random(number))
        path.write_bytes(dicom_file(subject.encoded, subject.syntax))
        with pytest.raises(InputRefused):
            read_series([path])


def test_a_deflation_bomb_is_refused(tmp_path):
    path, megabytes = tmp_path / "bomb.dcm", MOST_INFLATED_BYTES // 2**20 + 1
    path.write_bytes(dicom_file(deflated(identity(), megabytes), wire.DEFLATED))

    with pytest.raises(NotDicom, match="inflates to over"):
        read_series([path])


def test_pixels_beyond_all_measure_are_refused_before_they_are_decoded(slices, tmp_path):
    file = slices[2].read_bytes()
    for tag in (0x00280010, 0x00280011):
        file = with_value(file, tag, "US", wire.us(65535))
    path = tmp_path / "large.dcm"
    path.write_bytes(file)

    with pytest.raises(PixelDecodeError, match="too many"):
        read_series([*slices[:2], path])


@pytest.mark.parametrize("stop_before_pixels", [False, True])
def test_zeros_behind_the_data_set_are_no_elements(tmp_path, stop_before_pixels):
    """A real archive appends two megabytes of them, which took a second; a disk has more."""
    path = tmp_path / "padded.dcm"
    pixels = raw(0x7FE00010, "OW", b"\1\0")
    path.write_bytes(dicom_file(identity() + pixels + bytes(2**20), wire.EXPLICIT))

    dataset = read_dataset(path, stop_before_pixels=stop_before_pixels)

    assert 0 not in dataset and ("PixelData" in dataset) is not stop_before_pixels


def test_zeros_before_something_else_are_read_as_ever(tmp_path):
    path = tmp_path / "odd.dcm"
    body = identity() + bytes(64) + raw(0x7FE00010, "OW", b"\1\0") + bytes(64)
    path.write_bytes(dicom_file(body, wire.EXPLICIT))

    assert read_dataset(path).PixelData == b"\1\0"
