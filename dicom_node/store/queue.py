"""The queue on record: who waits, what is under way, and the claim of the next job."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from dicom_node.order import URGENT, Load, Order, Place, Waiting, line_up
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.moves import REASONS, series_uid_of

QUOTA_PERIOD = timedelta(hours=1)
WAITS = " No worker takes it: "  # stands between a job's own reason and that of all


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job that this worker may process until `lease_until`."""

    job_id: int
    series_id: int
    series_uid: str
    generation: int
    attempt: int
    priority: str
    destinations: tuple[str, ...]
    incomplete_release: bool
    lease_until: datetime


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who asks for a job, and until when it would hold one."""

    worker: str
    now: datetime
    until: datetime


def claim(database: Database, lease: Lease, order: Order) -> ClaimedJob | None:
    """Return the job whose turn it is, held by the worker from now on; None if there is none.

    Nobody who finds nothing to do holds up those who write.
    """
    with database.reading() as connection:
        if not first_ones(places(connection, order, lease.now)):
            return None
    with database.transaction() as work:
        for place in first_ones(places(work.connection, order, lease.now)):
            row = begin(work, place, lease)
            if row is not None:
                return note_claim(work, row, lease)
    return None


def places(connection: sa.Connection, order: Order, now: datetime) -> list[Place]:
    """Return every queued job with its place, as `order.line_up` says."""
    return line_up(waiting(connection), order, load(connection, now), now)


def first_ones(found: Sequence[Place]) -> list[Place]:
    """Return the places of those that may be begun."""
    return [place for place in found if place.position is not None]


def waiting(connection: sa.Connection) -> list[Waiting]:
    """Return every queued job."""
    job = schema.job
    names = ("id", "priority", "queued_at", "updated_at", "not_before", "windows", "source")
    query = sa.select(*(job.c[name] for name in names)).where(job.c.state == JobState.QUEUED)
    return [
        Waiting(
            job_id=row.id,
            priority=row.priority,
            queued_at=row.queued_at or row.updated_at,
            not_before=row.not_before,
            windows=tuple(row.windows),
            source=row.source,
        )
        for row in connection.execute(query)
    ]


def load(connection: sa.Connection, now: datetime) -> Load:
    """Return what workers hold, what was begun within the hour, and how the last one was chosen."""
    job = schema.job
    lately = job.c.claimed_at.between(now - QUOTA_PERIOD, now)
    last = sa.select(job.c.priority).where(job.c.claimed_at.is_not(None))
    last = last.order_by(job.c.claimed_at.desc(), job.c.id.desc()).limit(1)
    return Load(
        running=by_source(connection, job.c.state == JobState.RUNNING),
        begun=by_source(connection, lately),
        urgent_last=connection.scalar(last) == URGENT,
    )


def by_source(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Counter[str]:
    """Return how many jobs meet the condition, by who sent their series."""
    job = schema.job
    query = sa.select(job.c.source, sa.func.count()).where(condition).group_by(job.c.source)
    return Counter({row[0]: row[1] for row in connection.execute(query)})


def begin(work: Work, place: Place, lease: Lease) -> sa.Row[Any] | None:
    """Return the job's row, RUNNING now; None when another worker was faster."""
    job = schema.job
    free = sa.select(job.c.id).where(job.c.id == place.job_id, job.c.state == JobState.QUEUED)
    query = (
        sa.update(job)
        .where(job.c.id == free.with_for_update(skip_locked=True).scalar_subquery())
        .values(
            state=JobState.RUNNING.value,
            reason=REASONS["claim"],
            worker=lease.worker,
            lease_until=lease.until,
            attempts=job.c.attempts + 1,
            updated_at=lease.now,
            claimed_at=lease.now,
        )
        .returning(job)
    )
    return work.execute(query).first()


def note_claim(work: Work, row: sa.Row[Any], lease: Lease) -> ClaimedJob:
    """Return the claimed row as a value, with its line in the trail."""
    series_uid = series_uid_of(work.connection, row.series_id)
    fields = {"job": row.id, "series": series_uid, "worker": lease.worker}
    work.record("job.claim", lease.now, **fields, attempt=row.attempts, state=row.state)
    return ClaimedJob(
        job_id=row.id,
        series_id=row.series_id,
        series_uid=series_uid,
        generation=row.generation,
        attempt=row.attempts,
        priority=row.priority,
        destinations=tuple(row.destinations),
        incomplete_release=row.incomplete_release,
        lease_until=row.lease_until,
    )


def has_queued(connection: sa.Connection) -> bool:
    """Return whether any job is queued."""
    job = schema.job
    query = sa.select(job.c.id).where(job.c.state == JobState.QUEUED).limit(1)
    return connection.scalar(query) is not None


def explain_wait(database: Database, why: str) -> None:
    """Put behind the reason of every queued job why no worker takes it, "" for nothing.

    Its own reason stays: it says what became of the attempt before, or what the job replaces.
    """
    job = schema.job
    query = sa.select(job.c.id, job.c.reason).where(job.c.state == JobState.QUEUED)
    with database.reading() as connection:
        rows = connection.execute(query).all()
    behind = f"{WAITS}{why}" if why else ""
    changed = [(row, row.reason.partition(WAITS)[0] + behind) for row in rows]
    changed = [(row, reason) for row, reason in changed if reason != row.reason]
    if not changed:
        return  # nobody who finds nothing to do holds up those who write
    with database.transaction() as work:
        for row, reason in sorted(changed, key=lambda pair: pair[0].id):
            same = (job.c.id == row.id) & (job.c.state == JobState.QUEUED)
            same &= job.c.reason == row.reason
            work.execute(sa.update(job).where(same).values(reason=reason))
