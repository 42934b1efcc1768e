"""Associations for C-ECHO and C-STORE, served without pynetdicom: one thread each.

pynetdicom looks for news every millisecond, decodes every message into data sets and spends three
threads on an association. Here a thread sleeps until its peer speaks. Whatever a peer does that the
standard does not allow ends in an A-ABORT, a log line and a count.
"""

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from dicom_node import telemetry
from dicom_node.edges import failure_of
from dicom_node.network import dimse
from dicom_node.network.dimse import VERIFICATION, BadCommand, Command
from dicom_node.network.limits import Complaints, LimitExceeded, Limits
from dicom_node.network.lobby import Visitor
from dicom_node.network.negotiation import (
    APPLICATION_CONTEXT,
    AcceptedContext,
    BadRequest,
    Offer,
    Proposal,
    acceptance,
    negotiate,
    read_request,
)
from dicom_node.network.pdus import (
    A_ABORT,
    A_RELEASE_RQ,
    COMMAND,
    INVALID_PARAMETER,
    LAST,
    P_DATA_TF,
    PDU_TYPES,
    PDV_HEADER_BYTES,
    PROVIDER,
    RELEASED,
    UNEXPECTED_PDU,
    UNRECOGNISED_PDU,
    UNSPECIFIED,
    USER,
    abort_pdu,
    command_pdus,
)
from dicom_node.network.wire import Body, Gone, Wire
from dicom_node.settings import PeerSettings

REJECTED = bytes.fromhex("0300 0000 0004 00")
NO_SUCH_APPLICATION_CONTEXT, NO_SUCH_PROTOCOL = bytes((1, 1, 2)), bytes((1, 2, 2))
SUCCESS = 0x0000
NO_SUCH_CLASS, NO_SUCH_OPERATION, UNABLE_TO_PROCESS = 0x0122, 0x0211, 0xC211

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """One C-STORE: what the command announces, and the encoded data set."""

    sop_class: str
    sop_uid: str
    transfer_syntax: str
    encoded: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a response says."""

    status: int
    comment: str = ""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What all associations have in common."""

    offer: Offer
    limits: Limits
    idle_s: float
    # Calls what it is given with the answer, once, perhaps in another thread, or raises.
    store: Callable[[PeerSettings, Arrived, Callable[[Answer], None]], None]
    elsewhere: tuple[str, ...] = ()  # the SOP classes that pynetdicom must serve

    def suffices(self, request: bytes | bytearray) -> bool:
        """Return whether an A-ASSOCIATE-RQ asks for nothing else."""
        return not any(name.encode() in request for name in self.elsewhere)


class Violation(Exception):
    """The association ends here: `kind` is what the metric calls it, `last_word` a PDU."""

    def __init__(self, kind: str, text: str, last_word: bytes) -> None:
        super().__init__(text)
        self.kind = kind
        self.last_word = last_word


def bad_pdu(text: str, reason: int) -> Violation:
    """Return the end of an association whose peer broke the upper layer's protocol."""
    return Violation("bad PDU", text, abort_pdu(PROVIDER, reason))


def bad_message(text: str) -> Violation:
    """Return the end of an association whose peer broke DIMSE."""
    return Violation("bad message", text, abort_pdu(USER))


def over_limit(fault: LimitExceeded) -> Violation:
    """Return the end of an association that costs too much."""
    if fault.kind == "idle":
        return Violation(fault.kind, str(fault), abort_pdu(USER))
    reason = INVALID_PARAMETER if fault.kind == "long PDU" else UNSPECIFIED
    return Violation(fault.kind, str(fault), abort_pdu(PROVIDER, reason))


