"""What the fuzzer says to two services: storage commitment, and the page's HTTP."""

import random
import struct

from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_acts import TOGETHER, Exchange, Said, lie
from tests.faults.fuzz_data import Maker


def commitment(maker: Maker, rng: random.Random) -> Said:
    """Ask for storage commitment, and report it, in ways that make no sense."""
    exchanges = []
    for _ in range(TOGETHER):
        act = rng.choice((action, report))
        exchanges.append(act(rng))
    return exchanges, wire.good_request((1, 17))


def transaction(rng: random.Random) -> bytes:
    """Return the data set of a transaction, implicit VR."""
    uid = rng.choice((f"1.2.826.0.7.{rng.randrange(10**9)}", *wire.HOSTILE_UIDS))
    sequences = []
    for tag in rng.choice(((0x00081199,), (0x00081198,), (0x00081199, 0x00081198), ())):
        count = rng.choice((0, 1, 2, 20)) if rng.random() < 0.98 else 12000
        listed = b"".join(_referenced(rng) for _ in range(min(count, 20))) * max(1, count // 20)
        sequences.append(wire.element(tag, listed if count else b""))
    head = wire.element(0x00081195, wire.even(wire.uid_bytes(uid)))
    body = rng.choice((head, head, b"")) + b"".join(sequences)
    if rng.random() < 0.05:
        start = wire.element(0x00081199, b"", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        body += start * rng.choice((100, 1500))
    return wire.mangle(body or b"\0", rng) if rng.random() < 0.4 else body


def _referenced(rng: random.Random) -> bytes:
    uids = (
        (wire.MR, f"1.2.826.0.1.{rng.randrange(99)}")
        if rng.random() < 0.6
        else rng.choices(wire.HOSTILE_UIDS, k=2)
    )
    inner = b"".join(
        wire.element(tag, wire.even(wire.uid_bytes(uid)))
        for tag, uid in zip((0x00081150, 0x00081155), uids, strict=True)
    )
    reason = wire.element(
        0x00081197, rng.choice((wire.us(0x0112), b"", b"\1", b"\1\2\3\4", rng.randbytes(6)))
    )
    inner += rng.choice((b"", reason))
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner


def some_instance(rng: random.Random) -> bytes:
    """Return the well-known SOP instance, now and then a hostile UID."""
    known = wire.COMMITMENT_INSTANCE
    return wire.even(rng.choice((known, known, *wire.HOSTILE_UIDS)).encode("latin-1"))


def action(rng: random.Random) -> Exchange:
    """Return an N-ACTION-RQ."""
    elements = [
        (0x0003, wire.even(wire.COMMITMENT.encode())),
        (0x0100, wire.us(0x0130)),
        (0x0110, wire.us(5)),
        (0x0800, wire.us(1)),
        (0x1001, some_instance(rng)),
        (0x1008, wire.us(rng.choice((1, 1, 1, 0, 2, 65535)))),
    ]
    return _about_commitment("action", elements, rng)


def report(rng: random.Random) -> Exchange:
    """Return an N-EVENT-REPORT-RQ."""
    elements = [
        (0x0002, wire.even(wire.COMMITMENT.encode())),
        (0x0100, wire.us(0x0100)),
        (0x0110, wire.us(6)),
        (0x0800, wire.us(1)),
        (0x1000, some_instance(rng)),
        (0x1002, wire.us(rng.choice((1, 2, 2, 0, 3, 65535)))),
    ]
    return _about_commitment("report", elements, rng)


def _about_commitment(what: str, elements: wire.Elements, rng: random.Random) -> Exchange:
    lies = rng.random() < 0.2
    command = wire.command(lie(elements, rng) if lies else elements)
    data = wire.message(17, command, transaction(rng))
    return Exchange(what=what, data=data, ending="echo" if lies else "reply")


PATHS = (
    b"/",
    b"/healthz",
    b"/metrics",
    b"/api/jobs",
    b"/api/jobs/1",
    b"/api/jobs/../../x",
    b"/static/../../../etc/passwd",
    b"/static/%2e%2e/%2e%2e/etc/passwd",
    b"/static//etc/passwd",
    b"/jobs/" + b"9" * 30,
    b"/jobs/-1",
    b"/jobs/%00",
    b"/" + b"a" * 70000,
    b"//",
    b"*",
    b"http://elsewhere/",
    b"/api/send",
    b"/login",
    b"/api/jobs/1/requeue",
    b"/\xff",
)
HEADERS = (
    b"Host: 127.0.0.1",
    b"Host: elsewhere",
    b"Host: ",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Authorization: Bearer x",
    b"Authorization: Bearer " + b"\xff" * 50,
    b"Cookie: session=" + b"x" * 5000,
    b"X: " + b"y" * 70000,
    b"Authorization: Basic !!!",
    b"X-Forwarded-For: 1,2,,../",
    b"Range: bytes=0-0,-1",
    b"Connection: close",
    b"Accept: " + b"*/*," * 500,
    b"Origin: null",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
)


def http(maker: Maker, rng: random.Random) -> Said:
    """Speak to the page."""
    exchanges = []
    for _ in range(4):
        method = rng.choice((b"GET", b"GET", b"POST", b"HEAD", b"PUT", b"\0", b"G" * 300))
        line = (
            method
            + b" "
            + rng.choice(PATHS)
            + b" HTTP/"
            + rng.choice((b"1.1", b"1.1", b"1.0", b"9.9"))
        )
        headers = rng.choices(HEADERS, k=rng.choice((1, 2, 3, 200)))
        data = b"\r\n".join(
            [line, b"Host: 127.0.0.1", *headers, b"", rng.choice((b"", b"token=x", b"5\r\nabc"))]
        )
        if rng.random() < 0.4:
            data = wire.mangle(data, rng)
        exchanges.append(Exchange(what="request", data=data, ending="shut"))
    return exchanges, None
