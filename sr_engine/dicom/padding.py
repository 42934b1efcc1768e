"""Zeros behind a data set, which some archives append by the megabyte: they are no elements.

pydicom takes every eight of them for one element, in a second for two megabytes. What stands from
the beginning of an element to the end of the file and is nothing but zeros is padding; a zero
anywhere else is left to whoever reads.
"""

from collections.abc import Callable
from typing import BinaryIO

from pydicom.tag import BaseTag

StopWhen = Callable[[BaseTag, str | None, int], bool]
HEAD_BYTES = 8  # tag, VR and length of what zeros look like
CHUNK_BYTES = 2**20


def is_padding(data: bytes, at: int) -> bool:
    """Return whether nothing but zeros stands in `data` from `at`, where an element begins."""
    return data.count(0, at) == len(data) - at


def at_padding(stream: BinaryIO) -> StopWhen:
    """Return a `stop_when` that ends pydicom's reading of `stream` where the padding begins.

    Not for a deflated data set, which pydicom reads from a stream of its own.
    """
    begin: list[int] = []  # of the zeros at the end; looked for once

    def stop_when(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag or length:
            return False
        if not begin:
            begin.append(zeros_begin(stream))
        return stream.tell() - HEAD_BYTES >= begin[0]

    return stop_when


def zeros_begin(stream: BinaryIO) -> int:
    """Return from where nothing but zeros follows; behind an element's head, which is zeros."""
    here = stream.tell()
    at = begin = here - HEAD_BYTES
    stream.seek(at)
    while chunk := stream.read(CHUNK_BYTES):
        kept = len(chunk.rstrip(b"\0"))
        begin = at + kept if kept else begin
        at += len(chunk)
    stream.seek(here)
    return begin
