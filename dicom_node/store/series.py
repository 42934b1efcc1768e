"""Received series: instances, the ledger, and the list that people read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import ConflictingInstance, NodeError, StoreUnavailable
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.moves import create_job, move, new_generation, newest_job
from dicom_node.together import Together

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
# A person cancelled the series: later slices are kept and counted, but do not undo that.
STAYS = frozenset({JobState.RECEIVING, JobState.CANCELLED})


@dataclass(frozen=True, kw_only=True)
class NewInstance:
    """One received instance whose file is already durable."""

    sop_uid: str
    sop_class: str
    series_uid: str
    study_uid: str
    modality: str
    description: str
    path: Path
    bytes: int
    sha256: str  # of the file
    attributes_sha256: str  # of all attributes but the pixels
    pixels_sha256: str | None = None  # of the decoded pixels, where they were decoded
    transfer_syntax: str
    calling_ae: str
    header: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What `record_instance` did: "new" or "duplicate", and the job it belongs to."""

    outcome: str
    job_id: int


@dataclass(frozen=True, kw_only=True)
class InstanceRow:
    """One stored instance."""

    id: int
    sop_uid: str
    sop_class: str
    series_id: int
    path: Path
    bytes: int
    sha256: str
    attributes_sha256: str
    pixels_sha256: str | None
    transfer_syntax: str
    calling_ae: str
    received_at: datetime
    header: dict[str, Any]


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


Arrival = tuple[NewInstance, datetime]
# Built once: building and keying a statement takes longer than running it.
OF_INSTANCE = [field.name for field in fields(NewInstance) if field.name in schema.instance.c]
FIND = sa.select(schema.instance).where(schema.instance.c.sop_uid == sa.bindparam("uid"))
FIND_ALL = sa.select(schema.instance).where(
    schema.instance.c.sop_uid.in_(sa.bindparam("uids", expanding=True))
)
INSERT = sa.insert(schema.instance)
COUNT_MORE = (
    sa.update(schema.series)
    .where(schema.series.c.series_uid == sa.bindparam("uid"))
    .values(
        acknowledged=schema.series.c.acknowledged + sa.bindparam("more"),
        last_received_at=sa.bindparam("at"),
    )
    .returning(schema.series.c.id)
)


