"""Deliveries: what is due goes out, each instance with its own status on record at once."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from dicom_node import telemetry
from dicom_node.errors import NodeError, UnknownPeer
from dicom_node.network import scu
from dicom_node.retry import Fault, Verdict, backoff_s, describe
from dicom_node.settings import PeerSettings, Settings
from dicom_node.states import JobState
from dicom_node.store import DeliveryTask, Store

FAILURES = (Verdict.TRANSIENT, Verdict.PERMANENT)
SWITCH = "sending"  # `dicom-node send on|off`: one switch stops everything

log = telemetry.get_logger()


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


class Sender:
    """Sends due deliveries; every destination has a thread of its own, so none waits for another.

    A crash loses nothing: what has no status on record is sent again, the same bytes under the
    same UIDs.
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
        self._stop = threading.Event()
        self._busy: dict[str, threading.Thread] = {}
        self._loop: threading.Thread | None = None

    def start(self) -> None:
        """Send in the background whatever comes due."""
        self._stop.clear()
        self._loop = threading.Thread(target=self._run, name="sender", daemon=True)
        self._loop.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Finish the instances under way and end."""
        self._stop.set()
        for thread in (self._loop, *self._busy.values()):
            if thread is not None:
                thread.join(timeout_s)

    def run_once(self, now: datetime) -> int:
        """Return how many deliveries were tried: all that are due at `now`, to the end."""
        tasks = self._due(now)
        for thread in self._dispatch(tasks):
            thread.join()
        return len(tasks)

    def _run(self) -> None:
        while not self._stop.wait(self._settings.sending.interval_s):
            try:
                self._dispatch(self._due(self._clock()))
            except NodeError as error:  # the database is away: the next round asks again
                log.error("sender.failed", reason=str(error))

    def _due(self, now: datetime) -> list[DeliveryTask]:
        return self._store.deliveries.due(now) if self._may_send() else []

    def _may_send(self) -> bool:
        sending = self._settings.sending
        if self._stop.is_set() or sending.shadow:
            return False
        return bool(self._store.switches.get(SWITCH, sending.enabled))

    def _dispatch(self, tasks: Sequence[DeliveryTask]) -> list[threading.Thread]:
        """Return the threads that now work, one for each destination that was idle."""
        started = []
        by_destination = sorted(tasks, key=lambda task: task.destination)
        for name, group in groupby(by_destination, key=lambda task: task.destination):
            running = self._busy.get(name)
            if running is not None and running.is_alive():
                continue
            thread = threading.Thread(
                target=self._deliver_all, args=(list(group),), name=f"sender-{name}", daemon=True
            )
            self._busy[name] = thread
            thread.start()
            started.append(thread)
        return started

    def _deliver_all(self, tasks: Sequence[DeliveryTask]) -> None:
        for task in tasks:
            try:
                self._deliver(task)
            except NodeError as error:  # the row is as it was, so the delivery stays due
                log.error("delivery.failed", delivery=task.delivery_id, reason=str(error))
                return

    def _deliver(self, task: DeliveryTask) -> None:
        """Send one delivery and record how it went."""
        try:
            peer = self._settings.peer(task.destination)
        except UnknownPeer as error:
            self._finish(task, Verdict.PERMANENT, f"{error}.")
            return
        outcomes = list(self._send(task, peer))
        failed = [outcome for outcome in outcomes if outcome.verdict in FAILURES]
        if failed:
            self._finish_failed(task, peer, failed)
        elif len(outcomes) == len(task.instances):
            reason = f"{peer.name} has stored every instance."
            self._finish(task, Verdict.SENT, reason)
        else:  # stopped, switched off or superseded: no attempt, the rest stays due
            log.info("delivery.paused", delivery=task.delivery_id, destination=peer.name)

    def _send(self, task: DeliveryTask, peer: PeerSettings) -> Iterator[scu.Outcome]:
        """Yield the outcomes, after each status is on record."""
        items = [
            scu.Item(key=each.derived_instance_id, sop_uid=each.sop_uid, path=each.path)
            for each in task.instances
        ]
        limits = scu.Timeouts(
            association_s=self._settings.node.acse_timeout_s,
            reply_s=self._settings.sending.timeout_s,
        )
        for outcome in scu.send(
            items,
            peer,
            self._settings.node.ae_title,
            timeouts=limits,
            proceed=lambda: self._may_send() and self._is_wanted(task),
        ):
            if not isinstance(outcome.fault, Fault):
                self._store.deliveries.record_status(
                    task.delivery_id, outcome.item.key, outcome.fault, self._clock()
                )
            if outcome.verdict is not Verdict.SENT:
                log.warning(
                    "delivery.instance",
                    delivery=task.delivery_id,
                    destination=peer.name,
                    sop=outcome.item.sop_uid,
                    outcome=outcome.verdict.value,
                    reason=describe(outcome.fault),
                )
            yield outcome

    def _is_wanted(self, task: DeliveryTask) -> bool:
        """Return False once a late slice or a person has taken the result back."""
        return self._store.jobs.get(task.job_id).state == JobState.DERIVED

    def _finish_failed(
        self, task: DeliveryTask, peer: PeerSettings, failed: Sequence[scu.Outcome]
    ) -> None:
        final = [outcome for outcome in failed if outcome.verdict is Verdict.PERMANENT]
        reason = _sentence(peer, (final or failed)[0], len(failed))
        attempts, limit = task.attempts + 1, self._settings.sending.max_attempts
        if final:
            self._finish(task, Verdict.PERMANENT, reason)
        elif attempts >= limit:
            self._finish(task, Verdict.PERMANENT, f"{reason} Given up after {attempts} attempts.")
        else:
            sending = self._settings.sending
            delay_s = backoff_s(
                attempts,
                self._rng,
                base_s=sending.backoff_first_s,
                cap_s=sending.backoff_last_s,
            )
            self._finish(task, Verdict.TRANSIENT, reason, delay_s)

    def _finish(
        self, task: DeliveryTask, outcome: Verdict, reason: str, delay_s: float = 0.0
    ) -> None:
        now = self._clock()
        self._store.deliveries.finish(
            task.delivery_id, outcome, reason, now, next_try_at=now + timedelta(seconds=delay_s)
        )
        telemetry.deliveries_finished.labels(destination=task.destination, outcome=outcome).inc()


def _sentence(peer: PeerSettings, outcome: scu.Outcome, failures: int) -> str:
    """Return what went wrong, for an administrator; a peer's own words may name a patient."""
    fault = outcome.fault
    comment = f" ({outcome.comment})" if isinstance(fault, Fault) and outcome.comment else ""
    more = f", and {failures - 1} more instances failed" if failures > 1 else ""
    return (
        f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port}): {describe(fault)}{comment} "
        f"for SOP instance {outcome.item.sop_uid}{more}."
    )
