"""Storage commitment as SCP on record: what peers asked us, until they have our report.

Source: PS3.4 J.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.series import newest_jobs
from dicom_node.store.transactions import (
    OPEN,
    REPORTED,
    SCP,
    Reference,
    end_transaction,
    insert_references,
    insert_transaction,
    note_statuses,
    referenced,
)


@dataclass(frozen=True, kw_only=True)
class Debt:
    """A transaction of a peer that waits for our N-EVENT-REPORT."""

    commitment_id: int
    peer: str
    transaction_uid: str
    attempts: int
    asked_at: datetime
    instances: tuple[Reference, ...]


class DebtStore:
    """Transactions of Storage Commitment that peers began: each is owed one report."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def accept(
        self, peer: str, transaction_uid: str, instances: Sequence[Reference], now: datetime
    ) -> int:
        """Return the number of a peer's request that will be answered; a repeated one is the same.

        Unless we have promised something under its UID: a promise outlives whatever a peer asks
        later, about the same images or others. When this returns the request is durable.
        """
        table, part = schema.commitment, schema.commitment_instance
        with self._database.transaction() as work:
            row = peers_request(work, peer, transaction_uid)
            if row is not None and has_promised(work, row.id):
                retire(work, row.id, now)
                row = None
            if row is None:
                return insert_transaction(work, SCP, peer, transaction_uid, instances, now)
            work.execute(sa.delete(part).where(part.c.commitment_id == row.id))
            insert_references(work, row.id, instances)
            again: dict[str, Any] = {"state": OPEN, "attempts": 0, "created_at": now}
            again |= {"next_try_at": None, "ended_at": None}
            work.execute(sa.update(table).where(table.c.id == row.id).values(**again))
            return int(row.id)

    def due(self, now: datetime) -> list[Debt]:
        """Return the peers' requests to be answered now, oldest first."""
        table = schema.commitment
        ready = (table.c.next_try_at.is_(None)) | (table.c.next_try_at <= now)
        mine = (table.c.role == SCP) & (table.c.state == OPEN)
        query = sa.select(table).where(mine, ready).order_by(table.c.id)
        with self._database.reading() as connection:
            return [
                Debt(
                    commitment_id=row.id,
                    peer=row.peer,
                    transaction_uid=row.transaction_uid,
                    attempts=row.attempts,
                    asked_at=row.created_at,
                    instances=referenced(connection, row.id),
                )
                for row in connection.execute(query).all()
            ]

    def promise(self, debt: Debt, statuses: Mapping[str, int]) -> None:
        """Put on record what a report will say, before it leaves: retention goes by it."""
        with self._database.transaction() as work:
            note_statuses(work, debt.commitment_id, statuses)

    def paid(self, debt: Debt, statuses: Mapping[str, int], now: datetime) -> None:
        """Record that the peer has our report, and what it said."""
        with self._database.transaction() as work:
            note_statuses(work, debt.commitment_id, statuses)
            failed = sum(status != 0 for status in statuses.values())
            reason = f"{len(statuses) - failed} instances committed, {failed} not."
            end_transaction(work, debt.commitment_id, REPORTED, reason, now)
            work.record(
                "commitment.reported", now, peer=debt.peer, transaction=debt.transaction_uid,
                committed=len(statuses) - failed, failed=failed,
            )  # fmt: skip

    def postpone(
        self, debt: Debt, reason: str, now: datetime, next_try_at: datetime | None
    ) -> None:
        """Record an attempt at reporting that failed; without `next_try_at` it was the last."""
        table = schema.commitment
        values: dict[str, Any] = {"attempts": debt.attempts + 1, "next_try_at": next_try_at}
        values |= {"reason": reason} if next_try_at else {"state": "DEAD", "ended_at": now}
        with self._database.transaction() as work:
            this = table.c.id == debt.commitment_id
            work.execute(sa.update(table).where(this).values(**values))
            work.record(
                "commitment.unreported", now, peer=debt.peer, reason=reason,
                transaction=debt.transaction_uid, attempt=debt.attempts + 1,
            )  # fmt: skip

    def wait(self, debt: Debt, until: datetime) -> None:
        """Look at a peer's request again at `until`: what it asks for is under way."""
        table = schema.commitment
        this = table.c.id == debt.commitment_id
        with self._database.transaction() as work:
            work.execute(sa.update(table).where(this).values(next_try_at=until))

    def under_way(self, sop_uids: Sequence[str]) -> bool:
        """Return whether one of `sop_uids` is still being received, or being forwarded."""
        instance, job = schema.instance, newest_jobs()
        forwarded = (job.c.state == JobState.DERIVED) & job.c.derived_series_uid.is_(None)
        query = (
            sa.select(instance.c.id)
            .join(job, job.c.series_id == instance.c.series_id)
            .where(instance.c.sop_uid.in_(sop_uids))
            .where((job.c.state == JobState.RECEIVING) | forwarded)
        )
        with self._database.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def kept_by_a_destination(self, sop_uids: Sequence[str]) -> set[str]:
        """Return those of `sop_uids` that a destination has committed to us."""
        part, sent = schema.delivery_instance, schema.derived_instance
        query = (
            sa.select(sent.c.sop_uid)
            .join(part, part.c.derived_instance_id == sent.c.id)
            .where(part.c.committed_at.is_not(None), sent.c.sop_uid.in_(sop_uids))
        )
        with self._database.reading() as connection:
            return set(connection.execute(query).scalars())


def has_promised(work: Work, commitment_id: int) -> bool:
    """Return whether a transaction has committed an image, whether the peer has heard it or not."""
    part = schema.commitment_instance
    kept = sa.select(part.c.sop_uid).where(
        part.c.commitment_id == commitment_id, part.c.status == 0
    )
    return work.execute(kept.limit(1)).first() is not None


def retire(work: Work, commitment_id: int, now: datetime) -> None:
    """Let a peer use a transaction's UID again; what we promised under it stays on record."""
    table = schema.commitment
    values: dict[str, Any] = {"transaction_uid": f"retired.{commitment_id}", "state": REPORTED}
    values |= {"next_try_at": None, "ended_at": now}
    work.execute(sa.update(table).where(table.c.id == commitment_id).values(**values))


def peers_request(work: Work, peer: str, transaction_uid: str) -> sa.Row[Any] | None:
    """Return the row of a peer's request, locked, or None."""
    table = schema.commitment
    this = (table.c.role == SCP) & (table.c.transaction_uid == transaction_uid)
    query = sa.select(table).where(this, table.c.peer == peer)
    return work.execute(query.with_for_update()).first()
