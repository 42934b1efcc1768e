"""What the status page and housekeeping read: never writes."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, parts
from dicom_node.store.removals import FILES
from dicom_node.store.results import series_made
from dicom_node.store.series import delivery_figures, newest_jobs, note_figures, several

KEPT, GOING, GONE = "kept", "going", "gone"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file on record, and whether it should be there."""

    kind: str  # as in `store.lots`
    sop_uid: str
    path: Path
    sha256: str
    fate: str  # KEPT; GOING: retention has decided that it goes; GONE: it has gone


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A running job and the worker that holds it."""

    job_id: int
    worker: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Turnaround:
    """From the first received image until every destination has the result."""

    overdue: int  # series under way that have taken longer than allowed already
    late: int  # delivered within the last hour, too late
    slowest_s: float | None  # of those delivered within the last hour


def series_lines(
    database: Database,
    *,
    limit: int | None = None,
    job_id: int | None = None,
    states: Collection[JobState] | None = None,
) -> list[dict[str, Any]]:
    """Return the listing's elements with job number, times and progress, newest series first.

    With `job_id` only that job, even if it is not its series' newest one; with `states` only those.
    """
    series, instance = schema.series, schema.instance
    job = schema.job if job_id is not None else newest_jobs()
    count = sa.select(sa.func.count()).where(instance.c.series_id == series.c.id)
    query = (
        sa.select(
            *(series.c[name] for name in ("series_uid", "study_uid", "modality", "description")),
            job.c.id.label("job_id"),
            *(job.c[name] for name in ("generation", "state", "reason", "held_by", "stage")),
            *(job.c[name] for name in ("progress", "created_at", "updated_at", "published_at")),
            *(
                job.c[name]
                for name in ("priority", "queued_at", "windows", "source", "withdrawn_at")
            ),
            series.c.id.label("series_id"),
            job.c.derived_series_uid,
            count.scalar_subquery().label("instances"),
        )
        .join(job, job.c.series_id == series.c.id)
        .order_by(job.c.id.desc())
        .limit(limit)
    )
    if job_id is not None:
        query = query.where(job.c.id == job_id)
    if states is not None:
        query = query.where(job.c.state.in_(states))
    lines = query.subquery()
    shown, of_series = sa.select(lines.c.job_id), sa.select(lines.c.series_id)
    notes_about = schema.IS_NOTE & schema.job.c.series_id.in_(of_series)
    about = sa.select(schema.job.c.id).where(notes_about)
    with database.reading() as connection:
        deliveries = delivery_figures(connection, sa.union_all(shown, about))
        notes = note_figures(connection, deliveries, of_series)
        rows = connection.execute(query).all()
        made = series_made(connection, shown)
        return [
            line_of(row, deliveries.get(row.job_id, []), notes.get(row.series_id, []))
            | several(made.get(row.job_id, []))
            for row in rows
        ]


def line_of(
    row: sa.Row[*tuple[Any, ...]], deliveries: list[dict[str, Any]], notes: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return one row as an element; a rejection note's own line has its deliveries once."""
    line = dict(row._mapping)
    del line["series_id"]
    return line | {"deliveries": deliveries + (notes if row.generation > 0 else [])}


def turnaround(database: Database, now: datetime, limit_s: float) -> Turnaround:
    """Return how long results take, from a series' first image until every destination has it.

    Only the machine's own time counts: what waits for a person is not late.
    """
    job = newest_jobs()
    under_way = (JobState.RECEIVING, JobState.QUEUED, JobState.RUNNING, JobState.DERIVED)
    begun = sa.select(job.c.created_at).where(job.c.state.in_(under_way))
    hour_ago = now - timedelta(hours=1)
    done = sa.select(job.c.created_at, job.c.updated_at).where(
        job.c.state == JobState.DELIVERED, job.c.updated_at.between(hour_ago, now)
    )
    with database.reading() as connection:
        waits = [(now - at).total_seconds() for at in connection.execute(begun).scalars()]
        took = [(row[1] - row[0]).total_seconds() for row in connection.execute(done)]
    limit_s = limit_s or math.inf
    return Turnaround(
        overdue=sum(seconds > limit_s for seconds in waits),
        late=sum(seconds > limit_s for seconds in took),
        slowest_s=max(took, default=None),
    )


def leases(database: Database) -> list[Lease]:
    """Return every running job with its worker."""
    job = schema.job
    query = sa.select(job.c.id, job.c.worker, job.c.attempts).where(job.c.state == JobState.RUNNING)
    with database.reading() as connection:
        rows = connection.execute(query).all()
    return [Lease(job_id=row.id, worker=row.worker or "", attempt=row.attempts) for row in rows]


def oldest_queued(database: Database) -> datetime | None:
    """Return since when the job that waits longest for a worker has waited; None without one."""
    job = schema.job
    query = sa.select(sa.func.min(job.c.updated_at)).where(job.c.state == JobState.QUEUED)
    with database.reading() as connection:
        return connection.scalar(query)


def result_places(database: Database, job_ids: Sequence[int]) -> set[Path]:
    """Return where the first and the last file of each of the jobs, and of every note, lie.

    As far as they have not gone: the last two names of the folder, such as ``17/1-5e218b06``.
    """
    table = schema.derived_instance
    ends = sa.func.min(table.c.path).label("first"), sa.func.max(table.c.path).label("last")
    query = not_gone(*ends).group_by(table.c.job_id)
    # In the order of their index: SQLite would go through a larger one.
    notes = sa.select(schema.job.c.id).where(schema.IS_NOTE).order_by(schema.job.c.state)
    found: set[Path] = set()
    with database.reading() as connection:
        for some in parts([*job_ids, *connection.scalars(notes)]):
            for row in connection.execute(query.where(table.c.job_id.in_(some))):
                found |= {Path(*Path(path).parts[-3:-1]) for path in (row.first, row.last)}
    return found


def is_result_place(database: Database, place: Path) -> bool:
    """Return whether a job sends a file that lies there and has not gone; looks at every row."""
    path = schema.derived_instance.c.path
    query = not_gone(path).where(path.contains(f"/{place}/", autoescape=True)).limit(1)
    with database.reading() as connection:
        return connection.execute(query).first() is not None


def not_gone(*columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the query of files that jobs send and retention has not deleted."""
    table, removal = schema.derived_instance, schema.removal
    query = sa.select(*columns).outerjoin(removal, removal.c.id == table.c.removal_id)
    return query.where(removal.c.ended_at.is_(None))


def stored_files(database: Database) -> list[StoredFile]:
    """Return every file on record: received ones, then derived ones, published or held."""
    removal = schema.removal
    found = []
    with database.reading() as connection:
        for kind, table in FILES.items():
            names = ("sop_uid", "path", "sha256", "removal_id")
            query = sa.select(*(table.c[name] for name in names), removal.c.ended_at)
            query = query.outerjoin(removal, removal.c.id == table.c.removal_id)
            for row in connection.execute(query.order_by(table.c.id)):
                fate = KEPT if row.removal_id is None else GOING if row.ended_at is None else GONE
                one = {"kind": kind, "sop_uid": row.sop_uid, "sha256": row.sha256, "fate": fate}
                found.append(StoredFile(**one, path=Path(row.path)))
    return found
