"""How far the audit trail has been handed to a collector, and what a message about a row needs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.store import schema
from dicom_node.store.audit import AuditRow, columns
from dicom_node.store.database import Database

STATE = 1  # the only row of `audit_export`


@dataclass(frozen=True, kw_only=True)
class ExportState:
    """Where the export stands."""

    audit_id: int  # the last row that was handed over
    failures: int  # tries since then
    next_try_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What was transferred: study, series, instances by SOP class, and who sent it to us."""

    study_uid: str
    series_uids: tuple[str, ...]
    instances: Mapping[str, int]
    sources: tuple[str, ...]


class AuditExport:
    """The export's place in the trail; it is in the database, so a restart loses nothing."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def state(self) -> ExportState:
        """Return where the export stands."""
        table = schema.audit_export
        query = sa.select(table.c.audit_id, table.c.failures, table.c.next_try_at)
        with self._database.reading() as connection:
            return ExportState(**connection.execute(query).one()._mapping)

    def after(self, audit_id: int, most: int) -> list[AuditRow]:
        """Return the next rows after `audit_id`, oldest first."""
        query = columns().where(schema.audit.c.id > audit_id).order_by(schema.audit.c.id)
        with self._database.reading() as connection:
            return [AuditRow(**row._mapping) for row in connection.execute(query.limit(most))]

    def backlog(self) -> int:
        """Return how many rows have not been handed over."""
        done = sa.select(schema.audit_export.c.audit_id).scalar_subquery()
        query = sa.select(sa.func.count()).where(schema.audit.c.id > done)
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)

    def note(self, state: ExportState) -> None:
        """Keep where the export stands."""
        values = {name: getattr(state, name) for name in ("audit_id", "failures", "next_try_at")}
        table = schema.audit_export
        with self._database.transaction() as work:
            work.execute(sa.update(table).where(table.c.id == STATE).values(**values))

    def received(self, *, job_id: int | None = None, sop_uid: str | None = None) -> Transfer | None:
        """Return the received series of a job, or of an instance; None for an unknown one."""
        series, instance, job = schema.series, schema.instance, schema.job
        if job_id is not None:
            this = sa.select(job.c.series_id).where(job.c.id == job_id)
        else:
            this = sa.select(instance.c.series_id).where(instance.c.sop_uid == sop_uid)
        parts = (
            sa.select(instance.c.sop_class, instance.c.calling_ae, sa.func.count().label("number"))
            .where(instance.c.series_id.in_(this))
            .group_by(instance.c.sop_class, instance.c.calling_ae)
        )
        with self._database.reading() as connection:
            row = connection.execute(sa.select(series).where(series.c.id.in_(this))).first()
            if row is None:
                return None
            return transfer(row.study_uid, [row.series_uid], connection.execute(parts).all())

    def sent(self, job_id: int, destination: str) -> Transfer | None:
        """Return what a job sends to a destination; None for an unknown job."""
        series, job, derived = schema.series, schema.job, schema.derived_instance
        whole = sa.func.coalesce(job.c.derived_series_uid, series.c.series_uid).label("series_uid")
        query = sa.select(series.c.study_uid, whole)
        query = query.join(job, job.c.series_id == series.c.id).where(job.c.id == job_id)
        delivery, part = schema.delivery, schema.delivery_instance
        parts = (
            sa.select(
                derived.c.sop_class,
                derived.c.series_uid,
                sa.func.count().label("number"),
            )
            .join(part, part.c.derived_instance_id == derived.c.id)
            .join(delivery, delivery.c.id == part.c.delivery_id)
            .where(delivery.c.job_id == job_id, delivery.c.destination == destination)
            .group_by(derived.c.sop_class, derived.c.series_uid)
            .order_by(sa.func.min(derived.c.id))
        )
        with self._database.reading() as connection:
            row = connection.execute(query).first()
            if row is None:
                return None
            sent = connection.execute(parts).all()
            uids = [one.series_uid or row.series_uid for one in sent] or [row.series_uid]
            return transfer(row.study_uid, uids, sent)


def transfer(study_uid: str, series_uids: Iterable[str], parts: Iterable[Any]) -> Transfer:
    """Return the value of series and their instances counted by class (and calling AE title)."""
    instances: Counter[str] = Counter()
    sources = set()
    for part in parts:
        instances[part.sop_class] += part.number
        sources.add(part._mapping.get("calling_ae"))
    return Transfer(
        study_uid=study_uid,
        series_uids=tuple(dict.fromkeys(series_uids)),
        instances=dict(instances),
        sources=tuple(sorted(source for source in sources if source)),
    )
