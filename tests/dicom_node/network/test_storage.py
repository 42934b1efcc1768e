"""What peers do that the standard does not allow, byte by byte, and what they get for it."""

import select
import socket
import struct
import threading
import time

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_node import telemetry
from dicom_node.network import pynetdicom_scu
from dicom_node.network.dimse import BadCommand, Command, read_command, response
from dicom_node.network.limits import Limits
from dicom_node.network.negotiation import BadRequest, read_request
from dicom_node.network.storage import Debt
from dicom_node.network.wire import Body, Wire
from tests.faults.flood import request
from tests.rigs import MR, encoded, make_instance, running_node, write_series

CONTEXT = 1  # the only one in `request`
UNRECOGNISED, UNEXPECTED, INVALID = (2, 1), (2, 2), (2, 6)
DIMSE = (0, 0)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    limits = {"pdu_bytes": 2**20, "message_bytes": 2**20}
    with running_node(tmp_path_factory.mktemp("storage"), limits=limits) as rig:
        yield rig


class Peer:
    """An association on a plain socket."""

    def __init__(self, node, ask: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", node.scp.port), timeout=30)
        self.socket.sendall(ask or request("MR1"))
        self.kind, self.body = self.read()

    def read(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU; type 0 when the connection has ended."""
        head = self._exactly(6)
        return (head[0], self._exactly(int.from_bytes(head[2:], "big"))) if head else (0, b"")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                return b""
            data += more
        return data

    def say(self, *pdus: bytes) -> tuple[int, bytes]:
        """Send PDUs; return the next answer."""
        self.socket.sendall(b"".join(pdus))
        return self.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def pdv(fragment: bytes, control: int, context: int = CONTEXT) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context, control) + fragment


def pdata(fragment: bytes, control: int, context: int = CONTEXT) -> bytes:
    return pdu(4, pdv(fragment, control, context))


def command(field: int, *, data_set: bool = False, **elements: str) -> bytes:
    """Return an encoded command set with message ID 7."""
    named = {"sop_class": (0x0002, MR), "sop_uid": (0x1000, "1.2.826.0.1.1")}
    values = {number: text for number, text in named.values()}
    values |= {named[name][0]: text for name, text in elements.items()}
    numbers = {0x0100: field, 0x0110: 7, 0x0120: 7, 0x0800: 0 if data_set else 0x0101}
    parts = {number: struct.pack("<H", value) for number, value in numbers.items()}
    parts |= {number: text.encode() + b"\0" * (len(text) % 2) for number, text in values.items()}
    return b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value
        for number, value in sorted(parts.items())
    )


VERIFICATION = "1.2.840.10008.1.1"
STORE, ECHO, FIND, CANCEL = 0x0001, 0x0030, 0x0020, 0x0FFF
FIELD = struct.pack("<HHL", 0, 0x0100, 2)
STORE_COMMAND = pdata(command(STORE, data_set=True), 3)
VIOLATIONS = {
    "unknown type": (pdu(0x77, bytes(4)), UNRECOGNISED),
    "second request": (request("MR1"), UNEXPECTED),
    "release reply": (pdu(6, bytes(4)), UNEXPECTED),
    "too long": (b"\x04\x00\xff\xff\xff\xff", INVALID),
    "empty P-DATA": (pdu(4, b""), INVALID),
    "PDV cut short": (pdu(4, b"\0\0\0\x02\x01"), INVALID),
    "PDV longer than its PDU": (pdu(4, b"\0\0\xff\xff\x01\x03" + bytes(20)), INVALID),
    "PDV of nothing": (pdu(4, b"\0\0\0\0\x01\x03"), INVALID),
    "second PDV lies": (pdu(4, pdv(command(ECHO)[:20], 1) + b"\0\0\0\x40\x01\x01zz"), INVALID),
    "unknown context": (pdata(command(ECHO), 3, context=99), INVALID),
    "data set first": (pdata(b"data", 2), DIMSE),
    "second command": (STORE_COMMAND + STORE_COMMAND, DIMSE),
    "garbage command": (pdata(b"\xde\xad\xbe\xef" * 20, 3), DIMSE),
    "empty command": (pdata(b"", 3), DIMSE),
    "endless command": (pdata(bytes(20_000), 1), DIMSE),
    "command without message ID": (pdata(struct.pack("<HHLH", 0, 0x0100, 2, ECHO), 3), DIMSE),
    "a response": (pdata(command(STORE | 0x8000), 3), DIMSE),
    "no such command": (pdata(command(0x0777), 3), DIMSE),
    "endless message": (STORE_COMMAND + pdata(bytes(2**19), 0) * 3, (2, 0)),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_violation_ends_in_the_abort_that_fits(node, violation):
    sent, source_and_reason = VIOLATIONS[violation]
    with Peer(node) as peer:
        assert peer.kind == 2
        kind, body = peer.say(sent)

        assert kind == 7 and tuple(body[2:]) == source_and_reason
    with Peer(node) as another:
        assert another.say(pdata(command(ECHO, sop_class=VERIFICATION), 3))[0] == 4


def test_violations_are_counted(node):
    def counted():
        return telemetry.connections_refused.labels(kind="bad PDU")._value.get()

    before = counted()
    with Peer(node) as peer:
        peer.say(pdu(4, b""))

    assert counted() == before + 1


def test_two_messages_must_not_be_interleaved(node):
    two = request("MR1")
    start = two.index(b"\x20\x00", 74)
    end = two.index(b"\x50\x00", start)
    context = bytearray(two[start:end])
    context[4] = 3
    body = two[6:end] + bytes(context) + two[end:]
    with Peer(node, pdu(1, body)) as peer:
        kind, answer = peer.say(STORE_COMMAND, pdata(b"data", 0), pdata(b"data", 0, context=3))

    assert kind == 7 and tuple(answer[2:]) == DIMSE


def status(body: bytes) -> int:
    """Return the status in a response, and check that it answers message 7."""
    fields = body[6:]
    assert struct.pack("<HHLH", 0, 0x0120, 2, 7) in fields
    at = fields.index(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(fields[at + 8 : at + 10], "little")


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (pdata(command(FIND, data_set=True), 3) + pdata(b"query", 2), 0x0211),
        (pdata(command(ECHO), 3), 0x0122),  # of MR images
        (pdata(command(STORE, data_set=True, sop_class="1.2.3"), 3) + pdata(b"", 2), 0x0122),
        (pdata(command(CANCEL), 3) + pdata(command(ECHO, sop_class=VERIFICATION), 3), 0),
    ],
    ids=["find", "echo of another class", "storage of another class", "cancel, then echo"],
)
def test_what_is_not_served_gets_a_status_and_the_association_goes_on(node, asked, answer):
    with Peer(node) as peer:
        for _ in range(2):
            kind, body = peer.say(asked)
            assert kind == 4 and status(body) == answer
        assert peer.say(pdu(5, bytes(4))) == (6, bytes(4))
        assert peer.read()[0] == 0


def data_set() -> bytes:
    """Return an encoded instance in implicit VR little endian, which `request` asks for as well."""
    file = encoded(make_instance())
    return file[144 + int.from_bytes(file[140:144], "little") :]


def test_message_may_come_in_any_fragments(node):
    words, data = command(STORE, data_set=True), data_set()
    with Peer(node) as peer:
        pieces = [pdv(words[:30], 1), pdv(words[30:], 3), pdv(b"", 0), pdv(data[:999], 0)]
        sent = pdu(4, b"".join(pieces)) + pdata(data[999:], 2)
        for at in range(0, len(sent), 700):
            peer.socket.sendall(sent[at : at + 700])
            time.sleep(0.01)
        kind, body = peer.read()

    assert kind == 4 and status(body) == 0


def test_response_fits_the_longest_pdu_that_the_peer_takes(node):
    ask = request("MR1").replace(struct.pack(">L", 16384), struct.pack(">L", 50))
    with Peer(node, ask) as peer:
        kind, body = peer.say(pdata(command(FIND), 3))
        pieces = [body]
        while not body[5] & 2:
            kind, body = peer.read()
            pieces.append(body)

    assert all(len(piece) <= 50 for piece in pieces)
    whole = b"".join(piece[6:] for piece in pieces)
    assert struct.pack("<HHLH", 0, 0x0900, 2, 0x0211) in whole


BAD_REQUESTS = {
    "an even number": lambda ask: ask.replace(b"\x01\0\0\0\x30", b"\x02\0\0\0\x30"),
    "item longer than the request": lambda ask: ask[:76] + b"\xff\xff" + ask[78:],
    "UID that is none": lambda ask: ask.replace(MR.encode(), b"\xff" * len(MR)),
    "no context": lambda ask: ask[:74] + ask[74:].replace(b"\x20\x00", b"\x21\x00"),
}


@pytest.mark.parametrize("fault", BAD_REQUESTS)
def test_request_that_cannot_be_read_is_aborted(node, fault):
    ask = BAD_REQUESTS[fault](request("MR1"))
    with pytest.raises(BadRequest):
        read_request(ask)
    with Peer(node, ask) as peer:
        assert peer.kind == 7 and tuple(peer.body[2:]) == INVALID


def test_another_application_context_is_rejected(node):
    ask = request("MR1").replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9")
    with Peer(node, ask) as peer:
        assert (peer.kind, tuple(peer.body[1:])) == (3, (1, 1, 2))


def test_peer_that_reads_no_answer_is_cut(tmp_path):
    with running_node(tmp_path, limits={"pdu_s": 0.5}) as node, Peer(node) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        echo = pdata(command(ECHO), 3)
        with pytest.raises(OSError):
            peer.socket.settimeout(5)
            for _ in range(1000):
                peer.socket.sendall(echo * 1000)
        end = time.monotonic() + 20
        while node.scp.associations() and time.monotonic() < end:
            time.sleep(0.05)

        assert not node.scp.associations()


class Gate:
    """Keeps the database from recording what arrives while it is closed."""

    def __init__(self, node) -> None:
        self._recording = node.store.series._recording
        self._work = self._recording._work
        self.reached, self._open = threading.Event(), threading.Event()
        self._recording._work = self._record

    def _record(self, batch):
        self.reached.set()
        assert self._open.wait(60)
        return self._work(batch)

    def open(self) -> None:
        """Let everything through from now on."""
        self._open.set()


@pytest.fixture
def held_up(tmp_path):
    """A node whose database does not record yet, the gate before it, and a peer that waits."""
    with running_node(tmp_path / "state", node={"network_timeout_s": 0.5}) as node:
        gate = Gate(node)
        with Peer(node) as first:
            first.socket.sendall(store_of(1))
            assert gate.reached.wait(30)
            yield node, gate, first
        gate.open()


def store_of(number: int) -> bytes:
    """Return the PDUs of a C-STORE."""
    words = command(STORE, data_set=True, sop_uid=f"1.2.826.0.1.{number}")
    file = encoded(make_instance(number))
    return pdata(words, 3) + pdata(file[144 + int.from_bytes(file[140:144], "little") :], 2)


def nothing_comes(peer: Peer) -> bool:
    return not select.select([peer.socket], [], [], 0.3)[0]


def without_associations(node) -> bool:
    end = time.monotonic() + 20
    while node.scp.associations() and time.monotonic() < end:
        time.sleep(0.05)
    return not node.scp.associations()


def test_answers_come_when_the_row_is_there_and_in_the_order_of_the_requests(held_up):
    node, gate, first = held_up
    echo = pdata(command(ECHO, sop_class=VERIFICATION), 3)
    with Peer(node) as second:
        second.socket.sendall(store_of(2) + echo + store_of(3))
        assert nothing_comes(first) and nothing_comes(second)
        assert node.store.ledger().acknowledged == 0

        gate.open()

        assert status(first.read()[1]) == 0
        fields = [struct.unpack("<H", second.read()[1].split(FIELD)[1][:2])[0] for _ in range(3)]
        assert fields == [0x8001, 0x8030, 0x8001]
        assert node.store.ledger().acknowledged == 3


def test_a_peer_that_waits_for_its_answer_is_not_idle(held_up):
    node, gate, first = held_up
    with Peer(node) as second:
        second.socket.sendall(store_of(2))
        time.sleep(1.5)  # three times as long as a silent peer may be
        gate.open()

        assert status(second.read()[1]) == 0 and status(first.read()[1]) == 0
        assert second.say(pdata(command(ECHO, sop_class=VERIFICATION), 3))[0] == 4
        assert second.read()[0] == 7  # now it is silent


@pytest.mark.parametrize("how", ["closes", "resets", "releases", "aborts", "breaks the protocol"])
def test_an_association_ends_after_the_answer_that_it_is_owed(held_up, how):
    node, gate, _ = held_up
    with Peer(node) as second:
        second.socket.sendall(store_of(2))
        assert nothing_comes(second)
        if how == "resets":
            second.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        said = {"releases": pdu(5, bytes(4)), "aborts": pdu(7, bytes(4))}
        said["breaks the protocol"] = pdu(0x77, bytes(4))
        if how in said:
            second.socket.sendall(said[how])
            assert nothing_comes(second)
        else:
            second.socket.close()
        time.sleep(0.3)
        assert node.scp.associations() == 2

        gate.open()

        if how in ("releases", "breaks the protocol"):
            assert status(second.read()[1]) == 0
            assert second.read()[0] == (6 if how == "releases" else 7)
    assert without_associations(node)
    assert node.store.ledger().acknowledged == 2  # it was sent, and kept


def test_who_is_owed_an_answer_has_it_before_the_node_stops(held_up):
    node, gate, first = held_up
    with Peer(node) as second:
        second.socket.sendall(store_of(2))
        assert nothing_comes(second)
        stopping = threading.Thread(target=node.scp.stop, args=(0.2,))
        stopping.start()
        time.sleep(0.5)
        gate.open()

        for peer in (first, second):
            assert status(peer.read()[1]) == 0 and peer.read()[0] == 7
        stopping.join(30)


def connection() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=30)
        return one, server.accept()[0]


def test_of_two_answers_one_is_given_and_what_the_peer_does_not_take_is_sent_by_who_reads():
    ours, theirs = connection()
    with ours, theirs:
        debt = Debt(Wire(ours, Limits(pdu_s=20), 60))
        long = bytes(range(256)) * 2**16
        due = debt.owe()
        due.pay(lambda: long)  # it does not wait, though the peer does not read
        due.pay(lambda: b"another")
        assert not debt.owed
        settling = threading.Thread(target=debt.settle)
        settling.start()
        got = b""
        while len(got) < len(long):
            got += theirs.recv(65536)
        settling.join(30)

        assert got == long
        next_due = debt.owe()
        due.pay(lambda: b"one more of the first")
        assert debt.owed
        next_due.pay(lambda: b"the next")
        assert theirs.recv(64) == b"the next"


def test_an_answer_that_cannot_be_made_leaves_nothing_owed():
    ours, theirs = connection()
    with ours, theirs:
        debt = Debt(Wire(ours, Limits(), 60))
        with pytest.raises(ZeroDivisionError):
            debt.owe().pay(lambda: bytes([1 // 0]))
        debt.settle()


@pytest.mark.parametrize("breaks", ["no memory", "the log"])
def test_whatever_breaks_there_is_an_answer_and_the_association_ends(tmp_path, monkeypatch, breaks):
    class Full(Body):
        @property
        def data(self):
            raise MemoryError

    def silent(*_, **__):
        raise BrokenPipeError

    with running_node(tmp_path / "state") as node:
        if breaks == "no memory":
            monkeypatch.setattr("dicom_node.network.storage.Body", Full)
        else:
            monkeypatch.setattr(node.store.series, "hand_in_instance", silent)
            monkeypatch.setattr("dicom_node.network.keeping.log.error", silent)
        with Peer(node) as peer:
            assert status(peer.say(store_of(1))[1]) == 0xC211
            monkeypatch.undo()
            peer.socket.sendall(pdu(5, bytes(4)))
        assert without_associations(node)


def test_an_answer_that_the_peer_does_not_take_at_once_is_sent_soon(node, monkeypatch):
    monkeypatch.setattr(Wire, "send_now", lambda self, data: data)
    with Peer(node) as peer:
        assert status(peer.say(store_of(41))[1]) == 0


def test_where_one_thread_has_the_connection_to_itself_it_answers_at_once(node, monkeypatch):
    """As with TLS: the thread that reads waits for the answer before it reads on."""
    monkeypatch.setattr(Wire, "two_way", False)
    with Peer(node) as peer:
        started = time.monotonic()
        for number in range(42, 50):
            assert status(peer.say(store_of(number))[1]) == 0
        assert time.monotonic() - started < 8 * 0.5


def test_who_is_gone_needs_no_answer():
    ours, theirs = connection()
    theirs.close()
    with ours:
        debt = Debt(Wire(ours, Limits(), 60))
        debt.owe().pay(lambda: b"too late")
        debt.settle()


def test_storage_and_commitment_on_one_association(tmp_path):
    [item] = write_series(tmp_path / "a", 1)
    ae = AE(ae_title="MR1")
    ae.add_requested_context(MR)
    ae.add_requested_context(StorageCommitmentPushModel)
    with running_node(tmp_path / "state") as node:
        handlers = [(evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies)]
        association = ae.associate(
            "127.0.0.1", node.scp.port, ae_title="SRNODE", evt_handlers=handlers
        )

        assert len(association.accepted_contexts) == 2
        assert association.send_c_store(item.path).Status == 0x0000
        association.release()
        assert node.store.ledger().acknowledged == 1


def test_command_set_is_read_and_answered():
    asked = read_command(command(STORE, data_set=True))

    assert asked == Command(
        field=STORE, message_id=7, has_data_set=True, sop_class=MR, sop_uid="1.2.826.0.1.1"
    )
    answer = response(asked, 0xC000, "why \\ not" * 20)
    assert struct.unpack_from("<L", answer, 8)[0] == len(answer) - 12
    with pytest.raises(BadCommand):
        read_command(command(ECHO)[:-1])
