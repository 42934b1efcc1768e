"""Deliveries: why an instance has no status."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the fault; what failed before without a status is not known any more."""
    op.add_column("delivery_instance", sa.Column("fault", sa.String(32)))
