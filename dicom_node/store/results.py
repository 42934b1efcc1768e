"""How one attempt at a job ends: a result that is published or held, or another try."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import WeightsRecalled
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Work
from dicom_node.store.moves import create_deliveries, move


@dataclass(frozen=True, kw_only=True)
class DerivedInstance:
    """One file of a derived series."""

    sop_uid: str
    sop_class: str
    path: Path
    sha256: str
    bytes: int
    kind: str | None = None  # as in `sr_engine.dicom.kinds`
    series_uid: str | None = None  # None: the job's derived series
    destinations: tuple[str, ...] | None = None  # who gets it; None: every destination


@dataclass(frozen=True, kw_only=True)
class DerivedSeries:
    """A result: the files of its series, those of the image first, and how they were made."""

    series_uid: str
    instances: tuple[DerivedInstance, ...]
    recipe_digest: str
    weights_sha256: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.instances:
            raise ValueError(f"the derived series {self.series_uid} has no instance")


def series_made(
    connection: sa.Connection, jobs: Sequence[int] | sa.Select[Any]
) -> dict[int, list[str]]:
    """Return for each of the jobs the series that it made, in the order in which it wrote them."""
    found: dict[int, list[str]] = {}
    for row in connection.execute(made_by(jobs)):
        found.setdefault(row.job_id, []).append(row.uid)
    return found


def images_made(connection: sa.Connection, job_id: int) -> tuple[str, ...]:
    """Return the series of a result's images in their first form: one of each volume."""
    rows = connection.execute(made_by([job_id])).all()
    return tuple(row.uid for row in rows if row.kind == rows[0].kind)


def made_by(jobs: Sequence[int] | sa.Select[Any]) -> sa.Select[Any]:
    """Return the query of series that jobs made; forwarded originals and notes are nothing made.

    What was made before there were kinds is one series, the job's derived one.
    """
    table, job = schema.derived_instance, schema.job
    uid = sa.func.coalesce(table.c.series_uid, job.c.derived_series_uid).label("uid")
    return (
        sa.select(table.c.job_id, uid, sa.func.min(table.c.kind).label("kind"))
        .join(job, job.c.id == table.c.job_id)
        .where(job.c.derived_series_uid.is_not(None), job.c.generation > 0)
        .where(table.c.job_id.in_(jobs))
        .group_by(table.c.job_id, uid)
        .order_by(sa.func.min(table.c.id))
    )


def to_derived_instance(row: sa.Row[Any]) -> DerivedInstance:
    """Return a database row as a value."""
    there = row.destinations
    values = dict(row._mapping) | {"path": Path(row.path)}
    return DerivedInstance(**values | {"destinations": None if there is None else tuple(there)})


def attempt_over(
    work: Work,
    row: sa.Row[Any],
    what: str,
    now: datetime,
    max_attempts: int,
    *,
    event: str,
    not_before: datetime | None = None,
) -> JobState:
    """Return the state after a failed attempt: queued again, or DEAD after `max_attempts`."""
    if row.attempts >= max_attempts:
        return move(work, row.id, "fail", now, reason=f"{what}; that was the last attempt.")
    reason = f"{what}; it will be tried again."
    return move(work, row.id, event, now, reason=reason, not_before=not_before)


def result_columns(derived: DerivedSeries) -> dict[str, Any]:
    """Return what the job's row keeps of a result."""
    return {
        "derived_series_uid": derived.series_uid,
        "recipe_digest": derived.recipe_digest,
        "weights_sha256": derived.weights_sha256,
        "figures": dict(derived.figures),
    }


def store_result(work: Work, job_id: int, derived: DerivedSeries) -> None:
    """Keep the derived instances of the job, in the place of an unpublished earlier attempt's."""
    refuse_recalled(work, derived.weights_sha256)
    table = schema.derived_instance
    work.execute(sa.delete(table).where(table.c.job_id == job_id))
    store_instances(work, job_id, derived.instances)


