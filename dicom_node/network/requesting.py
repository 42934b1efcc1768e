"""A-ASSOCIATE as requestor: what we propose, what a peer makes of it (PS3.8 9.3.2 to 9.3.4)."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dicom_node.content import IMPLEMENTATION_NAME, IMPLEMENTATION_UID
from dicom_node.network.negotiation import (
    ABSTRACT_SYNTAX,
    ACCEPTED,
    APPLICATION,
    APPLICATION_CONTEXT,
    CONTEXT,
    CONTEXT_RESULT,
    FIXED_BYTES,
    IMPLEMENTATION_VERSION,
    MAXIMUM_LENGTH,
    MOST_CONTEXTS,
    TRANSFER_SYNTAX,
    USER_INFORMATION,
    BadRequest,
    item,
    items,
    read_longest_pdu,
    uid,
)
from dicom_node.network.negotiation import IMPLEMENTATION_UID as UID_ITEM
from dicom_node.network.pdus import A_ASSOCIATE_RQ
from dicom_node.retry import Fault

PERMANENT = 1  # result of an A-ASSOCIATE-RJ
USER, ACSE, PRESENTATION = 1, 2, 3  # sources of one
# (source, reason) -> words, for an administrator. Source: PS3.8 Table 9-21.
REASONS = {
    (USER, 1): "no reason given",
    (USER, 2): "application context not supported",
    (USER, 3): "our AE title is not recognised",
    (USER, 7): "its AE title is not recognised",
    (ACSE, 1): "no reason given (ACSE)",
    (ACSE, 2): "protocol version not supported",
    (PRESENTATION, 1): "temporary congestion",
    (PRESENTATION, 2): "local limit exceeded",
}

Context = tuple[str, str]  # abstract syntax and the one transfer syntax that is proposed for it


class BadAnswer(ValueError):
    """What should be an A-ASSOCIATE-AC or -RJ cannot be read; the text says where."""


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What an A-ASSOCIATE-AC grants."""

    numbers: Mapping[Context, int]  # of the contexts that were accepted
    longest_pdu: int  # that the peer takes; 0: any


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What an A-ASSOCIATE-RJ says."""

    fault: Fault
    words: str


def request(
    calling_ae: str, called_ae: str, contexts: Sequence[Context], longest_pdu: int
) -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes up to 128 contexts.

    Parameters
    ----------
    longest_pdu
        What we take.
    """
    titles = called_ae.ljust(16).encode("ascii") + calling_ae.ljust(16).encode("ascii")
    parts = [item(APPLICATION, APPLICATION_CONTEXT.encode())]
    for number, (abstract, transfer) in zip(_numbers(), contexts, strict=False):
        syntaxes = item(ABSTRACT_SYNTAX, abstract.encode()) + item(
            TRANSFER_SYNTAX, transfer.encode()
        )
        parts.append(item(CONTEXT, bytes((number, 0, 0, 0)) + syntaxes))
    user = item(MAXIMUM_LENGTH, struct.pack(">L", longest_pdu))
    user += item(UID_ITEM, IMPLEMENTATION_UID.encode())
    user += item(IMPLEMENTATION_VERSION, IMPLEMENTATION_NAME.encode())
    parts.append(item(USER_INFORMATION, user))
    body = struct.pack(">HH", 1, 0) + titles + bytes(32) + b"".join(parts)
    return struct.pack(">BxL", A_ASSOCIATE_RQ, len(body)) + body


def _numbers() -> range:
    return range(1, 2 * MOST_CONTEXTS, 2)


def read_acceptance(body: bytes, contexts: Sequence[Context]) -> Acceptance:
    """Return what an A-ASSOCIATE-AC without its header grants of what was proposed.

    A peer that names another transfer syntax than the one it was offered has not accepted it.

    Raises
    ------
    BadAnswer
        If it cannot be read.
    """
    granted: dict[int, str] = {}
    longest_pdu = 0
    try:
        for kind, value in items(body, FIXED_BYTES):
            if kind == CONTEXT_RESULT and len(value) > 4 and value[2] == ACCEPTED:
                syntaxes = [uid(what) for sort, what in items(value, 4) if sort == TRANSFER_SYNTAX]
                granted[value[0]] = syntaxes[0] if syntaxes else ""
            elif kind == USER_INFORMATION:
                longest_pdu = read_longest_pdu(value)
    except BadRequest as error:
        raise BadAnswer(str(error)) from None
    numbers = {
        context: number
        for number, context in zip(_numbers(), contexts, strict=False)
        if granted.get(number) == context[1]
    }
    return Acceptance(numbers=numbers, longest_pdu=longest_pdu)


def read_rejection(body: bytes) -> Rejection:
    """Return what an A-ASSOCIATE-RJ without its header says.

    Raises
    ------
    BadAnswer
        If it cannot be read.
    """
    if len(body) < 4:
        raise BadAnswer("the rejection is too short")
    result, source, reason = body[1:4]
    fault = Fault.REJECTED_PERMANENT if result == PERMANENT else Fault.REJECTED_TRANSIENT
    words = REASONS.get((source, reason), f"source {source}, reason {reason}")
    return Rejection(fault=fault, words=words)
