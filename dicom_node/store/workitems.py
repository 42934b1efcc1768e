"""The work that we have claimed from managers, until they know what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.store import schema
from dicom_node.store.database import Database, Work

CLAIMING, CLAIMED, WORKING = "CLAIMING", "CLAIMED", "WORKING"
COMPLETED, CANCELED, LOST = "COMPLETED", "CANCELED", "LOST"
OPEN = (CLAIMING, CLAIMED, WORKING)


@dataclass(frozen=True, kw_only=True)
class WorkitemRow:
    """One claim as stored."""

    id: int
    peer: str
    uid: str
    transaction_uid: str
    state: str
    series: tuple[Mapping[str, Any], ...]  # as `network.ups.Input`, and the code of the work
    progress: int
    reason: str
    created_at: datetime
    updated_at: datetime


class WorkitemStore:
    """Claims, each on record before the manager hears of it."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def open_ones(self, peer: str) -> list[WorkitemRow]:
        """Return the claims at a manager that have not ended, oldest first."""
        table = schema.workitem
        mine = (table.c.peer == peer) & table.c.state.in_(OPEN)
        return self._rows(sa.select(table).where(mine).order_by(table.c.id))

    def known(self, peer: str) -> set[str]:
        """Return the UIDs of all workitems of a manager that we ever claimed."""
        table = schema.workitem
        with self._database.reading() as connection:
            found = connection.execute(sa.select(table.c.uid).where(table.c.peer == peer))
            return set(found.scalars())

    def listing(self) -> list[WorkitemRow]:
        """Return every claim, oldest first."""
        return self._rows(sa.select(schema.workitem).order_by(schema.workitem.c.id))

    def begin(
        self,
        peer: str,
        uid: str,
        transaction_uid: str,
        series: Sequence[Mapping[str, Any]],
        now: datetime,
    ) -> WorkitemRow:
        """Return a new claim: what is on record can be taken up after a crash."""
        row = {
            "peer": peer, "uid": uid, "transaction_uid": transaction_uid, "state": CLAIMING,
            "series": list(series), "progress": 0, "reason": "",
            "created_at": now, "updated_at": now,
        }  # fmt: skip
        with self._database.transaction() as work:
            query = sa.insert(schema.workitem).values(**row).returning(schema.workitem.c.id)
            number = int(work.execute(query).scalar_one())
            work.record("workitem.claim", now, peer=peer, sop=uid, count=len(series))
        return WorkitemRow(**{**row, "series": tuple(series)}, id=number)  # type: ignore[arg-type]

    def move(
        self, one: WorkitemRow, state: str, now: datetime, *, progress: int = 0, reason: str = ""
    ) -> None:
        """Keep how a claim stands."""
        table = schema.workitem
        values = {"state": state, "progress": progress, "reason": reason, "updated_at": now}
        with self._database.transaction() as work:
            work.execute(sa.update(table).where(table.c.id == one.id).values(**values))
            if state != one.state:
                note(work, one, state, reason, now)

    def _rows(self, query: sa.Select[Any]) -> list[WorkitemRow]:
        with self._database.reading() as connection:
            rows = [dict(row._mapping) for row in connection.execute(query)]
        return [WorkitemRow(**row | {"series": tuple(row["series"])}) for row in rows]


def note(work: Work, one: WorkitemRow, state: str, reason: str, now: datetime) -> None:
    """Leave a row in the trail."""
    fields = {"peer": one.peer, "sop": one.uid, "old": one.state, "state": state}
    work.record("workitem.move", now, **fields, reason=reason)
