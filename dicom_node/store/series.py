"""Received series: instances, the ledger, and the list that people read."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.retry import Fault, Verdict, statuses
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.arrivals import Arrival, Recorded
from dicom_node.store.database import Database
from dicom_node.store.instances import (
    InstanceRow,
    NewInstance,
    find,
    find_all,
    instance_rows,
    to_row,
)
from dicom_node.store.recorder import Recorder
from dicom_node.store.results import series_made
from dicom_node.telemetry import get_logger
from dicom_node.together import HandedIn

AT_ONCE = 500  # UIDs of one query
LEDGER_PARTS = {
    JobState.RECEIVING: "in_flight",
    JobState.QUEUED: "in_flight",
    JobState.RUNNING: "in_flight",
    JobState.DERIVED: "in_flight",
    JobState.DELIVERED: "processed",
    JobState.SKIPPED: "skipped",
    JobState.HELD: "held",
    JobState.DEAD: "dead",
    JobState.CANCELLED: "cancelled",
    JobState.SUPERSEDED: "superseded",
}


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What became of every acknowledged instance (design section 4, promise 2)."""

    acknowledged: int
    in_flight: int = 0
    processed: int = 0
    skipped: int = 0
    held: int = 0
    dead: int = 0
    cancelled: int = 0
    superseded: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Return every part by name, `acknowledged` included."""
        return asdict(self)

    @property
    def balanced(self) -> bool:
        """Return True when every acknowledged instance is accounted for."""
        parts = self.counts
        return parts.pop("acknowledged") == sum(parts.values())


class SeriesStore:
    """Received series and their instances."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database
        self._recording: HandedIn[Arrival, Recorded] = HandedIn(
            Recorder(database).record_all,
            lambda error: get_logger().error("instance.failed", exc_info=error),
        )

    def record_instance(self, new: NewInstance, now: datetime) -> Recorded:
        """Return what became of `new`: when this returns, it is durable.

        Instances that arrive at the same time share one transaction.

        A late slice reopens its series, or makes a new generation once work has begun. An instance
        whose file retention had deleted has it again; it is not counted twice.

        Raises
        ------
        ConflictingInstance
            If the SOP instance is known with other content.
        StoreUnavailable
            If the database did not commit.
        """
        return self._recording.do((new, now))

    def hand_in_instance(
        self, new: NewInstance, now: datetime, then: Callable[[Recorded | Exception], None]
    ) -> None:
        """Have `then` called with what `record_instance` returns or raises.

        By this thread or by another one, before or after this returns, as `HandedIn` says.
        """
        self._recording.hand_in((new, now), then)

    def move_file(self, sop_uid: str, old: Path, new: Path) -> None:
        """Let the rows of an instance speak of its file at another place."""
        with self._database.transaction() as work:
            for table in (schema.instance, schema.derived_instance):
                this = (table.c.sop_uid == sop_uid) & (table.c.path == str(old))
                work.execute(sa.update(table).where(this).values(path=str(new)))

    def find_instance(self, sop_uid: str) -> InstanceRow | None:
        """Return the stored instance `sop_uid`, or None when it was never received."""
        with self._database.reading() as connection:
            return find(connection, sop_uid)

    def study_of(self, series_id: int) -> str:
        """Return the study of a series; empty where there is no such series."""
        query = sa.select(schema.series.c.study_uid).where(schema.series.c.id == series_id)
        with self._database.reading() as connection:
            return connection.execute(query).scalar() or ""

    def here(self, sop_uids: Sequence[str]) -> set[str]:
        """Return those of the instances whose files are kept here."""
        found: set[str] = set()
        with self._database.reading() as connection:
            for first in range(0, len(sop_uids), AT_ONCE):
                known = find_all(connection, sop_uids[first : first + AT_ONCE])
                found |= {uid for uid, row in known.items() if row.removal_id is None}
        return found

    def places(self, sop_uids: Sequence[str]) -> dict[str, tuple[Path, int | None]]:
        """Return of those that were received where the file is, and the decision it goes by."""
        table, found = schema.instance, {}
        query = sa.select(table.c.sop_uid, table.c.path, table.c.removal_id)
        with self._database.reading() as connection:
            for first in range(0, len(sop_uids), AT_ONCE):
                some = table.c.sop_uid.in_(sop_uids[first : first + AT_ONCE])
                for row in connection.execute(query.where(some)):
                    found[row.sop_uid] = Path(row.path), row.removal_id
        return found

    def instances(self, series_id: int) -> list[InstanceRow]:
        """Return the instances of a series in the order of their arrival."""
        query = instance_rows().where(schema.instance.c.series_id == series_id)
        with self._database.reading() as connection:
            return [to_row(row) for row in connection.execute(query.order_by("id"))]

    def all_instances(self) -> list[InstanceRow]:
        """Return every stored instance (`verify` reads their files again)."""
        with self._database.reading() as connection:
            return [to_row(row) for row in connection.execute(instance_rows().order_by("id"))]

    def receiving(
        self, idle_before: datetime, documents_before: datetime | None = None
    ) -> list[tuple[int, int]]:
        """Return (job_id, series_id) of every series silent since `idle_before`.

        Key objects, which may reject others, have nothing to wait for: `documents_before`.
        """
        job, series = schema.job, schema.series
        ready = series.c.last_received_at <= idle_before
        if documents_before is not None:
            documents = series.c.modality == "KO"
            ready |= documents & (series.c.last_received_at <= documents_before)
        query = (
            sa.select(job.c.id, job.c.series_id)
            .join(series, series.c.id == job.c.series_id)
            .where(job.c.state == JobState.RECEIVING, ready)
            .order_by(job.c.id)
        )
        with self._database.reading() as connection:
            return [(row.id, row.series_id) for row in connection.execute(query)]

    def listing(self) -> list[dict[str, Any]]:
        """Return one element per received series, finished or not (design section 6)."""
        with self._database.reading() as connection:
            deliveries = delivery_figures(connection)
            notes = note_figures(connection, deliveries)
            rows = connection.execute(newest_jobs_with_series()).all()
            made = series_made(connection, sa.select(newest_jobs().c.id))
            return [
                {
                    "series_uid": row.series_uid,
                    "modality": row.modality,
                    "description": row.description,
                    "instances": row.instances,
                    "state": row.state,
                    "reason": row.reason,
                    "derived_series_uid": row.derived_series_uid if row.published_at else None,
                    **several(made.get(row.id, []) if row.published_at else []),
                    "deliveries": deliveries.get(row.id, []) + notes.get(row.series_id, []),
                }
                for row in rows
            ]

    def ledger(self) -> Ledger:
        """Return the ledger of this moment."""
        instance, job = schema.instance, newest_jobs()
        query = (
            sa.select(job.c.state, sa.func.count())
            .join(instance, instance.c.series_id == job.c.series_id)
            .group_by(job.c.state)
        )
        parts: Counter[str] = Counter()
        with self._database.reading() as connection:
            total = connection.scalar(sa.select(sa.func.sum(schema.series.c.acknowledged)))
            for state, count in connection.execute(query):
                parts[LEDGER_PARTS[JobState(state)]] += count
        return Ledger(acknowledged=total or 0, **parts)

    def states(self) -> dict[str, int]:
        """Return how many series stand in each state, empty states included."""
        job = newest_jobs()
        query = sa.select(job.c.state, sa.func.count()).group_by(job.c.state)
        with self._database.reading() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state.value: found.get(state.value, 0) for state in JobState}


