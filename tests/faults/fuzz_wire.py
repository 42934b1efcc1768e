"""Bytes of DICOM upper layer messages (PS3.8 9.3), written by hand, well formed or not at all.

Everything is built from small functions that take the length they should lie about; `mangle` is
the blind mutator that all layers of `tests.faults.fuzz` share.
"""

import random
import struct
from collections.abc import Callable, Sequence

VERIFICATION = "1.2.840.10008.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
RLE, J2K, JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"
SYNTAXES = (EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN, RLE, J2K, JPEG)

RELEASE_RQ = bytes.fromhex("05000000000400000000")
ABORT = bytes.fromhex("07000000000400000000")
RQ, AC, RJ, DATA, RELEASE, RELEASED, ABORTED = range(1, 8)
COMMAND_LAST, DATA_LAST = 0x03, 0x02  # message control headers (PS3.8 E.2)

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
HOSTILE_UIDS = (
    "../../x", "../../../../../../../../tmp/fuzz-escaped", "/tmp/fuzz-escaped", "..", ".", "",
    "1.2.3/../../../x", "1.2.3\0/../x", "\0", "1.2." + "3" * 300, "9" * 64, "9" * 65, "1..2",
    "1.2.3.", ".1.2.3", "1.2.3 ", "1.2.03", "-1.2", "1.2.3\n", "%2e%2e%2fx", "con", "1.2.3\\4.5.6",
    "1." * 31 + "1", "~root", "$(touch x)", "1.2.840.10008.1.1", "\u00b2.1", "..%00", "1.2;x",
)  # fmt: skip


def item(kind: int, payload: bytes, length: int | None = None) -> bytes:
    """Return an item or sub-item of an association request (PS3.8 9.3.2)."""
    return struct.pack(">BBH", kind, 0, _fit(payload, length, 0xFFFF)) + payload


def pdu(kind: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a PDU."""
    return struct.pack(">BBL", kind, 0, _fit(payload, length, 0xFFFFFFFF)) + payload


def pdv(context_id: int, header: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a presentation data value (PS3.8 9.3.5.1)."""
    count = len(payload) + 2 if length is None else length
    return struct.pack(">LBB", count & 0xFFFFFFFF, context_id, header) + payload


def _fit(payload: bytes, length: int | None, most: int) -> int:
    return (len(payload) if length is None else length) & most


def uid_bytes(text: str) -> bytes:
    """Return a UID as bytes, whatever it is made of."""
    return text.encode("latin-1", "replace")


def context(
    context_id: int, abstract: str, syntaxes: Sequence[str] = (EXPLICIT, IMPLICIT)
) -> bytes:
    """Return a presentation context item."""
    subs = item(0x30, uid_bytes(abstract)) + b"".join(item(0x40, uid_bytes(s)) for s in syntaxes)
    return item(0x20, struct.pack("BBBB", context_id & 0xFF, 0, 0, 0) + subs)


def role(abstract: str, scu: int = 1, scp: int = 1, length: int | None = None) -> bytes:
    """Return a role selection sub-item (PS3.7 D.3.3.4)."""
    uid = uid_bytes(abstract)
    count = len(uid) if length is None else length
    return item(0x54, struct.pack(">H", count & 0xFFFF) + uid + bytes((scu & 255, scp & 255)))


def user_information(*more: bytes, most: int = 16384, implementation: str = "1.2.826.0.9") -> bytes:
    """Return the user information item."""
    maximum = item(0x51, struct.pack(">L", most & 0xFFFFFFFF))
    return item(0x50, maximum + item(0x52, uid_bytes(implementation)) + b"".join(more))


def request(
    *items: bytes,
    calling: bytes = b"MR1",
    called: bytes = b"SRNODE",
    version: int = 1,
    length: int | None = None,
) -> bytes:
    """Return an A-ASSOCIATE-RQ of these variable items."""
    titles = called.ljust(16)[:16] + calling.ljust(16)[:16]
    head = struct.pack(">HH", version & 0xFFFF, 0) + titles + bytes(32)
    return pdu(RQ, head + b"".join(items), length)


APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")
STORES = {
    number: (MR, syntax)
    for number, syntax in zip(range(3, 3 + 2 * len(SYNTAXES), 2), SYNTAXES, strict=True)
}
CONTEXTS = {
    1: (VERIFICATION, IMPLICIT),
    **STORES,
    17: (COMMITMENT, IMPLICIT),
    19: (ENHANCED_MR, EXPLICIT),
}


def good_request(offered: Sequence[int] = tuple(CONTEXTS), most: int = 16384) -> bytes:
    """Return a request that is admitted, for some of CONTEXTS."""
    contexts = [context(number, CONTEXTS[number][0], [CONTEXTS[number][1]]) for number in offered]
    return request(APPLICATION, *contexts, user_information(role(COMMITMENT), most=most))


def element(tag: int, value: bytes, length: int | None = None) -> bytes:
    """Return a command element, implicit VR little endian (PS3.7 6.3.1)."""
    count = len(value) if length is None else length
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, count & 0xFFFFFFFF) + value


