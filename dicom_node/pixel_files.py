"""Instance files that survive a power cut: checked names, durable writes, free-space guards."""

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from dicom_node import brief_calls
from dicom_node.errors import NotAnInstance, OutOfSpace
from dicom_node.settings import Settings
from dicom_node.together import Recent, Together

UID = re.compile(r"[0-9.]{1,64}")
MOST_OPEN_FOLDERS = 128
MOST_AT_ONCE = 64  # pieces of a file in one call
AMPLE_BYTES = 2**30  # while there is so much more room than needed, it is asked about ...
SPACE_S = 0.1  # ... only so often
LARGE_BYTES = 2**18  # of a file that is not kept in the page cache
LOCK_STRIPES = 256
FOLDERS_LOCK = LOCK_STRIPES  # behind those of the instances, which are held meanwhile


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


def unclaimed_dir(root: Path) -> Path:
    """Return the folder beside `root` for files that lay there and that no row knew."""
    return root.with_name("unclaimed")


def clear_folder(folder: Path) -> None:
    """Make the removal of files from `folder` durable, and remove it if nothing is left in it."""
    with suppress(FileNotFoundError):
        _fsync_folder(folder)
        with suppress(OSError):  # not empty: somebody else's files
            folder.rmdir()


class _Folder:
    """A folder whose own name is on the disk, held open: no file can be made in it once it is gone.

    It is closed with the last reference, because threads may be using it. Each is synced apart from
    others: syncs at the same time share what the file system does, one after the other they wait.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self.descriptor)
        self._sync = Together(partial(_fsync_once, self.descriptor))

    def sync(self) -> None:
        """Return when the names in it are on the disk, once for all who have just put one there."""
        self._sync.do(None)

    def is_there(self) -> bool:
        """Return whether its path still leads to it."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False


class Turn:
    """A lock among the threads of this process, and by a file among processes.

    Who takes it may let another thread give it back. The file stays open: to open and close it each
    time would take longer than everything else that is done with it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._among_threads = threading.Lock()
        self._file: int | None = None

    def acquire(self) -> None:
        """Wait for it.

        Raises
        ------
        OSError
            If its file cannot be locked; TimeoutError if another program keeps it.
        """
        since = time.monotonic()
        if not self._among_threads.acquire(timeout=brief_calls.LOCK_WAIT_S):
            raise brief_calls.held_too_long()
        with ExitStack() as undo:
            undo.callback(self._among_threads.release)
            if self._file is None:
                self._file = brief_calls.open_for_lock(self._path)
                weakref.finalize(self, os.close, self._file)
            brief_calls.lock(self._file, since)
            undo.pop_all()

    def release(self) -> None:
        """Give it back."""
        try:
            if self._file is not None:
                brief_calls.unlock(self._file)
        finally:
            self._among_threads.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class PixelFiles:
    """The folder ``<root>/<series>/<sop>.dcm``; safe for many threads and processes."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        self.root = Path(root)
        self.min_free_bytes = min_free_bytes
        self._locks = self.root / ".locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._lock_file = f"{self._locks}/%03d"
        self._turns: dict[int, Turn] = {}
        self._serial = count()
        self._lately_free_bytes = Recent(partial(_free_bytes, self.root), SPACE_S)
        self._folders: dict[str, _Folder] = {}  # whose own names this process made durable

    def path_of(self, series_uid: str, sop_uid: str) -> Path:
        """Return where the instance lies, or would lie.

        Raises
        ------
        NotAnInstance
            If a UID is not made of 1 to 64 digits and dots: nothing else becomes a path.
        """
        return self.root / _checked(series_uid) / f"{_checked(sop_uid)}.dcm"

    def create(
        self, series_uid: str, sop_uid: str, chunks: Iterable[bytes], size_bytes: int = 0
    ) -> Path | None:
        """Return the path of the durable new file, None if there is one of that name.

        Hold `exclusive`. The file has its name from the start, so a crash leaves a piece of it
        there, which no row speaks of. Raises as `write`.
        """
        folder, name = f"{self.root}/{_checked(series_uid)}", f"{_checked(sop_uid)}.dcm"
        try:
            return self._into(folder, name, size_bytes, partial(_create_durably, name, chunks))
        except FileExistsError:
            return None
        except OSError as error:
            raise _no_space(sop_uid, error) from error
        except OutOfSpace:
            if os.path.exists(f"{folder}/{name}"):  # needs no more room
                return None
            raise

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
        folder, name = f"{self.root}/{_checked(series_uid)}", f"{_checked(sop_uid)}.dcm"
        if beside:
            folder = f"{folder}+{beside}"
        write = partial(_write_durably, self._part_of(name), chunks, name=name)
        try:
            return self._into(folder, name, size_bytes, write)
        except OSError as error:
            raise _no_space(sop_uid, error) from error

    def _into(
        self, folder: str, name: str, size_bytes: int, write: Callable[[_Folder], None]
    ) -> Path:
        """Return the path of what `write` has put into the folder: its name is durable, too."""
        self._check_space(size_bytes)
        parent = self._folders.get(folder) or self._make_folder(folder)
        try:
            write(parent)
        except FileNotFoundError:  # retention has removed the empty folder
            parent = self._make_folder(folder)
            write(parent)
        parent.sync()
        return parent.path / name

    def settle(self, path: Path, place: Path) -> None:
        """Let the file at `path` be found at `place`, too, in the place of what lies there."""
        parent = self._make_folder(str(place.parent))
        part = place.with_name(self._part_of(place.name))
        os.link(path, part)
        os.rename(part, place)
        parent.sync()

    def discard(self, path: Path) -> None:
        """Remove a file that no row speaks of."""
        path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path:
        """Move a whole file that no row knows out of the way; return where it lies now.

        Who had the row may have acknowledged it: of a database that was put back, for one.
        """
        place = unclaimed_dir(self.root) / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        return place

    def paths(self) -> list[Path]:
        """Return every finished instance file; what somebody else has put there is none."""
        return sorted(path for path in self.root.glob("*/*.dcm") if is_uid(path.stem))

    def recover(self) -> list[Path]:
        """Return the unfinished files of dead processes, which this removes."""
        return [part for part in sorted(self.root.glob("*/*.part")) if _remove_if_stale(part)]

    def exclusive(self, sop_uid: str) -> Turn:
        """Return the turn that keeps every other thread and process from the same SOP instance."""
        return self._turn(zlib.crc32(_checked(sop_uid).encode()) % LOCK_STRIPES)

    def _turn(self, number: int) -> Turn:
        turn = self._turns.get(number)
        return turn or self._turns.setdefault(number, Turn(self._lock_file % number))

    def _part_of(self, name: str) -> str:
        """Return a name that nobody else gives the unfinished file of `name`."""
        return f"{name}.{os.getpid()}-{next(self._serial)}.part"

    def _check_space(self, size_bytes: int) -> None:
        needed_bytes = self.min_free_bytes + size_bytes
        if self._lately_free_bytes() > needed_bytes + AMPLE_BYTES:
            return
        free_bytes = _free_bytes(self.root)
        if free_bytes < needed_bytes:
            raise OutOfSpace(
                f"{size_bytes} bytes to write, {free_bytes} free in {self.root}, "
                f"files.min_free_bytes is {self.min_free_bytes}"
            )

    def _make_folder(self, path: str) -> _Folder:
        # Retention removes folders: who finds one again must not be faster than its fsync.
        with self._turn(FOLDERS_LOCK):
            known = self._folders.get(path)
            if known is not None and known.is_there():
                return known
            os.makedirs(path, exist_ok=True)
            _fsync_folder(Path(path).parent)  # else a power cut could take it with its files
            if len(self._folders) >= MOST_OPEN_FOLDERS:
                del self._folders[next(iter(self._folders))]  # to make one again costs little
            self._folders[path] = _Folder(path)
            return self._folders[path]


