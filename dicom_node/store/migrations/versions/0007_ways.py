"""Ways in and out: what others say about a series that arrives, and the work that they give us."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TIME = sa.DateTime(timezone=True)
UID = sa.String(64)


def upgrade() -> None:
    """Add the tables; nothing has been said and no work was given so far."""
    op.create_table(
        "performed_step",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uid", UID, nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_performed_step"),
        sa.UniqueConstraint("uid", name="uq_performed_step_uid"),
    )
    op.create_table(
        "announced",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("source", sa.String(8), nullable=False),
        sa.Column("announcement_uid", UID, nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
        sa.Column("series_uid", UID, nullable=False),
        sa.Column("instances", sa.JSON, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_announced"),
        sa.UniqueConstraint(
            "announcement_uid", "series_uid", name="uq_announced_announcement_uid_series_uid"
        ),
    )
    op.create_index("ix_announced_series_uid", "announced", ["series_uid"])
    op.create_table(
        "workitem",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
        sa.Column("uid", UID, nullable=False),
        sa.Column("transaction_uid", UID, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("series", sa.JSON, nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workitem"),
        sa.UniqueConstraint("peer", "uid", name="uq_workitem_peer_uid"),
    )
