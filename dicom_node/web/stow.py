"""STOW-RS: instances that a program stores here, as if they had come by C-STORE (PS3.18 10.5).

One part is in memory at a time, and is durable before the next one is read.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import BoundedSemaphore
from xml.sax.saxutils import escape

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from dicom_node.intake import SUCCESS
from dicom_node.multipart import (
    DICOM,
    TYPE,
    MultipartError,
    Part,
    PartTooLarge,
    Splitter,
    media_type,
)
from dicom_node.network.keeping import Accepted, Kept, keep_file
from dicom_node.network.scp import storage_classes
from dicom_node.pixel_files import PixelFiles
from dicom_node.settings import Settings
from dicom_node.store import Store
from dicom_node.syntaxes import TRANSFER_SYNTAXES
from dicom_node.web.api import csrf_header
from dicom_node.web.auth import Caller, Denied, address_of, require_sender

ROOT = "/dicom-web/"
JSON, XML = "application/dicom+json", "application/dicom+xml"
AT_ONCE = 2  # requests whose parts are in memory
BUSY = {"Retry-After": "10"}
CLOSE = {"Connection": "close"}  # else the rest of the body would still be read, and thrown away
OUT_OF_RESOURCES = range(0xA700, 0xA800)
# Keyword and value representation of what an answer holds, by tag.
ELEMENTS = {
    "00081150": ("ReferencedSOPClassUID", "UI"),
    "00081155": ("ReferencedSOPInstanceUID", "UI"),
    "00081197": ("FailureReason", "US"),
    "00081198": ("FailedSOPSequence", "SQ"),
    "00081199": ("ReferencedSOPSequence", "SQ"),
    "0008119A": ("OtherFailuresSequence", "SQ"),
}
Item = dict[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Stow:
    """The service; off unless the configuration switches it on."""

    settings: Settings
    store: Store
    seats: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(AT_ONCE))

    def routes(self) -> list[Route]:
        """Return the paths of the service."""
        if not self.settings.web.stow:
            return []
        paths = (f"{ROOT}studies", f"{ROOT}studies/{{study_uid}}")
        return [Route(path, self.store_instances, methods=["POST"]) for path in paths]

    async def store_instances(self, request: Request) -> Response:
        """Store every part of the body; answer with the status of each."""
        caller = require_sender(request, csrf_header(request))
        boundary = boundary_of(request, self.settings.web.stow_bytes)
        answer_type = wanted_type(request.headers.get("accept", ""))
        if not self.seats.acquire(blocking=False):
            raise Denied(503, f"{AT_ONCE} requests are being stored; try again soon", BUSY | CLOSE)
        kept: list[Kept] = []
        try:
            await self._store_all(request, caller, boundary, kept)
        except (Denied, ClientDisconnect) as error:  # what came before it is kept all the same
            broken = f"HTTP {error.code}" if isinstance(error, Denied) else "the caller hung up"
            await run_in_threadpool(self._note, request, caller, kept, reason=broken)
            raise
        finally:
            self.seats.release()
        await run_in_threadpool(self._note, request, caller, kept)
        return answer(kept, answer_type)

    async def _store_all(
        self, request: Request, caller: Caller, boundary: str, kept: list[Kept]
    ) -> None:
        """Store every part, and put on `kept` what became of it; raise Denied for a broken body."""
        accepted = await run_in_threadpool(self._accepted)
        try:
            splitter = Splitter(boundary, self.settings.web.stow_part_bytes)
            async for piece in self._pieces(request):
                for part in splitter.feed(piece):
                    kept.append(
                        await run_in_threadpool(self._keep, request, caller, part, accepted)
                    )
            splitter.end()
        except PartTooLarge as error:
            raise Denied(413, str(error), CLOSE) from error
        except MultipartError as error:
            raise Denied(400, str(error), CLOSE) from error
        if not kept:
            raise Denied(400, "the body has no parts")

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body as it comes, no more of it and no slower than allowed."""
        stream, size, waited_s = request.stream().__aiter__(), 0, 0.0
        limit_s, slowest = self.settings.node.network_timeout_s, self.settings.limits
        while True:
            left_s = limit_s + size / slowest.message_bytes_per_s - waited_s
            began = time.monotonic()
            try:
                async with asyncio.timeout(min(limit_s, left_s)):
                    piece = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Denied(408, "the body stopped coming", CLOSE) from None
            waited_s += time.monotonic() - began  # for the caller, not for our disk
            size += len(piece)
            if size > self.settings.web.stow_bytes:
                text = f"a request has {self.settings.web.stow_bytes} bytes at most"
                raise Denied(413, text, CLOSE)
            yield piece

    def _accepted(self) -> Accepted:
        root = self.settings.node.state_dir.resolve() / "in"
        return Accepted(
            classes=storage_classes(self.settings),
            syntaxes=TRANSFER_SYNTAXES,
            files=PixelFiles(root, self.settings.files.min_free_bytes),
        )

    def _keep(self, request: Request, caller: Caller, part: Part, accepted: Accepted) -> Kept:
        if part.media_type != DICOM:
            raise Denied(415, f"a part is {part.media_type[:80]}, not {DICOM}", CLOSE)
        study_uid = request.path_params.get("study_uid")
        now = datetime.now(UTC)
        return keep_file(part.body, caller.name, accepted, self.store, now, study_uid=study_uid)

    def _note(self, request: Request, caller: Caller, kept: Sequence[Kept], **more: str) -> None:
        failed = sum(one.status != SUCCESS for one in kept)
        self.store.audit.record(
            "web.stow",
            datetime.now(UTC),
            name=caller.name,
            address=address_of(request),
            count=len(kept) - failed,
            failed=failed,
            **more,
        )


