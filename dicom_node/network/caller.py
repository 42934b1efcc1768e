"""Associations that we ask for, for C-ECHO and C-STORE, without pynetdicom: one thread, one socket.

pynetdicom spends two threads and a millisecond of polling on every reply, builds each command as a
data set, and loses replies (see `pynetdicom_scu`). Here a thread sends, then sleeps until the peer
answers. An association that broke, or whose peer was late, is aborted and never used again.
"""

import math
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain

from dicom_node.network import dimse
from dicom_node.network.connecting import AssociationFault, Timeouts, connect
from dicom_node.network.dimse import BadCommand, Response
from dicom_node.network.limits import LimitExceeded, Limits
from dicom_node.network.outgoing import DataSet
from dicom_node.network.pdus import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    COMMAND,
    LAST,
    P_DATA_TF,
    PDV_HEADER_BYTES,
    RELEASE,
    RELEASED,
    USER,
    abort_pdu,
    command_pdus,
    data_pdus,
)
from dicom_node.network.requesting import (
    Acceptance,
    BadAnswer,
    Context,
    read_acceptance,
    read_rejection,
    request,
)
from dicom_node.network.tls import words_of
from dicom_node.network.wire import Gone, Wire
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings

LONGEST_ANSWER_BYTES = 2**18  # far more than an A-ASSOCIATE-AC or a response can need
SLOWEST_BYTES_PER_S = 20_000  # of a line, with what our system has taken and not sent yet
MOST_IN_FLIGHT_BYTES = 2**22  # that is at most so much (tcp_wmem of Linux)


class Unexpected(ValueError):
    """The peer did what the standard does not allow here; the text says what."""


class Association:
    """An association that a peer has accepted; use it as a context manager.

    At its end it is released, unless it was aborted, or must be: something failed inside a PDU.
    """

    def __init__(self, sock: socket.socket, wire: Wire, acceptance: Acceptance, limit_s: Timeouts):
        self._sock = sock
        self._wire = wire
        self._numbers = acceptance.numbers
        self._longest_pdu = acceptance.longest_pdu
        self._limit_s = limit_s
        self._last_id = 0
        self._inside = False  # of a PDU that we send: no other one can follow
        self._ended = False

    def accepts(self, context: Context) -> bool:
        """Return whether the peer takes instances of this SOP class and transfer syntax."""
        return context in self._numbers

    def echo(self) -> Response:
        """Return the peer's answer to a C-ECHO.

        Raises
        ------
        AssociationFault
            If there is none; the association is aborted then.
        """
        number = next(iter(self._numbers.values()))
        try:
            message_id = self._next_id()
            self._send([self._command(dimse.echo_request(message_id), number)])
            return self._response(dimse.C_ECHO_RQ, message_id, self._limit_s.reply_s)
        except ENDS as error:
            self.abort()
            raise what_ended(error) from error

    def store(self, context: Context, sop_uid: str, data_set: DataSet) -> Response:
        """Return the peer's answer to a C-STORE.

        Raises
        ------
        AssociationFault
            If there is none, or the file cannot be read any further; the association is aborted.
        """
        number = self._numbers[context]
        try:
            message_id = self._next_id()
            command = self._command(dimse.store_request(context[0], sop_uid, message_id), number)
            self._send_message(command, data_set, number)
            in_flight_s = min(data_set.size, MOST_IN_FLIGHT_BYTES) / SLOWEST_BYTES_PER_S
            return self._response(dimse.C_STORE_RQ, message_id, self._limit_s.reply_s + in_flight_s)
        except ENDS as error:
            self.abort()
            raise what_ended(error) from error

    def release(self) -> None:
        """End the association in order, if the peer plays along."""
        with suppress(OSError, Gone, Unexpected):
            self._wire.send(RELEASE)
            while True:
                kind, length = self._next_pdu(self._limit_s.association_s)
                self._wire.skip(length)
                if kind == A_RELEASE_RP:
                    break
                if kind == A_RELEASE_RQ:  # both at once (PS3.8 7.2.2.7)
                    self._wire.send(RELEASED)
                elif kind != P_DATA_TF:
                    raise Unexpected
        self._end()

    def abort(self) -> None:
        """End the association at once."""
        with suppress(OSError):
            if self._inside:  # an A-ABORT would be taken for a part of the PDU
                reset = struct.pack("ii", 1, 0)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            else:
                self._wire.send(abort_pdu(USER))
                self._wire.part()
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._sock.close()

    def __enter__(self) -> "Association":
        return self

    def __exit__(self, *_: object) -> None:
        if self._ended:
            return
        if self._inside:
            self.abort()
        else:
            self.release()

    def _next_id(self) -> int:
        self._last_id = self._last_id % 0xFFFF + 1
        return self._last_id

    def _command(self, command: bytes, number: int) -> bytes:
        return command_pdus(command, number, self._longest_pdu)

    def _send(self, pdus: Iterable[bytes | memoryview]) -> None:
        self._inside = True
        self._wire.send_pieces(pdus)
        self._inside = False

    def _send_message(self, command: bytes, data_set: DataSet, number: int) -> None:
        """Send a command and its data set.

        The command goes with the beginning of the data set: a peer that is woken for the command
        alone takes the processor away from who sends.
        """
        first, left = [command], data_set.size
        for part in data_set.parts:
            left -= len(part)
            self._send(chain(first, data_pdus(part, number, self._longest_pdu, last=not left)))
            first = []

    def _next_pdu(self, limit_s: float) -> tuple[int, int]:
        deadline = time.monotonic() + limit_s
        while self._wire.waiting():
            if time.monotonic() > deadline:
                raise LimitExceeded("slow PDU", f"silent for {limit_s:g} s")
        return self._wire.header()

    def _response(self, field: int, message_id: int, limit_s: float) -> Response:
        """Return the response to our only request that is under way."""
        deadline = time.monotonic() + limit_s
        command = bytearray()
        while not self._add_fragments(command, deadline - time.monotonic()):
            if len(command) > dimse.MOST_COMMAND_BYTES:
                raise Unexpected("the response is too long")
        self._wire.next_message()
        response = dimse.read_response(command)
        if response.field != field | dimse.RESPONSE or response.message_id != message_id:
            raise Unexpected(f"{response.field:04X} to message {response.message_id} came")
        if response.has_data_set:
            raise Unexpected("the response has a data set")
        return response

    def _add_fragments(self, command: bytearray, limit_s: float) -> bool:
        """Add the fragments of one P-DATA-TF; return whether the command is complete."""
        kind, length = self._next_pdu(limit_s)
        if kind == A_ABORT:
            raise Gone
        if kind != P_DATA_TF:
            raise Unexpected(f"a PDU of type {kind} came instead of a response")
        complete = False
        while length:
            if complete or length < PDV_HEADER_BYTES:
                raise Unexpected("a PDV is cut short, or one too many")
            of_pdv, _, control = struct.unpack(">LBB", self._wire.take(PDV_HEADER_BYTES))
            if not 2 <= of_pdv <= length - 4 or not control & COMMAND:
                raise Unexpected("a PDV does not fit")
            command += self._wire.take(of_pdv - 2)
            complete = bool(control & LAST)
            length -= 4 + of_pdv
        return complete


