"""What scanners and archives say about a series: an MPPS, an instance availability notification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import NodeError
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work

MPPS, IAN = "MPPS", "IAN"
IN_PROGRESS, COMPLETED, DISCONTINUED = "IN PROGRESS", "COMPLETED", "DISCONTINUED"


class StepRefused(NodeError):
    """A procedure step cannot be created or changed; `status` is the answer (PS3.4 F.7.2)."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """Who names which instances of a series."""

    source: str
    peer: str
    instances: frozenset[str]


class HintStore:
    """Procedure steps that are under way, and what was said when they ended."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def begin(self, uid: str, peer: str, now: datetime) -> None:
        """Keep a new procedure step.

        Raises
        ------
        StepRefused
            If there is one of that UID (0x0111).
        """
        table = schema.performed_step
        with self._database.transaction() as work:
            if step_row(work, uid) is not None:
                raise StepRefused(f"procedure step {uid} is known", 0x0111)
            row = {"uid": uid, "peer": peer, "state": IN_PROGRESS}
            work.execute(sa.insert(table).values(**row, created_at=now, updated_at=now))
            work.record("mpps.begin", now, peer=peer, sop=uid)

    def update(
        self, uid: str, peer: str, state: str, series: Mapping[str, Sequence[str]], now: datetime
    ) -> None:
        """Keep the state of a procedure step, and what it has made once it is COMPLETED.

        Raises
        ------
        StepRefused
            If it is unknown (0x0112), or has ended before (0x0110).
        """
        table = schema.performed_step
        with self._database.transaction() as work:
            row = step_row(work, uid)
            if row is None or row.peer != peer:
                raise StepRefused(f"procedure step {uid} is not known from {peer}", 0x0112)
            if row.state != IN_PROGRESS:
                raise StepRefused(f"procedure step {uid} is {row.state}", 0x0110)
            values = {"state": state, "updated_at": now}
            work.execute(sa.update(table).where(table.c.id == row.id).values(**values))
            if state == COMPLETED:
                announce(work, MPPS, uid, peer, series, now)
            if state != IN_PROGRESS:
                work.record("mpps.end", now, peer=peer, sop=uid, state=state, count=len(series))

    def notify(
        self, uid: str, peer: str, series: Mapping[str, Sequence[str]], now: datetime
    ) -> None:
        """Keep what an instance availability notification names."""
        with self._database.transaction() as work:
            announce(work, IAN, uid, peer, series, now)
            work.record("ian.received", now, peer=peer, sop=uid, count=len(series))

    def about(self, series_id: int) -> list[Announcement]:
        """Return what was said about a series that has arrived, oldest first."""
        table, series = schema.announced, schema.series
        query = (
            sa.select(table)
            .join(series, series.c.series_uid == table.c.series_uid)
            .where(series.c.id == series_id)
            .order_by(table.c.id)
        )
        with self._database.reading() as connection:
            return [
                Announcement(source=row.source, peer=row.peer, instances=frozenset(row.instances))
                for row in connection.execute(query)
            ]

    def whole(self) -> list[tuple[int, int]]:
        """Return (job_id, series_id) of every series that is being received and has come wholly.

        That is: of which somebody has named the instances, and these are what is here. Where more
        is here, or an image was corrected, nobody has said what else is to come.
        """
        job, series, said = schema.job, schema.series, schema.announced
        # Asked every second: no list is read of a series that has got fewer than one names.
        other = schema.announced.alias()
        more = sa.select(other.c.id).where(
            other.c.series_uid == series.c.series_uid,
            sa.func.json_array_length(other.c.instances) > series.c.acknowledged,
        )
        query = (
            sa.select(job.c.id, job.c.series_id, said.c.instances)
            .join(series, series.c.id == job.c.series_id)
            .join(said, said.c.series_uid == series.c.series_uid)
            .where(job.c.state == JobState.RECEIVING, ~more.exists())
            .order_by(job.c.id)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            named: dict[tuple[int, int], set[str]] = {}
            for row in rows:
                named.setdefault((row.id, row.series_id), set()).update(row.instances)
            return [key for key, uids in named.items() if uids == received(connection, key[1])]


def step_row(work: Work, uid: str) -> Any:
    """Return the row of a procedure step, locked; None if it is unknown."""
    table = schema.performed_step
    return work.execute(sa.select(table).where(table.c.uid == uid).with_for_update()).first()


def announce(
    work: Work,
    source: str,
    uid: str,
    peer: str,
    series: Mapping[str, Sequence[str]],
    now: datetime,
) -> None:
    """Keep which instances make each series; what the same announcement said before is replaced."""
    table = schema.announced
    work.execute(sa.delete(table).where(table.c.announcement_uid == uid))
    rows = [
        {
            "source": source, "announcement_uid": uid, "peer": peer, "series_uid": series_uid,
            "instances": sorted(set(instances)), "at": now,
        }
        for series_uid, instances in series.items()
        if instances
    ]  # fmt: skip
    if rows:
        work.connection.execute(sa.insert(table), rows)


def received(connection: sa.Connection, series_id: int) -> set[str]:
    """Return the SOP instance UIDs of a series that are here; none while it is corrected."""
    table = schema.instance
    query = sa.select(table.c.sop_uid, table.c.replaced)
    query = query.where(table.c.series_id == series_id, table.c.removal_id.is_(None))
    rows = connection.execute(query).all()
    return set() if any(row.replaced for row in rows) else {row.sop_uid for row in rows}
