"""The tables (SQLAlchemy 2). The migrations build them; a test holds both equal.

A row of `job` is one generation of one series' life; the state of a series is the state of its
newest job. Generation -n is the rejection note about generation n: whatever sends a result sends
it, too, and it is never anybody's newest job.
"""

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC instants; SQLite, which has no zones, keeps them as naive UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return `value` as the database keeps it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored time needs a zone: {value.isoformat()}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """Return the stored instant as an aware one."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """Text that others wrote; PostgreSQL keeps neither NUL nor half a surrogate pair."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Return `value` as every database keeps it."""
        if value is None:
            return None
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def storable(value: Any) -> Any:
    """Return `value` as it will be read: {1: "a"} as {"1": "a"}, tuples as lists, NaN as None."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def json_text(value: Any) -> str:
    """Return `value` as JSON that every database takes: it knows no NaN."""
    try:
        return without_nan(value)
    except ValueError:
        return json.dumps(storable(value))


without_nan = json.JSONEncoder(allow_nan=False).encode  # raises ValueError


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
UID = sa.String(64)
SHA256 = sa.String(64)


def foreign(name: str, target: str, **options: Any) -> sa.Column[int]:
    """Return a column `name` that points at `target`."""
    return sa.Column(name, sa.Integer, sa.ForeignKey(target), nullable=False, **options)


series = sa.Table(
    "series",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("series_uid", UID, nullable=False, unique=True),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("description", Words, nullable=False),
    sa.Column("acknowledged", sa.Integer, nullable=False),  # counted apart: checks the ledger
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("last_received_at", UtcDateTime, nullable=False),
)

removal = sa.Table(  # one decision of retention: these files are to go, and why
    "removal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    foreign("series_id", "series.id", index=True),
    foreign("job_id", "job.id"),  # whose result, or the newest job of the originals
    sa.Column("kind", sa.String(16), nullable=False),  # "originals" or "derived"
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("decided_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime, index=True),  # NULL: its files may still be there
)

instance = sa.Table(
    "instance",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sop_uid", UID, nullable=False, unique=True),
    sa.Column("sop_class", UID, nullable=False),
    foreign("series_id", "series.id", index=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", SHA256, nullable=False),
    sa.Column("attributes_sha256", SHA256, nullable=False),
    # Of the decoded pixels, where somebody decoded them; "" where nobody can.
    sa.Column("pixels_sha256", SHA256),
    sa.Column("transfer_syntax", UID, nullable=False),
    sa.Column("calling_ae", sa.String(16), nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("header", sa.JSON, nullable=False),  # rules.HEADER_KEYS, no patient attribute
    # NULL: the file is there; else the decision by which it goes, or is gone.
    sa.Column("removal_id", sa.Integer, sa.ForeignKey("removal.id"), index=True),
    # The attributes' digests of what a correction has replaced: they never come back.
    sa.Column("replaced", sa.JSON, nullable=False, server_default="[]"),
)

job = sa.Table(
    "job",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    foreign("series_id", "series.id"),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("held_by", sa.String(16)),
    sa.Column("rule", sa.Text),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("destinations", sa.JSON, nullable=False),
    sa.Column("worker", sa.Text),
    sa.Column("lease_until", UtcDateTime),
    sa.Column("stage", sa.String(64)),  # what the worker is at, for people
    sa.Column("progress", sa.Float),  # 0 to 1
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("published_at", UtcDateTime),  # from here on the derived UIDs are taken
    sa.Column("incomplete_release", sa.Boolean, nullable=False),
    sa.Column("derived_series_uid", UID),
    sa.Column("recipe_digest", SHA256),
    sa.Column("weights_sha256", SHA256),
    sa.Column("figures", sa.JSON, nullable=False),
    # NULL: it stands; else why not: {"title", "modifiers", "reason"} (`withdrawals.Grounds`).
    sa.Column("withdrawal", sa.JSON(none_as_null=True)),
    sa.Column("withdrawn_at", UtcDateTime),
    # No note can be made about it: a person must reject it in the archive.
    sa.Column("unsendable", sa.Boolean, nullable=False, server_default=sa.false()),
    # Of the queue: who sent the series, when it may be begun, how long it has waited.
    sa.Column("source", sa.String(16), nullable=False, server_default=""),
    sa.Column("windows", sa.JSON, nullable=False, server_default="[]"),  # local time: "22:00-06:00"
    sa.Column("queued_at", UtcDateTime),  # for the first time since the series was complete
    sa.Column("claimed_at", UtcDateTime, index=True),  # for the last time
    sa.UniqueConstraint("series_id", "generation"),
    sa.Index(None, "state", "id"),
    sa.Index(None, "state", "updated_at"),
    sa.Index(None, "weights_sha256", "withdrawn_at"),  # recalls look for it every two seconds
)
# What is few among the rows of years and asked for every other second, or with every look at the
# page. Literal numbers: an index of a part serves no statement whose parameters may say otherwise.
IS_NOTE = job.c.generation < sa.literal_column("0")
IS_WITHDRAWN = job.c.withdrawn_at.is_not(None)
sa.Index("ix_job_note", job.c.state, sqlite_where=IS_NOTE, postgresql_where=IS_NOTE)
sa.Index("ix_job_withdrawn", job.c.id, sqlite_where=IS_WITHDRAWN, postgresql_where=IS_WITHDRAWN)

derived_instance = sa.Table(  # what a job has to send: its result, or forwarded originals
    "derived_instance",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    foreign("job_id", "job.id", index=True),
    sa.Column("sop_uid", UID, nullable=False, unique=True),
    sa.Column("sop_class", UID, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", SHA256, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("removal_id", sa.Integer, sa.ForeignKey("removal.id"), index=True),
    sa.Column("kind", sa.String(32)),  # as in `sr_engine.dicom.kinds`; NULL: an original
    sa.Column("series_uid", UID),  # NULL: the job's derived series, or the received one
    # Who gets it, decided when it was made; NULL: every destination of the job.
    sa.Column("destinations", sa.JSON(none_as_null=True)),
)

delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    foreign("job_id", "job.id"),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_try_at", UtcDateTime),  # of sending; once sent, of asking for commitment
    sa.Column("reason", Words, nullable=False),
    # Sent is not the end of it: the destination owes a storage commitment.
    sa.Column("awaits_commitment", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("commit_requests", sa.Integer, nullable=False, server_default="0"),
    sa.Column("commit_resends", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("job_id", "destination"),
    sa.Index(None, "state", "id"),
)
AWAITED = delivery.c.awaits_commitment
sa.Index("ix_delivery_awaited", delivery.c.id, sqlite_where=AWAITED, postgresql_where=AWAITED)

delivery_instance = sa.Table(
    "delivery_instance",
    metadata,
    foreign("delivery_id", "delivery.id", primary_key=True),
    foreign("derived_instance_id", "derived_instance.id", primary_key=True),
    sa.Column("status", sa.Integer),  # of the last answer
    sa.Column("sent_at", UtcDateTime),
    sa.Column("committed_at", UtcDateTime),
    sa.Column("fault", sa.String(32)),  # `retry.Fault`: why the last attempt had no answer
)

commitment = sa.Table(  # one transaction of Storage Commitment, in either role (PS3.4 J)
    "commitment",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("role", sa.String(3), nullable=False),  # "scu": we ask; "scp": we are asked
    sa.Column("peer", sa.Text, nullable=False),
    sa.Column("transaction_uid", UID, nullable=False),
    sa.Column("delivery_id", sa.Integer, sa.ForeignKey("delivery.id"), index=True),  # as SCU
    sa.Column("state", sa.String(16), nullable=False),  # OPEN, REPORTED, EXPIRED, REFUSED or DEAD
    sa.Column("attempts", sa.Integer, nullable=False),  # at reporting, as SCP
    sa.Column("next_try_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("reason", Words, nullable=False),
    sa.UniqueConstraint("role", "peer", "transaction_uid"),
    sa.Index(None, "state", "id"),
)

commitment_instance = sa.Table(
    "commitment_instance",
    metadata,
    foreign("commitment_id", "commitment.id", primary_key=True),
    sa.Column("sop_uid", UID, primary_key=True),
    sa.Column("sop_class", UID, nullable=False),
    sa.Column("status", sa.Integer),  # 0: committed; else the Failure Reason; NULL: no word yet
)

audit = sa.Table(  # append-only: triggers refuse every change (migration 0003)
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("event", sa.String(64), nullable=False),
    sa.Column("job_id", sa.Integer, index=True),  # no foreign key: the trail outlives its job
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("hash", SHA256, nullable=False, server_default=""),  # see `chain.link`
)

IS_CLOCK_STEP = audit.c.event == sa.literal_column("'clock.set'")
sa.Index(
    "ix_audit_clock_step", audit.c.at, sqlite_where=IS_CLOCK_STEP, postgresql_where=IS_CLOCK_STEP
)

audit_head = sa.Table(  # one row: where the trail ends
    "audit_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("audit_id", sa.Integer, nullable=False),
    sa.Column("hash", SHA256, nullable=False),
)

audit_export = sa.Table(  # one row: how far the collector has the trail
    "audit_export",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("audit_id", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),  # tries since then
    sa.Column("next_try_at", UtcDateTime),
)

switch = sa.Table(
    "switch",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False),
)

rejection = sa.Table(  # images that a rejection note has named: nothing is made of them
    "rejection",
    metadata,
    sa.Column("sop_uid", UID, primary_key=True),
    sa.Column("title", sa.String(16), nullable=False),
    sa.Column("calling_ae", sa.String(16), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

recall = sa.Table(  # weight files that nothing may be made with any more
    "recall",
    metadata,
    sa.Column("weights_sha256", SHA256, primary_key=True),
    sa.Column("reason", Words, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

performed_step = sa.Table(  # one MPPS: what a scanner does (PS3.4 F.7)
    "performed_step",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("uid", UID, nullable=False, unique=True),
    sa.Column("peer", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
)

announced = sa.Table(  # which instances make a series, by the word of a scanner or an archive
    "announced",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("source", sa.String(8), nullable=False),  # "MPPS" or "IAN"
    sa.Column("announcement_uid", UID, nullable=False),
    sa.Column("peer", sa.Text, nullable=False),
    sa.Column("series_uid", UID, nullable=False, index=True),  # perhaps not received yet
    sa.Column("instances", sa.JSON, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("announcement_uid", "series_uid"),
)

workitem = sa.Table(  # one unified procedure step that we have claimed (PS3.4 CC)
    "workitem",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("peer", sa.Text, nullable=False),
    sa.Column("uid", UID, nullable=False),
    sa.Column("transaction_uid", UID, nullable=False),  # the key of our claim
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("series", sa.JSON, nullable=False),
    sa.Column("progress", sa.Integer, nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("peer", "uid"),
)