class StorageAssociation:
    """One association, from the request that the lobby has read to its end."""

    def __init__(
        self, service: Service, visitor: Visitor, peer: PeerSettings, complaints: Complaints
    ) -> None:
        self._service = service
        self._peer = peer
        self._address = visitor.host
        self._complaints = complaints
        self._request = bytes(visitor.data)
        visitor.data.clear()
        self.sock = visitor.sock
        self._wire = Wire(visitor.sock, service.limits, service.idle_s)
        self._contexts: Mapping[int, AcceptedContext] = {}
        self._longest_pdu = 0
        self._message = Message(self._wire)
        self._debt = Debt(self._wire)
        self._aborting = threading.Event()
        self._ended = threading.Event()

    @property
    def is_established(self) -> bool:
        """Return whether the association has not ended."""
        return not self._ended.is_set()

    def abort(self) -> None:
        """End the association from another thread, after the answer that is under way."""
        self._aborting.set()
        with suppress(OSError):  # the class's own method: on TLS the instance's ends TLS first
            socket.socket.shutdown(self.sock, socket.SHUT_RD)  # wakes the reader
        self._ended.wait()

    def run(self) -> None:
        """Serve the association until it ends."""
        try:
            self._serve()
        except OSError as error:  # reset, or TLS that cannot be read
            fields = {"peer": self._peer.name, "address": self._address}
            self._complaints.note("lost", "connection.lost", reason=type(error).__name__, **fields)
        finally:
            try:
                with suppress(LimitExceeded, OSError):
                    self._debt.settle()  # until then somebody else may send
            finally:
                self._ended.set()

    def _serve(self) -> None:
        try:
            self._negotiate()
            while self._turn():
                pass
        except LimitExceeded as fault:
            self._end(over_limit(fault))
        except Violation as violation:
            self._end(violation)
        except Gone:
            if self._aborting.is_set():
                self._say(abort_pdu(USER))

    def _end(self, violation: Violation) -> None:
        fields = {"peer": self._peer.name, "address": self._address}
        event = "connection.cut"
        self._complaints.note(violation.kind, event, reason=str(violation), **fields)
        self._say(violation.last_word)

    def _say(self, last_word: bytes) -> None:
        """Send a PDU after which nothing follows."""
        with suppress(LimitExceeded):
            self._debt.settle()
            self._wire.send(last_word)
            self._wire.part()

    def _negotiate(self) -> None:
        """Answer the request (PS3.8 9.3.3)."""
        try:
            proposal = read_request(self._request)
        except BadRequest as error:
            abort = abort_pdu(PROVIDER, INVALID_PARAMETER)
            raise Violation("bad request", str(error), abort) from None
        refuse_other_protocols(proposal)
        accepted, refused = negotiate(proposal, self._service.offer)
        self._longest_pdu = proposal.longest_pdu
        self._contexts = accepted
        self._wire.send(acceptance(proposal, accepted, refused, self._service.offer))

    def _turn(self) -> bool:
        """Take one PDU; return whether another one may follow."""
        while self._wire.waiting(owing=self._debt.owed):
            self._message.spare_memory()
            if not self._debt.owed:
                self._debt.settle()
        kind, length = self._wire.header()
        if kind == P_DATA_TF:
            self._take_fragments(length)
        elif kind == A_RELEASE_RQ:
            self._wire.skip(length)
            self._say(RELEASED)
        elif kind == A_ABORT:
            raise Gone
        else:
            known = kind in PDU_TYPES
            reason = UNEXPECTED_PDU if known else UNRECOGNISED_PDU
            raise bad_pdu(f"a PDU of type {kind} came", reason)
        return kind == P_DATA_TF

    def _take_fragments(self, length: int) -> None:
        """Take the PDVs of one P-DATA-TF (PS3.8 9.3.5)."""
        if not length:
            raise bad_pdu("a P-DATA-TF has no PDV", INVALID_PARAMETER)
        while length:
            if length < PDV_HEADER_BYTES:
                raise bad_pdu("a PDV is cut short", INVALID_PARAMETER)
            of_pdv, number, control = struct.unpack(">LBB", self._wire.take(PDV_HEADER_BYTES))
            if not 2 <= of_pdv <= length - 4:
                raise bad_pdu(f"a PDV of {of_pdv} bytes in {length}", INVALID_PARAMETER)
            context = self._contexts.get(number)
            if context is None:
                raise bad_pdu(f"there is no context {number}", INVALID_PARAMETER)
            if self._message.add(context, control, of_pdv - 2):
                self._respond()
            length -= 4 + of_pdv

    def _respond(self) -> None:
        """Answer the message that is complete, after the one before it."""
        self._debt.settle()
        command, context = self._message.command, self._message.context
        if command.field == dimse.C_STORE_RQ:
            self._store(command, context)
        else:
            answer = self._answer_to(command)
            if answer is not None:
                self._wire.send(self._response(command, context, answer))
        self._message.restart()

    def _response(self, command: Command, context: AcceptedContext, answer: Answer) -> bytes:
        response = dimse.response(command, answer.status, answer.comment)
        return command_pdus(response, context.number, self._longest_pdu)

    def _answer_to(self, command: Command) -> Answer | None:
        """Return what another request than C-STORE gets; None for what gets no answer."""
        if command.field == dimse.C_ECHO_RQ:
            fits = command.sop_class == VERIFICATION
            return Answer(status=SUCCESS if fits else NO_SUCH_CLASS)
        if command.field == dimse.C_CANCEL_RQ:
            return None  # of something that is done already
        if command.field in dimse.OTHER_REQUESTS:
            return Answer(status=NO_SUCH_OPERATION)
        raise bad_message(f"a command with field {command.field:04X} came")

    def _store(self, command: Command, context: AcceptedContext) -> None:
        """Have an instance kept; whoever makes it durable answers, while we read what follows."""
        due = self._debt.owe()

        def reply(answer: Answer) -> None:
            due.pay(lambda: self._response(command, context, answer))

        error = failure_of(lambda: self._have_kept(command, context, reply))
        if error:  # no success, and the association goes on
            reply(Answer(status=UNABLE_TO_PROCESS))
            log.error("instance.failed", peer=self._peer.name, exc_info=error)
        if not self._wire.two_way:
            self._debt.settle()

    def _have_kept(
        self, command: Command, context: AcceptedContext, reply: Callable[[Answer], None]
    ) -> None:
        offered = command.sop_class in self._service.offer.syntaxes
        if not offered or VERIFICATION in (context.abstract_syntax, command.sop_class):
            reply(Answer(status=NO_SUCH_CLASS))
            return
        arrived = Arrived(
            sop_class=command.sop_class,
            sop_uid=command.sop_uid,
            transfer_syntax=context.transfer_syntax,
            encoded=self._message.data,
        )
        self._service.store(self._peer, arrived, reply)


