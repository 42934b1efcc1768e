"""Where connections wait until they have asked for an association, without costing a thread.

pynetdicom spends three threads and a copy of every presentation context on a connection before it
knows that anybody is there, and shakes hands for TLS in the thread that accepts. Here one thread
watches all of them: it reads the A-ASSOCIATE-RQ, judges who calls, and hands over only who is
admitted. Junk, health checks, half-open, stalled and dripping connections never get further.
"""

import errno
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dicom_node.network.limits import Complaints, Limits, Seats
from dicom_node.network.peers import SHUTTING_DOWN, STRANGER, TOO_MANY, Caller, Rejection
from dicom_node.network.tls import Credentials, kind_of, names_in, words_of
from dicom_node.settings import PeerSettings
from dicom_node.telemetry import associations_rejected

HEADER_BYTES = 6  # type, reserved, length (PS3.8 9.3.1)
SHORTEST_REQUEST = 68  # the fixed part of an A-ASSOCIATE-RQ after the header (PS3.8 9.3.2)
A_ASSOCIATE_RQ = 0x01
ABORT = bytes.fromhex("0700 0000 0004 0000 02 02")  # by the provider: unexpected PDU
SWEEP_S = 0.25
REFRESH_S = 5.0
LINGER_S = 2.0  # for a peer to read its rejection and go, before we close
LINGER_BYTES = 2**20
ACCEPT_AT_ONCE = 64
SPARE_FILES = 16  # for the database and for received files, when descriptors run out
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Doorkeeper(Protocol):
    """Who decides: `peers.Admission`, or `ANYONE`."""

    def welcome(self, address: str) -> bool:
        """Return whether anybody may call from there."""
        ...

    def judge(self, caller: Caller) -> PeerSettings | Rejection:
        """Return who calls, or how to turn the caller away."""
        ...


@dataclass(frozen=True, kw_only=True)
class Anyone:
    """Lets everybody in, for a loopback archive."""

    def welcome(self, address: str) -> bool:
        """Return True."""
        return True

    def judge(self, caller: Caller) -> PeerSettings:
        """Return the same peer for all."""
        return PeerSettings(name="anyone", ae_title="ANYONE")


@dataclass(frozen=True, kw_only=True)
class Door:
    """A socket that listens, and the certificates that a caller must match there."""

    sock: socket.socket
    tls: Credentials | None = None


@dataclass(kw_only=True)
class Visitor:
    """A connection that has not been admitted, or is on its way out."""

    sock: socket.socket
    address: tuple[Any, ...]
    deadline: float
    handshaking: bool
    names: frozenset[str] = frozenset()
    data: bytearray = field(default_factory=bytearray)
    stranger: bool = False
    leaving: bool = False
    to_discard: int = LINGER_BYTES

    @property
    def host(self) -> str:
        """Return the address without the port."""
        return str(self.address[0])

    @property
    def missing(self) -> int:
        """Return how many bytes of the header, then of the request are still to come."""
        if len(self.data) < HEADER_BYTES:
            return HEADER_BYTES - len(self.data)
        return HEADER_BYTES + int.from_bytes(self.data[2:6], "big") - len(self.data)


HandOver = Callable[[Visitor, PeerSettings], None]


