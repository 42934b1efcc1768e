"""Connections that ask for nothing good, twelve kinds of them, from a few threads."""

import itertools
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context
from pynetdicom.transport import AddressInformation

from tests.rigs import MR

KEPT_OPEN = 400  # at most; more than the node lets wait
FLOODERS = 3
STRANGERS = "127.0.0.9"  # where no peer lives


def request(calling: str) -> bytes:
    """Return an A-ASSOCIATE-RQ for one storage context."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, "SRNODE"
    primitive.calling_presentation_address = AddressInformation("127.0.0.1", 0)
    primitive.called_presentation_address = AddressInformation("127.0.0.1", 0)
    context = build_context(MR)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.826.0.1.3680043.9.9"
    primitive.user_information = [length, implementation]
    return A_ASSOCIATE_RQ(primitive).encode()


GOOD, THIRD, UNKNOWN = request("MR2"), request("MR3"), request("STRANGER")
ABORT = bytes.fromhex("07000000000400000000")


class Flood:
    """Threads that open connections of every kind until there have been enough."""

    def __init__(self, port: int, count: int, seed: int) -> None:
        self._address = ("127.0.0.1", port)
        self._left = iter(range(count))
        self._lock = threading.Lock()
        self._seed = seed
        self.kept: deque[socket.socket] = deque()
        self.kinds: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(FLOODERS)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Return whether there is more to come."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Wait for the end and close what is open."""
        for thread in self._threads:
            thread.join()
        for connection in self.kept:
            connection.close()

    def _run(self, number: int) -> None:
        rng = random.Random(self._seed * 1000 + number)
        kinds = itertools.cycle(rng.sample(list(KINDS), len(KINDS)))
        while True:
            with self._lock:
                if next(self._left, None) is None:
                    return
                kind = next(kinds)
                self.kinds[kind] += 1
            self._one(KINDS[kind], rng)
            self._drip()

    def _one(self, act: Callable[[socket.socket, random.Random], bool], rng: random.Random) -> None:
        source = (STRANGERS, 0) if rng.random() < 0.1 else None
        connection = socket.create_connection(self._address, timeout=10, source_address=source)
        try:
            keep = act(connection, rng)
        except OSError:  # cut already
            keep = False
        if not keep:
            connection.close()
            return
        with self._lock:
            self.kept.append(connection)
            oldest = self.kept.popleft() if len(self.kept) > KEPT_OPEN else None
        if oldest:
            oldest.close()

    def _drip(self) -> None:
        """Send one more byte on one of the connections that are kept open."""
        with self._lock:
            if not self.kept:
                return
            self.kept.rotate(1)
            connection = self.kept[0]
        try:
            connection.send(b"\0")
        except OSError:
            pass


def junk(connection: socket.socket, rng: random.Random) -> bool:
    """Send noise."""
    connection.sendall(rng.randbytes(rng.randint(1, 4000)))
    return False


def http(connection: socket.socket, rng: random.Random) -> bool:
    """Ask for a web page."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    return False


def tls(connection: socket.socket, rng: random.Random) -> bool:
    """Begin a TLS handshake where none is spoken."""
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500))
    return False


def health_check(connection: socket.socket, rng: random.Random) -> bool:
    """Connect and go."""
    return False


def half_open(connection: socket.socket, rng: random.Random) -> bool:
    """Say nothing."""
    return True


def stalled(connection: socket.socket, rng: random.Random) -> bool:
    """Stop inside the request."""
    connection.sendall(GOOD[: rng.randint(1, len(GOOD) - 200)])
    return True


def dripping(connection: socket.socket, rng: random.Random) -> bool:
    """Begin a request that goes on byte by byte."""
    connection.sendall(b"\x01")
    return True


def stalled_inside(connection: socket.socket, rng: random.Random) -> bool:
    """Be admitted, and stop inside a PDU."""
    connection.sendall(THIRD)
    connection.recv(4096)
    connection.sendall(b"\x04\x00\x00\x01\x00\x00some of it")
    return True


def huge(connection: socket.socket, rng: random.Random) -> bool:
    """Announce a request of 4 GiB and send some of it."""
    connection.sendall(b"\x01\x00\xff\xff\xff\xff" + rng.randbytes(30000))
    return True


def rejected(connection: socket.socket, rng: random.Random) -> bool:
    """Ask under a title that nobody knows."""
    connection.sendall(UNKNOWN)
    connection.recv(10)
    return False


def aborted(connection: socket.socket, rng: random.Random) -> bool:
    """Be admitted, and abort or vanish, maybe inside a data set."""
    connection.sendall(GOOD)
    connection.recv(4096)
    connection.sendall(
        rng.choice([ABORT, b"\x04\x00\x00\x00\x40\x00half of it", b"\x04\x00\xff\xff\xff\xff", b""])
    )
    if rng.random() < 0.5:  # closed by a reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def garbled(connection: socket.socket, rng: random.Random) -> bool:
    """Be admitted by the titles of a request that cannot be read."""
    connection.sendall(GOOD[:74] + rng.randbytes(len(GOOD) - 74))
    return False


KINDS = {
    act.__name__: act
    for act in (
        *(junk, http, tls, health_check, half_open),
        *(stalled, dripping, stalled_inside, huge, rejected, aborted, garbled),
    )
}
