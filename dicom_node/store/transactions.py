"""One transaction of Storage Commitment as rows, in either role (PS3.4 J)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dicom_node.store import schema
from dicom_node.store.database import Work

OPEN, REPORTED = "OPEN", "REPORTED"
SCU, SCP = "scu", "scp"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One SOP instance that a transaction is about."""

    sop_uid: str
    sop_class: str


def insert_transaction(
    work: Work,
    role: str,
    peer: str,
    transaction_uid: str,
    instances: Sequence[Reference],
    now: datetime,
    delivery_id: int | None = None,
) -> int:
    """Return the number of a new open transaction; the trail has a row of it."""
    row = {
        "role": role, "peer": peer, "transaction_uid": transaction_uid, "delivery_id": delivery_id,
        "state": OPEN, "attempts": 0, "created_at": now, "reason": "",
    }  # fmt: skip
    query = sa.insert(schema.commitment).values(**row).returning(schema.commitment.c.id)
    number = int(work.execute(query).scalar_one())
    insert_references(work, number, instances)
    event = "commitment.ask" if role == SCU else "commitment.asked"
    fields = {"peer": peer, "transaction": transaction_uid, "instances": len(instances)}
    work.record(event, now, **fields, delivery=delivery_id)
    return number


def insert_references(work: Work, number: int, instances: Sequence[Reference]) -> None:
    """Keep what a transaction is about, each instance once."""
    classes = {one.sop_uid: one.sop_class for one in instances}
    rows = [
        {"commitment_id": number, "sop_uid": uid, "sop_class": sop_class}
        for uid, sop_class in classes.items()
    ]
    work.connection.execute(sa.insert(schema.commitment_instance), rows)


def referenced(connection: sa.Connection, number: int) -> tuple[Reference, ...]:
    """Return what a transaction is about."""
    part = schema.commitment_instance
    query = sa.select(part).where(part.c.commitment_id == number).order_by(part.c.sop_uid)
    rows = connection.execute(query)
    return tuple(Reference(sop_uid=row.sop_uid, sop_class=row.sop_class) for row in rows)


def note_statuses(work: Work, number: int, statuses: Mapping[str, int]) -> None:
    """Keep what was said of each instance: 0, or a Failure Reason."""
    part = schema.commitment_instance
    this = (part.c.commitment_id == number) & (part.c.sop_uid == sa.bindparam("uid"))
    rows = [{"uid": uid, "said": status} for uid, status in statuses.items()]
    if rows:
        work.connection.execute(
            sa.update(part).where(this).values(status=sa.bindparam("said")), rows
        )


def end_transaction(work: Work, number: int, state: str, reason: str, now: datetime) -> None:
    """Close one transaction."""
    table = schema.commitment
    values = {"state": state, "ended_at": now, "next_try_at": None, "reason": reason}
    work.execute(sa.update(table).where(table.c.id == number).values(**values))