class SeriesStore:
    """Received series and their instances."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database
        self._recording: Together[Arrival, Recorded] = Together(self._record_all)

    def record_instance(self, new: NewInstance, now: datetime) -> Recorded:
        """Return what became of `new`: when this returns, it is durable.

        Instances that arrive at the same time share one transaction.

        A late slice reopens its series, or makes a new generation once work has begun.

        Raises
        ------
        ConflictingInstance
            If the SOP instance is known with other content.
        StoreUnavailable
            If the database did not commit.
        """
        return self._recording.do((new, now))

    def _record_all(self, batch: Sequence[Arrival]) -> Sequence[Recorded | Exception]:
        """Record what many threads bring, in one transaction; one bad instance hurts no other."""
        if len({new.sop_uid for new, _ in batch}) == len(batch):
            try:
                return self._record(batch)
            except StoreUnavailable as error:
                return [StoreUnavailable(str(error)) for _ in batch]
            except (sa.exc.IntegrityError, NodeError):
                pass  # PostgreSQL: another process made a row meanwhile
        return [self._record_one(each) for each in batch]

    def _record_one(self, arrival: Arrival) -> Recorded | Exception:
        try:
            return self._record([arrival])[0]
        except NodeError as error:
            return error

    def _record(self, batch: Sequence[Arrival]) -> list[Recorded | Exception]:
        """Record instances of different UIDs."""
        with self._database.transaction() as work:
            known = find_all(work.connection, [new.sop_uid for new, _ in batch])
            fresh = [(new, now) for new, now in batch if new.sop_uid not in known]
            jobs = insert_instances(work, fresh)
            return [
                repeated(work, known[new.sop_uid], new)
                if new.sop_uid in known
                else Recorded(outcome="new", job_id=jobs[new.series_uid])
                for new, _ in batch
            ]

    def find_instance(self, sop_uid: str) -> InstanceRow | None:
        """Return the stored instance `sop_uid`, or None when it was never received."""
        with self._database.reading() as connection:
            return find(connection, sop_uid)

    def instances(self, series_id: int) -> list[InstanceRow]:
        """Return the instances of a series in the order of their arrival."""
        query = instance_rows().where(schema.instance.c.series_id == series_id)
        with self._database.reading() as connection:
            return [to_row(row) for row in connection.execute(query.order_by("id"))]

    def all_instances(self) -> list[InstanceRow]:
        """Return every stored instance (`verify` reads their files again)."""
        with self._database.reading() as connection:
            return [to_row(row) for row in connection.execute(instance_rows().order_by("id"))]

    def receiving(self, idle_before: datetime) -> list[tuple[int, int]]:
        """Return (job_id, series_id) of every series silent since `idle_before`."""
        job, series = schema.job, schema.series
        query = (
            sa.select(job.c.id, job.c.series_id)
            .join(series, series.c.id == job.c.series_id)
            .where(job.c.state == JobState.RECEIVING, series.c.last_received_at <= idle_before)
            .order_by(job.c.id)
        )
        with self._database.reading() as connection:
            return [(row.id, row.series_id) for row in connection.execute(query)]

    def listing(self) -> list[dict[str, Any]]:
        """Return one element per received series, finished or not (design section 6)."""
        with self._database.reading() as connection:
            deliveries = delivery_figures(connection)
            return [
                {
                    "series_uid": row.series_uid,
                    "modality": row.modality,
                    "description": row.description,
                    "instances": row.instances,
                    "state": row.state,
                    "reason": row.reason,
                    "derived_series_uid": row.derived_series_uid if row.published_at else None,
                    "deliveries": deliveries.get(row.id, []),
                }
                for row in connection.execute(newest_jobs_with_series())
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


def insert_instances(work: Work, arrivals: Sequence[Arrival]) -> dict[str, int]:
    """Insert instances that are new; return the job of each series by its UID."""
    of_series: dict[str, list[Arrival]] = {}
    for new, now in sorted(arrivals, key=lambda arrival: arrival[0].series_uid):  # no deadlock
        of_series.setdefault(new.series_uid, []).append((new, now))
    rows, jobs = [], {}
    for series_uid, members in of_series.items():
        now = max(arrived_at for _, arrived_at in members)
        series_id = upsert_series(work, members[0][0], now, len(members))
        jobs[series_uid] = receiving_job(work, series_id, series_uid, now)
        rows += [to_values(new, series_id, arrived_at) for new, arrived_at in members]
    if rows:
        work.connection.execute(INSERT, rows)
    return jobs


def to_values(new: NewInstance, series_id: int, now: datetime) -> dict[str, Any]:
    """Return the row of a new instance."""
    values = {name: getattr(new, name) for name in OF_INSTANCE}
    return values | {"path": str(new.path), "series_id": series_id, "received_at": now}


def repeated(work: Work, known: InstanceRow, new: NewInstance) -> Recorded | Exception:
    """Return what becomes of an instance that is known already."""
    try:
        refuse_other_content(known, new)
    except ConflictingInstance as error:
        return error
    return Recorded(outcome="duplicate", job_id=newest_job(work, known.series_id).id)


def upsert_series(work: Work, new: NewInstance, now: datetime, count: int) -> int:
    """Return the id of the series of `new`, which counts `count` instances more from now on."""
    values = {"uid": new.series_uid, "more": count, "at": now}
    series_id = work.connection.execute(COUNT_MORE, values).scalar_one_or_none()
    if series_id is not None:
        return int(series_id)
    first = sa.insert(schema.series).values(
        series_uid=new.series_uid,
        study_uid=new.study_uid,
        modality=new.modality,
        description=new.description,
        acknowledged=count,
        created_at=now,
        last_received_at=now,
    )
    return int(work.execute(first.returning(schema.series.c.id)).scalar_one())


def receiving_job(work: Work, series_id: int, series_uid: str, now: datetime) -> int:
    """Return the job that a new instance of the series belongs to, reopened where needed."""
    newest = newest_job(work, series_id)
    if newest is None:
        return create_job(work, series_id, series_uid, now, generation=1)
    if newest.state in STAYS:
        return int(newest.id)
    reason = "A late slice arrived; the series is being received again."
    if can_reopen(newest):
        move(work, newest.id, "receive", now, reason=reason)
        return int(newest.id)
    return new_generation(work, newest, now, reason=reason)


def can_reopen(job: sa.Row[Any]) -> bool:
    """Return True while nobody has begun to work on this generation."""
    if job.state == JobState.HELD:
        return job.held_by in ("completeness", "rule")
    if job.state == JobState.DEAD:
        return job.published_at is None
    return job.state in (JobState.SKIPPED, JobState.QUEUED)


def refuse_other_content(known: InstanceRow, new: NewInstance) -> None:
    """Raise ConflictingInstance unless `new` has the content of `known`.

    Equal pixels may come in another transfer syntax, so the file's hash counts only where nobody
    decoded the pixels.
    """
    same_pixels = known.sha256 == new.sha256
    if known.pixels_sha256 and new.pixels_sha256:
        same_pixels = known.pixels_sha256 == new.pixels_sha256
    if known.attributes_sha256 != new.attributes_sha256 or not same_pixels:
        raise ConflictingInstance(f"SOP instance {new.sop_uid} is known with other content")


def instance_rows() -> sa.Select[Any]:
    """Return the query that `to_row` reads."""
    return sa.select(schema.instance)


def to_row(row: sa.Row[Any]) -> InstanceRow:
    """Return a database row as a value."""
    values = dict(row._mapping)
    return InstanceRow(**values | {"path": Path(values["path"])})


def find(connection: sa.Connection, sop_uid: str) -> InstanceRow | None:
    """Return the stored instance `sop_uid`, or None."""
    row = connection.execute(FIND, {"uid": sop_uid}).first()
    return None if row is None else to_row(row)


def find_all(connection: sa.Connection, sop_uids: Sequence[str]) -> dict[str, InstanceRow]:
    """Return those of the instances that are stored, by UID."""
    rows = connection.execute(FIND_ALL, {"uids": sop_uids})
    return {row.sop_uid: to_row(row) for row in rows}


def newest_jobs() -> sa.Subquery:
    """Return the newest generation of every series as a subquery."""
    job = schema.job
    newest = sa.select(job.c.series_id, sa.func.max(job.c.generation).label("generation"))
    last = newest.group_by(job.c.series_id).subquery()
    same = (job.c.series_id == last.c.series_id) & (job.c.generation == last.c.generation)
    return sa.select(job).join(last, same).subquery()


def newest_jobs_with_series() -> sa.Select[Any]:
    """Return the query of `listing`, oldest series first."""
    series, job, instance = schema.series, newest_jobs(), schema.instance
    of_series = instance.c.series_id == series.c.id
    count = sa.select(sa.func.count()).where(of_series).scalar_subquery().label("instances")
    named = [series.c.series_uid, series.c.modality, series.c.description]
    columns = [job.c.id, job.c.state, job.c.reason, job.c.derived_series_uid, job.c.published_at]
    joined = sa.select(*named, *columns, count).join(job, job.c.series_id == series.c.id)
    return joined.order_by(series.c.id)


def delivery_figures(connection: sa.Connection) -> dict[int, list[dict[str, Any]]]:
    """Return for each job its deliveries with the number of instances sent and committed."""
    delivery, part = schema.delivery, schema.delivery_instance
    query = (
        sa.select(
            delivery.c.job_id,
            delivery.c.destination,
            delivery.c.state,
            sa.func.count(part.c.sent_at).label("sent"),
            sa.func.count(part.c.committed_at).label("committed"),
        )
        .outerjoin(part, part.c.delivery_id == delivery.c.id)
        .group_by(delivery.c.id, delivery.c.job_id, delivery.c.destination, delivery.c.state)
        .order_by(delivery.c.id)
    )
    figures: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        line = {name: row._mapping[name] for name in ("destination", "state", "sent", "committed")}
        figures.setdefault(row.job_id, []).append(line)
    return figures
