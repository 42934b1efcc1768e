"""What the fuzzer says on the DICOM port: negotiation, PDUs, command sets, data sets.

A layer is a function that returns some exchanges, and the association request before them.
"""

import random
import struct
from dataclasses import dataclass

from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_data import Maker, Subject

BESIDE = (1, 3, 5, 17)  # what most conversations offer; more would cost more than they find
TOGETHER = 16  # exchanges on one association


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One hostile thing to say."""

    what: str
    data: bytes
    # "reply": answered or cut off; "echo": a C-ECHO behind it is, or what came was only a part;
    # "shut": nothing follows, we say so; "wait": nothing follows, the node's limits must end it.
    ending: str = "echo"


Said = tuple[list[Exchange], bytes | None]  # the exchanges, and the opening before them


def negotiation(maker: Maker, rng: random.Random) -> Said:
    """Ask for associations nobody should get, and for some that one may."""
    exchanges = []
    for _ in range(8):
        act = rng.choice(NEGOTIATIONS)
        data = act(rng)
        if rng.random() < 0.15:
            data = wire.mangle(data, rng)
        exchanges.append(Exchange(what=act.__name__, data=data, ending="shut"))
    return exchanges, None


def titles(rng: random.Random) -> bytes:
    """Call, or be called, by odd names."""
    odd = (
        b"",
        b"\0" * 16,
        b"\xff" * 16,
        b"../../x",
        b"MR1\\MR2",
        b" MR1",
        b"mr1",
        b"MR1\0",
        rng.randbytes(16),
    )
    names = (rng.choice(odd), b"SRNODE") if rng.random() < 0.5 else (b"MR1", rng.choice(odd))
    calling, called = names
    return wire.request(
        wire.APPLICATION, wire.context(1, wire.VERIFICATION), wire.user_information(),
        calling=calling, called=called, version=rng.choice((0, 1, 1, 2, 0xFFFF)),
    )  # fmt: skip


def blind(rng: random.Random) -> bytes:
    """Change bytes of a good request behind the titles."""
    good = wire.good_request(BESIDE)
    return good[:74] + wire.mangle(good[74:], rng)


def contexts(rng: random.Random) -> bytes:
    """Offer contexts that are too many, doubled, without syntax, with odd UIDs."""
    count = rng.choice((0, 1, 2, 128, 129, 300)) if rng.random() < 0.97 else 3500
    abstract = (wire.VERIFICATION, wire.MR, wire.COMMITMENT, *wire.HOSTILE_UIDS)
    identifiers = rng.choice((range(1, 600, 2), range(0, 600), [1] * 600, [255, 0, 254] * 200))
    made = [
        wire.context(
            identifiers[at % len(identifiers)],
            rng.choice(abstract),
            rng.choices(
                (wire.EXPLICIT, wire.IMPLICIT, *wire.HOSTILE_UIDS), k=rng.choice((0, 1, 1, 3, 40))
            )
            if at < 300
            else (wire.IMPLICIT,),
        )
        for at in range(count)
    ]
    return wire.request(wire.APPLICATION, *made, wire.user_information())


def items(rng: random.Random) -> bytes:
    """Send items that lie about their length, come twice, in another order, or not at all."""
    parts = [
        wire.APPLICATION, wire.context(1, wire.VERIFICATION), wire.context(3, wire.MR),
        wire.user_information(), wire.item(rng.choice((0x00, 0x11, 0x21, 0x41, 0xFF)), b"what"),
        wire.item(0x10, wire.uid_bytes(rng.choice(wire.HOSTILE_UIDS))),
        wire.item(0x20, rng.randbytes(rng.choice((0, 3, 4, 20))), rng.choice((None, 0, 1, 0xFFFF))),
        wire.item(0x50, rng.randbytes(8), rng.choice((None, 0, 0xFFFF))), wire.item(0x10, b""),
    ]  # fmt: skip
    if rng.random() < 0.5:
        return wire.request(*parts[:4], parts[rng.randrange(4, len(parts))])
    length = rng.choice((None, None, 68, 100, 0xFFFF, 0))
    return wire.request(*rng.choices(parts, k=rng.randint(0, 9)), length=length)


def information(rng: random.Random) -> bytes:
    """Send odd user information: roles, extended negotiation, identities, sizes, versions."""
    uid = wire.uid_bytes(rng.choice((wire.MR, wire.COMMITMENT, *wire.HOSTILE_UIDS)))
    text = rng.choice((b"", b"x", rng.randbytes(40), b"\0" * 70, b"../" * 400))
    subs = (
        wire.role(
            rng.choice((wire.MR, wire.COMMITMENT, *wire.HOSTILE_UIDS)),
            rng.randrange(256),
            rng.randrange(256),
            rng.choice((None, 0, 0xFFFF)),
        ),
        wire.item(0x55, text),
        wire.item(0x53, struct.pack(">HH", rng.choice((0, 1, 65535)), 0)),
        wire.item(0x56, struct.pack(">H", len(uid)) + uid + text),
        wire.item(0x57, struct.pack(">HH", len(uid), rng.choice((0, 4, 65535))) + uid + text),
        wire.item(
            0x58,
            struct.pack(">BBH", rng.randrange(8), rng.randrange(3), len(text))
            + text
            + struct.pack(">H", rng.choice((0, len(text), 65535)))
            + text,
        ),
        wire.item(0x51, rng.randbytes(rng.choice((0, 3, 4, 5)))),
        wire.item(0x52, uid),
        wire.item(rng.randrange(256), text, rng.choice((None, 0, 0xFFFF))),
    )
    chosen = rng.choices(subs, k=rng.choice((1, 1, 2, 5, 60)))
    most = rng.choice((0, 1, 5, 6, 7, 12, 13, 128, 16384, 0x7FFFFFFF, 0xFFFFFFFF))
    implementation = rng.choice(("1.2.826.0.9", *wire.HOSTILE_UIDS))
    about = wire.user_information(*chosen, most=most, implementation=implementation)
    return wire.request(wire.APPLICATION, wire.context(1, wire.VERIFICATION), about)


NEGOTIATIONS = (titles, titles, blind, contexts, items, items, information, information)


def pdus(maker: Maker, rng: random.Random) -> Said:
    """Break the rules of the upper layer on an association."""
    act = rng.choice(PDU_ACTS)
    data = act(maker, rng)
    if rng.random() < 0.2:
        data = wire.mangle(data, rng)
    ending = "wait" if rng.random() < 0.01 else rng.choice(("echo", "shut", "shut"))
    exchange = Exchange(what=act.__name__, data=data, ending=ending)
    most = rng.choice((0, 1, 5, 6, 7, 8, 12, 13, 100)) if rng.random() < 0.1 else 16384
    return [exchange], wire.good_request(BESIDE, most)


def lengths(maker: Maker, rng: random.Random) -> bytes:
    """Lie about lengths of PDUs and PDVs."""
    inner = wire.command(wire.echo_elements(9))
    told = rng.choice(
        (None, 0, 1, 2, 3, len(inner), len(inner) + 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
    )
    value = wire.pdv(rng.choice((1, 1, 0, 2, 99, 255)), rng.choice((3, 1, 2, 0, 0xFF)), inner, told)
    about = rng.choice((None, None, 0, 1, 5, len(value) - 1, len(value) + 1, 2**24, 0xFFFFFFFF))
    return wire.pdu(wire.DATA, value * rng.choice((1, 1, 2, 30)), about)


def order(maker: Maker, rng: random.Random) -> bytes:
    """Send known PDUs when nobody expects them."""
    known = (
        wire.good_request(BESIDE), wire.RELEASE_RQ, wire.pdu(wire.AC, bytes(68)), wire.ABORT,
        wire.pdu(wire.RJ, bytes((0, 1, 1, 1))), wire.pdu(wire.RELEASED, bytes(4)), wire.echo(3),
        wire.pdu(wire.RELEASE, b""), wire.pdu(wire.ABORTED, bytes(rng.randrange(9))), wire.echo(4),
        wire.pdu(rng.randrange(256), rng.randbytes(rng.randrange(30))), wire.pdu(wire.DATA, b""),
    )  # fmt: skip
    return b"".join(rng.choices(known, k=rng.randint(1, 5)))


def pieces(maker: Maker, rng: random.Random) -> bytes:
    """Cut a message into fragments of any size, lose some, mix contexts and kinds."""
    subject = maker.good(rng)
    encoded = wire.command(wire.store_elements(subject.sop_class, subject.sop_uid))
    size = rng.choice((1, 2, 7, 100, 1000))
    parts = [(1, encoded[at : at + size]) for at in range(0, len(encoded), size)]
    body = subject.encoded[: 600 if size < 10 else None]
    parts += [(0, body[at : at + size]) for at in range(0, len(body), size)]
    for _ in range(rng.choice((0, 1, 1, 3))):
        at, kind = rng.randrange(len(parts)), rng.randrange(3)
        if kind == 0 and len(parts) > 1:
            parts.pop(at)
        elif kind == 1:
            parts.insert(at, rng.choice(parts))
        else:
            rng.shuffle(parts)
    ends = {len(parts) - 1, rng.randrange(len(parts)), *([sum(kind for kind, _ in parts) - 1] * 2)}
    values = [
        wire.pdv(3 if rng.random() < 0.99 else rng.randrange(256), kind | 2 * (at in ends), part)
        for at, (kind, part) in enumerate(parts)
    ]
    together = rng.choice((1, 1, 5, 1000))
    return b"".join(
        wire.pdu(wire.DATA, b"".join(values[at : at + together]))
        for at in range(0, len(values), together)
    )


def data_first(maker: Maker, rng: random.Random) -> bytes:
    """Send a data set without a command, or a command behind a data set."""
    subject = maker.make(rng)
    dataset = wire.pdu(wire.DATA, wire.pdv(3, rng.choice((0, 2)), subject.encoded[:60000]))
    command = wire.message(3, wire.command(wire.store_elements(subject.sop_class, subject.sop_uid)))
    return rng.choice(
        (dataset, dataset + command, dataset * 20, command + command, dataset + dataset + command)
    )


def noise(maker: Maker, rng: random.Random) -> bytes:
    """Send bytes."""
    kind = bytes((rng.choice((1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 255)), 0))
    return kind + rng.randbytes(rng.choice((0, 3, 4, 20, 3000)))


PDU_ACTS = (lengths, lengths, order, order, pieces, pieces, data_first, noise)


def commands(maker: Maker, rng: random.Random) -> Said:
    """Send command sets with one or several lies."""
    exchanges = [broken_command(maker, rng) for _ in range(TOGETHER)]
    return exchanges, wire.good_request(BESIDE)


def broken_command(maker: Maker, rng: random.Random) -> Exchange:
    """Return a message whose command set lies."""
    subject = maker.good(rng)
    elements = wire.store_elements(subject.sop_class, subject.sop_uid)
    for _ in range(rng.choice((1, 1, 2, 4))):
        elements = lie(elements, rng)
    group_length = rng.choice(wire.NUMBERS) if rng.random() < 0.1 else None
    encoded = wire.command(elements, group_length)
    if rng.random() < 0.15:
        encoded = wire.mangle(encoded, rng)
    # No data set where one is announced, or one where none is: what follows is misunderstood.
    announced = (0x0800, wire.us(0x0101)) not in elements
    dataset = subject.encoded if announced != (rng.random() < 0.05) else None
    return Exchange(what="command", data=wire.message(3, encoded, dataset))


COMMAND_FIELDS = (
    0x0001, 0x8001, 0x0010, 0x8010, 0x0020, 0x8020, 0x0021, 0x8021, 0x0030, 0x8030, 0x0FFF, 0x0100,
    0x8100, 0x0110, 0x8110, 0x0120, 0x0130, 0x8130, 0x0140, 0x0150, 0x0000, 0xFFFF, 0x0002, 0x7777,
)  # fmt: skip
CLASSES = (
    wire.MR,
    wire.VERIFICATION,
    wire.COMMITMENT,
    wire.ENHANCED_MR,
    "1.2.840.10008.5.1.4.1.2.1.1",
    "1.2.840.10008.5.1.4.1.2.1.2",
    "1.2.840.10008.5.1.4.31",
    "1.2.840.10008.3.1.2.3.3",
    "1.2.840.10008.5.1.1.9",
    "1.2.840.10008.5.1.4.34.6.1",
    "1.2.840.10008.5.1.4.33",
    "1.2.840.10008.1.42",
    *wire.HOSTILE_UIDS,
)
COMMAND_TAGS = (
    0x0000, 0x0001, 0x0002, 0x0003, 0x0100, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x0901,
    0x0902, 0x0903, 0x1000, 0x1001, 0x1002, 0x1005, 0x1008, 0x1020, 0x1030, 0x1031, 0x5010,
    0x00080018, 0x00100010, 0xFFFEE000, 0x00090010,
)  # fmt: skip


def lie(elements: wire.Elements, rng: random.Random) -> wire.Elements:
    """Return the elements with one of them dropped, doubled, moved, or of another value."""
    changed = list(elements)
    at = rng.randrange(len(changed))
    tag = changed[at][0]
    uid = wire.uid_bytes(rng.choice(CLASSES))
    value = rng.choice(
        (
            b"",
            b"\0",
            wire.us(rng.choice(wire.NUMBERS)),
            rng.randbytes(rng.choice((1, 2, 3, 4, 9))),
            uid,
            wire.even(uid),
            b"1.2" * 5000,
        )
    )
    kind = rng.randrange(7)
    if kind == 0:
        changed.pop(at)
    elif kind == 1:
        changed.insert(at, (tag, value))
    elif kind == 2:
        rng.shuffle(changed)
    elif kind == 3:
        changed.append((rng.choice(COMMAND_TAGS), value))
    elif kind == 4:
        fields = [
            (each, wire.us(rng.choice(COMMAND_FIELDS)) if each == 0x0100 else old)
            for each, old in changed
        ]
        changed = fields
    else:
        changed[at] = (tag, value)
    return changed


def datasets(maker: Maker, rng: random.Random) -> Said:
    """Store what nobody should believe."""
    offered = (1, *wire.STORES, 19)
    exchanges: list[Exchange] = []
    while len(exchanges) < TOGETHER:
        subject = maker.make(rng)
        exchanges.append(stored(subject))
        if rng.random() < 0.15:  # the same UID again, with other pixels behind it: is it the same?
            tail = wire.mangle(subject.encoded[-200:], rng)
            exchanges.append(
                stored(
                    Subject(
                        **vars(subject)
                        | {"what": "again", "encoded": subject.encoded[:-200] + tail}
                    )
                )
            )
    return exchanges[:TOGETHER], wire.good_request(offered)


def stored(subject: Subject) -> Exchange:
    """Return the C-STORE of a data set."""
    found = [n for n, pair in wire.CONTEXTS.items() if pair == (subject.sop_class, subject.syntax)]
    context_id = found[0] if found else 3
    command = wire.command(wire.store_elements(subject.sop_class, subject.sop_uid))
    data = wire.message(context_id, command, subject.encoded)
    return Exchange(what=subject.what, data=data, ending="reply")
