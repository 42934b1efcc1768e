"""What an encoded data set says, whatever its transfer syntax: identity, digest, completeness."""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pydicom.values import convert_SQ

from dicom_node.bombs import ITEM, few_elements, frame_is_too_large, read_meta, refuse_bombs
from dicom_node.elements import PACKING, PADDED, UNDEFINED
from dicom_node.errors import InstanceRejected, NotAnInstance

# Fixed for good: the same data set must give the same file, whichever version received it.
IMPLEMENTATION_UID = "2.25.129741604812391164186406126163416105013"
IMPLEMENTATION_NAME = "DICOM_NODE"

# What pydicom raises on bytes that are no data set; LookupError is a character set, too.
PARSE_ERRORS = (
    AttributeError, BytesLengthException, EOFError, InvalidDicomError, LookupError,
    NotImplementedError, OSError, OverflowError, RecursionError, TypeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip
DECODE_ERRORS = (*PARSE_ERRORS, RuntimeError)

WORD_BYTES = {
    "AT": 2, "OW": 2, "SS": 2, "US": 2, "FL": 4, "OF": 4, "OL": 4, "SL": 4, "UL": 4,
    "FD": 8, "OD": 8, "OV": 8, "SV": 8, "UV": 8,
}  # fmt: skip


def as_file(
    sop_class: str, sop_uid: str, transfer_syntax: str, encoded: bytes | memoryview
) -> bytes:
    """Return the data set as received, behind file meta information (PS3.10 7.1)."""
    return b"".join([file_meta(sop_class, sop_uid, transfer_syntax), encoded])


def file_meta(sop_class: str, sop_uid: str, transfer_syntax: str) -> bytes:
    """Return preamble and file meta information.

    Written by hand: pydicom refuses UIDs that scanners do use (components like ``.03``).

    Raises
    ------
    NotAnInstance
        If a UID is too long or no plain text.
    """
    meta = b"".join([
        struct.pack("<HH2s2xL", 2, 0x0001, b"OB", 2) + b"\x00\x01",
        _short_element(0x0002, "UI", sop_class),
        _short_element(0x0003, "UI", sop_uid),
        _short_element(0x0010, "UI", transfer_syntax),
        _short_element(0x0012, "UI", IMPLEMENTATION_UID),
        _short_element(0x0013, "SH", IMPLEMENTATION_NAME),
    ])  # fmt: skip
    length = struct.pack("<HH2sHL", 2, 0x0000, b"UL", 4, len(meta))
    return b"".join([b"\x00" * 128, b"DICM", length, meta])


def _short_element(element: int, vr: str, text: str) -> bytes:
    value = _plain_text(text, "a UID").encode("ascii")
    value += (b"\x00" if vr == "UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr.encode(), len(value)) + value


def _plain_text(text: str, what: str) -> str:
    if not (text.isascii() and text.isprintable() and len(text) <= 64):
        raise NotAnInstance(f"{text[:80]!r} is not {what}")
    return text


def split_file(path: Path) -> tuple[str, bytes]:
    """Return transfer syntax and encoded data set of a DICOM file.

    Raises
    ------
    NotAnInstance
        If it cannot be read or is no DICOM file.
    """
    try:
        with open(path, "rb") as file:
            meta, encoded = split(file)
    except OSError as error:
        raise NotAnInstance(f"no DICOM file: {error.strerror}") from error
    return str(UID(meta.TransferSyntaxUID)), encoded


def split(file: BinaryIO) -> tuple[Dataset, bytes]:
    """Return file meta information, with a transfer syntax, and encoded data set of a DICOM file.

    Raises
    ------
    NotAnInstance
        If it is no DICOM file.
    """
    try:
        meta = read_meta(file)
        UID(meta.TransferSyntaxUID)
        return meta, file.read()
    except PARSE_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            raise NotAnInstance(f"no DICOM file: {error.strerror}") from error
        raise NotAnInstance("no DICOM file: no file meta information") from error


def parse(file: bytes) -> Dataset:
    """Return the data set of a DICOM file.

    Raises
    ------
    NotAnInstance
        If it is none.
    InstanceRejected
        If it is cut short inside an element of undefined length, or would grow beyond all limits.
    """
    try:
        refuse_bombs(file)
        stream = BytesIO(file)
        dataset = read_partial(stream, few_elements(stream))
    except PARSE_ERRORS as error:
        raise NotAnInstance(f"no DICOM data set: {type(error).__name__}") from error
    if not dataset:  # pydicom warns and gives up everything that it had read
        raise InstanceRejected("the data set is empty or cut short")
    return dataset


def uid_of(dataset: Dataset, keyword: str) -> str:
    """Return a UID that must be there.

    Raises
    ------
    NotAnInstance
        If it is missing, empty or no text.
    """
    try:
        value = dataset.get(keyword)
    except PARSE_ERRORS as error:
        raise NotAnInstance(f"{keyword} cannot be read: {type(error).__name__}") from error
    if not isinstance(value, str) or not value:
        raise NotAnInstance(f"the data set has no {keyword}")
    return _plain_text(str(value), f"a {keyword}")


def attributes_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of all attributes but the pixels; equal for every lossless encoding.

    Call it on a freshly read data set: what was looked at before is no longer as it was sent.

    Raises
    ------
    NotAnInstance
        If an element cannot be read.
    InstanceRejected
        If the data set ends inside an element.
    """
    digest = hashlib.sha256()
    try:
        for piece in _canonical(dataset):
            digest.update(piece)
    except PARSE_ERRORS as error:
        raise NotAnInstance(f"the data set is damaged: {type(error).__name__}") from error
    return digest.hexdigest()


def _canonical(dataset: Dataset) -> Iterator[bytes]:
    """Yield tags and values in one fixed encoding: implicit VR, little endian, no padding."""
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag in PACKING:
            continue
        element = dataset.get_item(tag, keep_deferred=True)  # as sent, an empty one too
        items = _items(dataset, element)
        yield struct.pack("<L", tag)
        if items is None:
            value = _plain_value(element)
            yield struct.pack("<L", len(value)) + value
        else:
            for item in items:
                yield ITEM
                yield from _canonical(item)
            yield struct.pack("<L", 0)


def _items(dataset: Dataset, element: DataElement | RawDataElement) -> Iterable[Dataset] | None:
    """Return the items of a sequence, None for everything else."""
    tag = element.tag
    known = dictionary_VR(tag) if dictionary_has_tag(tag) else None
    if "SQ" in (known, element.VR):
        return dataset[tag].value or ()
    # A private sequence in implicit VR, or as UN, shows only in its first bytes (PS3.5 6.2.2).
    value = element.value
    if known is None and element.VR in (None, "UN") and isinstance(value, bytes):
        if value.startswith(ITEM):
            return convert_SQ(value, True, True)
        if not value:
            return ()
    return None


def _plain_value(element: DataElement | RawDataElement) -> bytes:
    value = element.value
    if not isinstance(element, RawDataElement):
        return _encoded_again(element)
    value = value or b""
    if element.length not in (UNDEFINED, len(value)):
        raise InstanceRejected(
            f"the data set ends inside {element.tag}: {len(value)} of {element.length} bytes"
        )
    if not element.is_little_endian:
        value = swapped(value, WORD_BYTES.get(element.VR or "", 1))
    known = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else None
    return value.rstrip(b" \x00") if known in PADDED else value


def _encoded_again(element: DataElement) -> bytes:
    """Return the value of an element that pydicom has already read.

    These are the character set, and PixelRepresentation where there is a sequence.
    """
    value = element.value
    values = value if isinstance(value, MultiValue | list) else [value]
    if element.VR == "US":
        return b"".join(struct.pack("<H", each) for each in values if isinstance(each, int))
    return "\\".join(str(each or "") for each in values).encode().rstrip(b" \x00")


def swapped(value: bytes, word_bytes: int) -> bytes:
    if word_bytes == 1 or len(value) % word_bytes:
        return value
    return np.frombuffer(value, f">u{word_bytes}").astype(f"<u{word_bytes}").tobytes()


def refuse_short_pixels(dataset: Dataset) -> None:
    """Return when every pixel is there.

    Raises
    ------
    InstanceRejected
        If there are fewer bytes, or frames, of pixel data than the header promises, or if a
        compressed frame would be larger than any.
    """
    if "Rows" not in dataset or "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        return
    try:
        expected, found, unit = _promised(dataset)
    except PARSE_ERRORS as error:
        raise InstanceRejected(f"PixelData cannot be read: {type(error).__name__}") from error
    if found < expected:
        raise InstanceRejected(f"PixelData is cut short: {found} of {expected} {unit}")


def _promised(dataset: Dataset) -> tuple[int, int, str]:
    frames = int(dataset.get("NumberOfFrames") or 1)
    encoded = bytes(dataset.PixelData or b"") if "PixelData" in dataset else b""
    # int: a header may hold texts here, and a text times 65535 is a long one.
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    bits_per_pixel = int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated)
    if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
        if frame_is_too_large(rows, columns, bits_per_pixel):
            raise InstanceRejected(f"a frame of {rows} x {columns} pixels is promised")
        return frames, max(_fragments(encoded) - 1, 0), "frames"  # the first: offset table
    bits = rows * columns * bits_per_pixel * frames
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        bits = bits // 3 * 2
    return ceil(bits / 8), len(encoded), "bytes"


def _fragments(encoded: bytes) -> int:
    """Return how many complete items there are (PS3.5 A.4)."""
    count = start = 0
    while start < len(encoded):
        tag, length = struct.unpack_from("<4sL", encoded, start)
        if tag != ITEM:
            raise ValueError("no item")
        start += 8 + length
        count += 1
    if start != len(encoded):
        raise InstanceRejected(f"PixelData is cut short in fragment {count}")
    return count
