"""What is asked for all the time is found without looking at the rows of years."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

PARTS = {
    "ix_job_note": ("job", "state", "generation < 0"),
    "ix_job_withdrawn": ("job", "id", "withdrawn_at IS NOT NULL"),
    "ix_delivery_awaited": ("delivery", "id", "awaits_commitment"),
    "ix_audit_clock_step": ("audit", "at", "event = 'clock.set'"),
}


def upgrade() -> None:
    """Index jobs by what a recall concerns and by their last change, and what is few by itself."""
    op.drop_index("ix_job_weights_sha256", "job")
    op.drop_index("ix_job_withdrawn_at", "job")
    op.create_index("ix_job_weights_sha256_withdrawn_at", "job", ["weights_sha256", "withdrawn_at"])
    op.create_index("ix_job_state_updated_at", "job", ["state", "updated_at"])
    for name, (table, column, condition) in PARTS.items():
        number = " = 1" if condition == "awaits_commitment" else ""  # SQLite has no booleans
        op.create_index(
            name,
            table,
            [column],
            sqlite_where=sa.text(condition + number),
            postgresql_where=sa.text(condition),
        )
