"""PDUs off a socket: who sends is not idle, who does not is cut."""

import socket
import threading
import time

import pytest

from dicom_node.network.limits import LimitExceeded, Limits
from dicom_node.network.wire import MOST_PIECES, Wire, behind

IDLE_S = 0.6


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=5)
        other = server.accept()[0]
    with one, other:
        yield one, other


def read_all(wire: Wire, until: int) -> int:
    """Return how many PDUs came before there were `until`."""
    count = 0
    while count < until:
        if not wire.waiting():
            _, length = wire.header()
            wire.skip(length)
            count += 1
    return count


def test_a_message_of_many_pdus_may_take_longer_than_silence_may(ends):
    sender, receiver = ends
    pdu = b"\4\0" + (10).to_bytes(4, "big") + b"x" * 10

    def send() -> None:
        for _ in range(5):
            sender.sendall(pdu)
            time.sleep(0.6 * IDLE_S)

    thread = threading.Thread(target=send)
    started = time.monotonic()
    thread.start()
    wire = Wire(receiver, Limits(message_bytes_per_s=1), IDLE_S)

    assert read_all(wire, 5) == 5
    assert time.monotonic() - started > 2 * IDLE_S
    thread.join()


def test_silence_is_counted_from_the_last_byte(ends):
    sender, receiver = ends
    wire = Wire(receiver, Limits(), IDLE_S)
    sender.sendall(b"\4\0" + (10).to_bytes(4, "big") + b"x" * 10)
    read_all(wire, 1)
    since = time.monotonic()

    with pytest.raises(LimitExceeded, match="silent for"):
        while wire.waiting():
            pass

    assert IDLE_S <= time.monotonic() - since < 4 * IDLE_S


@pytest.mark.parametrize("pieces", [False, True])
def test_a_peer_that_does_not_read_is_not_waited_for_for_ever(ends, pieces):
    wire = Wire(ends[1], Limits(pdu_s=0.4), IDLE_S)
    started = time.monotonic()

    with pytest.raises(LimitExceeded, match="it does not read what we send for 0.4 s"):
        wire.send_pieces([bytes(2**20)] * 64) if pieces else wire.send(bytes(2**26))

    assert 0.4 <= time.monotonic() - started < 5


def test_pieces_arrive_one_behind_the_other_however_many_the_peer_takes_at_once(ends):
    sender, receiver = ends
    pieces = [bytes([number % 251]) * (number % 7 * 1000) for number in range(3 * MOST_PIECES)]
    came = bytearray()

    def read() -> None:
        while some := receiver.recv(100_000):
            came.extend(some)

    thread = threading.Thread(target=read)
    thread.start()
    Wire(sender, Limits(), IDLE_S).send_pieces(iter(pieces))
    sender.shutdown(socket.SHUT_WR)
    thread.join(20)

    assert came == b"".join(pieces)


@pytest.mark.parametrize("count", range(8))
def test_what_is_behind_so_many_bytes(count):
    pieces = [b"ab", b"", memoryview(b"cde"), b"fg"]

    assert b"".join(behind(pieces, count)) == b"abcdefg"[count:]
    assert pieces[0] == b"ab"
