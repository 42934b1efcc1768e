"""A-ASSOCIATE as acceptor: what a peer proposes, what it gets (PS3.8 7.1, 9.3.2, 9.3.3).

For associations that `storage` serves. Strict where a lie could cost us something, tolerant of
what scanners do: blanks and nulls behind a UID, items that nobody knows.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
FIXED_BYTES = 68  # protocol version, titles and what is reserved
HEADER_BYTES = 6
A_ASSOCIATE_AC, A_ASSOCIATE_RJ = 0x02, 0x03
APPLICATION, CONTEXT, CONTEXT_RESULT = 0x10, 0x20, 0x21
ABSTRACT_SYNTAX, TRANSFER_SYNTAX, USER_INFORMATION = 0x30, 0x40, 0x50
MAXIMUM_LENGTH, IMPLEMENTATION_UID, IMPLEMENTATION_VERSION = 0x51, 0x52, 0x55
ACCEPTED, NO_ABSTRACT_SYNTAX, NO_TRANSFER_SYNTAX = 0, 3, 4  # PS3.8 Table 9-18
MOST_CONTEXTS = 128  # odd numbers of one byte


class BadRequest(ValueError):
    """The A-ASSOCIATE-RQ cannot be read; the text says where."""


@dataclass(frozen=True, kw_only=True)
class ProposedContext:
    """One presentation context as a peer proposes it."""

    number: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What an A-ASSOCIATE-RQ says."""

    protocol_version: int
    application_context: str
    contexts: tuple[ProposedContext, ...]
    longest_pdu: int  # that the peer takes; 0: any
    titles: bytes  # both, and what is reserved: an answer repeats them


@dataclass(frozen=True, kw_only=True)
class AcceptedContext:
    """One presentation context that both sides use."""

    number: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What we support, for all associations alike."""

    syntaxes: Mapping[str, Sequence[str]]  # abstract -> transfer, in the order of preference
    longest_pdu: int
    implementation_uid: str
    implementation_version: str


def read_request(pdu: bytes | bytearray) -> Proposal:
    """Return what a whole A-ASSOCIATE-RQ says, its header included.

    Raises
    ------
    BadRequest
        If it is none.
    """
    body = bytes(pdu[HEADER_BYTES:])
    if len(body) < FIXED_BYTES:
        raise BadRequest("the request is too short")
    application, contexts, longest_pdu = "", [], 0
    for kind, value in items(body, FIXED_BYTES):
        if kind == APPLICATION:
            application = uid(value)
        elif kind == CONTEXT:
            contexts.append(read_context(value))
        elif kind == USER_INFORMATION:
            longest_pdu = read_longest_pdu(value)
    if not contexts or len({context.number for context in contexts}) < len(contexts):
        raise BadRequest("presentation contexts are missing, or have one number")
    return Proposal(
        protocol_version=int.from_bytes(body[:2], "big"),
        application_context=application,
        contexts=tuple(contexts),
        longest_pdu=longest_pdu,
        titles=body[4:FIXED_BYTES],
    )


def read_context(value: bytes) -> ProposedContext:
    """Return one proposed presentation context."""
    if len(value) < 4 or value[0] % 2 == 0:
        raise BadRequest("a presentation context has no odd number")
    parts = list(items(value, 4))
    abstract = [uid(text) for kind, text in parts if kind == ABSTRACT_SYNTAX]
    transfer = tuple(uid(text) for kind, text in parts if kind == TRANSFER_SYNTAX)
    if len(abstract) != 1 or not transfer:
        raise BadRequest(f"presentation context {value[0]} names no syntaxes")
    return ProposedContext(number=value[0], abstract_syntax=abstract[0], transfer_syntaxes=transfer)


def read_longest_pdu(value: bytes) -> int:
    """Return the longest PDU that the peer takes; 0: it does not say, or any."""
    for kind, what in items(value, 0):
        if kind == MAXIMUM_LENGTH:
            if len(what) != 4:
                raise BadRequest("the maximum length has no 4 bytes")
            return int.from_bytes(what, "big")
    return 0


def items(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of the items that fill `data` from `at` on."""
    while at < len(data):
        end = at + 4
        if end > len(data):
            raise BadRequest("an item is cut short")
        end += int.from_bytes(data[at + 2 : end], "big")
        if end > len(data):
            raise BadRequest("an item is longer than what it stands in")
        yield data[at], data[at + 4 : end]
        at = end


def uid(value: bytes) -> str:
    """Return a UID; scanners fill up with nulls and blanks."""
    text = value.rstrip(b"\x00 ")
    if not text or len(text) > 64 or text.strip(b"0123456789."):
        raise BadRequest(f"a UID of {len(value)} bytes is none")
    return text.decode("ascii")


def negotiate(
    proposal: Proposal, offer: Offer
) -> tuple[Mapping[int, AcceptedContext], Mapping[int, int]]:
    """Return the contexts that we accept, and for every other one why not; by number."""
    accepted, refused = {}, {}
    for context in proposal.contexts:
        ours = offer.syntaxes.get(context.abstract_syntax)
        theirs = context.transfer_syntaxes
        both = next((syntax for syntax in ours or () if syntax in theirs), None)
        if both is not None:
            accepted[context.number] = AcceptedContext(
                number=context.number, abstract_syntax=context.abstract_syntax, transfer_syntax=both
            )
        else:
            refused[context.number] = NO_ABSTRACT_SYNTAX if ours is None else NO_TRANSFER_SYNTAX
    return accepted, refused


def acceptance(
    proposal: Proposal,
    accepted: Mapping[int, AcceptedContext],
    refused: Mapping[int, int],
    offer: Offer,
) -> bytes:
    """Return the A-ASSOCIATE-AC (PS3.8 9.3.3)."""
    parts = [item(APPLICATION, APPLICATION_CONTEXT.encode())]
    for context in proposal.contexts:
        number = context.number
        if number in accepted:
            result, syntax = ACCEPTED, accepted[number].transfer_syntax
        else:  # the transfer syntax is not significant then, but must stand there
            result, syntax = refused[number], context.transfer_syntaxes[0]
        head = bytes((number, 0, result, 0))
        parts.append(item(CONTEXT_RESULT, head + item(TRANSFER_SYNTAX, syntax.encode())))
    user = item(MAXIMUM_LENGTH, struct.pack(">L", offer.longest_pdu))
    user += item(IMPLEMENTATION_UID, offer.implementation_uid.encode())
    user += item(IMPLEMENTATION_VERSION, offer.implementation_version.encode())
    parts.append(item(USER_INFORMATION, user))
    body = struct.pack(">HH", 1, 0) + proposal.titles + b"".join(parts)
    return struct.pack(">BxL", A_ASSOCIATE_AC, len(body)) + body


def item(kind: int, value: bytes) -> bytes:
    """Return one item."""
    return struct.pack(">BxH", kind, len(value)) + value
