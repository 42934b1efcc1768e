"""Durable instance files: names, space, leftovers, exclusion."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dicom_node import pixel_files
from dicom_node.errors import NotAnInstance, OutOfSpace
from dicom_node.pixel_files import LARGE_BYTES, PixelFiles, clear_folder


@pytest.fixture
def files(tmp_path):
    return PixelFiles(tmp_path / "in", min_free_bytes=0)


def test_written_file_has_name_and_content(files):
    path = files.write("1.2", "1.2.3", [b"abc", b"def"])

    assert path == files.root / "1.2" / "1.2.3.dcm"
    assert path.read_bytes() == b"abcdef"
    assert files.paths() == [path]
    assert not list(files.root.glob("*/*.part"))


@pytest.mark.parametrize(
    "uid", ["", ".", "..", "../1", "1/2", "1\n", "1.2\x00", "a.b", "1 2", "1" * 65, "١.٢"]
)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("way", ["write", "create"])
def test_what_is_no_uid_never_becomes_a_path(files, uid, place, way):
    uids = ["1.2", "1.2.3"]
    uids[place] = uid

    with pytest.raises(NotAnInstance, match="is not a UID"):
        getattr(files, way)(*uids, [b"x"])
    assert files.paths() == []


def test_too_little_space_refuses_before_anything_is_written(tmp_path):
    files = PixelFiles(tmp_path / "in", min_free_bytes=2**62)

    with pytest.raises(OutOfSpace, match="files.min_free_bytes") as refused:
        files.write("1.2", "1.2.3", [b"x"])
    assert refused.value.status == 0xA700 and refused.value.retryable
    assert not (files.root / "1.2").exists()


def test_a_file_counts_as_written_before_it_is(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    files = PixelFiles(tmp_path / "in", min_free_bytes=free // 2)

    with pytest.raises(OutOfSpace, match="bytes to write"):
        files.write("1.2", "1.2.3", [b"x"], size_bytes=free)
    assert files.write("1.2", "1.2.3", [b"x"], size_bytes=1).read_bytes() == b"x"


def test_failing_disk_leaves_no_trace(files):
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(OutOfSpace, match="No space left on device"):
        files.write("1.2", "1.2.3", chunks())
    assert list((files.root / "1.2").iterdir()) == []


def test_recover_removes_the_unfinished_file_of_a_dead_process(files):
    kept = files.write("1.2", "1.2.3", [b"x"])
    stale = kept.with_name("1.2.4.dcm.999-0.part")
    stale.write_bytes(b"half")

    assert files.recover() == [stale]
    assert files.paths() == [kept] and not stale.exists()


def test_recover_leaves_a_file_alone_that_is_being_written(files):
    removed = []

    def chunks() -> Iterator[bytes]:
        yield b"one"
        removed.extend(files.recover())
        yield b"two"

    path = files.write("1.2", "1.2.3", chunks())

    assert removed == [] and path.read_bytes() == b"onetwo"


def test_created_file_has_name_and_content_and_is_nobody_elses(files):
    path = files.create("1.2", "1.2.3", [b"abc", b"def"])

    assert path == files.root / "1.2" / "1.2.3.dcm"
    assert files.create("1.2", "1.2.3", [b"other"]) is None
    assert path.read_bytes() == b"abcdef"
    assert [each.name for each in path.parent.iterdir()] == ["1.2.3.dcm"]


def test_a_file_that_is_there_needs_no_room(tmp_path):
    PixelFiles(tmp_path / "in", 0).create("1.2", "1.2.3", [b"x"])
    full = PixelFiles(tmp_path / "in", min_free_bytes=2**62)

    assert full.create("1.2", "1.2.3", [b"x"]) is None
    with pytest.raises(OutOfSpace, match=r"files\.min_free_bytes"):
        full.create("1.2", "1.2.4", [b"x"])


def cached_pages(path) -> int:
    """Return how many pages of a file are in memory."""
    count = -(-path.stat().st_size // mmap.PAGESIZE)
    pages = (ctypes.c_ubyte * count)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(start))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), pages) == 0
        del start
    return sum(page & 1 for page in pages)


def lies_in_memory(path) -> bool:
    """Return whether the file lies in memory: nothing of it can leave."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_pages(path) > 0


