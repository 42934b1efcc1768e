"""Moving one job from state to state inside a transaction: the only place that writes `job.state`.

Every move obeys `states.TRANSITIONS`, leaves an audit row and, once committed, one log line.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import LeaseLost, UnknownJob
from dicom_node.states import JobState, next_state
from dicom_node.store import schema
from dicom_node.store.database import Work
from dicom_node.store.prepared import OfRows, Row, inserting

# What people read while nothing more particular is known.
REASONS = {
    "receive": "Slices are arriving.",
    "enqueue": "Complete; waiting for a worker.",
    "forward": "The originals are being sent on.",
    "hold": "Held: a person must look.",
    "skip": "Skipped.",
    "claim": "A worker is processing the series.",
    "derive": "The derived series is made; it is being sent.",
    "deliver": "The derived series was sent to every destination.",
    "expire": "The worker stopped answering; waiting for another one.",
    "retry": "The attempt failed; it will be tried again.",
    "refuse": "The engine refused the series.",
    "fail": "All attempts failed.",
    "cancel": "Cancelled by a person.",
    "release": "Released by a person; waiting for a worker.",
    "requeue": "Queued again by a person; waiting for a worker.",
    "resend": "A person asked for the result to be sent again.",
    "supersede": "Superseded by a newer generation of the series.",
    "withdraw": "Withdrawn.",
    "reject": "The rejection note is being sent.",
    "readdress": "The rejection note is being sent to one destination more.",
}
BEGINS_TO_WAIT = frozenset({"enqueue", "release", "requeue"})
# A reopened series is judged afresh: what the last judgement left behind must not stay.
REOPENED: dict[str, Any] = {
    "rule": None,
    "not_before": None,
    "incomplete_release": False,
    "attempts": 0,
    "destinations": [],
    "priority": "normal",
    "windows": [],
    "queued_at": None,
}


# Built once: they are asked all the time.
LOCKED_JOB = sa.select(schema.job).where(schema.job.c.id == sa.bindparam("job")).with_for_update()
NEWEST_JOB = (
    sa.select(schema.job)
    .where(schema.job.c.series_id == sa.bindparam("series_id"))
    .order_by(schema.job.c.generation.desc())
    .limit(1)
    .with_for_update()
)


def with_newest_job(rows: Sequence[Row]) -> sa.Select[Any]:
    """Return the query of series that have a job and of their newest one, locked in this order.

    As an UPDATE locks them: who holds the job may make another one, whose row names the series.
    """
    series, job, other = schema.series, schema.job, schema.job.alias()
    newest = sa.select(sa.func.max(other.c.generation)).where(other.c.series_id == series.c.id)
    same = (job.c.series_id == series.c.id) & (job.c.generation == newest.scalar_subquery())
    return (
        sa.select(series.c.id, series.c.series_uid, job.c.id.label("job_id"), job.c.state)
        .select_from(series)
        .join(job, same)
        .where(series.c.series_uid.in_([row["uid"] for row in rows]))
        .order_by(series.c.series_uid)
        .with_for_update(key_share=True)
    )


WITH_NEWEST_JOB = OfRows({"uid": schema.series.c.series_uid.type}, with_newest_job)
OF_JOB = ("series_id", "generation", "state", "reason", "created_at", "updated_at", "figures")
NEW_JOB = inserting(schema.job, [*OF_JOB, *REOPENED], returning="id")


def locked_job(work: Work, job_id: int) -> sa.Row[Any]:
    """Return the row of the job, locked until the transaction ends.

    Raises
    ------
    UnknownJob
        If there is none of that number.
    """
    row = work.connection.execute(LOCKED_JOB, {"job": job_id}).first()
    if row is None:
        raise UnknownJob(f"there is no job {job_id}")
    return row


def newest_job(work: Work, series_id: int) -> Any:
    """Return the newest generation's row of a series, locked; None when it has no job yet."""
    values = {"series_id": series_id}
    row, older = work.connection.execute(NEWEST_JOB, values).first(), None
    # PostgreSQL: while we waited for the lock, somebody may have made a newer generation.
    while row is not None and row.state == JobState.SUPERSEDED and row.id != older:
        older, row = row.id, work.connection.execute(NEWEST_JOB, values).first()
    return row


def refuse_stranger(row: sa.Row[Any], worker: str) -> None:
    """Raise LeaseLost unless `worker` is working on the job."""
    if row.state != JobState.RUNNING or row.worker != worker:
        raise LeaseLost(f"job {row.id} is {row.state} and no longer held by {worker}")


