"""Deliveries: one derived series on its way to one destination, instance by instance."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import StoreUnavailable, UnknownJob
from dicom_node.order import PRIORITIES
from dicom_node.retry import Fault, Verdict, classify
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.moves import locked_job, move

PENDING, SENT, COMMITTED, DEAD = "PENDING", "SENT", "COMMITTED", "DEAD"
STATE_AFTER = {
    Verdict.SENT: SENT,
    Verdict.SENT_WITH_WARNING: SENT,
    Verdict.TRANSIENT: PENDING,
    Verdict.PERMANENT: DEAD,
}


@dataclass(frozen=True, kw_only=True)
class DeliveryInstance:
    """One derived instance that a destination does not have yet."""

    derived_instance_id: int
    sop_uid: str
    sop_class: str
    path: Path
    sha256: str
    series_uid: str | None = None  # None: the task's
    corrected: bool = False  # other patient or study data came under this UID before


@dataclass(frozen=True, kw_only=True)
class DeliveryTask:
    """What is still to be sent to one destination.

    Parameters
    ----------
    instances
        Empty until they are looked up: a queue may be long, and change before its end is reached.
    """

    delivery_id: int
    job_id: int
    destination: str
    attempts: int
    study_uid: str
    series_uid: str
    instances: tuple[DeliveryInstance, ...] = ()
    resends: int = 0  # because the destination did not commit what it said it had

    @property
    def by_series(self) -> dict[str, list[str]]:
        """Return the SOP instance UIDs of each series that is to be sent."""
        found: dict[str, list[str]] = {}
        for each in self.instances:
            found.setdefault(each.series_uid or self.series_uid, []).append(each.sop_uid)
        return found


# Delivery, derived instance, what the destination said (or why it said nothing), and when.
Said = tuple[int, int, int | Fault, datetime]


class DeliveryStore:
    """Deliveries of published results."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def due(self, now: datetime, busy: Collection[str] = ()) -> list[DeliveryTask]:
        """Return the deliveries to try now, urgent ones first, without their instances.

        Without those to the destinations that are `busy`: a long queue need not be read every
        second while it is being worked off.
        """
        job, delivery, series = schema.job, schema.delivery, schema.series
        rank = sa.case(PRIORITIES, value=job.c.priority, else_=PRIORITIES["normal"])
        ready = (delivery.c.next_try_at.is_(None)) | (delivery.c.next_try_at <= now)
        query = (
            sa.select(delivery, job.c.derived_series_uid, series.c.series_uid, series.c.study_uid)
            .join(job, job.c.id == delivery.c.job_id)
            .join(series, series.c.id == job.c.series_id)
            .where(job.c.state == JobState.DERIVED, delivery.c.state == PENDING, ready)
            .where(delivery.c.destination.not_in(busy))
            .order_by(rank, delivery.c.id)
        )
        with self._database.reading() as connection:
            return [to_task(row) for row in connection.execute(query)]

    def with_unsent(self, task: DeliveryTask) -> DeliveryTask:
        """Return a delivery with the instances that its destination has not confirmed."""
        with self._database.reading() as connection:
            return replace(task, instances=unsent(connection, task.delivery_id))

    def record_status(
        self, delivery_id: int, derived_instance_id: int, status: int | Fault, now: datetime
    ) -> None:
        """Keep what the destination said to one instance; success or warning is sent."""
        [failure] = self.record_all([(delivery_id, derived_instance_id, status, now)])
        if failure:
            raise failure

    def record_all(self, batch: Sequence[Said]) -> Sequence[None | StoreUnavailable | UnknownJob]:
        """Keep what was said to many instances, all in one transaction; return what failed."""
        try:
            with self._database.transaction() as work:
                return record_said(work, batch)
        except StoreUnavailable as error:
            return [error] * len(batch)

    def wanted(self, delivery_id: int, switch: str) -> tuple[bool, Any]:
        """Return whether the delivery's job is still to be sent, and the value of a switch or None.

        In one query, because it is asked all the time: False once a late slice or a
        person has taken the result back.
        """
        with self._database.reading() as connection:
            state, value = connection.execute(WANTED, {"id": delivery_id, "switch": switch}).one()
        return state == JobState.DERIVED, value

    def begin(self, task: DeliveryTask) -> None:
        """Put on record that instances are about to leave, before the first byte does.

        Whatever ends the attempt without an answer, the destination may have them then, and is told
        when they are withdrawn (`notes.may_have_something`). A delivery that was stopped while it
        waited for its turn is left as it is: nothing of it leaves.
        """
        with self._database.transaction() as work:
            work.connection.execute(BEGIN, {"delivery": task.delivery_id})

    def record_present(self, delivery_id: int, sop_uids: Sequence[str], now: datetime) -> None:
        """Keep that the destination has these instances, as it says when it is queried."""
        part, derived = schema.delivery_instance, schema.derived_instance
        ids = sa.select(derived.c.id).where(derived.c.sop_uid.in_(sop_uids))
        these = (part.c.delivery_id == delivery_id) & part.c.derived_instance_id.in_(ids)
        with self._database.transaction() as work:
            work.execute(sa.update(part).where(these, part.c.sent_at.is_(None)).values(sent_at=now))

    def warnings(self, delivery_id: int) -> dict[int, int]:
        """Return how many instances the destination took with which warning, in all attempts."""
        with self._database.reading() as connection:
            rows = connection.execute(STATUSES, {"delivery": delivery_id}).all()
        return {
            row[0]: row[1] for row in rows if classify(row[0]).verdict is Verdict.SENT_WITH_WARNING
        }

    def finish(
        self,
        delivery_id: int,
        outcome: str,
        reason: str,
        now: datetime,
        next_try_at: datetime | None = None,
        *,
        commitment: bool = False,
    ) -> str:
        """Return the delivery's state after an attempt; `outcome` is a `retry.Verdict`.

        A delivery is SENT only when every instance has its success on record; with `commitment` it
        is under way until the destination has committed them all. The job is DELIVERED when no
        delivery is under way, and DEAD when one of them failed for good.
        """
        with self._database.transaction() as work:
            row = locked_delivery(work, delivery_id)
            made = {"this": delivery_id, "attempts": row.attempts + 1}
            if row.state != PENDING:  # stopped meanwhile: the job was cancelled or superseded
                # Counted all the same: nobody knows what arrived before an association broke.
                work.connection.execute(CHANGE, made)
                return str(row.state)
            state = STATE_AFTER[Verdict(outcome)]
            if state == SENT and unsent(work.connection, delivery_id):
                state, reason = PENDING, "The destination has not confirmed every instance."
            awaits = commitment and state == SENT and not wholly_committed(work, delivery_id)
            if commitment and state == SENT and not awaits:
                state = COMMITTED
            values: dict[str, Any] = {"state": state, "reason": reason}
            values["awaits_commitment"] = awaits
            values["next_try_at"] = next_try_at if state == PENDING else None
            work.connection.execute(CHANGE, made | values)
            fields = {"job": row.job_id, "delivery": delivery_id, "destination": row.destination}
            work.record("delivery.attempt", now, **fields, outcome=outcome, reason=reason)
            settle_job(work, row.job_id, now)
            return state

    def of_job(self, job_id: int) -> list[dict[str, Any]]:
        """Return the deliveries of a job: destination, state, attempts, reason, next try."""
        with self._database.reading() as connection:
            return [dict(row._mapping) for row in connection.execute(OF_JOB, {"job": job_id})]