def even(value: bytes, pad: bytes = b"\0") -> bytes:
    """Return the value with an even length."""
    return value + pad * (len(value) % 2)


Elements = list[tuple[int, bytes]]


def command(elements: Elements, group_length: int | None = None) -> bytes:
    """Return a command set with its group length."""
    body = b"".join(element(tag, value) for tag, value in elements)
    count = len(body) if group_length is None else group_length
    return element(0, struct.pack("<L", count & 0xFFFFFFFF)) + body


def us(number: int) -> bytes:
    """Return an unsigned short."""
    return struct.pack("<H", number & 0xFFFF)


def store_elements(sop_class: str, sop_uid: str, message_id: int = 7) -> Elements:
    """Return the elements of a C-STORE-RQ."""
    return [
        (0x0002, even(uid_bytes(sop_class))), (0x0100, us(1)), (0x0110, us(message_id)),
        (0x0700, us(0)), (0x0800, us(1)), (0x1000, even(uid_bytes(sop_uid))),
    ]  # fmt: skip


def echo_elements(message_id: int) -> Elements:
    """Return the elements of a C-ECHO-RQ."""
    return [
        (0x0002, even(VERIFICATION.encode())), (0x0100, us(0x30)), (0x0110, us(message_id)),
        (0x0800, us(0x0101)),
    ]  # fmt: skip


def message(context_id: int, encoded: bytes, dataset: bytes | None = None) -> bytes:
    """Return a whole DIMSE message as P-DATA-TF PDUs."""
    pdus = [pdu(DATA, pdv(context_id, COMMAND_LAST, encoded))]
    if dataset is not None:
        pieces = [dataset[at : at + 65536] for at in range(0, len(dataset), 65536)] or [b""]
        for number, piece in enumerate(pieces, 1):
            header = DATA_LAST if number == len(pieces) else 0
            pdus.append(pdu(DATA, pdv(context_id, header, piece)))
    return b"".join(pdus)


def echo(message_id: int, context_id: int = 1) -> bytes:
    """Return a C-ECHO-RQ."""
    return message(context_id, command(echo_elements(message_id)))


def echo_reply_mark(message_id: int) -> bytes:
    """Return the bytes by which the response to a C-ECHO is known."""
    return element(0x0100, us(0x8030)) + element(0x0120, us(message_id))


def mangle(data: bytes, rng: random.Random, times: int | None = None) -> bytes:
    """Return `data` with a few blind changes."""
    changed = bytearray(data)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 8))):
        if not changed:
            return bytes(changed)
        rng.choice(BLIND)(changed, rng)
    return bytes(changed)


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    form = rng.choice(("B", ">H", "<H", ">L", "<L"))
    size = struct.calcsize(form)
    number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
    data[at : at + size] = struct.pack(form, number)


def _nudge_length(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at] = (data[at] + rng.choice((-4, -2, -1, 1, 2, 4))) & 0xFF


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))


def _delete(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 8, 64))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = bytes(data[at : at + rng.choice((4, 8, 16, 64, 256))])
    data[at:at] = piece * rng.choice((1, 1, 2, 50))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _blank(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    size = min(rng.choice((2, 4, 8, 32)), len(data) - at)
    data[at : at + size] = bytes((rng.choice((0, 0x20, 0x5C, 0xFF)),)) * size


BLIND: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _overwrite, _overwrite, _nudge_length, _insert, _delete, _repeat, _cut, _blank,
)  # fmt: skip