def store_instances(work: Work, job_id: int, instances: Sequence[DerivedInstance]) -> None:
    """Keep files as what the job sends."""
    rows = [asdict(one) | {"path": str(one.path), "job_id": job_id} for one in instances]
    work.connection.execute(sa.insert(schema.derived_instance), rows)


def refuse_recalled(work: Work, weights_sha256: str) -> None:
    """Raise WeightsRecalled when nothing may be made with these weights any more."""
    table = schema.recall
    query = sa.select(table.c.reason).where(table.c.weights_sha256 == weights_sha256)
    reason = work.execute(query).scalar_one_or_none()
    if reason is not None:
        raise WeightsRecalled(
            f"{reason} Configure other ones (engine.weights), restart, then requeue"
        )


def announce(
    work: Work, job_id: int, destinations: Sequence[str], now: datetime, columns: dict[str, Any]
) -> None:
    """Move the job to DERIVED with its deliveries; without a destination it is done."""
    names = list(dict.fromkeys(destinations))
    reason = f"The derived series is made; it is being sent to {', '.join(names)}."
    columns = columns | {"published_at": now, "destinations": names}
    move(work, job_id, "derive", now, reason=reason if names else None, **columns)
    create_deliveries(work, job_id, names)
    if not names:
        reason = "The derived series is made; no destination is configured, so it stays here."
        move(work, job_id, "deliver", now, reason=reason)


def forward(work: Work, job_id: int, destinations: Sequence[str]) -> None:
    """Queue the originals of the job's series for each destination.

    A late slice makes a new generation, which takes over what the older one was to send. What
    retention has deleted since then is not sent again.
    """
    job, table, instance = schema.job, schema.derived_instance, schema.instance
    series_id = sa.select(job.c.series_id).where(job.c.id == job_id).scalar_subquery()
    originals = sa.select(instance).where(instance.c.series_id == series_id)
    rows = work.execute(originals.order_by(instance.c.id)).all()
    uids = sa.select(instance.c.sop_uid).where(instance.c.series_id == series_id)
    work.execute(sa.update(table).where(table.c.sop_uid.in_(uids)).values(job_id=job_id))
    mine = sa.select(table.c.sop_uid).where(table.c.job_id == job_id)
    there = set(work.execute(mine).scalars())
    names = ("sop_uid", "sop_class", "path", "sha256", "bytes", "removal_id")
    news = [
        {name: row._mapping[name] for name in names} | {"job_id": job_id}
        for row in rows
        if row.sop_uid not in there
    ]
    if news:
        work.connection.execute(sa.insert(table), news)
    create_deliveries(work, job_id, destinations)


def resend(work: Work, job_id: int, now: datetime, wanted: Mapping[str, Sequence[str]]) -> None:
    """Try the failed deliveries of a published result again, see `JobStore.requeue`."""
    delivery = schema.delivery
    failed = (delivery.c.job_id == job_id) & (delivery.c.state == "DEAD")
    query = sa.select(delivery.c.id, delivery.c.destination).where(failed)
    for row in work.execute(query.order_by(delivery.c.id)).all():
        if row.destination in wanted:
            drop_companions(work, job_id, row.id, wanted[row.destination])
    values = {"state": "PENDING", "attempts": 0, "next_try_at": None}
    values |= {"commit_requests": 0, "commit_resends": 0}
    reason = "Waiting to be sent again."
    work.execute(sa.update(delivery).where(failed).values(**values, reason=reason))
    move(work, job_id, "resend", now)


def drop_companions(work: Work, job_id: int, delivery_id: int, wanted: Sequence[str]) -> None:
    """Take out of a delivery the companions that it did not bring and nobody wants any more.

    An archive that refuses a SOP class would fail it again and again; an image always stays.
    """
    part, derived = schema.delivery_instance, schema.derived_instance
    refused = sa.select(derived.c.id).where(
        derived.c.job_id == job_id, derived.c.kind.contains("+"), derived.c.kind.not_in(wanted)
    )
    these = (part.c.delivery_id == delivery_id) & part.c.derived_instance_id.in_(refused)
    work.execute(sa.delete(part).where(these, part.c.sent_at.is_(None)))
