"""The file of an instance that is to be sent: what it says of itself, and where its data set is."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dicom_node.bombs import read_meta
from dicom_node.content import PARSE_ERRORS
from dicom_node.retry import Fault

PREAMBLE_BYTES = 132
AHEAD_BYTES = 2048  # file meta information is some hundred bytes
META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
LONG = (b"OB", b"UN")  # of what may stand in group 0002 (PS3.10 Table 7.1-1)
SOP_CLASS, SOP_UID, TRANSFER_SYNTAX = 0x0002, 0x0003, 0x0010


class Unreadable(ValueError):
    """The file is missing, no DICOM instance, or cannot be read now; `fault` and text say why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.fault = file_fault(error)


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the file meta information says; the data set stands from `at` on."""

    sop_class: str
    sop_uid: str
    transfer_syntax: str
    at: int


def read_head(path: Path) -> Head:
    """Return what the file of an instance says of itself.

    Raises
    ------
    Unreadable
        If there is no such file, or no DICOM instance in it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            ahead = file.read(AHEAD_BYTES)
            return _quickly(ahead) or _thoroughly(file)
    except PARSE_ERRORS as error:
        raise Unreadable(error) from error


def file_fault(error: Exception) -> Fault:
    """Return what it means that a file could not be read: only what is not there is lost."""
    passing = isinstance(error, OSError) and not isinstance(error, NO_SUCH_FILE)
    return Fault.UNREADABLE if passing else Fault.NO_FILE


def _quickly(ahead: bytes) -> Head | None:
    """Return what ordinary file meta information says: pydicom takes a millisecond for that."""
    end = PREAMBLE_BYTES + 12
    if ahead[128:132] != b"DICM" or ahead[132:140] != META_LENGTH:
        return None
    at, end = end, end + int.from_bytes(ahead[140:144], "little")
    values: dict[int, str] = {}
    while at < end <= len(ahead) - 2:
        group, element, vr, length = struct.unpack_from("<HH2sH", ahead, at)
        if group != 2 or vr in LONG and at + 12 > end:
            return None
        at += 8
        if vr in LONG:
            length = int.from_bytes(ahead[at : at + 4], "little")
            at += 4
        if element in (SOP_CLASS, SOP_UID, TRANSFER_SYNTAX):
            values[element] = ahead[at : at + length].rstrip(b"\0 ").decode("ascii")
        at += length
    if at != end or len(values) < 3 or ahead[end : end + 2] == b"\x02\x00":
        return None
    return Head(
        sop_class=values[SOP_CLASS],
        sop_uid=values[SOP_UID],
        transfer_syntax=values[TRANSFER_SYNTAX],
        at=end,
    )


def _thoroughly(file: BinaryIO) -> Head:
    file.seek(0)
    meta = read_meta(file)
    return Head(
        sop_class=str(meta.MediaStorageSOPClassUID),
        sop_uid=str(meta.MediaStorageSOPInstanceUID),
        transfer_syntax=str(meta.TransferSyntaxUID),
        at=file.tell(),
    )
