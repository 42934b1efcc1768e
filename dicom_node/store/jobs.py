"""Jobs: the queue with claims and leases, results, and what a person may do with a job."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import IllegalTransition, UnknownJob
from dicom_node.order import ANY_ORDER, Order, Place
from dicom_node.states import HeldBy, JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.gone import gone_originals, gone_results, refuse_gone_originals
from dicom_node.store.moves import REASONS, locked_job, move, new_generation, refuse_stranger
from dicom_node.store.queue import ClaimedJob, Lease, claim, explain_wait, has_queued, places
from dicom_node.store.results import (
    DerivedInstance,
    DerivedSeries,
    announce,
    attempt_over,
    forward,
    images_made,
    resend,
    result_columns,
    store_result,
    to_derived_instance,
)

REQUEUED = REASONS["requeue"].rstrip(".")
MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One job as stored."""

    id: int
    series_id: int
    series_uid: str
    generation: int
    state: JobState
    reason: str
    held_by: HeldBy | None
    rule: str | None
    priority: str
    destinations: tuple[str, ...]
    worker: str | None
    lease_until: datetime | None
    stage: str | None
    progress: float | None
    attempts: int
    not_before: datetime | None
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None
    incomplete_release: bool
    derived_series_uid: str | None
    recipe_digest: str | None
    weights_sha256: str | None
    figures: Mapping[str, Any]
    withdrawal: Mapping[str, Any] | None
    withdrawn_at: datetime | None
    unsendable: bool
    source: str
    windows: tuple[str, ...]
    queued_at: datetime | None
    claimed_at: datetime | None

    @property
    def is_note(self) -> bool:
        """Return whether this is a rejection note: no generation of its series."""
        return self.generation < 0


