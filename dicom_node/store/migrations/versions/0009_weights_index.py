"""Which jobs were made with recalled weights is asked every two seconds."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Find jobs by their weights."""
    op.create_index("ix_job_weights_sha256", "job", ["weights_sha256"])
