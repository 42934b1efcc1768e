"""The audit trail as a chain of hashes: how a row is linked to the one before it, and the proof.

Every row keeps the SHA-256 over the hash of the row before it, its time, its event and its fields.
The head keeps the newest hash in a table of its own, so that a tail that was cut off shows.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import StoreUnavailable
from dicom_node.store import schema
from dicom_node.store.prepared import OfRows, inserting

GENESIS = "0" * 64  # what the first row follows
HEAD = 1  # the only row of `audit_head`
READ_ROWS = 2000
# One form for one value, so that it does not matter how a database keeps JSON.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
OF_HEAD = schema.audit_head.c
NEWEST = OfRows(
    {"id": OF_HEAD.id.type},
    lambda rows: sa.select(OF_HEAD.hash).where(OF_HEAD.id == rows[0]["id"]).with_for_update(),
)
ADD = inserting(schema.audit, ("at", "event", "job_id", "fields", "hash"), returning="id")
MOVE_HEAD = OfRows(
    {name: OF_HEAD[name].type for name in ("id", "audit_id", "hash")},
    lambda rows: (
        sa.update(schema.audit_head)
        .where(OF_HEAD.id == rows[0]["id"])
        .values(audit_id=rows[0]["audit_id"], hash=rows[0]["hash"])
    ),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the trail before it has a number."""

    at: datetime
    event: str
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What reading the whole trail showed; `broken` is empty when nothing was touched."""

    rows: int
    head: str
    broken: str = ""


def link(previous: str, at: datetime, event: str, fields: dict[str, Any]) -> str:
    """Return the hash of a row that follows `previous`.

    This is for ever: the migration and every trail already written use it.
    """
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    return hashlib.sha256(canonical([previous, moment, event, fields]).encode()).hexdigest()


def append(connection: sa.Connection, entries: Sequence[Entry]) -> None:
    """Add `entries` to the trail, in their order.

    Call it last in a transaction: on PostgreSQL it waits for the head's lock, and who holds that
    and then asks for another row could wait in a circle.

    Raises
    ------
    StoreUnavailable
        If somebody has taken the head away: nothing more can be proved.
    """
    if not entries:
        return
    newest = NEWEST.run(connection, [{"id": HEAD}]).scalar_one_or_none()
    if newest is None:
        raise StoreUnavailable("the audit trail has no head: run dicom-node verify")
    number: int | None = None
    for entry in entries:
        fields = schema.storable(entry.fields)
        newest = link(newest, entry.at, entry.event, fields)
        row = {"at": entry.at, "event": entry.event, "job_id": fields.get("job"), "fields": fields}
        number = ADD.run(connection, [row | {"hash": newest}]).scalar_one()
    MOVE_HEAD.run(connection, [{"id": HEAD, "audit_id": number, "hash": newest}])


def prove(connection: sa.Connection) -> Proof:
    """Return whether the trail is the one that was written; names the first row that is not.

    `connection` must see one state of the database; the rows are streamed.
    """
    head = schema.audit_head
    end = connection.execute(sa.select(head).where(head.c.id == HEAD)).first()
    rows = connection.execution_options(yield_per=READ_ROWS).execute(as_they_lie(connection))
    count, last, newest = 0, 0, GENESIS
    for row in rows:
        if not follows(newest, row):
            rows.close()
            return Proof(rows=count, head=newest, broken=f"{name_of(row)} {BROKEN}")
        count, last, newest = count + 1, row.id, row.hash
    return Proof(rows=count, head=newest, broken=wrong_end(end, last, newest))


BROKEN = (
    "does not follow from the row before it: it was changed, or a row was removed, added or moved"
)


def as_they_lie(connection: sa.Connection) -> sa.Select[Any]:
    """Return the query of all rows with values as text, where a touched one may be no value."""
    table = schema.audit
    naive = connection.dialect.name == "sqlite"
    at = sa.cast(table.c.at, sa.Text).label("at") if naive else table.c.at
    fields = sa.cast(table.c.fields, sa.Text).label("fields")
    columns = (table.c.id, at, table.c.event, table.c.job_id, fields, table.c.hash)
    return sa.select(*columns).order_by(table.c.id)


def follows(previous: str, row: sa.Row[Any]) -> bool:
    """Return True when `row`, as it lies in the database, is linked to `previous`."""
    at = row.at
    try:
        if isinstance(at, str):  # SQLite keeps naive UTC
            at = datetime.fromisoformat(at).replace(tzinfo=UTC)
        fields = json.loads(row.fields)
    except (ValueError, TypeError):
        return False
    same_job = isinstance(fields, dict) and fields.get("job") == row.job_id
    return same_job and link(previous, at, row.event, fields) == row.hash


def name_of(row: sa.Row[Any]) -> str:
    """Return which row this is, for people."""
    at = row.at if isinstance(row.at, str) else row.at.astimezone(UTC).replace(tzinfo=None)
    return f"audit row {row.id} ({at}, {row.event})"


def wrong_end(end: sa.Row[Any] | None, last: int, newest: str) -> str:
    """Return what is wrong where a chain ends that holds so far, or nothing."""
    if end is None:
        return "the audit trail has no head: nothing shows whether its last rows are there"
    if (end.audit_id, end.hash) == (last, newest):
        return ""
    return (
        f"the audit trail ends with row {last}, but the last one written was row {end.audit_id}: "
        "rows at its end were removed or added"
    )