def test_a_large_file_is_not_kept_in_memory(files):
    small = files.create("1.2", "1.2.1", [bytes(LARGE_BYTES // 4)])
    large = files.create("1.2", "1.2.2", [bytes(8 * LARGE_BYTES)])
    kept = cached_pages(small)
    if not kept or lies_in_memory(small):
        pytest.skip("the file system has no page cache, or nothing else")

    assert cached_pages(large) <= kept


def test_creation_that_fails_leaves_no_trace_and_may_be_tried_again(files, monkeypatch):
    def failing(descriptor, parts):
        os.write(descriptor, parts[0][:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", failing)
        with pytest.raises(OutOfSpace, match=r"1\.2\.3: .*No space left on device"):
            files.create("1.2", "1.2.3", [b"abc"])

    assert list((files.root / "1.2").iterdir()) == []
    assert files.create("1.2", "1.2.3", [b"abc"]).read_bytes() == b"abc"


def test_creation_makes_a_folder_again_that_was_deleted(files):
    path = files.create("1.2", "1.2.3", [b"x"])
    files.discard(path)
    path.parent.rmdir()

    assert files.create("1.2", "1.2.3", [b"y"]).read_bytes() == b"y"


def test_folder_that_was_deleted_is_made_again(files):
    path = files.write("1.2", "1.2.3", [b"x"])
    files.discard(path)
    path.parent.rmdir()

    assert files.write("1.2", "1.2.3", [b"y"]).read_bytes() == b"y"


def test_a_folder_is_cleared_away_only_when_nothing_is_left_in_it(files):
    path = files.write("1.2", "1.2.3", [b"x"])

    clear_folder(path.parent)
    assert path.exists()
    path.unlink()
    clear_folder(path.parent)
    clear_folder(path.parent)  # a second run finds nothing to do

    assert not path.parent.exists()


def test_exclusive_keeps_other_threads_out(files):
    order = []

    def second() -> None:
        with files.exclusive("1.2.3"):
            order.append("second")

    with files.exclusive("1.2.3"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()

    assert order == ["first", "second"]


def test_exclusive_keeps_other_processes_out(files):
    code = (
        "import sys; from dicom_node.pixel_files import PixelFiles\n"
        "with PixelFiles(sys.argv[1], 0).exclusive('1.2.3'): print('in')"
    )
    with files.exclusive("1.2.3"):
        other = subprocess.Popen([sys.executable, "-c", code, str(files.root)])
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
    assert other.wait(20) == 0


def test_a_folder_that_came_back_is_used_only_when_its_name_is_durable(tmp_path, monkeypatch):
    """Retention removed it; two instances arrive at once, and the first one is slow to sync."""
    files = PixelFiles(tmp_path / "in", 0)
    first = files.write("1.2", "1.2.1", [b"x"])
    first.unlink()
    first.parent.rmdir()
    syncing, go_on, finished = threading.Event(), threading.Event(), threading.Event()
    sync = pixel_files._fsync_folder

    def slow(folder):
        if folder == files.root:
            syncing.set()
            assert go_on.wait(30)
        sync(folder)

    monkeypatch.setattr(pixel_files, "_fsync_folder", slow)
    slow_one = threading.Thread(target=files.write, args=("1.2", "1.2.2", [b"x"]))
    slow_one.start()
    assert syncing.wait(30)

    def write_another():
        files.write("1.2", "1.2.3", [b"x"])
        finished.set()

    quick_one = threading.Thread(target=write_another)
    quick_one.start()
    too_early = finished.wait(0.5)
    go_on.set()
    slow_one.join(30)
    quick_one.join(30)

    assert not too_early and finished.is_set()
    assert len(files.paths()) == 2


def test_series_do_not_wait_for_each_others_folders(files, monkeypatch):
    """The first one's folder takes long to sync; the second one is written meanwhile."""
    for series_uid in ("1.2", "1.3"):  # made, so that what is synced below are names in them
        files.write(series_uid, f"{series_uid}.1", [b"x"])
    slow_folder = os.stat(files.root / "1.2")
    syncing, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(descriptor):
        if os.path.samestat(os.fstat(descriptor), slow_folder):
            syncing.set()
            assert go_on.wait(30)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    first = threading.Thread(target=files.write, args=("1.2", "1.2.2", [b"x"]))
    first.start()
    assert syncing.wait(30)

    second = threading.Thread(target=files.write, args=("1.3", "1.3.2", [b"x"]))
    second.start()
    second.join(30)
    waited, was_first_done = second.is_alive(), not first.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)

    assert not waited and not was_first_done
    assert len(files.paths()) == 4


def test_who_finds_no_room_for_a_name_is_told(files, monkeypatch):
    files.write("1.2", "1.2.1", [b"x"])
    fsync = os.fsync

    def failing(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)

    with pytest.raises(OutOfSpace, match="No space left on device"):
        files.write("1.2", "1.2.2", [b"x"])


def test_file_that_cannot_be_synced_leaves_no_trace(files, monkeypatch):
    def failing(descriptor):
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)

    with pytest.raises(OutOfSpace, match="No space left on device"):
        files.write("1.2", "1.2.3", [b"x"])
    assert list((files.root / "1.2").iterdir()) == []


def test_what_the_system_takes_in_pieces_is_written_whole(files, monkeypatch):
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: writev(fd, [parts[0][:3]]))

    path = files.write("1.2", "1.2.3", [b"", b"abcde", b"f", b"", b"ghij"])

    assert path.read_bytes() == b"abcdefghij"


def test_folders_stay_usable_however_many_there_are(files, monkeypatch):
    monkeypatch.setattr(pixel_files, "MOST_OPEN_FOLDERS", 2)
    before = len(os.listdir("/proc/self/fd"))

    for number in range(20):
        files.write(f"1.{number % 5}", f"1.2.{number}", [b"x"])

    assert len(files.paths()) == 20
    assert len(os.listdir("/proc/self/fd")) <= before + 2 + 1  # the lock for making folders


@pytest.mark.parametrize(("free_bytes", "often"), [(2**40, False), (2**29, True)])
def test_how_much_room_there_is_is_asked_again_and_again_only_when_there_is_little(
    files, monkeypatch, free_bytes, often
):
    asked = []
    disk = SimpleNamespace(f_bavail=free_bytes, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: asked.append(path) or disk)

    for number in range(50):
        files.write("1.2", f"1.2.{number}", [b"x"])
    disk.f_bavail = 0
    time.sleep(2 * pixel_files.SPACE_S)
    files.min_free_bytes = 1

    assert (len(asked) >= 50) if often else (1 <= len(asked) < 25)
    with pytest.raises(OutOfSpace, match="files.min_free_bytes"):
        files.write("1.2", "1.2.50", [b"x"])


def test_a_turn_may_be_given_back_by_another_thread(files):
    turn = files.exclusive("1.2.3")
    turn.acquire()
    other = threading.Thread(target=turn.release)
    other.start()
    other.join(20)

    with files.exclusive("1.2.3"):
        pass


@pytest.mark.parametrize("held_by", ["thread", "program"])
def test_a_turn_that_somebody_keeps_is_waited_for_so_long(files, monkeypatch, held_by):
    monkeypatch.setattr("dicom_node.brief_calls.LOCK_WAIT_S", 0.2)
    holder = files if held_by == "thread" else PixelFiles(files.root, 0)

    with holder.exclusive("1.2.3"), pytest.raises(TimeoutError, match="was held for 0.2 s"):
        files.exclusive("1.2.3").acquire()

    with files.exclusive("1.2.3"):
        pass


def test_lock_files_are_closed_with_the_last_reference(tmp_path):
    def open_here() -> int:
        places = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return sum(str(tmp_path) in os.readlink(place) for place in places if place.is_symlink())

    files = PixelFiles(tmp_path / "in", 0)
    with files.exclusive("1.2.3"):
        pass
    assert open_here() == 1

    del files
    assert open_here() == 0