class JobStore:
    """The queue: claims, leases, results and decisions of people."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def get(self, job_id: int) -> JobRow:
        """Return the job, or raise UnknownJob."""
        rows = self._rows(schema.job.c.id == job_id)
        if not rows:
            raise UnknownJob(f"there is no job {job_id}")
        return rows[0]

    def of_series(self, series_uid: str) -> list[JobRow]:
        """Return every generation of the series, oldest first; none if it is unknown."""
        mine = (schema.series.c.series_uid == series_uid) & (schema.job.c.generation > 0)
        return self._rows(mine)

    def replaced_by(self, row: JobRow) -> tuple[str, ...]:
        """Return the images' series whose place the result of `row` takes: one of each volume."""
        older = [one for one in self.of_series(row.series_uid) if one.generation < row.generation]
        made = [one.id for one in older if one.published_at and one.derived_series_uid]
        with self._database.reading() as connection:
            return images_made(connection, made[-1]) if made else ()

    def notes(self, series_id: int) -> list[JobRow]:
        """Return the rejection notes about generations of the series, oldest first."""
        return self._rows((schema.job.c.series_id == series_id) & (schema.job.c.generation < 0))

    def derived(self, job_id: int) -> list[DerivedInstance]:
        """Return the derived instances of the job, published or held."""
        table = schema.derived_instance
        names = ("sop_uid", "sop_class", "path", "sha256", "bytes", "kind", "series_uid")
        columns = [*(table.c[name] for name in names), table.c.destinations]
        query = sa.select(*columns).where(table.c.job_id == job_id).order_by(table.c.id)
        with self._database.reading() as connection:
            return [to_derived_instance(row) for row in connection.execute(query)]

    def transition(
        self,
        job_id: int,
        event: str,
        now: datetime,
        *,
        reason: str | None = None,
        lessee: str | None = None,
        **columns: Any,
    ) -> JobState:
        """Return the state after `event`; with `lessee`, only while that worker holds the job.

        Raises
        ------
        UnknownJob, IllegalTransition, LeaseLost
        """
        with self._database.transaction() as work:
            if lessee is not None:
                refuse_stranger(locked_job(work, job_id), lessee)
            return move(work, job_id, event, now, reason=reason, **columns)

    def decide(
        self,
        job_id: int,
        event: str,
        now: datetime,
        received: int,
        *,
        gone: int = 0,
        reason: str,
        **columns: Any,
    ) -> bool:
        """Return False, changing nothing, unless the job still waits with `received` instances.

        A slice that arrives while the series is being examined makes the decision void, and so
        does one of the `gone` that retention had deleted. What is to be forwarded is queued for
        its destinations in the same transaction.
        """
        series, job = schema.series, schema.job
        count = sa.select(series.c.acknowledged).join(job, job.c.series_id == series.c.id)
        with self._database.transaction() as work:
            # As an update locks it: a row that points at the series can be made all the while.
            locked = count.where(job.c.id == job_id).with_for_update(of=series, key_share=True)
            arrived = work.execute(locked).scalar_one_or_none()
            row = locked_job(work, job_id)
            if arrived != received or row.state != JobState.RECEIVING:
                return False
            if gone_originals(work.connection, row.series_id) != gone:
                return False
            if event == "forward":
                columns |= {"published_at": now}
            move(work, job_id, event, now, reason=reason, **columns)
            if event == "forward":
                forward(work, job_id, columns["destinations"])
            return True

    def claim(
        self, worker: str, now: datetime, lease: timedelta, order: Order = ANY_ORDER
    ) -> ClaimedJob | None:
        """Return the job whose turn it is (see `order`), held by `worker` now; None if none.

        `worker` names one life of one process: a restarted worker takes another name.
        """
        return claim(self._database, Lease(worker=worker, now=now, until=now + lease), order)

    def queue(self, now: datetime, order: Order = ANY_ORDER) -> list[Place]:
        """Return where every queued job stands: those to be begun in their order come first."""
        with self._database.reading() as connection:
            return places(connection, order, now)

    def heartbeat(
        self,
        job_id: int,
        worker: str,
        now: datetime,
        lease: timedelta,
        *,
        stage: str | None = None,
        progress: float | None = None,
    ) -> bool:
        """Return False when the job is no longer `worker`'s; else extend its lease.

        `stage` and `progress` (0 to 1) tell people where the worker is.
        """
        job = schema.job
        mine = (job.c.id == job_id) & (job.c.worker == worker) & (job.c.state == JobState.RUNNING)
        values = {"lease_until": now + lease, "stage": stage, "progress": progress}
        query = sa.update(job).where(mine).values(**values)
        with self._database.transaction() as work:
            return work.execute(query).rowcount == 1

    def expire_leases(self, now: datetime, max_attempts: int = MAX_ATTEMPTS) -> list[int]:
        """Return the jobs whose worker fell silent: queued again, or DEAD after all attempts."""
        job = schema.job
        silent = (job.c.state == JobState.RUNNING) & (job.c.lease_until < now)
        query = sa.select(job.c.id, job.c.worker, job.c.attempts).where(silent).with_for_update()
        with self._database.transaction() as work:
            rows = work.execute(query.order_by(job.c.id)).all()
            for row in rows:
                lost = f"Worker {row.worker} stopped answering in attempt {row.attempts}"
                attempt_over(work, row, lost, now, max_attempts, event="expire")
            return [row.id for row in rows]

    def fail_attempt(
        self,
        job_id: int,
        worker: str,
        reason: str,
        now: datetime,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        not_before: datetime | None = None,
    ) -> JobState:
        """Return QUEUED (not before `not_before`), or DEAD when this was the last attempt."""
        with self._database.transaction() as work:
            row = locked_job(work, job_id)
            refuse_stranger(row, worker)
            reason = reason.rstrip(".")
            return attempt_over(
                work, row, reason, now, max_attempts, event="retry", not_before=not_before
            )

    def publish(
        self,
        job_id: int,
        worker: str,
        derived: DerivedSeries,
        destinations: Sequence[str],
        now: datetime,
    ) -> None:
        """Publish the result in one transaction: DERIVED, its instances, one delivery per peer.

        Raises
        ------
        LeaseLost
            If the job is no longer `worker`'s.
        """
        with self._database.transaction() as work:
            refuse_stranger(locked_job(work, job_id), worker)
            store_result(work, job_id, derived)
            announce(work, job_id, destinations, now, result_columns(derived))

    def hold_result(
        self,
        job_id: int,
        worker: str,
        derived: DerivedSeries,
        held_by: HeldBy,
        reason: str,
        now: datetime,
    ) -> None:
        """Keep a result that must not be sent yet, and hold the job with the reason."""
        with self._database.transaction() as work:
            refuse_stranger(locked_job(work, job_id), worker)
            store_result(work, job_id, derived)
            columns = result_columns(derived) | {"held_by": held_by.value}
            move(work, job_id, "hold", now, reason=reason, **columns)

    def publish_held(self, job_id: int, destinations: Sequence[str], now: datetime) -> None:
        """Publish a result that quality held and a person released; the gate has passed it.

        Raises
        ------
        IllegalTransition
            If the job is not held by quality, or has no result.
        """
        with self._database.transaction() as work:
            row = locked_job(work, job_id)
            if row.held_by != HeldBy.QUALITY or row.derived_series_uid is None:
                raise IllegalTransition(f"job {job_id} has no result that quality holds")
            announce(work, job_id, destinations, now, {})

    def release(self, job_id: int, now: datetime) -> JobState:
        """Return QUEUED for a series held for completeness or by a rule.

        Raises
        ------
        IllegalTransition
            If a result is held: `publish_held` sends what quality held, nothing what the gate held.
        FilesGone
            If images of it were deleted.
        """
        with self._database.transaction() as work:
            row = locked_job(work, job_id)
            if row.held_by in (HeldBy.QUALITY, HeldBy.GATE):
                raise IllegalTransition(
                    f"job {job_id} is held by {row.held_by}: its result cannot be queued again"
                )
            refuse_gone_originals(work, row)
            incomplete = row.held_by == HeldBy.COMPLETENESS
            return move(work, job_id, "release", now, incomplete_release=incomplete)

    def requeue(
        self,
        job_id: int,
        now: datetime,
        destinations: Sequence[str] = (),
        wanted: Mapping[str, Sequence[str]] | None = None,
    ) -> int:
        """Return the job that is tried again: a new generation once a result was published.

        A published result whose delivery failed is only sent again, as long as it is here, without
        the companions that a destination does not want any more (`wanted`: the kinds it gets now).
        What was forwarded is forwarded again.

        Raises
        ------
        IllegalTransition
            If there is nothing to try again.
        FilesGone
            If what would be processed was deleted by retention.
        """
        with self._database.transaction() as work:
            row = locked_job(work, job_id)
            if row.state == JobState.DEAD and row.published_at and not gone_results(work, job_id):
                resend(work, job_id, now, wanted or {})
                return job_id
            if row.generation < 0:
                raise IllegalTransition(
                    f"job {job_id} is a rejection note: only a failed one is sent again"
                )
            refuse_gone_originals(work, row)
            columns: dict[str, Any] = {"attempts": 0, "not_before": None}
            columns |= {"destinations": row.destinations or list(destinations)}
            if row.published_at is None:
                columns |= {"withdrawal": None, "withdrawn_at": None, "weights_sha256": None}
                move(work, job_id, "requeue", now, **columns)
                return job_id
            return reprocess(work, row, now, columns)

    def has_queued(self) -> bool:
        """Return whether any job is queued, whether or not it may be begun now."""
        with self._database.reading() as connection:
            return has_queued(connection)

    def explain_wait(self, why: str) -> None:
        """Let every queued job say, behind its own reason, why no worker takes it; "": no more."""
        explain_wait(self._database, why)

    def cancel(self, job_id: int, now: datetime, reason: str | None = None) -> JobState:
        """Return CANCELLED; deliveries that have not ended are stopped."""
        return self.transition(job_id, "cancel", now, reason=reason)

    def _rows(self, condition: sa.ColumnElement[bool]) -> list[JobRow]:
        job, series = schema.job, schema.series
        query = sa.select(job, series.c.series_uid).join(series, series.c.id == job.c.series_id)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(condition).order_by(job.c.id))
            return [to_row(row) for row in rows]


def reprocess(work: Work, row: sa.Row[Any], now: datetime, columns: Mapping[str, Any]) -> int:
    """Return the new generation that does again what a job has done: enhance, or forward."""
    old = row.derived_series_uid
    what = f"; it takes the place of derived series {old}" if old else ""
    reason = "Superseded: a person asked for the series to be processed again."
    again = new_generation(work, row, now, reason=reason)
    kept = {name: row._mapping[name] for name in ("rule", "priority", "windows", "source")}
    kept |= columns
    if old:
        move(work, again, "enqueue", now, reason=f"{REQUEUED}{what}.", **kept)
        return again
    reason = "Forwarded again: a person asked for it."
    move(
        work,
        again,
        "forward",
        now,
        reason=reason,
        **kept | {"published_at": now, "queued_at": None},
    )
    forward(work, again, kept["destinations"])
    return again


def to_row(row: sa.Row[Any]) -> JobRow:
    """Return a database row as a value."""
    values = dict(row._mapping)
    values["state"] = JobState(row.state)
    values["held_by"] = HeldBy(row.held_by) if row.held_by else None
    values["destinations"] = tuple(row.destinations)
    values["windows"] = tuple(row.windows)
    return JobRow(**values)
