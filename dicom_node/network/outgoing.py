"""The file of an instance that is to be sent: what it says of itself, and its data set."""

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicom_node import brief_calls
from dicom_node.bombs import read_meta
from dicom_node.content import PARSE_ERRORS
from dicom_node.retry import Fault

PREAMBLE_BYTES = 132
AHEAD_BYTES = 2048  # file meta information is some hundred bytes
META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
LONG = (b"OB", b"UN")  # of what may stand in group 0002 (PS3.10 Table 7.1-1)
MEMORY_BYTES = 2**20  # of a file, for each association
PART_BYTES = 2**18  # of a data set, sent at once
SOP_CLASS, SOP_UID, TRANSFER_SYNTAX = 0x0002, 0x0003, 0x0010


class Unfit(ValueError):
    """The file cannot be sent, or not now; `fault` and the text say why."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the file meta information says; the data set stands from `at` on."""

    sop_class: str
    sop_uid: str
    transfer_syntax: str
    at: int


class Opened:
    """A file that is to be read; as a context it is its descriptor, or raises OSError.

    Not Python's own file, whose opening and closing let go of the interpreter four times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        brief_calls.close(self._descriptor)


def read_head(path: Path) -> Head:
    """Return what the file of an instance says of itself.

    Raises
    ------
    Unfit
        If there is no such file, or no DICOM instance in it.
    """
    try:
        with Opened(path) as file:
            ahead = bytearray(AHEAD_BYTES)
            count = brief_calls.read(file, memoryview(ahead), 0)
            return _quickly(ahead[:count]) or _thoroughly(file)
    except PARSE_ERRORS as error:
        raise Unfit(file_fault(error), str(error)) from error


def file_fault(error: Exception) -> Fault:
    """Return what it means that a file could not be read: only what is not there is lost."""
    passing = isinstance(error, OSError) and not isinstance(error, NO_SUCH_FILE)
    return Fault.UNREADABLE if passing else Fault.NO_FILE


def _quickly(ahead: bytes | bytearray) -> Head | None:
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


def _thoroughly(descriptor: int) -> Head:
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        meta = read_meta(file)
        return Head(
            sop_class=str(meta.MediaStorageSOPClassUID),
            sop_uid=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax=str(meta.TransferSyntaxUID),
            at=file.tell(),
        )


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The data set of a file; each of its parts is written over when the next is asked for.

    The parts raise OSError if the file cannot be read any further, or was changed meanwhile; then
    the last one has not come.
    """

    size: int
    parts: Iterator[memoryview]


class Reader:
    """Reads one file after the other, to be hashed and sent, in memory that is used again.

    What is sent is what was hashed, and read once. A file that is longer than the memory is read
    again and hashed again while it is sent.
    """

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(MEMORY_BYTES))

    def read(self, file: int, at: int, sha256: str | None) -> DataSet:
        """Return the data set of an open file, which stands from `at` on.

        It is good while the file is open and no other one is read.

        Parameters
        ----------
        file
            Its descriptor.
        sha256
            What the whole file must have; None: whatever it is.

        Raises
        ------
        Unfit
            If the file is another one, or has no data set.
        OSError
            If it cannot be read.
        """
        size = brief_calls.read_some(file, self._memory, 0)
        # What came with one call is mostly the whole file, and its digest tells.
        digest = hashlib.sha256(self._memory[:size]) if size < len(self._memory) else None
        if digest is None or digest.hexdigest() != sha256:
            size += brief_calls.read(file, self._memory[size:], size)
            if size == len(self._memory):  # or more
                size = os.fstat(file).st_size
            if sha256 and self._digest(file, size).hexdigest() != sha256:
                raise Unfit(Fault.ALTERED, "its SHA-256 differs")
        short = size <= len(self._memory)
        parts = _cut(self._memory[at:size]) if short else self._again(file, at, size, sha256)
        if size <= at:
            raise Unfit(Fault.NO_FILE, "it has no data set")
        return DataSet(size=size - at, parts=parts)

    def _digest(self, file: int, size: int) -> "hashlib._Hash":
        """Return the digest of a file of this size; what is in memory of it is not read again."""
        if size <= len(self._memory):
            return hashlib.sha256(self._memory[:size])
        with open(file, "rb", buffering=0, closefd=False) as long:
            long.seek(0)
            return hashlib.file_digest(long, "sha256")

    def _again(self, file: int, at: int, size: int, sha256: str | None) -> Iterator[memoryview]:
        """Yield the parts of a long file; the last one only if nothing has changed."""
        digest = hashlib.sha256(os.pread(file, at, 0))
        for start in range(at, size, PART_BYTES):
            part = self._fill(file, start, min(PART_BYTES, size - start))
            digest.update(part)
            if sha256 and start + len(part) == size and digest.hexdigest() != sha256:
                raise OSError("the file was changed while it was sent")
            yield part

    def _fill(self, file: int, start: int, count: int) -> memoryview:
        """Return so many bytes of a file, from `start` on."""
        if brief_calls.read(file, self._memory[:count], start) != count:
            raise OSError("the file became shorter while it was read")
        return self._memory[:count]


def _cut(data_set: memoryview) -> Iterator[memoryview]:
    """Yield the parts of a data set that is in memory."""
    for start in range(0, len(data_set), PART_BYTES):
        yield data_set[start : start + PART_BYTES]
