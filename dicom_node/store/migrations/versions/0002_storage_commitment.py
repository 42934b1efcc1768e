"""Storage commitment: its transactions in both roles, and what a delivery still waits for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)
UID = sa.String(64)


def upgrade() -> None:
    """Add the tables of commitment; a delivery that was sent before awaits none."""
    op.add_column(
        "delivery",
        sa.Column("awaits_commitment", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.add_column(
        "delivery", sa.Column("commit_requests", sa.Integer, nullable=False, server_default="0")
    )
    op.add_column(
        "delivery", sa.Column("commit_resends", sa.Integer, nullable=False, server_default="0")
    )
    make_commitment()
    make_commitment_instance()


def make_commitment() -> None:
    """Make `commitment`: one row for each transaction."""
    op.create_table(
        "commitment",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("role", sa.String(3), nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
        sa.Column("transaction_uid", UID, nullable=False),
        sa.Column("delivery_id", sa.Integer),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_try_at", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_commitment"),
        sa.UniqueConstraint(
            "role", "peer", "transaction_uid", name="uq_commitment_role_peer_transaction_uid"
        ),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"], name="fk_commitment_delivery_id"),
    )
    op.create_index("ix_commitment_delivery_id", "commitment", ["delivery_id"])
    op.create_index("ix_commitment_state_id", "commitment", ["state", "id"])


def make_commitment_instance() -> None:
    """Make `commitment_instance`: what a transaction is about."""
    op.create_table(
        "commitment_instance",
        sa.Column("commitment_id", sa.Integer, nullable=False),
        sa.Column("sop_uid", UID, nullable=False),
        sa.Column("sop_class", UID, nullable=False),
        sa.Column("status", sa.Integer),
        sa.PrimaryKeyConstraint("commitment_id", "sop_uid", name="pk_commitment_instance"),
        sa.ForeignKeyConstraint(
            ["commitment_id"], ["commitment.id"], name="fk_commitment_instance_commitment_id"
        ),
    )
