"""Storage commitment as SCU on record: what we asked destinations, and what they said (PS3.4 J).

A transaction is committed to the database before its N-ACTION leaves, so that an answer that comes
before the response, after a restart or long after the time-out finds whom it is for.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from dicom_node.retry import Cure, cure, describe_failure
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.deliveries import (
    COMMITTED,
    DEAD,
    PENDING,
    SENT,
    locked_delivery,
    settle_job,
    wholly_committed,
)
from dicom_node.store.transactions import (
    OPEN,
    REPORTED,
    SCP,
    SCU,
    Reference,
    end_transaction,
    insert_transaction,
    note_statuses,
    referenced,
)

EXPIRED, REFUSED = "EXPIRED", "REFUSED"  # an answer that comes later still counts


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an N-EVENT-REPORT says: the committed instances, and Failure Reasons of others."""

    transaction_uid: str
    committed: frozenset[str] = frozenset()
    failed: Mapping[str, int] = field(default_factory=dict)
    everything: bool = False  # event 1 without a list: all that was asked for


@dataclass(frozen=True, kw_only=True)
class Outstanding:
    """A delivery whose destination is to be asked for commitment."""

    delivery_id: int
    job_id: int
    destination: str
    requests: int  # made so far, without an answer that settled it
    refusals: int  # in a row, up to now: what was accepted and not answered ends them
    study_uid: str
    by_series: Mapping[str, Sequence[str]]  # SOP instance UIDs
    instances: tuple[Reference, ...]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What a report did to a delivery."""

    destination: str
    state: str
    committed: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Resends:
    """How often what a destination did not commit is sent again, and after which pauses."""

    most: int
    pause: Callable[[int], timedelta]  # before the nth, counted from 1


class CommitmentStore:
    """Transactions of Storage Commitment that we began."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def due(self, now: datetime, busy: Collection[str] = ()) -> list[Outstanding]:
        """Return the sent deliveries to ask about now: never asked, or not answered in time.

        Without those to the destinations that are `busy`.
        """
        job, delivery, series = schema.job, schema.delivery, schema.series
        ready = (delivery.c.next_try_at.is_(None)) | (delivery.c.next_try_at <= now)
        query = (
            sa.select(delivery, job.c.derived_series_uid, series.c.series_uid, series.c.study_uid)
            .join(job, job.c.id == delivery.c.job_id)
            .join(series, series.c.id == job.c.series_id)
            .where(job.c.state == JobState.DERIVED)
            .where(delivery.c.awaits_commitment, ready, delivery.c.destination.not_in(busy))
            .order_by(delivery.c.id)
        )
        with self._database.reading() as connection:
            # Not a condition of the query: SQLite would look through all that was ever sent.
            rows = [row for row in connection.execute(query).all() if row.state == SENT]
            return [
                to_outstanding(row, uncommitted(connection, row.id), refusals(connection, row))
                for row in rows
            ]

    def ask(
        self, wanted: Outstanding, transaction_uid: str, now: datetime, deadline: datetime
    ) -> bool:
        """Return False when nothing is to be asked any more; else the request is on record.

        Until `deadline` an answer is waited for; then the delivery is due again.
        """
        table = schema.commitment
        with self._database.transaction() as work:
            row = locked_delivery(work, wanted.delivery_id)
            if row.state != SENT or not row.awaits_commitment:
                return False
            older = (table.c.delivery_id == row.id) & (table.c.state == OPEN)
            expired = {"state": EXPIRED, "ended_at": now, "reason": "No answer in time."}
            work.execute(sa.update(table).where(older).values(**expired))
            insert_transaction(
                work, SCU, row.destination, transaction_uid, wanted.instances, now, row.id
            )
            values = {"next_try_at": deadline, "commit_requests": row.commit_requests + 1}
            update_delivery(work, row.id, **values)
            return True

    def refuse(
        self, transaction_uid: str, reason: str, now: datetime, next_try_at: datetime | None
    ) -> None:
        """End a request that the peer did not accept; without `next_try_at` for good."""
        with self._database.transaction() as work:
            found = locked_request(work, transaction_uid)
            if found is None or found[0].state != OPEN:  # answered before the response came
                return
            row, delivery = found
            end_transaction(work, row.id, REFUSED, reason, now)
            if delivery.state != SENT or not delivery.awaits_commitment:
                return
            if next_try_at is not None:
                update_delivery(work, delivery.id, reason=reason, next_try_at=next_try_at)
                note(work, delivery, "commitment.refused", reason, now)
            else:
                end_delivery(work, delivery, DEAD, reason, now)

    def waive(self, delivery_id: int, now: datetime) -> None:
        """Ask no longer: the destination is configured without storage commitment by now."""
        with self._database.transaction() as work:
            delivery = locked_delivery(work, delivery_id)
            if delivery.state == SENT and delivery.awaits_commitment:
                reason = f"{delivery.destination} has stored every instance."
                end_delivery(work, delivery, SENT, reason, now)

    def record_report(
        self, report: Report, now: datetime, *, again_at: datetime, resends: Resends
    ) -> Reported | None:
        """Return what the report changed, None when nobody asked under that transaction UID.

        What is committed stays so. What failed is sent again as `resends` says, if sending can
        help. An instance the report does not name is asked for again after `again_at`.
        Failures count only while this is the delivery's newest request.
        """
        with self._database.transaction() as work:
            found = locked_request(work, report.transaction_uid)
            if found is None:
                return None
            row, delivery = found
            asked = referenced(work.connection, row.id)
            committed = [
                one.sop_uid for one in asked if report.everything or one.sop_uid in report.committed
            ]
            failed = {
                one.sop_uid: report.failed[one.sop_uid]
                for one in asked
                if one.sop_uid in report.failed and one.sop_uid not in committed
            }
            note_statuses(work, row.id, dict.fromkeys(committed, 0) | failed)
            mark_committed(work, delivery.id, committed, now)
            state = settle_report(work, row, delivery, failed, now, again_at, resends)
            return Reported(
                destination=delivery.destination,
                state=state,
                committed=len(committed),
                failed=len(failed),
            )

    def open_transactions(self) -> dict[str, int]:
        """Return how many transactions wait for an answer, in each role."""
        table = schema.commitment
        query = sa.select(table.c.role, sa.func.count()).where(table.c.state == OPEN)
        with self._database.reading() as connection:
            found = {row[0]: row[1] for row in connection.execute(query.group_by(table.c.role))}
        return {role: found.get(role, 0) for role in (SCU, SCP)}


