"""Calls of the system that do not wait, made without letting go of the interpreter.

Python lets another thread run during every call of the system. Where many threads receive, who
makes a call of a microsecond then stands in the queue for the interpreter, behind those who
compute. What is here keeps it, and only where there is nothing to wait for: a lock that is free, a
lock file that is known, bytes that have come, a few bytes to send, a file to close that is synced,
a digest of little. Where there is, or the C library cannot be called so, Python's own call does it.
To look up a name in a folder where others make files is not such a call: it waits for their
journal, and everybody would wait with it.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import select
import socket
import time
from typing import Any

WOULD_WAIT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})
LOCK_WAIT_S = 30.0  # as long as for the database's lock
FIRST_PAUSE_S, LAST_PAUSE_S = 0.0005, 0.05  # between two tries to lock
STEP_BYTES = 2047  # hashlib lets go of the interpreter for more
LITTLE_BYTES = 32 * 1024
NO_BYTES = ctypes.c_char * 0  # laid over memory to have its address
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "close": (ctypes.c_int,),
    "flock": (ctypes.c_int, ctypes.c_int),
    "open": (ctypes.c_char_p, ctypes.c_int),
    "preadv2": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_int),
    "recv": (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    "send": (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int),
}
SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
OF_BYTES = ("preadv2", "recv", "send")  # what counts bytes


class _Piece(ctypes.Structure):
    """Memory to read to: struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _load() -> ctypes.PyDLL | None:
    """Return the C library, which is called with the interpreter in hand; None: there is none."""
    try:
        library = ctypes.PyDLL(None, use_errno=True)
        for name, arguments in ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_ssize_t if name in OF_BYTES else ctypes.c_int
    except (AttributeError, OSError, TypeError):
        return None
    return library


_library = _load()


def open_for_lock(path: str) -> int:
    """Return a descriptor of the file at `path`, which is made if there is none.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    if _library:
        descriptor = int(_library.open(os.fsencode(path), os.O_WRONLY | os.O_CLOEXEC))
        if descriptor >= 0:
            return descriptor
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)


def lock(descriptor: int, since: float | None = None) -> None:
    """Return with an open file locked for nobody else, when those who have it are done.

    Parameters
    ----------
    since
        The moment of `time.monotonic` from which on it is waited for; None: now.

    Raises
    ------
    OSError
        If it cannot be locked; TimeoutError if somebody keeps it, a program that was stopped, say.
    """
    began = time.monotonic() if since is None else since
    end, pause_s = began + LOCK_WAIT_S, FIRST_PAUSE_S
    while not _locked(descriptor):
        if time.monotonic() > end:
            raise held_too_long()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def held_too_long() -> TimeoutError:
    """Return what is to be said of a lock that did not become free."""
    words = f"a lock in the state folder was held for {LOCK_WAIT_S:g} s by another program"
    return TimeoutError(errno.ETIMEDOUT, f"{words}; is one stopped (Ctrl-Z)?")


def _locked(descriptor: int) -> bool:
    """Return whether the file could be locked at once."""
    if _library:
        if not _library.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return True
        if ctypes.get_errno() not in WOULD_WAIT:
            raise _error()
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def close(descriptor: int) -> None:
    """Close a file, and give its lock back.

    Raises
    ------
    OSError
        If it is not open.
    """
    if not _library:
        os.close(descriptor)
    elif _library.close(descriptor):
        raise _error()


def unlock(descriptor: int) -> None:
    """Give the lock of an open file back."""
    if _library:
        _library.flock(descriptor, fcntl.LOCK_UN)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def read(descriptor: int, target: memoryview, start: int) -> int:
    """Return how many bytes of an open file, from `start` on, are in `target`.

    As many as there are, or as it has room for. Other threads run while they come from the disk,
    not while they are copied from memory.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    got = 0
    while got < len(target):
        more = read_some(descriptor, target[got:], start + got)
        if not more:
            break
        got += more
    return got


def read_some(descriptor: int, target: memoryview, start: int) -> int:
    """Return how many bytes came with one call, as `read` has them; 0 is the end of the file.

    Fewer than there is room for may be all that there are: who knows that spares a second call.
    """
    got = _read_from_memory(descriptor, target, start)
    if got <= 0:  # Linux 5.9 and 5.10 say 0 of what is not in memory, too (preadv(2))
        got = os.preadv(descriptor, [target], start)
    return got


def _read_from_memory(descriptor: int, target: memoryview, start: int) -> int:
    """Return how many bytes could be read at once; 0 or -1: it must be tried slowly."""
    if not _library:
        return -1
    piece = _Piece(ctypes.addressof(NO_BYTES.from_buffer(target)), len(target))
    return int(_library.preadv2(descriptor, ctypes.byref(piece), 1, start, os.RWF_NOWAIT))


def receive(sock: socket.socket, target: memoryview) -> int:
    """Return how many bytes came into `target`, as the socket's own method does.

    That lets go of the interpreter twice, to wait and to read; here waiting alone does.

    Raises
    ------
    OSError
        If the connection is lost; TimeoutError if nothing comes.
    """
    if _library and type(sock) is socket.socket:  # TLS has to decrypt
        address = ctypes.addressof(NO_BYTES.from_buffer(target))
        for _ in range(2):
            got = int(_library.recv(sock.fileno(), address, len(target), socket.MSG_DONTWAIT))
            if got >= 0:
                return got
            if ctypes.get_errno() not in WOULD_WAIT:  # told once: a second call finds the end
                raise _error()
            if not _has_news(sock):
                raise TimeoutError("timed out")
    return sock.recv_into(target)


def _has_news(sock: socket.socket) -> bool:
    """Return whether there is something to read, or the end, within the socket's time limit."""
    news, limit_s = select.poll(), sock.gettimeout()
    news.register(sock.fileno(), select.POLLIN)
    return bool(news.poll(None if limit_s is None else 1e3 * limit_s))


def send_now(sock: socket.socket, data: bytes) -> int:
    """Return how much of `data` could be sent at once: 0 where the peer does not read.

    Raises
    ------
    OSError
        If the connection is lost.
    """
    if not _library:  # Python's own waits first, for as long as the socket may
        room = select.poll()
        room.register(sock.fileno(), select.POLLOUT)
        return sock.send(data, socket.MSG_DONTWAIT) if room.poll(0) else 0
    sent = int(_library.send(sock.fileno(), data, len(data), SEND_FLAGS))
    if sent < 0 and ctypes.get_errno() not in WOULD_WAIT:
        raise _error()
    return max(sent, 0)


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal digits; other threads run meanwhile only if it is long."""
    if len(data) > LITTLE_BYTES:
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    for start in range(0, len(data), STEP_BYTES):
        digest.update(data[start : start + STEP_BYTES])
    return digest.hexdigest()


def _error() -> OSError:
    """Return what the last call failed of."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
