"""Associations of our own as requestor, with peers that keep to the standard more or less.

The peers are bare sockets: what they say must not depend on any library.
"""

import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO

import pytest
from pydicom import Dataset
from pynetdicom.dsutils import decode, encode

from dicom_node.network import dimse
from dicom_node.network.caller import call
from dicom_node.network.connecting import AssociationFault, Timeouts, connect
from dicom_node.network.dimse import VERIFICATION, echo_request, read_response, store_request
from dicom_node.network.negotiation import Offer, acceptance, negotiate, read_request
from dicom_node.network.parcels import Item
from dicom_node.network.pdus import RELEASE, RELEASED, abort_pdu, command_pdus
from dicom_node.network.scu import echo, send
from dicom_node.retry import Fault
from tests.rigs import MR, destination, make_instance, write_instance, write_series

HASTY = Timeouts(connect_s=5.0, association_s=2.0, reply_s=2.0)
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
OFFER = Offer(
    syntaxes={VERIFICATION: (IMPLICIT,), MR: (EXPLICIT,)},
    longest_pdu=16384,
    implementation_uid="1.2.3",
    implementation_version="BARE",
)


def read_exactly(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def read_pdu(connection):
    """Return type and body of the next PDU."""
    head = read_exactly(connection, 6)
    return head[0], read_exactly(connection, int.from_bytes(head[2:], "big"))


def read_message(connection):
    """Return the command of the next message; its data set is read as well."""
    command, kind, whole = b"", 0, False
    while True:
        kind, body = read_pdu(connection)
        if kind != 4:
            raise EOFError
        at = 0
        while at < len(body):
            length, number, control = struct.unpack_from(">LBB", body, at)
            if whole and control & 1:
                raise EOFError("a second command")
            whole = whole or control & 3 == 3
            command += body[at + 6 : at + 4 + length] if control & 1 else b""
            at += 4 + length
        asked = dimse.read_command(command) if control & 2 else None
        if control & 2 and not (control & 1 and asked.has_data_set):
            return asked, number


class Bare:
    """A peer that accepts and then does what `serve` says, for each association anew."""

    def __init__(self, serve, answer=None):
        self._serve = serve
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.peer = destination(self._socket.getsockname()[1], "PACS")
        self.endings = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        """Listen no more; what became of every association is known then."""
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing does not
        self._thread.join(30)
        self._socket.close()

    def _run(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(20)
                self.endings.append(self._one(connection))

    def _one(self, connection):
        """Return how the association ended, as the peer saw it."""
        try:
            kind, body = read_pdu(connection)
            assert kind == 1
            proposal = read_request(bytes(6) + body)
            accepted, refused = negotiate(proposal, OFFER)
            connection.sendall(self._answer or acceptance(proposal, accepted, refused, OFFER))
            self._serve(connection)
            kind, _ = read_pdu(connection)
            if kind == 5:
                connection.sendall(RELEASED)
            return {5: "released", 7: "aborted"}.get(kind, f"PDU {kind}")
        except (EOFError, ConnectionError):
            return "gone"


@contextmanager
def bare(serve, answer=None):
    peer = Bare(serve, answer)
    try:
        yield peer
    finally:
        peer.close()


@pytest.fixture
def items(tmp_path):
    return write_series(tmp_path / "a", 1)


def respond(connection, *, longest=0, cut=None, **changed):
    """Answer the next message, as `changed` says otherwise than one should."""
    asked, number = read_message(connection)
    values = {"field": asked.field, "message_id": asked.message_id} | changed
    command = dimse.Command(has_data_set=False, **{k: values[k] for k in ("field", "message_id")})
    response = dimse.response(command, changed.get("status", 0), changed.get("comment", ""))
    connection.sendall(command_pdus(response, number, longest)[:cut])


def test_response_may_come_in_many_pdus(items):
    with bare(lambda connection: respond(connection, longest=8)) as archive:
        [outcome] = send(items, archive.peer, "SRNODE", timeouts=HASTY)

    assert outcome.fault == 0x0000
    assert archive.endings == ["released"]


def test_command_of_a_long_instance_goes_before_it_once(tmp_path):
    dataset = make_instance(1, NumberOfFrames=200)
    dataset.PixelData = bytes(32 * 48 * 2 * 200)
    path = write_instance(tmp_path, dataset)
    item = Item(key=1, sop_uid=str(dataset.SOPInstanceUID), path=path)

    with bare(respond) as archive:
        [outcome] = send([item], archive.peer, "SRNODE", timeouts=HASTY, resumes=0)

    assert outcome.fault == 0x0000
    assert archive.endings == ["released"]


def test_what_is_still_on_its_way_to_the_peer_is_no_silence(tmp_path):
    """Our system takes it sooner than a slow line does."""
    dataset = make_instance(1, NumberOfFrames=20)
    dataset.PixelData = bytes(32 * 48 * 2 * 20)  # three seconds on the slowest line
    path = write_instance(tmp_path, dataset)
    item = Item(key=1, sop_uid=str(dataset.SOPInstanceUID), path=path)

    def slow(connection):
        time.sleep(1.0)
        respond(connection)

    hasty = replace(HASTY, reply_s=0.2)
    with bare(slow) as archive:
        [outcome] = send([item], archive.peer, "SRNODE", timeouts=hasty, resumes=0)

    assert outcome.fault == 0x0000


def test_words_of_the_peer_are_kept(items):
    with bare(lambda connection: respond(connection, status=0xA700, comment="full")) as archive:
        [outcome] = send(items, archive.peer, "SRNODE", timeouts=HASTY)

    assert (outcome.fault, outcome.comment) == (0xA700, "full")


def garbage(connection):
    read_message(connection)
    connection.sendall(bytes.fromhex("0400 0000 0008 0000 0004 01 03") + b"ab")


def data_set_instead(connection):
    _, number = read_message(connection)
    connection.sendall(command_pdus(b"ab", number, 0).replace(b"\x01\x03", b"\x01\x02"))


def close(connection):
    read_message(connection)
    connection.shutdown(socket.SHUT_RDWR)


def say(pdu):
    def serve(connection):
        read_message(connection)
        connection.sendall(pdu)

    return serve


# What the peer does instead of answering, the fault, and how our end of it looks from there.
ANSWERS = {
    "to another message": (
        lambda connection: respond(connection, message_id=77), Fault.ABORTED, "aborted",
    ),
    "of another kind": (
        lambda connection: respond(connection, field=dimse.C_ECHO_RQ), Fault.ABORTED, "aborted",
    ),
    "garbage": (garbage, Fault.ABORTED, "aborted"),
    "a data set": (data_set_instead, Fault.ABORTED, "aborted"),
    "half a PDU": (lambda connection: respond(connection, cut=30), Fault.TIMED_OUT, "aborted"),
    "a PDU of 4 GiB": (say(b"\x04\x00\xff\xff\xff\xff"), Fault.ABORTED, "aborted"),
    "an empty PDV": (say(bytes.fromhex("0400 0000 0004 0000 0000")), Fault.ABORTED, "aborted"),
    "a release": (say(RELEASE), Fault.ABORTED, "aborted"),
    "an abort": (say(abort_pdu(0)), Fault.ABORTED, "aborted"),
    "nothing": (read_message, Fault.TIMED_OUT, "aborted"),
    "the end": (close, Fault.ABORTED, "gone"),
}  # fmt: skip


@pytest.mark.parametrize(("serve", "fault", "ending"), ANSWERS.values(), ids=ANSWERS)
def test_association_without_an_answer_is_never_used_again(items, serve, fault, ending):
    with bare(serve) as archive:
        [outcome] = send(items, archive.peer, "SRNODE", timeouts=HASTY, resumes=0)
        archive._thread.join(0.5)

    assert outcome.fault is fault
    assert archive.endings == [ending]


# What the peer says to the request, and what we make of it.
REPLIES = {
    "abort": (abort_pdu(2), Fault.ABORTED, "it aborted"),
    "garbage": (b"\x02\x00\x00\x00\x00\x50" + bytes(76) + b"\x21\0\xff\xff", Fault.ABORTED, "item"),
    "another PDU": (RELEASE, Fault.ABORTED, "type 5"),
    "transient": (bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 2)), Fault.REJECTED_TRANSIENT, "limit"),
    "permanent": (bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3)), Fault.REJECTED_PERMANENT, "our AE title"),
    "unknown reason": (bytes((3, 0, 0, 0, 0, 4, 0, 1, 9, 9)), Fault.REJECTED_PERMANENT, "reason 9"),
}