class Due:
    """One answer that is owed. It can be paid once, by whatever thread."""

    def __init__(self, clear: Callable[[Callable[[], bytes]], None]) -> None:
        self._clear = clear
        self._paid = threading.Lock()

    def pay(self, response: Callable[[], bytes]) -> None:
        """Send the PDUs that `response` returns, unless it is paid; the debt ends in any case."""
        if self._paid.acquire(blocking=False):
            self._clear(response)


class Debt:
    """The answer that an association owes, if any; whoever has it sends what the peer takes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._owed = threading.Lock()  # held while there is one to come
        self._rest = b""  # of one that the peer did not take at once

    @property
    def owed(self) -> bool:
        """Return whether an answer is still to come."""
        return self._owed.locked()

    def owe(self) -> Due:
        """Return what is owed from now on, when what was owed before is paid."""
        self._owed.acquire()
        return Due(self._clear)

    def _clear(self, response: Callable[[], bytes]) -> None:
        try:
            with suppress(OSError):  # whoever reads learns that the peer is gone
                self._rest = self._wire.send_now(response())
        finally:
            self._owed.release()

    def settle(self) -> None:
        """Wait until nothing is owed, and send what is left of the answer that was given.

        Raises
        ------
        LimitExceeded
            If the peer does not take it.
        OSError
            If the connection is lost.
        """
        with self._owed:
            rest, self._rest = self._rest, b""
        if rest:
            self._wire.send(rest)


class Message:
    """The DIMSE message that is coming: command fragments, then those of its data set."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._body = Body()
        self.restart()

    def restart(self) -> None:
        """Be ready for the next message."""
        self._body.clear()
        self._encoded_command = bytearray()
        self._command: Command | None = None
        self._context: AcceptedContext | None = None
        self._wire.next_message()

    @property
    def command(self) -> Command:
        """Return the command of a complete message."""
        assert self._command is not None
        return self._command

    @property
    def context(self) -> AcceptedContext:
        """Return the presentation context of a complete message."""
        assert self._context is not None
        return self._context

    @property
    def data(self) -> bytes:
        """Return the encoded data set."""
        return self._body.data

    def spare_memory(self) -> None:
        """Give back what a data set took, unless one is coming."""
        if self._context is None:
            self._body.release()

    def add(self, context: AcceptedContext, control: int, length: int) -> bool:
        """Take one fragment from the wire; return whether the message is complete.

        Raises
        ------
        Violation
            If it does not belong there.
        """
        if self._context not in (None, context):
            raise bad_message("the contexts of two messages are interleaved")
        self._context = context
        if control & COMMAND:
            return self._add_command(length, bool(control & LAST))
        if self._command is None:
            raise bad_message("a data set came before its command")
        self._body.read(self._wire, length)
        return bool(control & LAST)

    def _add_command(self, length: int, last: bool) -> bool:
        if self._command is not None:
            raise bad_message("a command came before the last one's data set")
        if len(self._encoded_command) + length > dimse.MOST_COMMAND_BYTES:
            raise bad_message("a command set is too long")
        self._encoded_command += self._wire.take(length)
        if not last:
            return False
        try:
            self._command = dimse.read_command(self._encoded_command)
        except BadCommand as error:
            raise bad_message(f"the command set cannot be read: {error}") from None
        return not self._command.has_data_set


def refuse_other_protocols(proposal: Proposal) -> None:
    """Raise Violation, with an A-ASSOCIATE-RJ, unless it is DICOM's application context."""
    if not proposal.protocol_version & 1:
        text, why = f"protocol version {proposal.protocol_version}", NO_SUCH_PROTOCOL
    elif proposal.application_context != APPLICATION_CONTEXT:
        text, why = "another application context than DICOM's", NO_SUCH_APPLICATION_CONTEXT
    else:
        return
    telemetry.associations_rejected.labels(reason=str(why[2])).inc()
    raise Violation("rejected", text, REJECTED + why)
