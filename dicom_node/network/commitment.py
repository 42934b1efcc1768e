"""Storage commitment as SCU: asking a destination, and taking its N-EVENT-REPORT (PS3.4 J.3).

The report comes on the association of the request, on another one that the archive opens to our
listener, before the response to the request or days later: `Reports` takes it wherever it comes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, cast
from uuid import uuid4

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicom_node import telemetry
from dicom_node.content import PARSE_ERRORS
from dicom_node.errors import NodeError, StoreUnavailable
from dicom_node.network import pynetdicom_scu
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.retry import Fault, backoff_s
from dicom_node.settings import PeerSettings, Settings
from dicom_node.store import Reference, Report, Resends, Store

REQUEST, ALL_COMMITTED, SOME_FAILED = 1, 1, 2  # action type; event types (PS3.4 J.3.2.1, J.3.3.1)
SYNTAXES: list[str | UID] = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
SUCCESS, PROCESSING_FAILURE, NO_SUCH_INSTANCE = 0x0000, 0x0110, 0x0112
NO_SUCH_EVENT, INVALID_ARGUMENT = 0x0113, 0x0115
CLASS, INSTANCE = "ReferencedSOPClassUID", "ReferencedSOPInstanceUID"
PAUSE_S = 0.02

log = telemetry.get_logger()


class CommitmentRefused(NodeError):
    """A request or a report that cannot be used; `status` is the answer to it."""

    status = INVALID_ARGUMENT

    def __init__(self, reason: str, status: int = INVALID_ARGUMENT) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Request:
    """One N-ACTION: a transaction and what it is about."""

    transaction_uid: str
    instances: tuple[Reference, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a peer answered an N-ACTION: a DIMSE status, or why there is none."""

    request: Request
    fault: int | Fault


def context() -> PresentationContext:
    """Return the presentation context of the Storage Commitment Push Model."""
    return build_context(StorageCommitmentPushModel, SYNTAXES)


def new_uid() -> str:
    """Return a transaction UID that nobody can guess (PS3.5 B.2)."""
    return f"2.25.{uuid4().int}"


def information(request: Request) -> Dataset:
    """Return the Action Information of a request (PS3.4 Table J.3-1)."""
    dataset = Dataset()
    dataset.TransactionUID = request.transaction_uid
    dataset.ReferencedSOPSequence = [reference_item(one) for one in request.instances]
    return dataset


def reference_item(one: Reference) -> Dataset:
    """Return an instance as an item of a sequence."""
    item = Dataset()
    item.ReferencedSOPClassUID = one.sop_class
    item.ReferencedSOPInstanceUID = one.sop_uid
    return item


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Raise CommitmentRefused where the data set of a message turns out to be none."""
    try:
        yield
    except PARSE_ERRORS as error:
        raise CommitmentRefused(f"the data set is damaged: {type(error).__name__}") from error


def read_request(dataset: Dataset) -> Request:
    """Return what a peer asks, or raise CommitmentRefused (PS3.4 Table J.3-1)."""
    items = references(dataset, "ReferencedSOPSequence")
    instances = tuple(
        Reference(sop_uid=uid_in(item, INSTANCE), sop_class=uid_in(item, CLASS)) for item in items
    )
    if not instances:
        raise CommitmentRefused("the request names no instance")
    return Request(transaction_uid=uid_in(dataset, "TransactionUID"), instances=instances)


def read_report(event_type: int | None, dataset: Dataset) -> Report:
    """Return what an N-EVENT-REPORT says, or raise CommitmentRefused (PS3.4 Table J.3-2)."""
    if event_type not in (ALL_COMMITTED, SOME_FAILED):
        raise CommitmentRefused(f"there is no event type {event_type}", NO_SUCH_EVENT)
    committed = frozenset(
        uid_in(item, INSTANCE) for item in references(dataset, "ReferencedSOPSequence")
    )
    failed = {
        uid_in(item, INSTANCE): int(item.get("FailureReason", PROCESSING_FAILURE))
        for item in references(dataset, "FailedSOPSequence")
    }
    return Report(
        transaction_uid=uid_in(dataset, "TransactionUID"),
        committed=committed - failed.keys(),
        failed=failed,
        everything=event_type == ALL_COMMITTED and not committed and not failed,
    )


def references(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence; none when it is absent."""
    found = dataset.get(keyword)
    return cast(Sequence[Dataset], found) if found else ()


def uid_in(dataset: Dataset, keyword: str) -> str:
    """Return a UID, or raise CommitmentRefused where there is none that can be kept."""
    value = str(dataset.get(keyword) or "").strip()
    if not value or len(value) > 64 or not (value.isascii() and value.isprintable()):
        raise CommitmentRefused(f"{keyword} is missing or no UID")
    return value