def locked_request(work: Work, transaction_uid: str) -> tuple[sa.Row[Any], sa.Row[Any]] | None:
    """Return the row of our request and its delivery's, locked; None when nobody asked so."""
    table = schema.commitment
    this = (table.c.role == SCU) & (table.c.transaction_uid == transaction_uid)
    delivery_id = work.execute(sa.select(table.c.delivery_id).where(this)).scalar_one_or_none()
    if delivery_id is None:
        return None
    delivery = locked_delivery(work, delivery_id)
    return work.execute(sa.select(table).where(this).with_for_update()).one(), delivery


def settle_report(
    work: Work,
    row: sa.Row[Any],
    delivery: sa.Row[Any],
    failed: Mapping[str, int],
    now: datetime,
    again_at: datetime,
    resends: Resends,
) -> str:
    """Return the delivery's state after one report."""
    newest = row.state == OPEN
    end_transaction(work, row.id, REPORTED, f"{len(failed)} instances failed.", now)
    if delivery.state in (PENDING, SENT) and wholly_committed(work, delivery.id):
        reason = f"{delivery.destination} has committed every instance."
        return end_delivery(work, delivery, COMMITTED, reason, now)
    if not newest or delivery.state != SENT or not delivery.awaits_commitment:
        return str(delivery.state)
    if failed:
        return retry_failed(work, delivery, failed, now, again_at, resends)
    reason = f"{delivery.destination} has not said of every instance whether it is committed."
    update_delivery(work, delivery.id, reason=reason, next_try_at=again_at)
    note(work, delivery, "commitment.incomplete", reason, now)
    return SENT


def refusals(connection: sa.Connection, delivery: sa.Row[Any]) -> int:
    """Return how many requests in a row the destination has not accepted, since the last requeue.

    `requeue` sets the count of requests back and leaves the transactions.
    """
    table = schema.commitment
    of_it = table.c.delivery_id == delivery.id
    accepted = sa.select(sa.func.max(table.c.id)).where(of_it, table.c.state != REFUSED)
    since = table.c.id > sa.func.coalesce(accepted.scalar_subquery(), 0)
    count = sa.select(sa.func.count()).where(of_it, since)
    return min(connection.execute(count).scalar_one(), int(delivery.commit_requests))


def to_outstanding(row: sa.Row[Any], instances: Sequence[sa.Row[Any]], refused: int) -> Outstanding:
    """Return a delivery's row and its uncommitted instances as a value."""
    by_series: dict[str, list[str]] = {}
    for one in instances:
        series_uid = one.series_uid or row.derived_series_uid or row.series_uid
        by_series.setdefault(series_uid, []).append(one.sop_uid)
    return Outstanding(
        delivery_id=row.id,
        job_id=row.job_id,
        destination=row.destination,
        requests=row.commit_requests,
        refusals=refused,
        study_uid=row.study_uid,
        by_series=by_series,
        instances=tuple(
            Reference(sop_uid=one.sop_uid, sop_class=one.sop_class) for one in instances
        ),
    )


