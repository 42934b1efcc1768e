"""One connection to a node under attack, and how what is said on it ends."""

import socket
import time
from collections.abc import Iterator

from tests.faults import fuzz_wire as wire

SENTINEL = 0x7A7A  # message id of the C-ECHO behind an exchange
PATIENCE_S = 1.0  # then we say that nothing more comes, and the node must end it
LIMIT_S = 60.0  # for the end of any exchange, on a machine where everything is slow


class Line:
    """One connection to the node, read PDU by PDU."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def send(self, data: bytes) -> None:
        """Send everything, or raise OSError."""
        self._socket.settimeout(LIMIT_S)
        self._socket.sendall(data)

    def shut(self) -> None:
        """Say that nothing more will come."""
        self._socket.shutdown(socket.SHUT_WR)

    def pdu(self, deadline: float) -> bytes:
        """Return the next PDU, nothing at the end; raises TimeoutError at the deadline."""
        while len(self._data) < 6 or len(self._data) < 6 + int.from_bytes(self._data[2:6], "big"):
            if not self.more(deadline):
                return b""
        end = 6 + int.from_bytes(self._data[2:6], "big")
        found, self._data = self._data[:end], self._data[end:]
        return found

    def more(self, deadline: float) -> bytes:
        """Return what has come, nothing at the end; raises TimeoutError at the deadline."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)
        new = self._socket.recv(65536)
        self._data += new
        return new

    def close(self) -> None:
        """Go."""
        self._socket.close()


def opened(port: int, opening: bytes) -> Line:
    """Return an association; raises OSError when there is none."""
    line = Line(port)
    try:
        line.send(opening)
        if line.pdu(time.monotonic() + LIMIT_S)[:1] != bytes((wire.AC,)):
            raise OSError("not accepted")
    except OSError:
        line.close()
        raise
    return line


def end_of(line: Line, how: str, statuses: list[int]) -> str:
    """Return how an exchange on an association ended; statuses of responses are added."""
    mark, until = wire.echo_reply_mark(SENTINEL), time.monotonic() + LIMIT_S
    patience = time.monotonic() + PATIENCE_S if how == "echo" else until
    while True:
        try:
            found = line.pdu(patience)
        except TimeoutError:
            if patience == until:
                raise
            patience = until
            line.shut()
            continue
        if not found:
            return "closed"
        if found[0] == wire.ABORTED:
            return "aborted"
        if mark in found:
            return "answered"
        statuses.extend(statuses_in(found))
        if how == "reply" and statuses:
            return "answered"


def statuses_in(found: bytes) -> Iterator[int]:
    """Yield the status in a P-DATA-TF, if there is one (0000,0900)."""
    at = found.find(wire.element(0x0900, b"", 2))
    if at >= 0 and found[0] == wire.DATA:
        yield int.from_bytes(found[at + 8 : at + 10], "little")


def parted(line: Line) -> str:
    """Return how the node took an association request; an accepted association is released."""
    until = time.monotonic() + LIMIT_S
    try:
        first = line.pdu(time.monotonic() + PATIENCE_S)
    except TimeoutError:
        line.shut()
        first = line.pdu(until)
    ending = {wire.AC: "accepted", wire.RJ: "rejected", wire.ABORTED: "aborted"}
    if first[:1] == bytes((wire.AC,)):
        line.send(wire.echo(SENTINEL) + wire.RELEASE_RQ)
    line.shut()
    while line.pdu(until):
        pass
    return ending.get(first[0], "other") if first else "closed"


def answered(line: Line) -> str:
    """Return the page's status; a request that is not complete waits for us to go."""
    try:
        first = line.more(time.monotonic() + PATIENCE_S)
    except TimeoutError:
        return "waits"
    return first[9:12].decode("latin-1") if first.startswith(b"HTTP/1.") else "closed"
