"""What is small on the wire and huge when read is refused, in little memory and soon."""

import random
import struct
import tracemalloc

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.bombs import MOST_ELEMENTS, MOST_ITEMS
from dicom_node.content import as_file, attributes_digest, parse, refuse_short_pixels
from dicom_node.elements import scan
from dicom_node.errors import InstanceRejected
from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_data import deflated, fragments, identity, plane
from tests.faults.fuzz_trees import ITEM, raw

MB = 2**20


def file(body: bytes, syntax: str = wire.EXPLICIT) -> bytes:
    """Return an encoded data set as a DICOM file."""
    return as_file(wire.MR, "1.2.3", syntax, body)


def zeros(megabytes: int) -> bytes:
    """Return a data set with one element of zeros, deflated."""
    head = identity() + raw(0x7FE00010, "OW", b"", megabytes * MB)
    return file(deflated(head, megabytes), wire.DEFLATED)


def test_a_deflation_bomb_is_refused_in_little_memory():
    bomb = zeros(65)
    tracemalloc.start()

    with pytest.raises(InstanceRejected, match="inflates to over"):
        parse(bomb)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(bomb) < MB and peak < 20 * MB


def test_a_large_deflated_image_is_read():
    pixels = random.Random(1).randbytes(4 * MB) + bytes(62 * MB)
    image = raw(0x7FE00010, "OW", pixels)

    assert parse(file(deflated(identity() + image), wire.DEFLATED)).PixelData == pixels


def test_a_deflated_data_set_of_usual_size_is_read():
    assert len(parse(zeros(1)).PixelData) == MB


@pytest.mark.parametrize("syntax", [wire.EXPLICIT, wire.DEFLATED])
def test_too_many_items_are_refused_before_they_are_read(syntax):
    items = raw(0x00081140, "SQ", (ITEM + bytes(4)) * (MOST_ITEMS + 1))
    body = identity() + items
    packed = deflated(body) if syntax == wire.DEFLATED else body

    with pytest.raises(InstanceRejected, match="items in the data set"):
        parse(file(packed, syntax))


def test_too_many_elements_are_refused():
    tags = ((0x0021 + 2 * (at >> 16)) << 16 | at & 0xFFFF for at in range(MOST_ELEMENTS + 1))

    with pytest.raises(InstanceRejected, match="elements in the data set"):
        parse(file(identity() + b"".join(raw(tag, "LO", b"") for tag in tags)))


PADDING = bytes(8 * (MOST_ELEMENTS + 10))


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """Return the data set in another transfer syntax."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = syntax == wire.IMPLICIT
    buffer.is_little_endian = syntax != wire.BIG_ENDIAN
    write_dataset(buffer, dataset)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", [wire.EXPLICIT, wire.IMPLICIT, wire.BIG_ENDIAN])
def test_zeros_behind_the_pixels_are_no_elements(syntax):
    """A real archive appends two megabytes; each eight of them cost as much as an element."""
    body = encoded(parse(file(identity() + raw(0x7FE00010, "OW", b"\0\0"))), syntax)

    dataset = parse(file(body + PADDING, syntax))

    assert dataset.PixelData == b"\0\0" and 0 not in dataset
    assert attributes_digest(dataset) == attributes_digest(parse(file(body, syntax)))
    if syntax != wire.BIG_ENDIAN:
        assert scan(body + PADDING, syntax) == scan(body, syntax)


def test_zeros_before_something_else_are_elements():
    pixels = raw(0x7FE00010, "OW", b"\0\0")

    assert parse(file(identity() + bytes(64) + pixels)).PixelData == b"\0\0"
    with pytest.raises(InstanceRejected, match="elements in the data set"):
        parse(file(identity() + PADDING + pixels))


def test_zeros_in_a_deflated_data_set_are_elements():
    with pytest.raises(InstanceRejected, match="elements in the data set"):
        parse(file(deflated(identity() + PADDING), wire.DEFLATED))


@pytest.mark.parametrize("syntax", [wire.RLE, wire.J2K, wire.JPEG])
def test_a_compressed_frame_larger_than_any_is_refused(syntax):
    body = identity() + plane(65535, 65535) + fragments(b"\0" * 64)

    with pytest.raises(InstanceRejected, match="65535 x 65535"):
        refuse_short_pixels(parse(file(body, syntax)))


def test_rows_that_are_text_are_no_multiplier():
    rows = raw(0x00280010, "LO", b"9999") + raw(0x00280011, "US", struct.pack("<H", 65535))
    rest = raw(0x00280002, "US", b"\xff\xff") + raw(0x00280100, "US", b"\x10\0")
    body = identity() + rest + rows + raw(0x7FE00010, "OW", b"\0\0")

    with pytest.raises(InstanceRejected, match="PixelData"):
        refuse_short_pixels(parse(file(body)))