def uncommitted(connection: sa.Connection, delivery_id: int) -> list[sa.Row[Any]]:
    """Return what a delivery's destination has not committed: names, class and series."""
    part, derived = schema.delivery_instance, schema.derived_instance
    query = (
        sa.select(derived.c.sop_uid, derived.c.sop_class, derived.c.series_uid)
        .join(part, part.c.derived_instance_id == derived.c.id)
        .where(part.c.delivery_id == delivery_id, part.c.committed_at.is_(None))
        .order_by(derived.c.id)
    )
    return list(connection.execute(query))


def retry_failed(
    work: Work,
    delivery: sa.Row[Any],
    failed: Mapping[str, int],
    now: datetime,
    again_at: datetime,
    resends: Resends,
) -> str:
    """Return the delivery's state after failures: sent or asked again, or DEAD."""
    cures = {uid: cure(status) for uid, status in failed.items()}
    reason = failure_sentence(delivery.destination, failed)
    resent = [uid for uid, what in cures.items() if what is Cure.RESEND]
    forget_sent(work, delivery.id, resent)  # even at the end: `requeue` is to send them
    if Cure.NONE in cures.values():
        return end_delivery(work, delivery, DEAD, reason, now)
    if not resent:
        update_delivery(work, delivery.id, reason=reason, next_try_at=again_at)
        note(work, delivery, "commitment.failed", reason, now)
        return SENT
    count = delivery.commit_resends + 1
    if count > resends.most:
        reason = f"{reason} Given up after they were sent again {delivery.commit_resends} times."
        return end_delivery(work, delivery, DEAD, reason, now)
    update_delivery(
        work, delivery.id, state=PENDING, reason=reason, next_try_at=now + resends.pause(count),
        awaits_commitment=False, commit_resends=count,
    )  # fmt: skip
    note(work, delivery, "commitment.failed", reason, now)
    return PENDING


def failure_sentence(destination: str, failed: Mapping[str, int]) -> str:
    """Return what a destination did not commit, and why, for an administrator."""
    uid, status = next(iter(failed.items()))
    more = f", nor {len(failed) - 1} more instances" if len(failed) > 1 else ""
    return (
        f"{destination} has not committed SOP instance {uid}: "
        f"failure reason {describe_failure(status)}{more}."
    )


def end_delivery(work: Work, delivery: sa.Row[Any], state: str, reason: str, now: datetime) -> str:
    """Return `state`: the delivery waits for no commitment any more; the job may end with it."""
    values = {"state": state, "reason": reason, "next_try_at": None, "awaits_commitment": False}
    update_delivery(work, delivery.id, **values)
    note(work, delivery, f"delivery.{state.lower()}", reason, now)
    if delivery.state == PENDING or delivery.awaits_commitment:
        settle_job(work, delivery.job_id, now)
    return state


def update_delivery(work: Work, delivery_id: int, **values: Any) -> None:
    """Set columns of one delivery."""
    table = schema.delivery
    work.execute(sa.update(table).where(table.c.id == delivery_id).values(**values))


def note(work: Work, delivery: sa.Row[Any], event: str, reason: str, now: datetime) -> None:
    """Leave a row in the trail of the delivery's job."""
    fields = {"job": delivery.job_id, "delivery": delivery.id, "destination": delivery.destination}
    work.record(event, now, **fields, reason=reason)


def of_instances(delivery_id: int, sop_uids: Sequence[str]) -> sa.ColumnElement[bool]:
    """Return the condition for the delivery's rows of `sop_uids`."""
    part, derived = schema.delivery_instance, schema.derived_instance
    ids = sa.select(derived.c.id).where(derived.c.sop_uid.in_(sop_uids))
    return (part.c.delivery_id == delivery_id) & part.c.derived_instance_id.in_(ids)


def mark_committed(work: Work, delivery_id: int, sop_uids: Sequence[str], now: datetime) -> None:
    """Note what a destination keeps; what it keeps it has, whatever C-STORE said."""
    part = schema.delivery_instance
    news = of_instances(delivery_id, sop_uids) & part.c.committed_at.is_(None)
    moment = sa.literal(now, schema.UtcDateTime())
    values = {"committed_at": now, "sent_at": sa.func.coalesce(part.c.sent_at, moment)}
    work.execute(sa.update(part).where(news).values(**values))


def forget_sent(work: Work, delivery_id: int, sop_uids: Sequence[str]) -> None:
    """Make instances due again that their destination claimed to have."""
    part = schema.delivery_instance
    lost = of_instances(delivery_id, sop_uids) & part.c.committed_at.is_(None)
    work.execute(sa.update(part).where(lost).values(sent_at=None, status=None))
