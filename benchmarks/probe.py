"""A sender with a stop-watch: C-STORE after C-STORE over plain sockets, each answer timed.

It encodes nothing while it measures and runs no other protocol code than a few lines of its own, so
that what it sees is the receiver. One thread for each association.
"""

import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from benchmarks.instances import Instance

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
CONTEXT_ID = 1
RELEASE = bytes.fromhex("0500 0000 0004 0000 0000")


class Refused(Exception):
    """The receiver did not take what the benchmark sent."""


def latencies_s(port: int, called: str, loads: Sequence[Sequence[Instance]]) -> list[float]:
    """Return the seconds from the first byte of each instance to its answer.

    Raises
    ------
    Refused
        If an association or an instance is not accepted.
    """
    with ThreadPoolExecutor(len(loads)) as pool:
        return sum(pool.map(lambda load: _send(port, called, load), loads), [])


def associate(port: int, called: str) -> tuple[socket.socket, int]:
    """Return an association for MR images, and the longest PDU that the peer takes."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(request(called))
    kind, body = read_pdu(connection)
    if kind != 2 or accepted_contexts(body) != [CONTEXT_ID]:
        raise Refused(f"the association was answered with a PDU of type {kind}")
    return connection, longest_pdu(body) or 2**20


def release(connection: socket.socket) -> None:
    """End the association."""
    connection.sendall(RELEASE)
    read_pdu(connection)
    connection.close()


def _send(port: int, called: str, load: Sequence[Instance]) -> list[float]:
    connection, pdu_bytes = associate(port, called)
    seconds = []
    for number, instance in enumerate(load, 1):
        message = b"".join(messages(instance, number, pdu_bytes))
        started = time.perf_counter()
        connection.sendall(message)
        status = status_of(read_pdu(connection)[1])
        seconds.append(time.perf_counter() - started)
        if status:
            raise Refused(f"C-STORE was answered with {status:04X}")
    release(connection)
    return seconds


def request(called: str) -> bytes:
    """Return an A-ASSOCIATE-RQ for MR images in explicit VR little endian (PS3.8 9.3.2)."""
    syntaxes = item(0x30, MRImageStorage.encode()) + item(0x40, ExplicitVRLittleEndian.encode())
    user = item(0x51, struct.pack(">L", 131072)) + item(0x52, b"1.2.826.0.1.3680043.9.9.9")
    items = (
        item(0x10, APPLICATION_CONTEXT.encode())
        + item(0x20, bytes((CONTEXT_ID, 0, 0, 0)) + syntaxes)
        + item(0x50, user)
    )
    fixed = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), b"SCANNER".ljust(16))
    return struct.pack(">BxL", 1, len(fixed + items)) + fixed + items


def item(kind: int, value: bytes) -> bytes:
    """Return one item of an association request."""
    return struct.pack(">BxH", kind, len(value)) + value


def items_of(data: bytes) -> list[tuple[int, bytes]]:
    """Return type and value of each item."""
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from(">BxH", data, at)
        found.append((kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def accepted_contexts(body: bytes) -> list[int]:
    """Return the presentation contexts that an A-ASSOCIATE-AC accepts."""
    return [value[0] for kind, value in items_of(body[68:]) if kind == 0x21 and value[2] == 0]


def longest_pdu(body: bytes) -> int:
    """Return the maximum length that an A-ASSOCIATE-AC announces; 0: any."""
    user = next(value for kind, value in items_of(body[68:]) if kind == 0x50)
    return next(int.from_bytes(value, "big") for kind, value in items_of(user) if kind == 0x51)


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    """Return type and body of the next PDU."""
    head = read(connection, 6)
    return head[0], read(connection, int.from_bytes(head[2:], "big"))


def read(connection: socket.socket, count: int) -> bytes:
    """Return exactly `count` bytes."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise Refused("the receiver closed the connection")
        data += more
    return data


def messages(instance: Instance, number: int, pdu_bytes: int) -> list[bytes]:
    """Return the P-DATA-TF PDUs of one C-STORE (PS3.7 9.3.1.1, PS3.8 9.3.5)."""
    command = element(0x0002, MRImageStorage) + element(0x0100, 1) + element(0x0110, number)
    command += element(0x0700, 0) + element(0x0800, 1) + element(0x1000, UID(instance.sop_uid))
    command = struct.pack("<HHLL", 0, 0, 4, len(command)) + command
    step = pdu_bytes - 6
    data = memoryview(instance.file)[instance.data_set_at :]
    ends = range(step, len(data) + step, step)
    return [pdata(command, 3), *(pdata(data[e - step : e], 2 * (e >= len(data))) for e in ends)]


def element(number: int, value: int | UID) -> bytes:
    """Return one element of a command set."""
    if isinstance(value, int):
        encoded = struct.pack("<H", value)
    else:
        encoded = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(encoded)) + encoded


def pdata(fragment: bytes | memoryview, control: int) -> bytes:
    """Return a P-DATA-TF PDU with one fragment."""
    head = struct.pack(">BxLLBB", 4, len(fragment) + 6, len(fragment) + 2, CONTEXT_ID, control)
    return head + bytes(fragment)


def status_of(body: bytes) -> int:
    """Return the status in the response that a P-DATA-TF PDU carries."""
    at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(body[at + 8 : at + 10], "little")
