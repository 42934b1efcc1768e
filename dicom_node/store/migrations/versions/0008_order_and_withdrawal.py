"""What stands in which order in the queue, what is withdrawn, and which weights are recalled."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns and the tables; what is queued has waited since its last change."""
    for column in (
        sa.Column("withdrawal", sa.JSON),
        sa.Column("withdrawn_at", TIME),
        sa.Column("unsendable", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("source", sa.String(16), nullable=False, server_default=""),
        sa.Column("windows", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("queued_at", TIME),
        sa.Column("claimed_at", TIME),
    ):
        op.add_column("job", column)
    op.add_column("instance", sa.Column("replaced", sa.JSON, nullable=False, server_default="[]"))
    op.create_index("ix_job_withdrawn_at", "job", ["withdrawn_at"])
    op.create_index("ix_job_claimed_at", "job", ["claimed_at"])
    op.execute("UPDATE job SET queued_at = updated_at WHERE state = 'QUEUED'")
    op.create_table(
        "rejection",
        sa.Column("sop_uid", sa.String(64), nullable=False),
        sa.Column("title", sa.String(16), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("sop_uid", name="pk_rejection"),
    )
    op.create_table(
        "recall",
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("weights_sha256", name="pk_recall"),
    )
