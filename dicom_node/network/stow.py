"""Storing at a DICOMweb server: STOW-RS, with a status for every instance (PS3.18 10.5)."""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dicom_node.multipart import DICOM, TYPE, closing, opening
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.dicomweb import PIECE_BYTES, text
from dicom_node.network.http import JSON, Reply, WebFault, connected, data_set_in
from dicom_node.network.parcels import Item, Outcome, head_of
from dicom_node.pixel_files import sha256_of
from dicom_node.retry import Fault, Verdict, classify, http_fault
from dicom_node.settings import PeerSettings

STORED, ALREADY_THERE, PROCESSING_FAILURE = 0x0000, 0x0111, 0x0110
ANSWERED = (200, 202, 409)  # with the status of each instance (PS3.18 10.5.3)
MOST_AT_ONCE, MOST_BYTES_AT_ONCE = 16, 64 * 2**20  # of one request
STORED_ITEMS, FAILED_ITEMS, UNNAMED_FAILURES = "00081199", "00081198", "0008119A"
REFERENCED, WARNING, FAILURE = "00081155", "00081196", "00081197"
US = re.compile(r"[0-9]{1,5}")
KEPT = (Verdict.SENT, Verdict.SENT_WITH_WARNING)


def send(
    items: Sequence[Item],
    peer: PeerSettings,
    *,
    timeouts: Timeouts,
    proceed: Callable[[], bool] = lambda: True,
    there: Callable[[], set[str]] = set,
) -> Iterator[Outcome]:
    """Yield one outcome per instance that was tried, as soon as it is known.

    What keeps a whole request from being answered is the outcome of its first instance, and
    nothing is tried after it.

    Parameters
    ----------
    proceed
        Asked before every request; False ends the sending there.
    there
        What the server has of these instances by its own word: asked when it refuses some, because
        servers differ in how they refuse what they have already.
    """
    waiting = []
    for item in items:
        fault = unsendable(item)
        if fault is None:
            waiting.append(item)
        else:
            yield fault
    at_once = MOST_AT_ONCE
    while waiting and proceed():
        try:
            batch = first_batch(waiting, at_once)
            outcomes = list(store(batch, peer, timeouts))
        except WebFault as fault:
            if fault.fault is Fault.TOO_LARGE and len(batch) > 1:
                at_once = len(batch) // 2
                continue
            yield Outcome(item=waiting[0], fault=fault.fault, comment=fault.comment)
            return
        except OSError as error:  # of a file: the next attempt says of which, and for how long
            yield Outcome(item=waiting[0], fault=Fault.UNREADABLE, comment=type(error).__name__)
            return
        yield from as_found(outcomes, there)
        waiting = waiting[len(batch) :]


def unsendable(item: Item) -> Outcome | None:
    """Return why a file cannot be sent."""
    found = head_of(item)
    if isinstance(found, Outcome):
        return found
    found_sha256 = sha256_of(item.path)
    if found_sha256 is None:
        return Outcome(item=item, fault=Fault.UNREADABLE)
    if item.sha256 not in (None, found_sha256):
        return Outcome(item=item, fault=Fault.ALTERED, comment="its SHA-256 differs")
    return None


def first_batch(waiting: Sequence[Item], most: int) -> Sequence[Item]:
    """Return the instances of the next request: at least one."""
    count, size = 0, 0
    for item in waiting[:most]:
        size += item.path.stat().st_size
        if count and size > MOST_BYTES_AT_ONCE:
            break
        count += 1
    return waiting[:count]


