"""Retention: which decision a file goes by, or is gone by."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the decisions; every file that is known so far is there."""
    op.create_table(
        "removal",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("decided_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_removal"),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name="fk_removal_series_id"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_removal_job_id"),
    )
    op.create_index("ix_removal_series_id", "removal", ["series_id"])
    op.create_index("ix_removal_ended_at", "removal", ["ended_at"])
    for table in ("instance", "derived_instance"):
        # In words of SQL: alembic adds the constraint apart, which SQLite cannot.
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN removal_id INTEGER "
            f"CONSTRAINT fk_{table}_removal_id REFERENCES removal (id)"
        )
        op.create_index(f"ix_{table}_removal_id", table, ["removal_id"])