def boundary_of(request: Request, most_bytes: int) -> str:
    """Return the boundary of the body; raise Denied where it cannot be taken."""
    kind = media_type(request.headers.get("content-type", ""))
    inner = kind.parameters.get("type", DICOM).lower()
    if kind.name != TYPE or inner != DICOM:
        raise Denied(415, f'the body must be {TYPE}; type="{DICOM}"', CLOSE)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most_bytes:
        raise Denied(413, f"a request has {most_bytes} bytes at most", CLOSE)
    return kind.parameters.get("boundary", "")


def wanted_type(accept: str) -> str:
    """Return in which form the answer is wanted; raise Denied where we have none."""
    ranges = {media_type(one).name for one in accept.split(",") if one.strip()}
    if not ranges or ranges & {JSON, "application/json", "application/*", "*/*"}:
        return JSON
    if XML in ranges:
        return XML
    raise Denied(406, f"answers are {JSON} or {XML}")


def answer(kept: Sequence[Kept], answer_type: str) -> Response:
    """Return the status of every instance, and of them all (PS3.18 table 10.5.3-1)."""
    failed = [one for one in kept if one.status != SUCCESS]
    code, headers = 200, {}
    if failed and len(failed) < len(kept):
        code = 202
    elif failed and all(one.status in OUT_OF_RESOURCES for one in failed):
        code, headers = 503, BUSY
    elif failed:
        code = 409
    document = {
        "00081199": [named(one) for one in kept if one.status == SUCCESS],
        "00081198": [named(one) | reason(one) for one in failed if one.sop_uid],
        "0008119A": [reason(one) for one in failed if not one.sop_uid],
    }
    document = {tag: items for tag, items in document.items() if items}
    text = as_json(document) if answer_type == JSON else as_xml(document)
    return Response(text, code, headers, media_type=answer_type)


def named(one: Kept) -> Item:
    """Return an instance as an item."""
    return {"00081150": one.sop_class, "00081155": one.sop_uid}


def reason(one: Kept) -> Item:
    """Return why an instance was refused as an item."""
    return {"00081197": one.status}


def as_json(document: dict[str, list[Item]]) -> str:
    """Return a data set of sequences in the DICOM JSON model (PS3.18 F)."""
    return json.dumps(
        {
            tag: {
                "vr": "SQ",
                "Value": [
                    {key: {"vr": ELEMENTS[key][1], "Value": [value]} for key, value in item.items()}
                    for item in items
                ],
            }
            for tag, items in sorted(document.items())
        }
    )


def as_xml(document: dict[str, list[Item]]) -> str:
    """Return a data set of sequences in the native DICOM model (PS3.19 A.1)."""
    return "".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            '<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">',
            *(line for tag, items in sorted(document.items()) for line in sequence(tag, items)),
            "</NativeDicomModel>",
        ]
    )


def sequence(tag: str, items: Sequence[Item]) -> Iterator[str]:
    """Yield a sequence as XML."""
    keyword, _ = ELEMENTS[tag]
    yield f'<DicomAttribute tag="{tag}" vr="SQ" keyword="{keyword}">'
    for number, item in enumerate(items, 1):
        yield f'<Item number="{number}">'
        for key, value in item.items():
            word, vr = ELEMENTS[key]
            yield f'<DicomAttribute tag="{key}" vr="{vr}" keyword="{word}">'
            yield f'<Value number="1">{escape(str(value))}</Value></DicomAttribute>'
        yield "</Item>"
    yield "</DicomAttribute>"