def store(batch: Sequence[Item], peer: PeerSettings, timeouts: Timeouts) -> Iterator[Outcome]:
    """Yield the outcome of each instance of one request; raise WebFault without any."""
    boundary = secrets.token_hex(16)
    reply = post(boundary, batch, peer, timeouts)
    if reply.status_code not in ANSWERED:
        raise WebFault(http_fault(reply.status_code), f"HTTP {reply.status_code}")
    document = data_set_in(reply.content)
    statuses = statuses_in(document)
    if not statuses and reply.status_code == 409:
        raise WebFault(Fault.CONFLICT, "HTTP 409")
    complains = any(map(document.get, (FAILED_ITEMS, UNNAMED_FAILURES)))
    believed = reply.status_code == 200 and not statuses and not complains
    unnamed: int | Fault = STORED if believed else Fault.UNCONFIRMED
    for item in batch:
        yield Outcome(item=item, fault=statuses.get(item.sop_uid, unnamed))


def post(boundary: str, batch: Sequence[Item], peer: PeerSettings, timeouts: Timeouts) -> Reply:
    """Return the answer to one request."""
    length = sum(len(piece) for piece in frame(boundary, len(batch)))
    length += sum(item.path.stat().st_size for item in batch)
    headers = {
        "Accept": JSON,
        "Content-Type": f'{TYPE}; type="{DICOM}"; boundary={boundary}',
        "Content-Length": str(length),  # many servers take no chunked body
    }
    with connected(peer, timeouts, length) as client:
        content = body(boundary, batch)
        return client.ask("POST", f"{peer.url}/studies", content=content, headers=headers)


def frame(boundary: str, count: int) -> Iterator[bytes]:
    """Yield what stands around the files of a body."""
    yield from (opening(boundary, DICOM, first=not number) for number in range(count))
    yield closing(boundary)


def body(boundary: str, batch: Sequence[Item]) -> Iterator[bytes]:
    """Yield a body piece by piece."""
    around = frame(boundary, len(batch))
    for item in batch:
        yield next(around)
        yield from pieces(item.path)
    yield next(around)


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a file piece by piece."""
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def statuses_in(document: Mapping[str, Any]) -> dict[str, int]:
    """Return the status of every instance that the answer to STOW-RS names."""
    stored = {uid: warning_of(code) for uid, code in named(document, STORED_ITEMS, WARNING)}
    failed = {uid: failure_of(code) for uid, code in named(document, FAILED_ITEMS, FAILURE)}
    return stored | failed


def named(document: Mapping[str, Any], sequence: str, reason: str) -> Iterator[tuple[str, str]]:
    """Yield the instances of a sequence with the reason that each item states, as text."""
    element = document.get(sequence)
    items = element.get("Value") if isinstance(element, dict) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and (uid := text(item, REFERENCED)):
            yield uid, text(item, reason)


def warning_of(code: str) -> int:
    """Return the status of an instance that the server has stored with a Warning Reason, or none.

    A code that says the contrary does not count as stored: it is sent again.
    """
    status = us_in(code)
    if status is None:
        return STORED
    return status if classify(status).verdict in KEPT else PROCESSING_FAILURE


def failure_of(code: str) -> int:
    """Return the status of an instance that the server has not stored, for a Failure Reason.

    Whatever the code, it is not stored, unless the server has had it before.
    """
    status = us_in(code)
    kept = status is not None and status != ALREADY_THERE and classify(status).verdict in KEPT
    return PROCESSING_FAILURE if status is None or kept else status


def us_in(code: str) -> int | None:
    """Return a value of VR US; None where it is none."""
    number = int(code) if US.fullmatch(code) else None
    return number if number is not None and number < 2**16 else None


def as_found(outcomes: Sequence[Outcome], there: Callable[[], set[str]]) -> Iterator[Outcome]:
    """Yield the outcomes, those that were refused because the server has them as what they are."""
    present: set[str] = set()
    if any(one.verdict is Verdict.PERMANENT for one in outcomes):
        with suppress(AssociationFault):  # then its refusals stand
            present = there()
    for one in outcomes:
        if one.verdict is Verdict.PERMANENT and one.item.sop_uid in present:
            yield Outcome(item=one.item, fault=ALREADY_THERE)
        else:
            yield one
