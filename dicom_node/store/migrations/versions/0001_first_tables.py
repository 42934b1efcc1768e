"""First tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)
UID = sa.String(64)
SHA256 = sa.String(64)


def upgrade() -> None:
    """Make the tables of the first release."""
    make_received()
    make_jobs()
    make_deliveries()
    make_audit()


def make_received() -> None:
    """Make `series` and `instance`."""
    op.create_table(
        "series",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("series_uid", UID, nullable=False),
        sa.Column("study_uid", UID, nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("acknowledged", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_received_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("series_uid", name="uq_series_series_uid"),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("sop_uid", UID, nullable=False),
        sa.Column("sop_class", UID, nullable=False),
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("attributes_sha256", SHA256, nullable=False),
        sa.Column("pixels_sha256", SHA256),
        sa.Column("transfer_syntax", UID, nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("header", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_instance"),
        sa.UniqueConstraint("sop_uid", name="uq_instance_sop_uid"),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name="fk_instance_series_id"),
    )
    op.create_index("ix_instance_series_id", "instance", ["series_id"])


def make_jobs() -> None:
    """Make `job` and `derived_instance`."""
    op.create_table(
        "job",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("held_by", sa.String(16)),
        sa.Column("rule", sa.Text),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("destinations", sa.JSON, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", TIME),
        sa.Column("stage", sa.String(64)),
        sa.Column("progress", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("published_at", TIME),
        sa.Column("incomplete_release", sa.Boolean, nullable=False),
        sa.Column("derived_series_uid", UID),
        sa.Column("recipe_digest", SHA256),
        sa.Column("weights_sha256", SHA256),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("series_id", "generation", name="uq_job_series_id_generation"),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name="fk_job_series_id"),
    )
    op.create_index("ix_job_state_id", "job", ["state", "id"])
    op.create_table(
        "derived_instance",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("sop_uid", UID, nullable=False),
        sa.Column("sop_class", UID, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_derived_instance"),
        sa.UniqueConstraint("sop_uid", name="uq_derived_instance_sop_uid"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_derived_instance_job_id"),
    )
    op.create_index("ix_derived_instance_job_id", "derived_instance", ["job_id"])


def make_deliveries() -> None:
    """Make `delivery` and `delivery_instance`."""
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_try_at", TIME),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.UniqueConstraint("job_id", "destination", name="uq_delivery_job_id_destination"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_delivery_job_id"),
    )
    op.create_index("ix_delivery_state_id", "delivery", ["state", "id"])
    op.create_table(
        "delivery_instance",
        sa.Column("delivery_id", sa.Integer, nullable=False),
        sa.Column("derived_instance_id", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("sent_at", TIME),
        sa.Column("committed_at", TIME),
        sa.PrimaryKeyConstraint("delivery_id", "derived_instance_id", name="pk_delivery_instance"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name="fk_delivery_instance_delivery_id"
        ),
        sa.ForeignKeyConstraint(
            ["derived_instance_id"],
            ["derived_instance.id"],
            name="fk_delivery_instance_derived_instance_id",
        ),
    )


def make_audit() -> None:
    """Make `audit` and `switch`."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("job_id", sa.Integer),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_job_id", "audit", ["job_id"])
    op.create_table(
        "switch",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_switch"),
    )