class Reports:
    """Takes the N-EVENT-REPORTs of destinations, on whatever association they come."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Callable[[], datetime],
        rng: Random | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._rng = rng or Random()

    def on_event(self, event: Event) -> tuple[int, None]:
        """Return the status of the response to an N-EVENT-REPORT, and no Event Reply."""
        try:
            self._take(event)
        except CommitmentRefused as error:
            log.warning(
                "commitment.report_refused", reason=str(error), status=f"{error.status:04X}"
            )
            return error.status, None
        except StoreUnavailable as error:  # the time-out asks again
            log.error("commitment.report_lost", reason=str(error))
            return PROCESSING_FAILURE, None
        return SUCCESS, None

    def _take(self, event: Event) -> None:
        request = cast(N_EVENT_REPORT, event.request)
        if request.AffectedSOPInstanceUID != StorageCommitmentPushModelInstance:
            raise CommitmentRefused("the report is of no instance we know", NO_SUCH_INSTANCE)
        with refusing_damage():
            report = read_report(event.event_type, event.event_information)
        if not self.take(report):
            address = event.assoc.requestor.address
            log.warning("commitment.unknown", transaction=report.transaction_uid, address=address)
            raise CommitmentRefused(f"transaction {report.transaction_uid} is unknown")

    def take(self, report: Report, requests: int = 1) -> bool:
        """Return False when nobody asked under that transaction UID; else it is on record.

        Parameters
        ----------
        requests
            How often was asked so far: what is not committed waits the longer for the next time.
        """
        now = self._clock()
        again = now + timedelta(seconds=self._delay_s(requests))
        resends = Resends(most=self._settings.commitment.max_resends, pause=self._resend_pause)
        done = self._store.commitments.record_report(report, now, again_at=again, resends=resends)
        if done is None:
            return False
        counter = telemetry.commitment_reports
        counter.labels(destination=done.destination, outcome="committed").inc(done.committed)
        counter.labels(destination=done.destination, outcome="failed").inc(done.failed)
        log.info(
            "commitment.report", transaction=report.transaction_uid,
            destination=done.destination, state=done.state,
            committed=done.committed, failed=done.failed,
        )  # fmt: skip
        return True

    def _resend_pause(self, count: int) -> timedelta:
        """Return the pause before the images are sent again for the `count`th time.

        An archive may need minutes to store what it took: the pause is at least half of its limit.
        """
        first_s = self._settings.commitment.resend_first_s
        last_s = self._settings.sending.backoff_last_s
        wait_s = backoff_s(count, self._rng, base_s=first_s, cap_s=last_s, least=0.5)
        return timedelta(seconds=wait_s)

    def _delay_s(self, requests: int) -> float:
        sending = self._settings.sending
        return backoff_s(
            requests, self._rng, base_s=sending.backoff_first_s, cap_s=sending.backoff_last_s
        )


def set_requests_aside(event: Event) -> None:
    """Let a request that comes while we wait for a response wait for its turn.

    An archive may report before it answers the N-ACTION. pynetdicom takes the next message for the
    response, whatever it is; here it stays for the reactor. Bind it to EVT_CONN_OPEN, after
    `pynetdicom_scu.keep_replies`.
    """
    dimse = event.assoc.dimse
    take = dimse.get_msg
    aside: list[tuple[Any, Any]] = []

    def get_msg(block: bool = False) -> Any:
        if not block:
            return aside.pop(0) if aside else take(block)
        while True:
            context_id, message = take(block)
            if message is None or message.MessageIDBeingRespondedTo is not None:
                return context_id, message
            aside.append((context_id, message))

    dimse.get_msg = get_msg  # type: ignore[method-assign]


def ask(
    requests: Sequence[Request],
    peer: PeerSettings,
    calling_ae: str,
    take_report: Callable[[Event], tuple[int, None]],
    *,
    timeouts: Timeouts,
    wait_s: float = 0.0,
) -> Iterator[Answer]:
    """Yield an answer to each request as it comes; then stay `wait_s` for reports.

    What breaks the association, or keeps it from being, is the answer to all that would follow.
    """
    answered: list[str] = []

    def note(event: Event) -> None:  # what has left us cannot be cut off by a release
        if type(event.message).__name__ == "N_EVENT_REPORT_RSP":
            answered.append("report")

    try:
        association = pynetdicom_scu.associate(
            peer,
            calling_ae,
            [context()],
            timeouts,
            handlers=[
                (evt.EVT_CONN_OPEN, set_requests_aside),
                (evt.EVT_N_EVENT_REPORT, take_report),
                (evt.EVT_DIMSE_SENT, note),
            ],
        )
    except AssociationFault as fault:
        yield from (Answer(request=each, fault=fault.fault) for each in requests)
        return
    accepted = 0
    try:
        for number, request in enumerate(requests, 1):
            answer = act(association, request, number)
            yield answer
            if isinstance(answer.fault, Fault):
                yield from (Answer(request=each, fault=answer.fault) for each in requests[number:])
                return
            accepted += answer.fault == SUCCESS
        linger(association, wait_s, lambda: len(answered) >= accepted)
    finally:
        pynetdicom_scu.part(association)


def act(association: Association, request: Request, message_id: int) -> Answer:
    """Return the peer's answer to one N-ACTION; without one the association is at its end."""
    started = time.monotonic()
    try:
        status, _ = association.send_n_action(
            information(request),
            REQUEST,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
            msg_id=message_id,
        )
    except (RuntimeError, ValueError):  # closed meanwhile, or no context for it
        association.abort()
        return Answer(request=request, fault=Fault.ABORTED)
    if "Status" not in status:
        late = time.monotonic() - started >= (association.dimse_timeout or 0)
        association.abort()
        return Answer(request=request, fault=Fault.TIMED_OUT if late else Fault.ABORTED)
    return Answer(request=request, fault=int(status.Status))


def linger(association: Association, wait_s: float, done: Callable[[], bool]) -> None:
    """Keep the association open until `done`, its end or `wait_s`."""
    end = time.monotonic() + wait_s
    while association.is_established and not done() and time.monotonic() < end:
        time.sleep(PAUSE_S)
