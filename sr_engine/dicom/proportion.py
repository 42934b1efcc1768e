"""Files that would take all memory when they are read: refused from their headers.

A deflated data set can grow a thousandfold, and a few bytes of compressed pixel data can promise an
image of any size.
"""

import zlib
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sr_engine.errors import NotDicom, PixelDecodeError

MOST_INFLATED_BYTES = 2**28
MOST_PIXELS = 2**28  # of one file: twice 512 x 512 x 512; ten bytes each while it is decoded
META_BYTES = 1024  # where a transfer syntax stands, if it stands anywhere
PREAMBLE_BYTES = 144  # preamble, prefix and the element that says how long the rest of group 2 is


def refuse_inflation(path: Path) -> None:
    """Return when the data set in `path` is not deflated, or inflates to a bearable size.

    Raises
    ------
    NotDicom
        If it does not.
    zlib.error, EOFError, InvalidDicomError ...
        What pydicom raises on bytes that are no DICOM file.
    """
    if not is_deflated(path):
        return
    meta = read_file_meta_info(path)
    with open(path, "rb") as file:
        file.seek(PREAMBLE_BYTES + meta.get("FileMetaInformationGroupLength", 0))
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := unpacker.unconsumed_tail or file.read(2**20):
            size += len(unpacker.decompress(packed, 2**20))
            if size > MOST_INFLATED_BYTES:
                raise NotDicom(f"{path.name} inflates to over {MOST_INFLATED_BYTES} bytes")
            if unpacker.eof:
                return


def is_deflated(path: Path) -> bool:
    """Return whether the data set in `path` is deflated; raises as `refuse_inflation`."""
    with open(path, "rb") as file:
        if DeflatedExplicitVRLittleEndian.encode() not in file.read(META_BYTES):
            return False
    return bool(read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian)


def refuse_too_many_pixels(rows: float, columns: float, frames: float, uid: str) -> None:
    """Return when an image of this size can be decoded, else raise PixelDecodeError."""
    if rows * columns * max(frames, 1) > MOST_PIXELS:
        raise PixelDecodeError(
            f"pixel data of {uid} are {rows:g} x {columns:g} x {frames:g} pixels: too many"
        )