# Built once, see `arrivals`.
WANTED = (
    sa.select(
        schema.job.c.state,
        sa.select(schema.switch.c.value)
        .where(schema.switch.c.name == sa.bindparam("switch"))
        .scalar_subquery(),
    )
    .join(schema.delivery, schema.delivery.c.job_id == schema.job.c.id)
    .where(schema.delivery.c.id == sa.bindparam("id"))
)
RECORD = (
    sa.update(schema.delivery_instance)
    .where(
        schema.delivery_instance.c.delivery_id == sa.bindparam("delivery"),
        schema.delivery_instance.c.derived_instance_id == sa.bindparam("instance"),
    )
    .values(
        status=sa.bindparam("status"),
        fault=sa.bindparam("fault"),
        sent_at=sa.func.coalesce(
            sa.bindparam("at", type_=schema.UtcDateTime), schema.delivery_instance.c.sent_at
        ),
    )
)

UNSENT = (
    sa.select(
        schema.derived_instance.c.id,
        schema.derived_instance.c.sop_uid,
        schema.derived_instance.c.sop_class,
        schema.derived_instance.c.path,
        schema.derived_instance.c.sha256,
        schema.derived_instance.c.series_uid,
        schema.instance.c.replaced,
    )
    .join(
        schema.delivery_instance,
        schema.delivery_instance.c.derived_instance_id == schema.derived_instance.c.id,
    )
    .outerjoin(  # where it is forwarded
        schema.instance, schema.instance.c.sop_uid == schema.derived_instance.c.sop_uid
    )
    .where(
        schema.delivery_instance.c.delivery_id == sa.bindparam("delivery"),
        schema.delivery_instance.c.sent_at.is_(None),
    )
    .order_by(schema.derived_instance.c.id)
)
BEGIN = (
    sa.update(schema.delivery_instance)
    .where(
        schema.delivery_instance.c.delivery_id == sa.bindparam("delivery"),
        schema.delivery_instance.c.sent_at.is_(None),
        schema.delivery_instance.c.status.is_(None),
        schema.delivery_instance.c.fault.is_(None),
        sa.exists().where(
            schema.delivery.c.id == sa.bindparam("delivery"), schema.delivery.c.state == PENDING
        ),
    )
    .values(fault=Fault.UNDER_WAY.value)
)
STATUSES = (
    sa.select(schema.delivery_instance.c.status, sa.func.count())
    .where(
        schema.delivery_instance.c.delivery_id == sa.bindparam("delivery"),
        schema.delivery_instance.c.sent_at.is_not(None),
        schema.delivery_instance.c.status.is_not(None),
    )
    .group_by(schema.delivery_instance.c.status)
    .order_by(schema.delivery_instance.c.status)
)
OF_THIS = schema.delivery.c.id == sa.bindparam("this")
JOB_OF = sa.select(schema.delivery.c.job_id).where(OF_THIS)
LOCKED = sa.select(schema.delivery).where(OF_THIS).with_for_update()
CHANGE = sa.update(schema.delivery).where(OF_THIS)  # the columns that a run of it names
OF_JOB = (
    sa.select(schema.delivery)
    .where(schema.delivery.c.job_id == sa.bindparam("job"))
    .order_by(schema.delivery.c.id)
)