def is_uid(text: str) -> bool:
    """Return whether a text is made as a UID is, so that it may be a part of a path or URL."""
    return bool(UID.fullmatch(text) and text.strip("."))  # dots alone would leave the folder


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _checked(uid: str) -> str:
    if not is_uid(uid):
        raise NotAnInstance(f"{uid[:80]!r} is not a UID")
    return uid


def _no_space(sop_uid: str, error: OSError) -> OutOfSpace:
    return OutOfSpace(f"{sop_uid}: cannot write the file: {error.strerror}")


def _write_durably(
    part: str | Path,
    chunks: Iterable[bytes],
    folder: _Folder | None = None,
    name: str | None = None,
) -> None:
    """Write a new file that is on the disk then; `part` is looked up in `folder`.

    With `name` it is renamed before it is synced: what the file system writes for the one then
    serves the other, and the sync of the folder has little left to do. No row speaks of a file
    before both are done. Where something fails there is nothing left.
    """
    at = None if folder is None else folder.descriptor
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=at)
    present = part
    try:
        brief_calls.lock(file)  # tells `recover` that the writer lives
        _write_all(file, [memoryview(chunk) for chunk in chunks])
        if name is not None:
            os.rename(part, name, src_dir_fd=at, dst_dir_fd=at)
            present = name
        os.fsync(file)
    except OSError:
        with suppress(OSError):
            os.unlink(present, dir_fd=at)
        raise
    finally:
        os.close(file)


def _create_durably(name: str, chunks: Iterable[bytes], folder: _Folder) -> None:
    """Write a file that is on the disk then, under a name that nobody has.

    One call writes and syncs it (`O_DSYNC`: the bytes and what is needed to read them). Where
    something fails there is nothing left. A large one leaves the page cache: it is read once, by
    the engine, and memory that was never used costs a virtual machine more than the whole receiving
    (docs/throughput.md).

    Raises
    ------
    FileExistsError
        If somebody has the name.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DSYNC
    file = os.open(name, flags, 0o666, dir_fd=folder.descriptor)
    try:
        size = _write_all(file, [memoryview(chunk) for chunk in chunks])
        if size >= LARGE_BYTES:
            with suppress(OSError):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder.descriptor)
        raise
    finally:
        brief_calls.close(file)  # it is synced: nothing is left to wait for


def _write_all(file: int, rest: list[memoryview]) -> int:
    """Return how many bytes that were: all of the pieces, in one call if the system takes them."""
    size = 0
    while rest:
        written = os.writev(file, rest[:MOST_AT_ONCE])
        size += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][written:]
    return size


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_once(descriptor: int, waiting: Sequence[None]) -> list[None | Exception]:
    """Make the names in an open folder durable for all who wait; tell each when that fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        return [error] * len(waiting)
    return [None] * len(waiting)


def _remove_if_stale(part: Path) -> bool:
    try:
        with open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
    except (BlockingIOError, FileNotFoundError):  # being written, or just finished
        return False
    return True