# Whatever ends an association, besides what the peer says in answer to our request for one.
ENDS = (LimitExceeded, Gone, OSError, Unexpected, BadCommand, BadAnswer)  # OSError: TLS, too


def what_ended(error: Exception) -> AssociationFault:
    """Return what one of `ENDS` means."""
    if isinstance(error, LimitExceeded):
        fault = Fault.TIMED_OUT if error.kind.startswith("slow") else Fault.ABORTED
        return AssociationFault(fault, str(error), mid_way=True)
    words = str(error)
    if isinstance(error, Gone):
        words = "the peer has ended it"
    elif isinstance(error, ssl.SSLError):
        words = f"TLS: {words_of(error)}"
    return AssociationFault(Fault.ABORTED, words, mid_way=True)


def call(
    peer: PeerSettings, calling_ae: str, contexts: Sequence[Context], timeouts: Timeouts
) -> Association:
    """Return an association on which the peer accepts at least one of `contexts`.

    Raises
    ------
    AssociationFault
        If there is none; the fault and the peer's own words say why.
    """
    sock = connect(peer, timeouts)
    limits = Limits(pdu_bytes=LONGEST_ANSWER_BYTES, pdu_s=timeouts.reply_s)
    association = None
    try:
        wire = Wire(sock, limits, idle_s=math.inf)
        association = Association(
            sock, wire, _ask(wire, peer, calling_ae, contexts, timeouts), timeouts
        )
    except ENDS as error:
        fault = what_ended(error)
        raise AssociationFault(fault.fault, fault.comment) from error
    finally:
        if association is None:
            sock.close()
    if not any(map(association.accepts, contexts)):
        association.release()
        raise AssociationFault(Fault.NO_CONTEXT)
    return association


def _ask(
    wire: Wire,
    peer: PeerSettings,
    calling_ae: str,
    contexts: Sequence[Context],
    timeouts: Timeouts,
) -> Acceptance:
    """Return what the peer answers to our request for an association."""
    wire.send(request(calling_ae, peer.ae_title, contexts, LONGEST_ANSWER_BYTES))
    deadline = time.monotonic() + timeouts.association_s
    while wire.waiting():
        if time.monotonic() > deadline:
            raise AssociationFault(Fault.ABORTED, "no answer to the association request")
    kind, length = wire.header()
    body = wire.take(length)
    wire.next_message()
    if kind == A_ASSOCIATE_AC:
        return read_acceptance(body, contexts)
    if kind == A_ASSOCIATE_RJ:
        rejection = read_rejection(body)
        raise AssociationFault(rejection.fault, rejection.words)
    text = "it aborted" if kind == A_ABORT else f"a PDU of type {kind} came"
    raise AssociationFault(Fault.ABORTED, f"the association was asked for, and {text}")
