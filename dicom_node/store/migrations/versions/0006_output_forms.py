"""Output forms: what each derived instance is, and which destinations get it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; what was made so far is one series for every destination."""
    op.add_column("derived_instance", sa.Column("kind", sa.String(32)))
    op.add_column("derived_instance", sa.Column("series_uid", sa.String(64)))
    op.add_column("derived_instance", sa.Column("destinations", sa.JSON))