@pytest.mark.parametrize(("answer", "fault", "words"), REPLIES.values(), ids=REPLIES)
def test_association_that_is_not_granted_says_why(answer, fault, words):
    with bare(lambda connection: None, answer) as archive:
        with pytest.raises(AssociationFault, match=words) as caught:
            echo(archive.peer, "SRNODE", HASTY)

    assert caught.value.fault is fault


def test_peer_may_release_at_the_same_time(items):
    def both_at_once(connection):
        respond(connection)
        connection.sendall(RELEASE)

    with bare(both_at_once) as archive:
        assert [each.fault for each in send(items, archive.peer, "SRNODE", timeouts=HASTY)] == [0]


@pytest.mark.parametrize("status", [0, 0x0122])
def test_echo_is_a_success_or_a_fault(status):
    with bare(lambda connection: respond(connection, status=status)) as archive:
        if status:
            with pytest.raises(AssociationFault, match="0x0122"):
                echo(archive.peer, "SRNODE", HASTY)
        else:
            echo(archive.peer, "SRNODE", HASTY)


def test_host_name_that_is_none_is_unreachable():
    with pytest.raises(AssociationFault, match="no host name"):
        connect(destination(104, host="a" * 70 + ".example"), HASTY)


def test_commands_are_what_pydicom_reads_and_writes():
    stored = decode(BytesIO(store_request(MR, "1.2.3", 9)), True, True)
    asked = decode(BytesIO(echo_request(7)), True, True)
    assert (stored.CommandField, stored.AffectedSOPInstanceUID, stored.MessageID) == (1, "1.2.3", 9)
    assert stored.AffectedSOPClassUID == MR and stored.CommandDataSetType != 0x0101
    assert (asked.CommandField, asked.MessageID, asked.CommandDataSetType) == (0x30, 7, 0x0101)

    said = Dataset()
    said.CommandField, said.MessageIDBeingRespondedTo, said.Status = 0x8001, 9, 0xB007
    said.CommandDataSetType, said.ErrorComment = 0x0101, "odd"
    response = read_response(encode(said, True, True))
    assert (response.status, response.message_id, response.comment) == (0xB007, 9, "odd")
    assert not response.has_data_set


@pytest.mark.parametrize("inside", [True, False])
def test_what_fails_inside_a_pdu_ends_in_no_release_that_would_be_taken_for_data(inside):
    seen = []

    def listen(connection):
        while data := connection.recv(999):
            seen.append(data)
            if data.endswith(RELEASE):
                connection.sendall(RELEASED)

    def pieces():
        raise ZeroDivisionError
        yield

    with bare(listen) as peer:
        with (
            pytest.raises(ZeroDivisionError),
            call(peer.peer, "SRNODE", [(MR, EXPLICIT)], HASTY) as association,
        ):
            if inside:
                association._wire.send(b"\x04\x00\x00\x00\x00\xff")
            association._send(pieces() if inside else [])
            raise ZeroDivisionError

    assert b"".join(seen).endswith(RELEASE) is not inside