class Lobby:
    """The thread that accepts; `start` and `stop` are its life."""

    def __init__(
        self,
        doors: Sequence[Door],
        limits: Limits,
        doorkeeper: Doorkeeper,
        seats: Seats,
        hand_over: HandOver,
        complaints: Complaints,
    ) -> None:
        self._doors = doors
        self._limits = limits
        self._most = limits.waiting
        self._doorkeeper = doorkeeper
        self._seats = seats
        self._hand_over = hand_over
        self._complaints = complaints
        self._visitors: dict[socket.socket, Visitor] = {}  # oldest first
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lobby", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._selector.register(self._woken, selectors.EVENT_READ)
        for door in self._doors:
            door.sock.setblocking(False)
            self._selector.register(door.sock, selectors.EVENT_READ, door)
        self._thread.start()

    def stop(self) -> None:
        """Close the doors and send away who waits."""
        self._stopping = True
        self._wake.send(b"!")
        self._thread.join()
        for sock in (self._wake, self._woken):
            sock.close()

    @property
    def open(self) -> bool:
        """Return whether connections are accepted."""
        return self._thread.is_alive() and not self._stopping

    def waiting(self) -> int:
        """Return how many connections wait or leave."""
        return len(self._visitors)

    def _run(self) -> None:
        swept_at = refreshed_at = time.monotonic()
        while not self._stopping:
            for key, _ in self._selector.select(SWEEP_S):
                self._attend(key.data)
            now = time.monotonic()
            if now - swept_at >= SWEEP_S:
                swept_at = now
                self._sweep(now)
            if now - refreshed_at >= REFRESH_S:
                refreshed_at = now
                for tls in {door.tls for door in self._doors if door.tls}:
                    tls.refresh()  # so that a broken certificate is noticed before it is needed
        self._close_all()

    def _attend(self, who: Door | Visitor | None) -> None:
        if isinstance(who, Door):
            for _ in range(ACCEPT_AT_ONCE):
                if not self._accept(who):
                    return
        elif who is not None and who.sock in self._visitors:
            self._listen_to(who)

    def _accept(self, door: Door) -> bool:
        """Take one connection; return False when there is none."""
        try:
            sock, address = door.sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                self._no_room()
            return False
        while len(self._visitors) >= self._most:
            self._crowd_out()
        try:
            self._enter(door, sock, address)
        except (OSError, ValueError):  # gone before the handshake began
            sock.close()
            self._note("reset", str(address[0]), "gone at once")
        return True

    def _enter(self, door: Door, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Let one connection wait; a stranger only for its rejection."""
        sock.setblocking(False)
        stranger = not self._doorkeeper.welcome(str(address[0]))
        if door.tls and stranger:
            sock.close()  # no handshake: that would be work
            self._note("stranger", str(address[0]), STRANGER.why)
            return
        if door.tls:
            sock = door.tls.server().wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )
        patience_s = LINGER_S if stranger else self._limits.request_s
        visitor = Visitor(
            sock=sock,
            address=address,
            deadline=time.monotonic() + patience_s,
            handshaking=bool(door.tls),
            stranger=stranger,
        )
        self._visitors[sock] = visitor
        self._selector.register(sock, selectors.EVENT_READ, visitor)

    def _listen_to(self, visitor: Visitor) -> None:
        """Read what has come, as far as it goes without waiting."""
        try:
            while visitor.sock in self._visitors and self._read(visitor):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            self._selector.modify(visitor.sock, selectors.EVENT_READ, visitor)
        except ssl.SSLWantWriteError:
            self._selector.modify(visitor.sock, selectors.EVENT_WRITE, visitor)
        except OSError as error:
            if not visitor.leaving:
                failed = isinstance(error, ssl.SSLError) and visitor.handshaking
                kind = kind_of(error) if failed else "reset"
                self._note(kind, visitor.host, words_of(error))
            self._close(visitor)

    def _read(self, visitor: Visitor) -> bool:
        """Read once; return whether there may be more to read."""
        if visitor.handshaking and isinstance(visitor.sock, ssl.SSLSocket):
            visitor.sock.do_handshake()
            visitor.handshaking = False
            visitor.names = names_in(visitor.sock.getpeercert())
        if visitor.leaving:
            return self._discard(visitor)
        data = visitor.sock.recv(min(visitor.missing, 2**16))
        if not data:
            if visitor.data:
                self._note("cut short", visitor.host, "closed before it asked for an association")
            else:  # a health check, every few seconds for years: nothing to read about
                self._complaints.count("nothing said")
            self._close(visitor)
            return False
        if visitor.stranger:  # whatever it says; before it speaks, a rejection would be too early
            self._reject(visitor, "stranger", STRANGER)
            return True
        visitor.data += data
        if len(visitor.data) < HEADER_BYTES:
            return True
        if visitor.data[0] != A_ASSOCIATE_RQ:
            self._refuse_junk(visitor)
        elif not SHORTEST_REQUEST <= self._announced(visitor) <= self._limits.request_bytes:
            why = f"an association request of {self._announced(visitor)} bytes is announced"
            self._dismiss(visitor, ABORT, "request length", why)
        elif not visitor.missing:
            self._judge(visitor)
        return True

    @staticmethod
    def _announced(visitor: Visitor) -> int:
        return int.from_bytes(visitor.data[2:6], "big")

    def _discard(self, visitor: Visitor) -> bool:
        data = visitor.sock.recv(2**16)
        visitor.to_discard -= len(data)
        if not data or visitor.to_discard <= 0:
            self._close(visitor)
            return False
        return True

    def _refuse_junk(self, visitor: Visitor) -> None:
        starts = {b"\x16\x03": "TLS to plain", b"GE": "HTTP", b"PO": "HTTP", b"HE": "HTTP"}
        kind = starts.get(bytes(visitor.data[:2]), "no DICOM")
        self._dismiss(visitor, ABORT, kind, "it does not begin with an association request")

    def _judge(self, visitor: Visitor) -> None:
        """Hand over who is admitted, reject who is not (PS3.8 9.3.2: the titles' places)."""
        caller = Caller(
            called_ae=visitor.data[10:26].decode("ascii", "replace"),
            calling_ae=visitor.data[26:42].decode("ascii", "replace"),
            address=visitor.host,
            secure=isinstance(visitor.sock, ssl.SSLSocket),
            names=visitor.names,
        )
        verdict = self._doorkeeper.judge(caller)
        if isinstance(verdict, Rejection):
            self._reject(visitor, "rejected", verdict)
            return
        full = self._seats.take(verdict.name)
        if full:
            self._reject(visitor, "limit", TOO_MANY, full)
            return
        self._forget(visitor)
        visitor.sock.setblocking(True)
        try:
            self._hand_over(visitor, verdict)
        except RuntimeError:  # no thread to be had
            self._seats.leave(verdict.name)
            self._note("limit", visitor.host, "no thread to be had")
            visitor.sock.close()

    def _reject(self, visitor: Visitor, kind: str, verdict: Rejection, why: str = "") -> None:
        associations_rejected.labels(reason=str(verdict.reason)).inc()
        answer = bytes((3, 0, 0, 0, 0, 4, 0, verdict.result, verdict.source, verdict.reason))
        self._dismiss(visitor, answer, kind, why or verdict.why, "association.rejected")

    def _dismiss(
        self,
        visitor: Visitor,
        answer: bytes,
        kind: str,
        why: str,
        event: str = "connection.refused",
    ) -> None:
        """Say the last word and let the peer go; closing at once could take it back."""
        self._complaints.note(kind, event, reason=why, address=visitor.host)
        visitor.leaving = True
        visitor.deadline = time.monotonic() + LINGER_S
        visitor.data.clear()
        try:
            visitor.sock.send(answer)
            if isinstance(visitor.sock, ssl.SSLSocket):
                visitor.sock.unwrap()
            else:
                visitor.sock.shutdown(socket.SHUT_WR)
        except ssl.SSLWantReadError:
            pass  # our "closed" is sent, the peer's is awaited
        except (OSError, ValueError):
            self._close(visitor)

    def _sweep(self, now: float) -> None:
        """Close everybody whose time is up."""
        late = [each for each in self._visitors.values() if now >= each.deadline]
        for visitor in late:
            if not visitor.leaving:
                kind = "stalled" if visitor.data else "half-open"
                text = f"no association request within {self._limits.request_s:g} s"
                self._note(kind, visitor.host, text)
            self._close(visitor)
        self._most = min(self._limits.waiting, self._most + 1)  # there may be room again

    def _no_room(self) -> None:
        """The process has no file descriptor left: fewer may wait, so that others can work."""
        self._note("no descriptor", "", "the process has as many files open as it may")
        if not self._visitors:
            time.sleep(SWEEP_S)
        self._most = max(1, len(self._visitors) - SPARE_FILES)
        while len(self._visitors) > self._most:
            self._crowd_out()

    def _crowd_out(self) -> None:
        """Close who gets in nowhere, else the oldest connection of the busiest address."""
        visitor = next(self._without_hope(), None)
        if visitor is None:
            busiest = Counter(each.host for each in self._visitors.values()).most_common(1)[0][0]
            visitor = next(each for each in self._visitors.values() if each.host == busiest)
            text = f"{len(self._visitors)} connections wait"
            self._note("crowded out", visitor.host, text)
        self._close(visitor)

    def _without_hope(self) -> Iterator[Visitor]:
        return (each for each in self._visitors.values() if each.leaving or each.stranger)

    def _note(self, kind: str, address: str, why: str) -> None:
        self._complaints.note(kind, "connection.refused", reason=why, address=address)

    def _forget(self, visitor: Visitor) -> None:
        self._selector.unregister(visitor.sock)
        del self._visitors[visitor.sock]

    def _close(self, visitor: Visitor) -> None:
        if visitor.sock in self._visitors:
            self._forget(visitor)
            visitor.sock.close()

    def _close_all(self) -> None:
        for door in self._doors:
            self._selector.unregister(door.sock)
            door.sock.close()
        for visitor in list(self._visitors.values()):
            if not visitor.leaving and not visitor.handshaking:
                self._reject(visitor, "stopping", SHUTTING_DOWN)
            self._close(visitor)
        self._selector.close()
