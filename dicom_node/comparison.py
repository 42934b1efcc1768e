"""Do two DICOM files hold the same image? What is compressed is decoded in a process of its own.

Of a file that must go, the digest of its decoded pixels is kept, so that it is known again.

The decoders for JPEG and its relatives are native code, and damaged streams make them end the
process that called them or take all of its memory. That must not be the listener.
"""

import hashlib
import resource
import struct
import subprocess
import sys
import threading

import numpy as np
from pydicom import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import UID

from dicom_node.content import DECODE_ERRORS, parse
from dicom_node.errors import InstanceRejected

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SAME = 0
OTHER = 9  # neither what Python ends with nor a signal
MOST_MEMORY_BYTES = 2**32
MOST_CPU_S = 60

_one_at_a_time = threading.Lock()  # a flood of conflicts must not become a flood of processes


def same_pixels(one: bytes, other: bytes) -> bool:
    """Return whether two DICOM files hold the same image, however it is encoded.

    What nobody can decode, within limits of memory and time, is not known to be the same.
    """
    try:
        first, second = parse(one), parse(other)
        if _syntax(first) == _syntax(second) and _as_sent(first) == _as_sent(second):
            return True
        if "PixelData" not in first or "PixelData" not in second:
            return False
        if not any(_syntax(each).is_encapsulated for each in (first, second)):
            return same_frames(first, second)
    except DECODE_ERRORS:
        return False
    return _same_elsewhere(one, other)


def same_frames(first: Dataset, second: Dataset) -> bool:
    """Return whether the decoded frames are equal, one at a time so that few are in memory.

    Raises
    ------
    DECODE_ERRORS
        If a frame cannot be decoded, or there are more of them in one than in the other.
    """
    frames = zip(iter_pixels(first), iter_pixels(second), strict=True)
    return all(np.array_equal(one, other) for one, other in frames)


def _syntax(dataset: Dataset) -> UID:
    return UID(dataset.file_meta.TransferSyntaxUID)


def _as_sent(dataset: Dataset) -> list[bytes | None]:
    """Return the bytes of the pixels, whatever their VR says that they are."""
    found = (dataset.get_item(keyword) for keyword in PIXELS)
    return [None if element is None else element.value for element in found]


def _same_elsewhere(one: bytes, other: bytes) -> bool:
    """Return what a process of its own finds; whatever else ends it: not the same."""
    done = _elsewhere("compare", struct.pack("<Q", len(one)) + one + other)
    return done is not None and done.returncode == SAME


def pixels_digest(file: bytes) -> str | None:
    """Return the SHA-256 of a DICOM file's decoded pixels, equal for every lossless encoding.

    None where there are none, or nobody can decode them within limits of memory and time.
    """
    try:
        dataset = parse(file)
        if "PixelData" not in dataset:
            return None
        if not _syntax(dataset).is_encapsulated:
            return frames_digest(dataset)
    except (*DECODE_ERRORS, InstanceRejected):
        return None
    done = _elsewhere("digest", file)
    return done.stdout.decode() if done is not None and done.returncode == SAME else None


def frames_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of the decoded frames, one at a time so that few are in memory.

    Raises
    ------
    DECODE_ERRORS
        If a frame cannot be decoded.
    """
    digest = hashlib.sha256()
    for frame in iter_pixels(dataset):
        digest.update(f"{frame.shape}".encode())
        digest.update(frame.astype("<i8").tobytes())
    return digest.hexdigest()


def _elsewhere(task: str, data: bytes) -> subprocess.CompletedProcess[bytes] | None:
    """Return how a process of its own with the bytes on its input ended; None: it did not."""
    with _one_at_a_time:
        try:
            return subprocess.run(
                [sys.executable, "-m", "dicom_node.comparison", task],
                input=data,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders quote what they choke on
                timeout=2 * MOST_CPU_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):  # no process to be had, or none that ends
            return None


def main(task: str) -> int:
    """Compare two files, or print the digest of one, on standard input; SAME or OTHER."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        if task == "digest":
            sys.stdout.write(frames_digest(parse(sys.stdin.buffer.read())))
            return SAME
        (length,) = struct.unpack("<Q", sys.stdin.buffer.read(8))
        one, other = sys.stdin.buffer.read(length), sys.stdin.buffer.read()
        same = same_frames(parse(one), parse(other))
    except (*DECODE_ERRORS, MemoryError):
        same = False
    return SAME if same else OTHER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
