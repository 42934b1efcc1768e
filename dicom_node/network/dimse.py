"""Command sets of the DIMSE messages that we receive and send ourselves (PS3.7).

A command set is implicit VR little endian, a few elements of group 0000. Written by hand: building
a pydicom data set for each message was the largest part of receiving, and of sending, an instance.
"""

import struct
from dataclasses import dataclass

VERIFICATION = "1.2.840.10008.1.1"
C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
# C-GET, C-FIND, C-MOVE; N-EVENT-REPORT, N-GET, N-SET, N-ACTION, N-CREATE, N-DELETE
OTHER_REQUESTS = frozenset({0x0010, 0x0020, 0x0021, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150})
RESPONSE = 0x8000
HAS_DATA_SET, NO_DATA_SET = 0x0001, 0x0101
MEDIUM_PRIORITY = 0x0000
COMMENT_CHARACTERS = 64  # PS3.7 E.1: ErrorComment is one LO
MOST_COMMAND_BYTES = 2**14

GROUP_LENGTH, SOP_CLASS, COMMAND_FIELD = 0x0000, 0x0002, 0x0100
MESSAGE_ID, ANSWERED_ID, PRIORITY, DATA_SET_TYPE = 0x0110, 0x0120, 0x0700, 0x0800
STATUS, ERROR_COMMENT, SOP_INSTANCE = 0x0900, 0x0902, 0x1000

_header = struct.Struct("<HHL")


class BadCommand(ValueError):
    """The bytes are no command set; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What we look at in the command set of a request."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class: str = ""
    sop_uid: str = ""


@dataclass(frozen=True, kw_only=True)
class Response:
    """What we look at in the command set of a response."""

    field: int
    message_id: int  # of the request
    has_data_set: bool
    status: int
    comment: str


def read_command(data: bytes | bytearray) -> Command:
    """Return what a command set says.

    Raises
    ------
    BadCommand
        If it is none, or says not enough to be answered.
    """
    values = _values(data)
    field = _number(values, COMMAND_FIELD)
    named = ANSWERED_ID if field == C_CANCEL_RQ or field & RESPONSE else MESSAGE_ID
    return Command(
        field=field,
        message_id=_number(values, named),
        has_data_set=_number(values, DATA_SET_TYPE) != NO_DATA_SET,
        sop_class=_text(values, SOP_CLASS),
        sop_uid=_text(values, SOP_INSTANCE),
    )


def read_response(data: bytes | bytearray) -> Response:
    """Return what the command set of a response says.

    Raises
    ------
    BadCommand
        If it is none.
    """
    values = _values(data)
    return Response(
        field=_number(values, COMMAND_FIELD),
        message_id=_number(values, ANSWERED_ID),
        has_data_set=_number(values, DATA_SET_TYPE) != NO_DATA_SET,
        status=_number(values, STATUS),
        comment=_text(values, ERROR_COMMENT),
    )


def _values(data: bytes | bytearray) -> dict[int, bytes]:
    """Return the encoded values of group 0000 by their elements."""
    values: dict[int, bytes] = {}
    data, size = bytes(data), len(data)
    at, last = 0, -1
    while at < size:
        if at + 8 > size:
            raise BadCommand("an element is cut short")
        group, element, length = _header.unpack_from(data, at)
        at += 8
        if group or element <= last or length > size - at:
            raise BadCommand("the elements are not those of a command set")
        values[element] = data[at : at + length]
        at, last = at + length, element
    return values


def _number(values: dict[int, bytes], element: int) -> int:
    value = values.get(element, b"")
    if len(value) != 2:
        raise BadCommand(f"(0000,{element:04X}) is no number of 2 bytes")
    return int.from_bytes(value, "little")


def _text(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").rstrip(b"\x00 ").decode("ascii", "replace")


def response(command: Command, status: int, comment: str = "") -> bytes:
    """Return the command set of the response to `command`."""
    parts = [
        _element(SOP_CLASS, _padded(command.sop_class, b"\x00")) if command.sop_class else b"",
        _short(COMMAND_FIELD, command.field | RESPONSE),
        _short(ANSWERED_ID, command.message_id),
        _short(DATA_SET_TYPE, NO_DATA_SET),
        _short(STATUS, status),
        _element(ERROR_COMMENT, _padded(one_line(comment), b" ")) if comment else b"",
        _element(SOP_INSTANCE, _padded(command.sop_uid, b"\x00")) if command.sop_uid else b"",
    ]
    return _command_set(parts)


def store_request(sop_class: str, sop_uid: str, message_id: int) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    return _command_set([
        _element(SOP_CLASS, _padded(sop_class, b"\x00")),
        _short(COMMAND_FIELD, C_STORE_RQ),
        _short(MESSAGE_ID, message_id),
        _short(PRIORITY, MEDIUM_PRIORITY),
        _short(DATA_SET_TYPE, HAS_DATA_SET),
        _element(SOP_INSTANCE, _padded(sop_uid, b"\x00")),
    ])  # fmt: skip


def echo_request(message_id: int) -> bytes:
    """Return the command set of a C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return _command_set([
        _element(SOP_CLASS, _padded(VERIFICATION, b"\x00")),
        _short(COMMAND_FIELD, C_ECHO_RQ),
        _short(MESSAGE_ID, message_id),
        _short(DATA_SET_TYPE, NO_DATA_SET),
    ])  # fmt: skip


def _command_set(parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return struct.pack("<HHLL", 0, GROUP_LENGTH, 4, len(body)) + body


def one_line(comment: str) -> str:
    """Return `comment` as a value of VR LO."""
    return comment[:COMMENT_CHARACTERS].replace("\\", "/")


def _padded(text: str, filler: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + filler * (len(value) % 2)


def _short(element: int, value: int) -> bytes:
    return struct.pack("<HHLH", 0, element, 2, value)


def _element(element: int, value: bytes) -> bytes:
    return _header.pack(0, element, len(value)) + value
