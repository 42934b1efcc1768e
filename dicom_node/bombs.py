"""What is small on the wire and takes all memory or hours when it is read: refused before that.

The largest message is `limits.message_bytes`; here stands what a message may grow to. The figures
are far above what scanners send and far below what a listener cannot bear.
"""

import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import BinaryIO

from pydicom import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node.errors import InstanceRejected
from sr_engine.dicom.padding import at_padding

# Zeros deflate to a thousandth, images to a half or a quarter: any data set may inflate to
# the first, a large one to so many times its size, none to more than the last.
ALWAYS_INFLATED_BYTES, MOST_TIMES, MOST_INFLATED_BYTES = 2**26, 20, 2**30
MOST_FRAME_BYTES = 2**28  # 11585 x 11585 pixels of 16 bits: no scanner
# Eight bytes each on the wire, a hundred times that in memory, and much time:
MOST_ITEMS = 200_000  # 10,000 frames of 20 functional groups, or fragments
MOST_ELEMENTS = 20_000  # of the data set itself; items have their own
ITEM, ITEM_BIG_ENDIAN = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
META_BYTES = 1024  # where a transfer syntax stands, if it stands anywhere


def refuse_bombs(file: bytes) -> None:
    """Return when nothing in a DICOM file grows out of all proportion.

    Raises
    ------
    InstanceRejected
        If it inflates too far or has too many items.
    zlib.error, EOFError, InvalidDicomError ...
        What pydicom raises on bytes that are no data set.
    """
    items = sum(map(count_items, inflated(file)))
    if items > MOST_ITEMS:
        raise InstanceRejected(f"there are {items} items in the data set, {MOST_ITEMS} is the most")


def count_items(data: bytes) -> int:
    """Return how often something that may be the beginning of an item stands in `data`."""
    return data.count(ITEM) + data.count(ITEM_BIG_ENDIAN)


def inflated(file: bytes) -> Iterator[bytes]:
    """Yield the file as it is, or a deflated data set piece by piece.

    Raises
    ------
    InstanceRejected
        As soon as it has become too large.
    """
    stream = BytesIO(file)
    if not is_deflated(stream):
        yield file
        return
    read_meta(stream)
    unpacker, packed, size = zlib.decompressobj(-zlib.MAX_WBITS), stream.read(), 0
    most = min(MOST_INFLATED_BYTES, max(ALWAYS_INFLATED_BYTES, MOST_TIMES * len(packed)))
    while packed and not unpacker.eof:
        piece = unpacker.decompress(packed, 2**20)
        size, packed = size + len(piece), unpacker.unconsumed_tail
        if size > most:
            raise InstanceRejected(f"the data set inflates to over {most} bytes")
        yield piece


def is_deflated(stream: BinaryIO) -> bool:
    """Return whether the data set of a DICOM file is; the stream stands at its beginning.

    Raises
    ------
    EOFError, InvalidDicomError ...
        What pydicom raises on bytes that are no DICOM file.
    """
    head = stream.read(META_BYTES)
    stream.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return False
    meta = read_meta(stream)
    stream.seek(0)
    return bool(meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian)


def read_meta(stream: BinaryIO) -> Dataset:
    """Return the file meta information of a DICOM file; the stream stands behind it then."""
    read_preamble(stream, False)
    return read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)


def few_elements(stream: BinaryIO) -> Callable[[BaseTag, str | None, int], bool]:
    """Return a `stop_when` that lets pydicom read MOST_ELEMENTS, then raises InstanceRejected.

    It ends the data set of `stream` where its padding begins. Of a deflated one, which pydicom
    reads from elsewhere, zeros are elements like any other.
    """
    left = iter(range(MOST_ELEMENTS))
    padding = None if is_deflated(stream) else at_padding(stream)

    def stop_when(tag: BaseTag, vr: str | None, length: int) -> bool:
        if padding is not None and padding(tag, vr, length):
            return True
        if next(left, None) is None:
            raise InstanceRejected(f"there are more than {MOST_ELEMENTS} elements in the data set")
        return False

    return stop_when


def frame_is_too_large(rows: int, columns: int, bits_per_pixel: int) -> bool:
    """Return whether a compressed frame would take too much memory when it is decoded.

    A few bytes of it can promise any size.
    """
    return rows * columns * bits_per_pixel > 8 * MOST_FRAME_BYTES