def newest_jobs() -> sa.Subquery:
    """Return the newest generation of every series as a subquery.

    No grouping: who wants a few of them does not look at the jobs of years.
    """
    job, later = schema.job, schema.job.alias()
    same = (later.c.series_id == job.c.series_id) & (later.c.generation > job.c.generation)
    return sa.select(job).where(~sa.select(later.c.id).where(same).exists()).subquery()


def newest_jobs_with_series() -> sa.Select[Any]:
    """Return the query of `listing`, oldest series first."""
    series, job, instance = schema.series, newest_jobs(), schema.instance
    of_series = instance.c.series_id == series.c.id
    count = sa.select(sa.func.count()).where(of_series).scalar_subquery().label("instances")
    named = [series.c.series_uid, series.c.modality, series.c.description]
    names = ("id", "series_id", "state", "reason", "derived_series_uid", "published_at")
    columns = [job.c[name] for name in names]
    joined = sa.select(*named, *columns, count).join(job, job.c.series_id == series.c.id)
    return joined.order_by(series.c.id)


def several(made: Sequence[str]) -> dict[str, list[str]]:
    """Return the series that a job made as a part of its line, where they are more than one."""
    return {"derived_series_uids": list(made)} if len(made) > 1 else {}


def note_figures(
    connection: sa.Connection,
    deliveries: Mapping[int, list[dict[str, Any]]],
    series: sa.SelectBase | None = None,
) -> dict[int, list[dict[str, Any]]]:
    """Return for each series the deliveries of the rejection notes about what it became.

    Parameters
    ----------
    series
        The ids of the series that are asked for; None: all.
    """
    job = schema.job
    query = sa.select(job.c.series_id, job.c.id).where(schema.IS_NOTE).order_by(job.c.id)
    if series is not None:
        query = query.where(job.c.series_id.in_(series))
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        marked = [line | {"content": "rejection note"} for line in deliveries.get(row.id, [])]
        found.setdefault(row.series_id, []).extend(marked)
    return found


def delivery_figures(
    connection: sa.Connection, jobs: sa.SelectBase | None = None
) -> dict[int, list[dict[str, Any]]]:
    """Return for each job its deliveries, and how many instances stand where.

    "sent" counts what the destination has, "warned" those of them that it took with a warning,
    "failed" what it refused, or did not answer, when it was last sent.

    Parameters
    ----------
    jobs
        The ids of the jobs that are asked for; None: all.
    """
    delivery, part = schema.delivery, schema.delivery_instance
    warned = sa.or_(*(part.c.status.between(*both) for both in statuses(Verdict.SENT_WITH_WARNING)))
    there = part.c.sent_at.is_not(None)
    answered = part.c.status.is_not(None) | (part.c.fault != Fault.UNDER_WAY.value)
    failed = ~there & answered
    query = (
        sa.select(
            delivery.c.job_id,
            delivery.c.destination,
            delivery.c.state,
            sa.func.count(part.c.sent_at).label("sent"),
            sa.func.count(sa.case((there & warned, 1))).label("warned"),
            sa.func.count(sa.case((failed, 1))).label("failed"),
            sa.func.count(part.c.committed_at).label("committed"),
        )
        .outerjoin(part, part.c.delivery_id == delivery.c.id)
        .group_by(delivery.c.id, delivery.c.job_id, delivery.c.destination, delivery.c.state)
        .order_by(delivery.c.id)
    )
    if jobs is not None:
        query = query.where(delivery.c.job_id.in_(jobs))
    figures: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        line = {name: value for name, value in row._mapping.items() if name != "job_id"}
        figures.setdefault(row.job_id, []).append(line)
    return figures
