"""The audit trail: rows are added, never changed, each linked to the one before it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.store import schema
from dicom_node.store.chain import Proof, prove
from dicom_node.store.database import Database


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One line of the audit trail."""

    id: int
    at: datetime
    event: str
    job_id: int | None
    fields: dict[str, Any]


class AuditStore:
    """The audit trail."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def record(self, event: str, now: datetime, **fields: Any) -> None:
        """Add one row and one log line; fields that telemetry does not know are withheld."""
        with self._database.transaction() as work:
            work.record(event, now, **fields)

    def listing(self, *, job_id: int | None = None, limit: int | None = None) -> list[AuditRow]:
        """Return the trail, oldest first: of one job, or the last `limit` rows."""
        query = columns().order_by(schema.audit.c.id.desc()).limit(limit)
        if job_id is not None:
            query = query.where(schema.audit.c.job_id == job_id)
        with self._database.reading() as connection:
            rows = [AuditRow(**row._mapping) for row in connection.execute(query)]
        return rows[::-1]

    def newest_times(self, count: int) -> list[datetime]:
        """Return the times of the last `count` rows, the newest first."""
        query = sa.select(schema.audit.c.at).order_by(schema.audit.c.id.desc()).limit(count)
        with self._database.reading() as connection:
            return list(connection.scalars(query))

    def clock_steps(self, at: datetime) -> list[AuditRow]:
        """Return the rows that say since `at` that the clock was set, whatever came after them."""
        these = schema.IS_CLOCK_STEP & (schema.audit.c.at > at)
        with self._database.reading() as connection:
            return [AuditRow(**row._mapping) for row in connection.execute(columns().where(these))]

    def prove(self) -> Proof:
        """Return whether every row is as it was written."""
        with self._database.reading() as connection:
            return prove(connection)


def columns() -> sa.Select[Any]:
    """Return the query of whole rows."""
    table = schema.audit
    return sa.select(table.c.id, table.c.at, table.c.event, table.c.job_id, table.c.fields)
