"""Brief calls: the same as Python's own, whether the C library can be called or not."""

import fcntl
import hashlib
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

import pytest

from dicom_node import brief_calls


@pytest.fixture(params=["C library", "Python"])
def calls(request, monkeypatch):
    if request.param == "Python":
        monkeypatch.setattr(brief_calls, "_library", None)
    else:
        assert brief_calls._library is not None
    return brief_calls


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0.3)
        other.settimeout(0.3)
        yield one, other


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=5)
        return one, server.accept()[0]


def test_a_file_is_made_to_lock_it_and_found_again(calls, tmp_path):
    path = str(tmp_path / "lock")

    for _ in range(2):
        file = calls.open_for_lock(path)
        assert os.write(file, b"x") == 1
        assert not os.get_inheritable(file)
        calls.close(file)

    assert os.listdir(tmp_path) == ["lock"]
    with pytest.raises(OSError, match="closed|Bad file descriptor"):
        calls.close(file)
    with pytest.raises(FileNotFoundError):
        calls.open_for_lock(str(tmp_path / "no folder" / "lock"))


def test_a_lock_is_waited_for(calls, tmp_path):
    path = str(tmp_path / "lock")
    first, second = calls.open_for_lock(path), calls.open_for_lock(path)
    calls.lock(first)
    order = []

    def wait() -> None:
        calls.lock(second)
        order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.2)
    order.append("first")
    calls.close(first)
    thread.join(30)
    calls.close(second)

    assert order == ["first", "second"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.lock(second)


def test_a_lock_goes_with_the_process_that_is_killed(calls, tmp_path):
    path = str(tmp_path / "lock")
    code = (
        "import sys, time; from dicom_node import brief_calls as calls\n"
        "calls.lock(calls.open_for_lock(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"locked\n"
    file = calls.open_for_lock(path)
    with pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    other.kill()
    calls.lock(file)
    calls.close(file)
    other.communicate()


def test_a_lock_that_somebody_keeps_is_waited_for_so_long(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(brief_calls, "LOCK_WAIT_S", 0.2)
    path = str(tmp_path / "lock")
    first, second = calls.open_for_lock(path), calls.open_for_lock(path)
    calls.lock(first)
    started = time.monotonic()

    with pytest.raises(TimeoutError, match="was held for 0.2 s"):
        calls.lock(second)

    assert 0.2 <= time.monotonic() - started < 5
    calls.close(first)
    calls.lock(second)
    calls.close(second)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("size", [0, 99, 2**20])
def test_a_file_is_read_as_far_as_it_goes(calls, tmp_path, size, cached):
    path, data, memory = tmp_path / "file", os.urandom(size), bytearray(200_000)
    path.write_bytes(data)
    with path.open("rb") as file:
        if not cached:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for start in (0, 50, 2**20 - 4096):
            count = calls.read(file.fileno(), memoryview(memory), start)
            assert bytes(memory[:count]) == data[start : start + len(memory)]


@pytest.mark.parametrize("answer", [-1, 0])
def test_what_is_in_memory_only_in_part_is_read_to_its_end(calls, tmp_path, monkeypatch, answer):
    path, data, memory = tmp_path / "file", os.urandom(70), bytearray(100)
    path.write_bytes(data)
    tried = []

    def a_part(descriptor, target, start):
        tried.append(start)
        return os.preadv(descriptor, [target[:30]], start) if len(tried) == 1 else answer

    monkeypatch.setattr(calls, "_read_from_memory", a_part)
    with path.open("rb") as file:
        assert calls.read(file.fileno(), memoryview(memory), 0) == 70
    assert bytes(memory[:70]) == data


def test_what_cannot_be_read_is_an_error(calls, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        calls.read(folder, memoryview(bytearray(9)), 0)
    os.close(folder)
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.read(folder, memoryview(bytearray(9)), 0)


def test_bytes_come_as_they_were_sent(calls, pair):
    one, other = pair
    memory = bytearray(8)

    one.sendall(b"abcde")
    assert calls.receive(other, memoryview(memory)[2:]) == 5
    assert bytes(memory) == b"\0\0abcde\0"
    memory.extend(b"more")  # nobody holds it


def test_who_has_nothing_to_read_waits_until_it_comes_or_for_its_time(calls, pair):
    one, other = pair
    threading.Timer(0.1, one.send, (b"late",)).start()

    assert calls.receive(other, memoryview(bytearray(8))) == 4
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        calls.receive(other, memoryview(bytearray(8)))
    assert time.monotonic() - started >= 0.25


def test_the_end_of_a_connection_is_no_bytes(calls, pair):
    one, other = pair
    one.close()

    assert calls.receive(other, memoryview(bytearray(8))) == 0


def test_a_connection_that_was_reset_is_an_error(calls):
    one, other = tcp_pair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    time.sleep(0.1)

    with other, pytest.raises(ConnectionResetError):
        calls.receive(other, memoryview(bytearray(8)))


def test_a_closed_socket_is_an_error(calls):
    one, other = socket.socketpair()
    one.close()
    other.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.receive(other, memoryview(bytearray(8)))


def test_tls_is_left_to_its_own_methods(calls, monkeypatch):
    class Secured(ssl.SSLSocket):
        def recv_into(self, *_):
            return 7

    sock = Secured.__new__(Secured)

    assert calls.receive(sock, memoryview(bytearray(8))) == 7


def test_what_fits_is_sent_at_once_and_nobody_waits_for_a_peer_that_does_not_read(calls):
    one, other = tcp_pair()
    one.settimeout(30)
    with one, other:
        assert calls.send_now(one, b"abcde") == 5
        assert other.recv(8) == b"abcde"
        started = time.monotonic()
        while calls.send_now(one, bytes(65536)):
            pass
        assert time.monotonic() - started < 20  # the socket's own method would wait


def test_to_send_to_who_is_gone_is_an_error_and_no_signal(calls):
    one, other = tcp_pair()
    other.close()
    with one, pytest.raises(ConnectionError):
        for _ in range(50):
            calls.send_now(one, b"abcde")
            time.sleep(0.01)


def test_a_lock_is_given_back_without_closing_its_file(calls, tmp_path):
    path = str(tmp_path / "lock")
    first, second = calls.open_for_lock(path), calls.open_for_lock(path)
    for _ in range(2):
        calls.lock(first)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        calls.unlock(first)
        calls.lock(second)
        calls.unlock(second)
    calls.close(first)
    calls.close(second)


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 5000, 32768, 32769, 10**6])
def test_a_digest_is_the_same_however_much_is_digested_at_once(calls, size):
    data = bytes(range(256)) * (size // 256 + 1)

    assert calls.sha256(data[:size]) == hashlib.sha256(data[:size]).hexdigest()


def test_a_thread_that_waits_lets_the_others_run(calls, pair):
    _, other = pair
    waiting = threading.Thread(
        target=lambda: pytest.raises(TimeoutError, calls.receive, other, memoryview(bytearray(8)))
    )
    waiting.start()
    started = time.monotonic()
    sum(range(1000))
    took_s = time.monotonic() - started
    waiting.join(30)

    assert took_s < 0.2
