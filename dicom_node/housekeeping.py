"""What the service does again and again: one table, run by APScheduler."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import cast

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from dicom_node import assembly, heaps, pixel_files, retention, telemetry, withdrawal
from dicom_node.certificates import validities
from dicom_node.edges import failure_of
from dicom_node.errors import NodeError, UnknownJob
from dicom_node.network import audit_export
from dicom_node.settings import Settings
from dicom_node.states import JobState
from dicom_node.store import Store
from dicom_node.store.overview import is_result_place, result_places
from dicom_node.worker import attempts_dir
from dicom_node.worker.processes import expire_gone_workers
from dicom_node.worker.watch import utc_now

UNCLAIMED_DAYS = 30

log = telemetry.get_logger()


LEAST_STEP_S = 2.0  # less is the clock's own business
LONGEST_LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of PERIODIC."""

    name: str
    every_s: float
    run: Callable[[Store, Settings, datetime], None]


@dataclass(kw_only=True)
class Failures:
    """The periodic tasks whose last run failed; /healthz shows them."""

    _names: set[str] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def note(self, name: str, failed: bool) -> None:
        """Remember how the last run of a task ended."""
        with self._lock:
            (self._names.add if failed else self._names.discard)(name)

    def names(self) -> list[str]:
        """Return the tasks whose last run failed."""
        with self._lock:
            return sorted(self._names)


class ClockGuard:
    """Notices by the monotonic clock that the wall clock was set, and restarts what waits by it.

    Without it a clock that is set back holds up everything until it has caught up, APScheduler
    included; one that is set forward ends the wait for slices that are still to come.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Compare from now on; `wall` and `monotonic` tell seconds."""
        self._store, self._settings = store, settings
        self._wall, self._monotonic = wall, monotonic
        self._lock = Lock()
        self._ahead_s = wall() - monotonic()
        self.wake: Callable[[], None] = lambda: None

    def check(self) -> None:
        """Restart every wait if the wall clock was set since the last look.

        Raises
        ------
        StoreUnavailable
            If the database does not answer; the next look sees the same step.
        """
        with self._lock:
            before = self._monotonic()
            ahead_s, after = self._wall() - before, self._monotonic()
            step_s = ahead_s - self._ahead_s
            if after - before > LONGEST_LOOK_S:  # the processor was away between the two
                return
            if abs(step_s) >= LEAST_STEP_S:
                now = utc_now()
                lease = timedelta(seconds=self._settings.engine.lease_s)
                self._store.waits.restart(now, lease, not_after=now, step_s=step_s)
                self.wake()
            self._ahead_s = ahead_s


def assemble(store: Store, settings: Settings, now: datetime) -> None:
    """Decide about every series whose idle time has passed."""
    assembly.tick(store, settings, now)


def send_notes(store: Store, settings: Settings, now: datetime) -> None:
    """Queue the rejection notes that destinations are still to get."""
    withdrawal.send_notes(store, settings, now)


def expire(store: Store, settings: Settings, now: datetime) -> None:
    """Give the jobs of dead workers back to the queue."""
    most = settings.engine.max_attempts
    store.jobs.expire_leases(now, most)
    expire_gone_workers(store, now, most)


def check_ledger(store: Store, settings: Settings, now: datetime) -> None:
    """Export the ledger; an unbalanced one is an error that somebody must see."""
    ledger = store.ledger()
    telemetry.set_ledger(ledger.counts, balanced=ledger.balanced)
    if not ledger.balanced:
        log.error("ledger.unbalanced", counts=ledger.counts)


def export_audit(store: Store, settings: Settings, now: datetime) -> None:
    """Write down who was turned away, and hand the audit trail to the collector."""
    telemetry.refusals.hand_over(
        lambda refusal: store.audit.record("association.refused", refusal.at, **refusal.fields)
    )
    audit_export.export(store, settings, now)


def check_disk(store: Store, settings: Settings, now: datetime) -> None:
    """Export the free space; when images are refused for want of it, what may go goes at once."""
    room = pixel_files.room(settings)
    telemetry.set_room(room.free_bytes, room.incoming_bytes, room.results_bytes)
    if room.incoming_bytes < 0:
        needed = settings.files.min_free_bytes
        log.error("disk.low", free_bytes=room.free_bytes, needed_bytes=needed)
        retain(store, settings, now)


def retain(store: Store, settings: Settings, now: datetime) -> None:
    """Delete the files whose time has come, a part of them at a time."""
    if settings.retention.enabled and retention.is_clock_doubtful(store, now):
        log.warning("retention.waits", reason=retention.CLOCK_DOUBTFUL)
    gone = list(retention.purge(store, settings, now, most_s=retention.MOST_S))
    telemetry.retention_unfinished.set(len(store.removals.unfinished()))
    if gone:
        files, size = (sum(getattr(one.lot, name) for one in gone) for name in ("files", "bytes"))
        log.info("retention.run", count=files, bytes=size, jobs=[one.lot.job_id for one in gone])