def record_said(work: Work, batch: Sequence[Said]) -> list[UnknownJob | None]:
    """Keep what was said to many instances; return what is wrong with each."""
    found = work.connection.execute(RECORD, [to_values(said) for said in batch])
    if found.rowcount == len(batch):
        return [None] * len(batch)
    return [unknown(work, delivery_id, instance_id) for delivery_id, instance_id, *_ in batch]


def to_values(said: Said) -> dict[str, Any]:
    """Return the parameters of RECORD."""
    delivery_id, instance_id, status, now = said
    silent = isinstance(status, Fault)
    return {
        "delivery": delivery_id,
        "instance": instance_id,
        "status": None if silent else status,
        "fault": status.value if isinstance(status, Fault) else None,
        "at": now if STATE_AFTER[classify(status).verdict] == SENT else None,
    }


def unknown(work: Work, delivery_id: int, instance_id: int) -> UnknownJob | None:
    """Return why nothing can be kept about an instance; None if something can."""
    part = schema.delivery_instance
    this = (part.c.delivery_id == delivery_id) & (part.c.derived_instance_id == instance_id)
    if work.execute(sa.select(part).where(this)).first() is not None:
        return None
    return UnknownJob(f"delivery {delivery_id} has no derived instance {instance_id}")


def to_task(row: sa.Row[Any]) -> DeliveryTask:
    """Return a delivery's row as a value."""
    return DeliveryTask(
        delivery_id=row.id,
        job_id=row.job_id,
        destination=row.destination,
        attempts=row.attempts,
        study_uid=row.study_uid,
        series_uid=row.derived_series_uid or row.series_uid,
        resends=row.commit_resends,
    )


def unsent(connection: sa.Connection, delivery_id: int) -> tuple[DeliveryInstance, ...]:
    """Return what the delivery's destination has not confirmed."""
    return tuple(
        DeliveryInstance(
            derived_instance_id=number,
            sop_uid=sop_uid,
            sop_class=sop_class,
            path=Path(path),
            sha256=sha256,
            series_uid=series_uid,
            corrected=bool(replaced),
        )
        for number, sop_uid, sop_class, path, sha256, series_uid, replaced in connection.execute(
            UNSENT, {"delivery": delivery_id}
        )
    )


def wholly_committed(work: Work, delivery_id: int) -> bool:
    """Return whether the delivery's destination has committed every instance."""
    part = schema.delivery_instance
    open_ones = (part.c.delivery_id == delivery_id) & part.c.committed_at.is_(None)
    return work.execute(sa.select(part).where(open_ones).limit(1)).first() is None


def locked_delivery(work: Work, delivery_id: int) -> sa.Row[Any]:
    """Return the delivery's row, locked after its job's; raise UnknownJob if there is none."""
    this = {"this": delivery_id}
    job_id = work.connection.execute(JOB_OF, this).scalar_one_or_none()
    if job_id is None:
        raise UnknownJob(f"there is no delivery {delivery_id}")
    locked_job(work, job_id)
    return work.connection.execute(LOCKED, this).one()


def settle_job(work: Work, job_id: int, now: datetime) -> None:
    """End the job when none of its deliveries is under way."""
    rows = work.connection.execute(OF_JOB, {"job": job_id}).all()
    if any(row.state == PENDING or row.awaits_commitment for row in rows):
        return
    failed = [f"{row.destination}: {row.reason}" for row in rows if row.state == DEAD]
    if failed:
        reason = f"Sending failed for good: {'; '.join(failed)}"
        if locked_job(work, job_id).generation < 0:
            reason += " Reject the series there by hand, or requeue the note once it can be sent."
        move(work, job_id, "fail", now, reason=reason)
        return
    kept = {COMMITTED: " (committed)"}
    names = ", ".join(f"{row.destination}{kept.get(row.state, '')}" for row in rows)
    move(work, job_id, "deliver", now, reason=f"The {what_was(work, job_id)} sent to {names}.")


def what_was(work: Work, job_id: int) -> str:
    """Return what the job sends, and the verb."""
    row = locked_job(work, job_id)
    if row.generation < 0:
        return "rejection note was"
    return "derived series was" if row.derived_series_uid else "originals were"