def move(
    work: Work, job_id: int, event: str, now: datetime, *, reason: str | None = None, **columns: Any
) -> JobState:
    """Return the new state of the job after `event`; set `columns` with it.

    Raises
    ------
    UnknownJob
        If there is none of that number.
    IllegalTransition
        If the job's state does not know `event`.
    """
    row = locked_job(work, job_id)
    state = next_state(JobState(row.state), event)
    reason = reason or REASONS[event]
    values: dict[str, Any] = {"held_by": None, "worker": None, "lease_until": None}
    if event == "receive":
        values |= REOPENED
    if event in BEGINS_TO_WAIT:
        values["queued_at"] = now
    values |= columns | {"state": state.value, "reason": reason, "updated_at": now}
    work.execute(sa.update(schema.job).where(schema.job.c.id == job_id).values(**values))
    if state in (JobState.CANCELLED, JobState.SUPERSEDED):
        stop_deliveries(work, job_id)
    work.record(f"job.{event}", now, job=job_id, old=row.state, state=state.value, reason=reason)
    return state


def create_job(
    work: Work, series_id: int, series_uid: str, now: datetime, *, generation: int
) -> int:
    """Return the id of a new RECEIVING job of the series."""
    row = {
        "series_id": series_id,
        "generation": generation,
        "state": JobState.RECEIVING.value,
        "reason": REASONS["receive"],
        "created_at": now,
        "updated_at": now,
        "figures": {},
        **REOPENED,
    }
    job_id = int(NEW_JOB.run(work.connection, [row]).scalar_one())
    work.record("job.create", now, job=job_id, series=series_uid, state=row["state"])
    return job_id


def new_generation(work: Work, old: sa.Row[Any], now: datetime, *, reason: str) -> int:
    """Return the id of the RECEIVING job that takes the place of `old`, which is superseded."""
    move(work, old.id, "supersede", now, reason=reason)
    series_uid = series_uid_of(work.connection, old.series_id)
    return create_job(work, old.series_id, series_uid, now, generation=old.generation + 1)


def series_uid_of(connection: sa.Connection, series_id: int) -> str:
    """Return the UID of the series."""
    series = schema.series
    query = sa.select(series.c.series_uid).where(series.c.id == series_id)
    return str(connection.execute(query).scalar_one())


def stop_deliveries(work: Work, job_id: int) -> None:
    """Stop every delivery of the job that has not ended."""
    delivery = schema.delivery
    pending = (delivery.c.job_id == job_id) & (delivery.c.state == "PENDING")
    reason = "Stopped: the job was cancelled or superseded."
    work.execute(
        sa.update(delivery).where(pending).values(state="STOPPED", reason=reason, next_try_at=None)
    )
    # What was sent stays SENT; nobody waits for its commitment any more, which still counts.
    awaiting = (delivery.c.job_id == job_id) & delivery.c.awaits_commitment
    values = {"awaits_commitment": False, "next_try_at": None}
    work.execute(sa.update(delivery).where(awaiting).values(**values))


def create_deliveries(work: Work, job_id: int, destinations: Sequence[str]) -> None:
    """Make one PENDING delivery for each destination, of the derived instances meant for it."""
    derived = schema.derived_instance
    here = (derived.c.job_id == job_id) & derived.c.removal_id.is_(None)
    rows = work.execute(sa.select(derived).where(here).order_by(derived.c.id)).all()
    for destination in dict.fromkeys(destinations):
        row = {"job_id": job_id, "destination": destination, "state": "PENDING", "attempts": 0}
        query = sa.insert(schema.delivery).values(**row, reason="Waiting to be sent.")
        delivery_id = work.execute(query.returning(schema.delivery.c.id)).scalar_one()
        ids = [row.id for row in meant_for(destination, rows)]
        parts = [{"delivery_id": delivery_id, "derived_instance_id": i} for i in ids]
        work.connection.execute(sa.insert(schema.delivery_instance), parts)


def meant_for(destination: str, rows: Sequence[sa.Row[Any]]) -> Sequence[sa.Row[Any]]:
    """Return the derived instances that a destination gets.

    One that nothing was made for (it became a destination later) gets the image in its first form:
    a delivery of nothing would count as delivered.
    """
    mine = [row for row in rows if row.destinations is None or destination in row.destinations]
    return mine or [row for row in rows if row.kind == rows[0].kind]
