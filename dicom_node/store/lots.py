"""What may go by retention: the conditions, as queries; `removals` decides by them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.states import FINAL, JobState
from dicom_node.store import schema
from dicom_node.store.database import parts
from dicom_node.store.series import newest_jobs
from dicom_node.store.transactions import OPEN, SCP

ORIGINALS, DERIVED = "originals", "derived"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What retention may take; a state without an entry in `before` keeps its files."""

    before: Mapping[JobState, datetime]  # the state must have been reached before that
    committers: Collection[str]  # destinations whose commitment a delivered job needs
    originals: bool  # False: whatever was received stays


@dataclass(frozen=True, kw_only=True)
class Lot:
    """Files that may go together: the originals of a series, or the result of a job."""

    kind: str
    series_id: int
    series_uid: str
    job_id: int
    state: JobState
    since: datetime
    files: int
    bytes: int
    destinations: tuple[str, ...]


def lots(connection: sa.Connection, limits: Limits, only: Lot | None = None) -> list[Lot]:
    """Return what may go, or whether `only` still may."""
    these = of_lot(only) if only is not None else sa.true()
    queries = {}
    if only is None or only.kind == DERIVED:
        queries[DERIVED] = derived_lots(limits, these)
    if limits.originals and (only is None or only.kind == ORIGINALS):
        queries[ORIGINALS] = original_lots(limits, these)
    found = []
    for kind, query in queries.items():
        if only is not None:  # a series may have another newest job by now
            query = query.where(sa.literal_column("job_id") == only.job_id)
        rows = connection.execute(query).all()
        names = destinations(connection, [row.job_id for row in rows])
        found += [to_lot(kind, row, names) for row in rows]
    return sorted(found, key=lambda lot: (lot.since, lot.job_id))


def original_lots(limits: Limits, these: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return the query of series whose originals may go, of `these` files.

    The newest job decides: the older ones are superseded, and it may want all images again.
    """
    series, job, instance = schema.series, newest_jobs(), schema.instance
    files = (
        sa.select(instance.c.series_id, *sizes(instance.c.bytes))
        .where(instance.c.removal_id.is_(None), these)
        .group_by(instance.c.series_id)
        .subquery()
    )
    since = sa.case(
        (series.c.last_received_at > job.c.updated_at, series.c.last_received_at),
        else_=job.c.updated_at,
    )
    query = (
        sa.select(*described(series, job, files, since))
        .join(job, job.c.series_id == series.c.id)
        .join(files, files.c.series_id == series.c.id)
        .where(old_enough(job, since, limits), delivered_if(job, limits), ~promised(series.c.id))
    )
    return narrowed(query)


def derived_lots(limits: Limits, these: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return the query of jobs whose results may go, of `these` files.

    Forwarded originals are no results.
    """
    series, job, derived = schema.series, schema.job, schema.derived_instance
    files = (
        sa.select(derived.c.job_id, *sizes(derived.c.bytes))
        .where(derived.c.removal_id.is_(None), these)
        .group_by(derived.c.job_id)
        .subquery()
    )
    query = (
        sa.select(*described(series, job, files, job.c.updated_at))
        .join(job, job.c.series_id == series.c.id)
        .join(files, files.c.job_id == job.c.id)
        .where(job.c.derived_series_uid.is_not(None))
        .where(old_enough(job, job.c.updated_at, limits), delivered_if(job, limits))
    )
    return narrowed(query)


def sizes(column: sa.ColumnElement[int]) -> tuple[sa.ColumnElement[int], ...]:
    """Return the columns that say how much there is."""
    return sa.func.count().label("files"), sa.func.sum(column).label("bytes")


def described(
    series: sa.FromClause, job: sa.FromClause, files: sa.FromClause, since: Any
) -> tuple[sa.ColumnElement[Any], ...]:
    """Return the columns of a lot."""
    return (
        series.c.id.label("series_id"),
        series.c.series_uid,
        job.c.id.label("job_id"),
        job.c.state,
        sa.type_coerce(since, schema.UtcDateTime()).label("since"),
        files.c.files,
        files.c.bytes,
    )


def narrowed(query: sa.Select[Any]) -> sa.Select[Any]:
    """Return a query whose columns go by their labels."""
    return sa.select(query.subquery())


def old_enough(job: sa.FromClause, since: Any, limits: Limits) -> sa.ColumnElement[bool]:
    """Return the condition that a job's end is reached, and long enough ago."""
    ages = [
        (job.c.state == state) & (since < sa.literal(before, schema.UtcDateTime()))
        for state, before in limits.before.items()
        if state in FINAL
    ]
    return sa.or_(sa.false(), *ages)


def delivered_if(job: sa.FromClause, limits: Limits) -> sa.ColumnElement[bool]:
    """Return the condition that a delivered job's destinations keep what they were sent.

    Without a destination this node has the only copy.
    """
    delivery, part = schema.delivery, schema.delivery_instance
    ours = sa.select(delivery.c.id).where(delivery.c.job_id == job.c.id)
    owed = (
        sa.select(part.c.delivery_id)
        .join(delivery, delivery.c.id == part.c.delivery_id)
        .where(delivery.c.job_id == job.c.id, part.c.committed_at.is_(None))
        .where(delivery.c.destination.in_(list(limits.committers)))
    )
    return (job.c.state != JobState.DELIVERED) | (ours.exists() & ~owed.exists())


def promised(series_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Return the condition that an image is here in custody: its scanner may have deleted it.

    That is a promise for ever, whatever the configuration says by now; only an archive that has
    committed the image takes it off us. What is asked and not yet answered counts, too.
    """
    instance, asked, named = schema.instance, schema.commitment, schema.commitment_instance
    part, sent = schema.delivery_instance, schema.derived_instance
    archived = (
        sa.select(part.c.delivery_id)
        .join(sent, sent.c.id == part.c.derived_instance_id)
        .where(sent.c.sop_uid == instance.c.sop_uid, part.c.committed_at.is_not(None))
    )
    return (
        sa.select(instance.c.id)
        .join(named, named.c.sop_uid == instance.c.sop_uid)
        .join(asked, asked.c.id == named.c.commitment_id)
        .where(instance.c.series_id == series_id, asked.c.role == SCP)
        .where((asked.c.state == OPEN) | (named.c.status == 0), ~archived.exists())
        .exists()
    )


def destinations(connection: sa.Connection, job_ids: list[int]) -> Mapping[int, list[str]]:
    """Return for each job its destinations, and whether they have committed."""
    delivery = schema.delivery
    query = sa.select(delivery.c.job_id, delivery.c.destination, delivery.c.state).order_by("id")
    found: dict[int, list[str]] = {}
    for some in parts(job_ids):
        for row in connection.execute(query.where(delivery.c.job_id.in_(some))):
            committed = " (committed)" if row.state == "COMMITTED" else ""
            found.setdefault(row.job_id, []).append(f"{row.destination}{committed}")
    return found


def to_lot(kind: str, row: sa.Row[Any], names: Mapping[int, list[str]]) -> Lot:
    """Return a database row as a value."""
    values = dict(row._mapping) | {"kind": kind, "state": JobState(row.state)}
    values["bytes"] = int(row.bytes)  # PostgreSQL adds up to Decimal
    return Lot(**values, destinations=tuple(names.get(row.job_id, [])))


def of_lot(lot: Lot) -> sa.ColumnElement[bool]:
    """Return the condition for the rows of a lot's files."""
    if lot.kind == ORIGINALS:
        return schema.instance.c.series_id == lot.series_id
    return schema.derived_instance.c.job_id == lot.job_id