def sweep_attempts(store: Store, settings: Settings, now: datetime) -> None:
    """Delete what dead attempts left: every folder that no row points into.

    A folder younger than a lease may belong to an attempt that is alive or about to be published.
    Before one goes, all rows are asked: nearly every folder is known to a quicker question. Both go
    by the names below `out`, since the state folder may be moved.
    """
    root = attempts_dir(settings)
    places = [folder.relative_to(root) for folder in root.glob("*/*")]
    jobs = {place.parts[0] for place in places}
    kept = result_places(store.database, [int(name) for name in jobs if name.isdecimal()])
    oldest = now.timestamp() - 2 * settings.engine.lease_s
    for place in places:
        folder = root / place
        if place in kept or newest_change(folder) >= oldest or is_running(store, place.parts[0]):
            continue
        if not is_result_place(store.database, place):
            shutil.rmtree(folder)
            log.info("attempt.swept", job=place.parts[0], attempt=folder.name)


def sweep_unclaimed(store: Store, settings: Settings, now: datetime) -> None:
    """Delete images that lay at a start without a row, and that nobody has asked for since then."""
    root = pixel_files.unclaimed_dir(settings.node.state_dir.resolve() / "in")
    oldest = now.timestamp() - UNCLAIMED_DAYS * 86400
    if not root.is_dir() or retention.is_clock_doubtful(store, now):
        return
    for folder in root.iterdir():
        if newest_change(folder) < oldest:
            shutil.rmtree(folder)
            log.info("files.unclaimed_deleted", folder=folder.name)


def newest_change(folder: Path) -> float:
    """Return when the folder or a file in it last changed, in seconds since the epoch."""
    times = [path.stat().st_mtime for path in (folder, *folder.iterdir())]
    return max(times, default=0.0)


def is_running(store: Store, name: str) -> bool:
    """Return whether the job that a folder is named after is running, and may write there.

    Times tell nothing when the clock was set forward, or when a job computes for long.
    """
    try:
        return store.jobs.get(int(name)).state is JobState.RUNNING
    except (ValueError, UnknownJob):
        return False


def check_certificates(store: Store, settings: Settings, now: datetime) -> None:
    """Export until when the certificates are valid, and name those that end soon."""
    for one in validities(settings):
        telemetry.certificate_ends.labels(use=one.use).set(one.until.timestamp())
        if one.ends_soon(now):
            log.warning("certificate.ends", name=one.use, reason=one.text(now))


def free_memory(store: Store, settings: Settings, now: datetime) -> None:
    """Give back what the images that came and went have left free."""
    heaps.give_back()


PERIODIC = (
    Task(name="assemble", every_s=1, run=assemble),
    Task(name="leases", every_s=5, run=expire),
    Task(name="withdrawals", every_s=2, run=send_notes),
    Task(name="audit", every_s=5, run=export_audit),
    Task(name="disk", every_s=30, run=check_disk),
    Task(name="ledger", every_s=60, run=check_ledger),
    Task(name="memory", every_s=60, run=free_memory),
    Task(name="attempts", every_s=300, run=sweep_attempts),
    Task(name="retention", every_s=300, run=retain),
    Task(name="unclaimed", every_s=3600, run=sweep_unclaimed),
    Task(name="certificates", every_s=3600, run=check_certificates),
)


def run_guarded(
    task: Task,
    store: Store,
    settings: Settings,
    failures: Failures,
    clock: ClockGuard | None = None,
) -> None:
    """Run one task once; a failure is logged and remembered, and the next run comes anyway."""

    def run() -> None:
        if clock is not None:
            clock.check()
        task.run(store, settings, utc_now())

    error = failure_of(run)
    failures.note(task.name, failed=error is not None)
    if isinstance(error, NodeError):  # says all in one line, which may come every second
        log.error("housekeeping.failed", name=task.name, reason=str(error))
    elif error:
        log.error("housekeeping.failed", name=task.name, exc_info=error)


class Rhythm(IntervalTrigger):
    """An interval that does not make up for time that the clock has leapt over.

    APScheduler counts every run that was missed before it joins them: a clock that is set forward
    by years would cost gigabytes and minutes, with its lock held.
    """

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """Return when to run after `previous`: from `now` on, where that is long ago."""
        if previous is not None and now - previous > 2 * self.interval:
            previous = now
        return cast("datetime | None", super().get_next_fire_time(previous, now))


def start(
    store: Store, settings: Settings, failures: Failures, clock: ClockGuard | None = None
) -> BackgroundScheduler:
    """Run every task of PERIODIC in its rhythm until ``shutdown()``."""
    clock = clock or ClockGuard(store, settings)
    scheduler = BackgroundScheduler(timezone="UTC")
    for task in PERIODIC:
        scheduler.add_job(
            run_guarded,
            Rhythm(seconds=task.every_s, timezone="UTC"),
            args=(task, store, settings, failures, clock),
            id=task.name,
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
            next_run_time=utc_now(),
        )
    scheduler.start()
    clock.wake = lambda: run_all_now(scheduler)
    return scheduler


def run_all_now(scheduler: BackgroundScheduler) -> None:
    """Let every task run now, and in its rhythm from now on: its time of day is a wrong one."""
    for job in scheduler.get_jobs():
        job.modify(next_run_time=utc_now())
