"""PDUs off and onto a socket: waited for without polling, bounded in length and in time.

One thread reads one connection. While nothing comes it sleeps in the kernel, and what comes is
read straight to where it is needed. Another thread may send meanwhile (`send_now`).
"""

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import islice

from dicom_node import brief_calls
from dicom_node.network.limits import LimitExceeded, Limits, Meter

PDU_HEADER_BYTES = 6
AHEAD_BYTES = 2**15  # read at once: a command, and the beginning of the data set behind it
STEP_BYTES = 2**18  # what is announced is not believed before it comes
KEPT_BYTES = 2**20  # of memory, while one message follows the other
MOST_PIECES = 1024  # sent with one call: IOV_MAX of Linux
TICK_S = 1.0  # how late a limit of time may be noticed
LINGER_S = 1.0  # for a peer to read our last word and go
LINGER_BYTES = 2**20


class Gone(Exception):
    """The peer closed the connection, or aborted the association."""


class Wire:
    """Our end of a connection that has an association, or is about to."""

    def __init__(self, sock: socket.socket, limits: Limits, idle_s: float) -> None:
        self._sock = sock
        self._limits = limits
        self._idle_s = idle_s
        self._meter = Meter(limits)
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._at = self._end = 0  # what is read ahead and not taken
        self._deadline = 0.0
        self._silent_since = time.monotonic()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(min(TICK_S, limits.pdu_s / 4, idle_s / 4))

    @property
    def two_way(self) -> bool:
        """Return whether one thread may send while another one reads: not with TLS."""
        return type(self._sock) is socket.socket

    def waiting(self, *, owing: bool = False) -> bool:
        """Return whether there is still nothing to read, after a while.

        Parameters
        ----------
        owing
            It is we who are to speak: the peer's silence does not count.

        Raises
        ------
        LimitExceeded
            If the peer has been silent for too long.
        Gone
            If it has closed the connection.
        """
        if self._at < self._end:
            return False
        try:
            self._at, self._end = 0, brief_calls.receive(self._sock, self._ahead)
        except TimeoutError:
            if not owing and time.monotonic() - self._silent_since > self._idle_s:
                raise LimitExceeded("idle", f"silent for {self._idle_s:g} s") from None
            return True
        if not self._end:
            raise Gone
        self._silent_since = time.monotonic()
        return False

    def header(self) -> tuple[int, int]:
        """Return type and length of the next PDU; the clock of the PDU starts.

        Raises
        ------
        LimitExceeded
            If it, or the message that it belongs to, is too long or too slow.
        Gone
            If the peer has closed the connection.
        """
        self._deadline = time.monotonic() + self._limits.pdu_s
        self._meter.add(PDU_HEADER_BYTES)
        head = self.take(PDU_HEADER_BYTES)
        length = int.from_bytes(head[2:], "big")
        self._meter.add(length)
        return head[0], length

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes of the PDU: few, they are copied."""
        if self._end - self._at < count:
            data = bytearray(count)
            self.read_into(memoryview(data))
            return bytes(data)
        self._at += count
        return bytes(self._ahead[self._at - count : self._at])

    def read_into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes of the PDU."""
        got = min(len(target), self._end - self._at)
        target[:got] = self._ahead[self._at : self._at + got]
        self._at += got
        while got < len(target):
            if len(target) - got >= AHEAD_BYTES:
                got += self._receive(target[got:])
                continue
            self._at, self._end = 0, self._receive(self._ahead)
            more = min(len(target) - got, self._end)
            target[got : got + more] = self._ahead[:more]
            self._at, got = more, got + more

    def skip(self, count: int) -> None:
        """Pass over the next `count` bytes of the PDU."""
        while count:
            step = min(count, AHEAD_BYTES)
            self.take(step)
            count -= step

    def next_message(self) -> None:
        """Begin to count anew: the message is complete."""
        self._meter.restart()
        self._silent_since = time.monotonic()

    def _receive(self, target: memoryview) -> int:
        """Return how many bytes of the present PDU came."""
        while True:
            with suppress(TimeoutError):
                got = brief_calls.receive(self._sock, target)
                if not got:
                    raise Gone
                if time.monotonic() <= self._deadline:
                    return got
            if time.monotonic() > self._deadline:
                raise LimitExceeded(
                    "slow PDU", f"a PDU is not there after {self._limits.pdu_s:g} s"
                )

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`; other threads run meanwhile: the peer takes its time to go on.

        Raises
        ------
        LimitExceeded
            If the peer takes nothing for a while, and the time of a PDU is over.
        """
        deadline = time.monotonic() + self._limits.pdu_s
        while data := data[self._taken(partial(self._sock.send, data), deadline) :]:
            pass

    def send_pieces(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Send all of `pieces`, one behind the other and not joined, as `send` does.

        Raises
        ------
        LimitExceeded
            As for `send`, of so many pieces as one call takes.
        """
        if not self.two_way:  # TLS encrypts one piece of memory after the other
            self.send(b"".join(pieces))
            return
        left = iter(pieces)
        while some := list(islice(left, MOST_PIECES)):
            deadline = time.monotonic() + self._limits.pdu_s
            while some := behind(some, self._taken(partial(self._sock.sendmsg, some), deadline)):
                pass

    def _taken(self, send: Callable[[], int], deadline: float) -> int:
        """Return how many bytes could be sent, after a while at the latest."""
        sent = 0
        with suppress(TimeoutError):
            sent = send()
        if not sent and time.monotonic() > deadline:
            text = f"it does not read what we send for {self._limits.pdu_s:g} s"
            raise LimitExceeded("slow PDU", text)
        return sent

    def send_now(self, data: bytes) -> bytes:
        """Send what the peer takes at once; return the rest, all of it where `two_way` is not.

        Raises
        ------
        OSError
            If the connection is lost.
        """
        self._silent_since = time.monotonic()
        return data[brief_calls.send_now(self._sock, data) :] if self.two_way else data

    def part(self) -> None:
        """Let the peer read our last word and go: closing at once could take it back."""
        left, deadline = LINGER_BYTES, time.monotonic() + LINGER_S
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
            while left > 0 and time.monotonic() < deadline:
                with suppress(TimeoutError):
                    got = self._sock.recv_into(self._ahead)
                    if not got:
                        return
                    left -= got


def behind(pieces: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """Return what is left of `pieces` without their first `count` bytes."""
    if count == sum(map(len, pieces)):
        return []
    for place, piece in enumerate(pieces):
        if count < len(piece):
            return [memoryview(piece)[count:], *pieces[place + 1 :]]
        count -= len(piece)
    return []


class Body:
    """The data set of one message after the other, in memory that is used again."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._size = 0

    @property
    def data(self) -> bytes:
        """Return a copy of what has come."""
        return bytes(memoryview(self._memory)[: self._size])

    def read(self, wire: Wire, count: int) -> None:
        """Add the next `count` bytes; memory grows with what has come."""
        while count:
            step = min(count, STEP_BYTES)
            if len(self._memory) < self._size + step:
                self._memory.extend(bytes(step))
            with memoryview(self._memory) as memory:
                wire.read_into(memory[self._size : self._size + step])
            self._size += step
            count -= step

    def clear(self) -> None:
        """Forget the data set, and what a large one took."""
        self._size = 0
        if len(self._memory) > KEPT_BYTES:
            self.release()

    def release(self) -> None:
        """Give the memory back: nothing is coming for a while."""
        self._memory = bytearray()
