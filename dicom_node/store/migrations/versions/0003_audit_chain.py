"""The audit trail becomes a chain of hashes that nobody can change unnoticed."""

import sqlalchemy as sa
from alembic import op

from dicom_node.store.chain import GENESIS, HEAD, link
from dicom_node.store.schema import UtcDateTime

revision = "0003"
down_revision = "0002"

SHA256 = sa.String(64)
REFUSAL = "the audit trail is append-only"
ROWS = 1000

AUDIT = sa.table(
    "audit",
    sa.column("id", sa.Integer),
    sa.column("at", UtcDateTime),
    sa.column("event", sa.String),
    sa.column("fields", sa.JSON),
    sa.column("hash", SHA256),
)


def upgrade() -> None:
    """Link the rows that are there, then refuse to change them."""
    # A row that somebody slips in without a hash has none, and `verify` names it.
    op.add_column("audit", sa.Column("hash", SHA256, nullable=False, server_default=""))
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("audit_id", sa.Integer, nullable=False),
        sa.Column("hash", SHA256, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.create_table(
        "audit_export",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("audit_id", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_audit_export"),
    )
    last, newest = link_old_rows(op.get_bind())
    head = sa.table("audit_head", *map(sa.column, ("id", "audit_id", "hash")))
    op.execute(sa.insert(head).values(id=HEAD, audit_id=last, hash=newest))
    export = sa.table("audit_export", *map(sa.column, ("id", "audit_id", "failures")))
    op.execute(sa.insert(export).values(id=1, audit_id=0, failures=0))
    if op.get_bind().dialect.name == "sqlite":
        refuse_on_sqlite()
    else:
        refuse_on_postgresql()


def link_old_rows(connection: sa.Connection) -> tuple[int, str]:
    """Return number and hash of the last row, after each one got its hash."""
    last, newest = 0, GENESIS
    place = sa.update(AUDIT).where(AUDIT.c.id == sa.bindparam("row"))
    place = place.values(hash=sa.bindparam("its_hash"))
    while True:
        query = sa.select(AUDIT).where(AUDIT.c.id > last).order_by(AUDIT.c.id).limit(ROWS)
        hashes = []
        for row in connection.execute(query).all():
            last, newest = row.id, link(newest, row.at, row.event, row.fields)
            hashes.append({"row": last, "its_hash": newest})
        if not hashes:
            return last, newest
        connection.execute(place, hashes)


def refuse_on_sqlite() -> None:
    """Make the triggers of SQLite."""
    refuse = f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    op.execute(f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {refuse}")
    op.execute(f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {refuse}")
    op.execute(f"CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head {refuse}")
    # INSERT OR REPLACE deletes without asking the trigger above.
    known = "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)"
    op.execute(f"CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit {known} {refuse}")


def refuse_on_postgresql() -> None:
    """Make the triggers of PostgreSQL."""
    body = f"BEGIN RAISE EXCEPTION '{REFUSAL}'; END"
    op.execute(
        f"CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
    )
    for table, deeds in (
        ("audit", "UPDATE OR DELETE OR TRUNCATE"),
        ("audit_head", "DELETE OR TRUNCATE"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE {deeds} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()"
        )
