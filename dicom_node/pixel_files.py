"""Instance files that survive a power cut: checked names, write-fsync-rename, free-space guards."""

import fcntl
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dicom_node.errors import NotAnInstance, OutOfSpace
from dicom_node.settings import Settings
from dicom_node.together import Together

UID = re.compile(r"[0-9.]{1,64}")
MOST_KNOWN_FOLDERS = 4096
LOCK_STRIPES = 256
FOLDERS_LOCK = f"{LOCK_STRIPES:03d}"  # behind those of the instances, which are held meanwhile


def sha256_of(path: Path) -> str | None:
    """Return the SHA-256 of a file, None when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True)
class Room:
    """Free space of the state folder, and how much of it each may use; below 0 there is none."""

    free_bytes: int
    incoming_bytes: int
    results_bytes: int


def room(settings: Settings) -> Room:
    """Return how much may still be received, and written as results.

    Receiving stops first: what senders fill must not stop the work that was accepted from them.
    """
    files = settings.files
    free = shutil.disk_usage(settings.node.state_dir).free
    return Room(
        free_bytes=free,
        incoming_bytes=free - files.min_free_bytes,
        results_bytes=free - files.min_free_for_results_bytes,
    )


def keep(path: Path, content: bytes) -> Path:
    """Return `path`, which holds `content` for good: file, name and folders are on the disk.

    Raises
    ------
    OutOfSpace
        If the file system refuses.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        for folder in reversed([path.parent, *path.parent.parents]):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                _fsync_folder(folder.parent)
        part.unlink(missing_ok=True)
        _write_durably(part, [content])
        os.rename(part, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise OutOfSpace(f"{path.name}: cannot write the file: {error.strerror}") from error
    return path


def clear_folder(folder: Path) -> None:
    """Make the removal of files from `folder` durable, and remove it if nothing is left in it."""
    with suppress(FileNotFoundError):
        _fsync_folder(folder)
        with suppress(OSError):  # not empty: somebody else's files
            folder.rmdir()


class PixelFiles:
    """The folder ``<root>/<series>/<sop>.dcm``; safe for many threads and processes."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        self.root = Path(root)
        self.min_free_bytes = min_free_bytes
        self._locks = self.root / ".locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._serial = count()
        self._durable: set[Path] = set()  # folders whose own names this process made durable
        self._sync = Together(_fsync_folders)

    def path_of(self, series_uid: str, sop_uid: str) -> Path:
        """Return where the instance lies, or would lie.

        Raises
        ------
        NotAnInstance
            If a UID is not made of 1 to 64 digits and dots: nothing else becomes a path.
        """
        return self.root / _checked(series_uid) / f"{_checked(sop_uid)}.dcm"

    def write(
        self,
        series_uid: str,
        sop_uid: str,
        chunks: Iterable[bytes],
        size_bytes: int = 0,
        *,
        beside: str = "",
    ) -> Path:
        """Return the path of the durable file: file, name and folder are on the disk.

        A file of that name is replaced; hold `exclusive` to know that it is nobody's. With
        `beside` the file goes into a folder of its own, until `settle`.

        Raises
        ------
        NotAnInstance
            If a UID is no UID.
        OutOfSpace
            If less than `min_free_bytes` would be left, or the file system refuses.
        """
        path = self.path_of(series_uid, sop_uid)
        if beside:
            path = path.parent.with_name(f"{path.parent.name}+{beside}") / path.name
        part = path.with_name(f"{path.name}.{os.getpid()}-{next(self._serial)}.part")
        try:
            self._check_space(size_bytes)
            self._make_folder(path.parent)
            try:
                _write_durably(part, chunks)
            except FileNotFoundError:  # retention has just removed the empty folder
                self._make_folder(path.parent)
                _write_durably(part, chunks)
            os.rename(part, path)
            self._sync.do(path.parent)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise OutOfSpace(f"{sop_uid}: cannot write the file: {error.strerror}") from error
        return path

    def settle(self, path: Path, place: Path) -> None:
        """Let the file at `path` be found at `place`, too, in the place of what lies there."""
        self._make_folder(place.parent)
        part = place.with_name(f"{place.name}.{os.getpid()}-{next(self._serial)}.part")
        os.link(path, part)
        os.rename(part, place)
        self._sync.do(place.parent)

    def discard(self, path: Path) -> None:
        """Remove a file that no row speaks of."""
        path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Return every finished instance file; what somebody else has put there is none."""
        return sorted(path for path in self.root.glob("*/*.dcm") if is_uid(path.stem))

    def recover(self) -> list[Path]:
        """Return the unfinished files of dead processes, which this removes."""
        return [part for part in sorted(self.root.glob("*/*.part")) if _remove_if_stale(part)]

    @contextmanager
    def exclusive(self, sop_uid: str) -> Iterator[None]:
        """Keep every other thread and process from taking in the same SOP instance."""
        stripe = zlib.crc32(_checked(sop_uid).encode()) % LOCK_STRIPES
        with open(self._locks / f"{stripe:03d}", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file gives it back
            yield

    def _check_space(self, size_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes - size_bytes < self.min_free_bytes:
            raise OutOfSpace(
                f"{size_bytes} bytes to write, {free_bytes} free in {self.root}, "
                f"files.min_free_bytes is {self.min_free_bytes}"
            )

    def _make_folder(self, folder: Path) -> None:
        with open(self._locks / FOLDERS_LOCK, "ab") as lock:
            # Retention removes folders: who finds one again must not be faster than its fsync.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder in self._durable and folder.is_dir():
                return
            folder.mkdir(parents=True, exist_ok=True)
            _fsync_folder(folder.parent)  # else a power cut could take the folder with its files
            if len(self._durable) >= MOST_KNOWN_FOLDERS:
                self._durable.clear()  # to sync one again costs little
            self._durable.add(folder)


def is_uid(text: str) -> bool:
    """Return whether a text is made as a UID is, so that it may be a part of a path or URL."""
    return bool(UID.fullmatch(text) and text.strip("."))  # dots alone would leave the folder


def _checked(uid: str) -> str:
    if not is_uid(uid):
        raise NotAnInstance(f"{uid[:80]!r} is not a UID")
    return uid


def _write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    with open(path, "xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tells `recover` that the writer lives
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folders(folders: Sequence[Path]) -> list[None | Exception]:
    """Make the names in each folder durable, once for all who renamed a file there."""
    failed: dict[Path, Exception] = {}
    for folder in set(folders):
        try:
            _fsync_folder(folder)
        except OSError as error:
            failed[folder] = error
    return [failed.get(folder) for folder in folders]


def _remove_if_stale(part: Path) -> bool:
    try:
        with open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
    except (BlockingIOError, FileNotFoundError):  # being written, or just finished
        return False
    return True
