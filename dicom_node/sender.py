"""Deliveries: what is due goes out, each instance with its own status on record.

Statuses are written down while the next instances are on their way, many in one commit, and whether
they are still wanted is asked some times a second: either may take longer than an image.

Where a destination is configured with storage commitment, it is then asked for its word; see
`network.commitment` for the answers.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from dicom_node import telemetry
from dicom_node.edges import failure_of
from dicom_node.errors import NodeError, UnknownPeer
from dicom_node.loops import Loop
from dicom_node.network import scu, stow
from dicom_node.network.commitment import (
    NO_SUCH_INSTANCE,
    Answer,
    Reports,
    Request,
    ask,
    new_uid,
)
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.parcels import Item, Outcome, Parcel
from dicom_node.network.presence import instances_at
from dicom_node.network.tls import credentials
from dicom_node.retry import Fault, Verdict, backoff_s, classify, describe
from dicom_node.sending import SWITCH, may_look, may_send, warned
from dicom_node.settings import PeerSettings, Settings
from dicom_node.store import DeliveryTask, Outstanding, Report, Store
from dicom_node.store.deliveries import Said
from dicom_node.together import Behind, Recent

FAILURES = (Verdict.TRANSIENT, Verdict.PERMANENT)
LOOKS = 5  # at what a DICOMweb server shows
ALREADY_THERE = 0x0111  # status: duplicate SOP instance
MOST_AHEAD = 64  # instances of an association that were answered and are not on record yet
RECORD_S = 0.05  # statuses are gathered for so long
WANTED_S = 0.05  # until the database is asked again whether an instance may go
TOGETHER_S = 10.0  # for which deliveries begin over the same associations

log = telemetry.get_logger()


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


def meant(task: DeliveryTask, outcome: Outcome) -> Outcome:
    """Return the outcome; of a corrected original the peer has the older version."""
    if outcome.fault == ALREADY_THERE:
        corrected = {each.derived_instance_id for each in task.instances if each.corrected}
        if outcome.item.key in corrected:
            return replace(outcome, fault=Fault.OLDER_VERSION)
    return outcome


class Sender:
    """Sends due deliveries; every destination has a thread of its own, so none waits for another.

    A crash loses nothing: what has no status on record, a few instances of each association, is
    sent again, the same bytes under the same UIDs.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.Random()
        self._tls = credentials(settings.tls)
        self._reports = Reports(store, settings, clock, self._rng)
        self._stop = threading.Event()
        self._busy: dict[str, threading.Thread] = {}
        self._lanes = scu.Lanes(settings.sending.max_associations)
        self._failing: set[str] = set()  # destinations whose thread has not come to its end
        self._loop = Loop("sender", self._begin, settings.sending.interval_s)

    def start(self) -> None:
        """Send in the background whatever comes due."""
        self._stop.clear()
        self._loop.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Finish the instances under way and end."""
        self._stop.set()
        self._loop.stop(timeout_s)
        for thread in self._busy.values():
            thread.join(timeout_s)

    def failing(self) -> list[str]:
        """Return what has failed lately, by name; /healthz shows it."""
        died = sorted(set(tuple(self._failing)) - self._busy_ones())
        return ["sender"] * self._loop.failing + [f"sender-{name}" for name in died]

    def run_once(self, now: datetime) -> int:
        """Return how many deliveries were tried: all that are due at `now`, to the end."""
        tasks = self._due(now)
        for thread in self._dispatch(tasks, self._outstanding(now)):
            thread.join()
        return len(tasks)

    def _begin(self) -> None:
        now, busy = self._clock(), self._busy_ones()
        self._dispatch(self._due(now, busy), self._outstanding(now, busy))

    def _busy_ones(self) -> set[str]:
        """Return who is being served; asked before what is due, which may else be over by then."""
        return {name for name, thread in tuple(self._busy.items()) if thread.is_alive()}

    def _due(self, now: datetime, busy: Collection[str] = ()) -> list[DeliveryTask]:
        return self._store.deliveries.due(now, busy) if self._may_send() else []

    def _outstanding(self, now: datetime, busy: Collection[str] = ()) -> list[Outstanding]:
        return self._store.commitments.due(now, busy) if self._may_send() else []

    def _may_send(self) -> bool:
        return not self._stop.is_set() and may_send(self._settings, self._store)

    def _dispatch(
        self, tasks: Sequence[DeliveryTask], outstanding: Sequence[Outstanding]
    ) -> list[threading.Thread]:
        """Return the threads that now work, one for each destination that was idle."""
        started = []
        names = {each.destination for each in tasks} | {each.destination for each in outstanding}
        for name in sorted(names):
            running = self._busy.get(name)
            if running is not None and running.is_alive():
                continue
            group = [task for task in tasks if task.destination == name]
            thread = threading.Thread(
                target=self._serve, args=(name, group), name=f"sender-{name}", daemon=True
            )
            self._busy[name] = thread
            thread.start()
            started.append(thread)
        return started

    def _serve(self, destination: str, tasks: Sequence[DeliveryTask]) -> None:
        """Send what is due to one destination, then ask it for what it owes."""
        self._failing.add(destination)
        try:
            well = self._send_all(destination, deque(tasks))
            self._ask(destination)
        except NodeError as error:  # the rows are as they were, so everything stays due
            log.error("delivery.failed", destination=destination, reason=str(error))
            well = True
        if well:
            self._failing.discard(destination)

    def _send_all(self, destination: str, queue: deque[DeliveryTask]) -> bool:
        """Send the deliveries of a queue; return False where something broke that nobody foresaw.

        Stopped or switched off: what has not begun is not touched.
        """
        well = True
        while queue and self._may_send():
            try:
                peer = self._settings.peer(destination)
            except UnknownPeer as error:
                self._finish(queue.popleft(), Verdict.PERMANENT, f"{error}.")
                continue
            some = self._send_one_by_web if peer.is_web else self._send_some
            well = some(queue, peer) and well
        return well

    def _foreseen(self, task: DeliveryTask, action: Callable[[], object]) -> bool:
        """Do something for a delivery; return False where something broke that nobody foresaw."""
        error = failure_of(action)
        if isinstance(error, NodeError):
            raise error
        if error:  # the others behind it are sent all the same
            fields = {"delivery": task.delivery_id, "job": task.job_id}
            log.error("delivery.crashed", **fields, exc_info=error)
            self._try_again(task, f"Internal failure ({type(error).__name__}), see the log.")
        return error is None

    def _send_some(self, queue: deque[DeliveryTask], peer: PeerSettings) -> bool:
        """Send the first deliveries of a queue over the same associations, as `_send_all` does."""
        terms = scu.Terms(
            peer=peer,
            calling_ae=self._settings.node.ae_title,
            timeouts=self._limits(),
            # Who can be queried is queried before anything goes out a second time.
            resumes=0 if peer.query else scu.RESUMES,
        )
        tasks: dict[Parcel, DeliveryTask] = {}
        well = True

        def begin(task: DeliveryTask) -> None:
            task = self._begun(task, peer)
            tasks[self._parcel(task, peer, records)] = task

        def parcels() -> Iterator[Parcel]:
            nonlocal well
            for task in self._first_of(queue, peer):
                if self._foreseen(task, partial(begin, task)):
                    yield next(reversed(tasks))  # which was just begun
                else:
                    well = False

        with (
            self._lanes.open(peer.associations) as associations,
            Behind(self._store.deliveries.record_all, MOST_AHEAD, RECORD_S) as records,
            closing(scu.send_parcels(parcels(), terms, associations)) as sent,
        ):
            for parcel in sent:
                task = tasks.pop(parcel)
                end = partial(self._end, task, peer, parcel, records)
                well &= self._foreseen(task, end)
        return well

    def _first_of(self, queue: deque[DeliveryTask], peer: PeerSettings) -> Iterator[DeliveryTask]:
        """Yield deliveries off the queue that may follow each other over the same associations.

        Not for ever: a lane that the peer refused once may be had again. And none that the peer is
        queried for, which takes as long as it takes, behind another one.
        """
        until = time.monotonic() + TOGETHER_S
        while queue and self._may_send():
            yield queue.popleft()
            if queue and (may_look(queue[0], peer) or time.monotonic() > until):
                break

    def _begun(self, task: DeliveryTask, peer: PeerSettings) -> DeliveryTask:
        """Return what is left of a delivery, which is on record as under way."""
        task = self._store.deliveries.with_unsent(task)
        task = self._without_present(task, peer) if may_look(task, peer) else task
        self._store.deliveries.begin(task)
        return task

    def _parcel(self, task: DeliveryTask, peer: PeerSettings, records: Behind[Said]) -> Parcel:
        """Return a delivery as what is sent; `records` puts down what becomes of it."""
        items = [
            Item(
                key=each.derived_instance_id,
                sop_uid=each.sop_uid,
                path=each.path,
                sha256=each.sha256,
            )
            for each in task.instances
        ]

        def note(outcome: Outcome) -> None:
            outcome = meant(task, outcome)
            records.do((task.delivery_id, outcome.item.key, outcome.fault, self._clock()))
            self._log_outcome(task, peer, outcome)

        proceed = Recent(lambda: self._may_go_on(task), WANTED_S)
        return Parcel(items=items, note=note, proceed=proceed)

    def _end(
        self, task: DeliveryTask, peer: PeerSettings, parcel: Parcel, records: Behind[Said]
    ) -> None:
        """Record how a delivery went, once all its outcomes are on record."""
        if parcel.error:
            raise parcel.error
        records.settle()
        outcomes = [meant(task, outcome) for outcome in parcel.outcomes]
        failed = [outcome for outcome in outcomes if outcome.verdict in FAILURES]
        if failed:
            self._finish_failed(task, peer, failed)
        elif len(outcomes) == len(task.instances):
            warnings = self._store.deliveries.warnings(task.delivery_id)
            verdict = Verdict.SENT_WITH_WARNING if warnings else Verdict.SENT
            reason = f"{peer.name} has stored every instance{warned(warnings)}."
            self._finish(task, verdict, reason, commitment=peer.commitment)
        else:  # stopped, switched off or superseded: no attempt, the rest stays due
            log.info("delivery.paused", delivery=task.delivery_id, destination=peer.name)

    def _send_one_by_web(self, queue: deque[DeliveryTask], peer: PeerSettings) -> bool:
        """Send the first delivery of a queue to a DICOMweb server, as `_send_all` does."""
        task = queue.popleft()
        return self._foreseen(task, lambda: self._store_by_web(task, peer))

    def _store_by_web(self, task: DeliveryTask, peer: PeerSettings) -> None:
        task = self._begun(task, peer)
        with Behind(self._store.deliveries.record_all, MOST_AHEAD, RECORD_S) as records:
            parcel = self._parcel(task, peer, records)
            for outcome in stow.send(
                parcel.items,
                peer,
                timeouts=self._limits(),
                proceed=parcel.proceed,
                there=lambda: self._there(task, peer),
            ):
                parcel.note(outcome)
                parcel.outcomes.append(outcome)
            self._end(task, peer, parcel, records)

    def _log_outcome(self, task: DeliveryTask, peer: PeerSettings, outcome: Outcome) -> None:
        if outcome.verdict is not Verdict.SENT:
            log.warning(
                "delivery.instance",
                delivery=task.delivery_id,
                destination=peer.name,
                sop=outcome.item.sop_uid,
                outcome=outcome.verdict.value,
                reason=describe(outcome.fault),
            )

    def _there(self, sent: DeliveryTask | Outstanding, peer: PeerSettings) -> set[str]:
        """Return what the peer has of a delivery's series; raise AssociationFault."""
        title = self._settings.node.ae_title
        return instances_at(peer, title, sent.study_uid, sent.by_series, self._limits())

    def _without_present(self, task: DeliveryTask, peer: PeerSettings) -> DeliveryTask:
        """Return what is still to be sent: a lost answer or a crash may have left more there.

        That a peer has an original which was corrected since says nothing: it may be the older one.
        """
        try:
            there = self._there(task, peer)
        except AssociationFault as fault:  # it can only spare a resend
            log.warning("delivery.not_queried", destination=peer.name, reason=str(fault))
            return task
        there -= {each.sop_uid for each in task.instances if each.corrected}
        present = [each.sop_uid for each in task.instances if each.sop_uid in there]
        self._store.deliveries.record_present(task.delivery_id, present, self._clock())
        missing = tuple(each for each in task.instances if each.sop_uid not in there)
        return replace(task, instances=missing)

    def _limits(self) -> Timeouts:
        return Timeouts(
            association_s=self._settings.node.acse_timeout_s,
            reply_s=self._settings.sending.timeout_s,
            tls=self._tls,
        )

    def _ask(self, destination: str) -> None:
        """Ask the destination for the storage commitment that it owes, all of it at once."""
        owed = [
            each for each in self._outstanding(self._clock()) if each.destination == destination
        ]
        try:
            peer = self._settings.peer(destination)
        except UnknownPeer:
            peer = None
        if peer is None or not peer.commitment:  # the configuration has changed
            for each in owed:
                self._store.commitments.waive(each.delivery_id, self._clock())
            return
        asked = [pair for pair in map(self._request, owed) if pair is not None]
        if peer.is_web:
            for request, each in asked:
                self._look(request, each, peer)
            return
        if not asked:
            return
        for answer in ask(
            [request for request, _ in asked],
            peer,
            self._settings.node.ae_title,
            self._reports.on_event,
            timeouts=self._limits(),
            wait_s=self._settings.commitment.wait_s,
        ):
            self._note_answer(answer, dict(asked)[answer.request], peer)

    def _look(self, request: Request, each: Outstanding, peer: PeerSettings) -> None:
        """Look whether a DICOMweb server has what it stored: it knows no storage commitment.

        Some show an instance only a while after they have taken it: several looks make a failure,
        with the back-off of every other attempt between them.
        """
        try:
            there = self._there(each, peer)
        except AssociationFault as fault:
            self._note_answer(Answer(request=request, fault=fault.fault), each, peer)
            return
        uids = {one.sop_uid for one in request.instances}
        lost = uids - there if each.requests % LOOKS == LOOKS - 1 else set()
        self._reports.take(
            Report(
                transaction_uid=request.transaction_uid,
                committed=frozenset(uids & there),
                failed=dict.fromkeys(lost, NO_SUCH_INSTANCE),
            ),
            each.requests + 1,
        )

    def _request(self, each: Outstanding) -> tuple[Request, Outstanding] | None:
        """Return the request, on record before it leaves; None when it is needless by now."""
        request = Request(transaction_uid=new_uid(), instances=each.instances)
        now = self._clock()
        wait_s = self._settings.commitment.timeout_s + self._backoff_s(each.requests + 1)
        deadline = now + timedelta(seconds=wait_s)
        known = self._store.commitments.ask(each, request.transaction_uid, now, deadline)
        return (request, each) if known else None

    def _note_answer(self, answer: Answer, each: Outstanding, peer: PeerSettings) -> None:
        """Record how the destination took the request; its report comes on its own."""
        meaning, refusals = classify(answer.fault), each.refusals + 1
        if meaning.verdict in (Verdict.SENT, Verdict.SENT_WITH_WARNING):
            return
        now = self._clock()
        what = "it was asked what it has" if peer.is_web else "storage commitment was asked for"
        reason = f"{peer.address}: {what}: {describe(answer.fault)}."
        again: datetime | None = now + timedelta(seconds=self._backoff_s(each.requests + 1))
        if meaning.verdict is Verdict.PERMANENT:
            again = None
        elif refusals >= self._settings.sending.max_attempts:
            what = f"{refusals} requests in a row, none of which it accepted"
            again, reason = None, f"{reason} Given up after {what}."
        uid = answer.request.transaction_uid
        self._store.commitments.refuse(uid, reason, now, again)

    def _may_go_on(self, task: DeliveryTask) -> bool:
        """Return False once somebody has stopped all sending, or taken this result back."""
        if self._stop.is_set():
            return False
        wanted, switch = self._store.deliveries.wanted(task.delivery_id, SWITCH)
        return wanted and bool(self._settings.sending.enabled if switch is None else switch)

    def _finish_failed(
        self, task: DeliveryTask, peer: PeerSettings, failed: Sequence[Outcome]
    ) -> None:
        final = [outcome for outcome in failed if outcome.verdict is Verdict.PERMANENT]
        reason = scu.sentence(peer, (final or failed)[0], len(failed))
        if final:
            self._finish(task, Verdict.PERMANENT, reason)
        else:
            self._try_again(task, reason)

    def _try_again(self, task: DeliveryTask, reason: str) -> None:
        attempts, limit = task.attempts + 1, self._settings.sending.max_attempts
        if attempts >= limit:
            self._finish(task, Verdict.PERMANENT, f"{reason} Given up after {attempts} attempts.")
        else:
            self._finish(task, Verdict.TRANSIENT, reason, self._backoff_s(attempts))

    def _backoff_s(self, attempts: int) -> float:
        sending = self._settings.sending
        return backoff_s(
            attempts, self._rng, base_s=sending.backoff_first_s, cap_s=sending.backoff_last_s
        )

    def _finish(
        self,
        task: DeliveryTask,
        outcome: Verdict,
        reason: str,
        delay_s: float = 0.0,
        *,
        commitment: bool = False,
    ) -> None:
        now = self._clock()
        self._store.deliveries.finish(
            task.delivery_id,
            outcome,
            reason,
            now,
            next_try_at=now + timedelta(seconds=delay_s),
            commitment=commitment,
        )
        telemetry.deliveries_finished.labels(destination=task.destination, outcome=outcome).inc()
