"""What arrives: many instances in one transaction, each of them new, known or known again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import (
    ConflictingInstance,
    CorrectedSince,
    InstanceRejected,
    NodeError,
    StoreUnavailable,
)
from dicom_node.rejection_notes import SAFETY
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.instances import (
    OF_INSTANCE,
    InstanceRow,
    NewInstance,
    find_all,
    to_values,
)
from dicom_node.store.moves import (
    WITH_NEWEST_JOB,
    create_job,
    move,
    new_generation,
    newest_job,
)
from dicom_node.store.prepared import OfRows, Row, inserting
from dicom_node.store.withdrawals import Grounds, withdraw_results

# A person cancelled the series: later slices are kept and counted, but do not undo that.
STAYS = frozenset({JobState.RECEIVING, JobState.CANCELLED})


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What became of an instance, and the job it belongs to.

    "new", "duplicate", "restored" after retention, or "corrected".
    """

    outcome: str
    job_id: int


Arrival = tuple[NewInstance, datetime]
# Built once: to build a statement takes longer than to run it.
INSTANCE, SERIES = schema.instance.c, schema.series.c
KNOWN = OfRows(
    {"uid": INSTANCE.sop_uid.type},
    lambda rows: sa.select(INSTANCE.id).where(INSTANCE.sop_uid.in_([row["uid"] for row in rows])),
)
INSERT = inserting(schema.instance, [*OF_INSTANCE, "series_id", "received_at"])

OF_SERIES = ("series_uid", "study_uid", "modality", "description")
NEW_SERIES = inserting(
    schema.series, [*OF_SERIES, "acknowledged", "created_at", "last_received_at"], returning="id"
)


def counting(rows: Sequence[Row]) -> sa.Update:
    """Return the UPDATE that counts more instances of several series."""

    def of_series(name: str) -> sa.Case[Any]:
        return sa.case(*((SERIES.id == row["series_id"], row[name]) for row in rows))

    return (
        sa.update(schema.series)
        .where(SERIES.id.in_([row["series_id"] for row in rows]))
        .values(
            acknowledged=SERIES.acknowledged + of_series("more"), last_received_at=of_series("at")
        )
    )


COUNT = OfRows(
    {"series_id": SERIES.id.type, "more": sa.Integer(), "at": SERIES.last_received_at.type},
    counting,
)
COUNT_BY_UID = (
    sa.update(schema.series)
    .where(schema.series.c.series_uid == sa.bindparam("uid"))
    .values(
        acknowledged=SERIES.acknowledged + sa.bindparam("more"),
        last_received_at=sa.bindparam("at", type_=SERIES.last_received_at.type),
    )
    .returning(schema.series.c.id)
)


def record_all(database: Database, batch: Sequence[Arrival]) -> Sequence[Recorded | Exception]:
    """Return what became of each instance, all in one transaction; a bad one hurts no other."""
    if len({new.sop_uid for new, _ in batch}) == len(batch):
        try:
            return record(database, batch)
        except StoreUnavailable as error:
            return [StoreUnavailable(str(error)) for _ in batch]
        except (sa.exc.SQLAlchemyError, NodeError):
            pass  # of one of them, or another process made a row meanwhile: nothing was kept
    return [record_alone(database, each) for each in batch]


def record_alone(database: Database, arrival: Arrival) -> Recorded | Exception:
    """Return what became of one instance, in a transaction of its own.

    A value that the database will never keep is a refusal of the instance. Everything else (a
    right that was revoked, a table that is missing) is the database's fault, and the sender should
    try again. Its words may quote values, so only their kind is told.
    """
    try:
        for _ in range(2):
            # PostgreSQL: another process may make the series meanwhile, and then the instance.
            with suppress(sa.exc.IntegrityError):
                return record(database, [arrival])[0]
        return record(database, [arrival])[0]
    except sa.exc.DBAPIError as error:
        uid, kind = arrival[0].sop_uid, type(error.orig).__name__
        blamed = InstanceRejected if isinstance(error, sa.exc.DataError) else StoreUnavailable
        refusal = blamed(f"the database cannot keep SOP instance {uid}: {kind}")
        refusal.__cause__ = error
        return refusal
    except (sa.exc.SQLAlchemyError, NodeError) as error:  # the first: a mistake of ours
        return error


def record(database: Database, batch: Sequence[Arrival]) -> list[Recorded | Exception]:
    """Return what became of instances of different UIDs, in one transaction.

    Series are locked always in the same order: two processes that bring instances of the same
    ones wait for each other in one direction only.
    """
    ordered, uids = sorted(batch, key=series_of), [new.sop_uid for new, _ in batch]
    outcomes: dict[str, Recorded | Exception] = {}
    with database.transaction() as work:
        if KNOWN.run(work.connection, [{"uid": uid} for uid in uids]).first() is None:
            outcomes |= insert_instances(work, ordered)
        else:  # rare: all that concerns one series is done before the next
            known = find_all(work.connection, uids)
            for _, of_series in groupby(ordered, series_of):
                outcomes |= record_series(work, list(of_series), known)
    return [outcomes[uid] for uid in uids]


def series_of(arrival: Arrival) -> str:
    """Return the UID of the series."""
    return arrival[0].series_uid


def record_series(
    work: Work, arrivals: Sequence[Arrival], known: Mapping[str, InstanceRow]
) -> dict[str, Recorded | Exception]:
    """Return what became of instances of one series by their UIDs.

    Who changes the series comes first, because it is locked before its job; a duplicate needs the
    job alone.
    """
    outcomes: dict[str, Recorded | Exception] = {}
    fresh = [arrival for arrival in arrivals if arrival[0].sop_uid not in known]
    if fresh:
        outcomes |= insert_instances(work, fresh)
    again = [(known[new.sop_uid], new, now) for new, now in arrivals if new.sop_uid in known]
    for row, new, now in sorted(again, key=changes_nothing):
        outcomes[new.sop_uid] = repeated(work, row, new, now)
    return outcomes


def changes_nothing(arrival: tuple[InstanceRow, NewInstance, datetime]) -> bool:
    """Return whether a known instance leaves its series as it is."""
    row, new, _ = arrival
    return row.removal_id is None and new.corrects is None


def insert_instances(work: Work, arrivals: Sequence[Arrival]) -> dict[str, Recorded]:
    """Return the outcomes of instances that are new, by UID; they are in their rows.

    `arrivals` are in the order of their series.
    """
    joined = join_series(work, arrivals)
    rows = [to_values(new, joined[new.series_uid][0], now) for new, now in arrivals]
    INSERT.run_once_each(work.connection, rows)
    return {
        new.sop_uid: Recorded(outcome="new", job_id=joined[new.series_uid][1])
        for new, _ in arrivals
    }


def join_series(work: Work, arrivals: Sequence[Arrival]) -> dict[str, tuple[int, int]]:
    """Return the ids of series and job of new instances by series UID: locked and counted.

    A series that is being received is the rule, and one statement finds all of them.
    """
    parts = {uid: list(part) for uid, part in groupby(arrivals, series_of)}
    found = WITH_NEWEST_JOB.run(work.connection, [{"uid": uid} for uid in parts])
    newest = {row.series_uid: row for row in found}
    joined, counts = {}, []
    for uid, part in parts.items():
        row, last_at = newest.get(uid), max(now for _, now in part)
        if row is not None and row.state in STAYS:
            joined[uid] = row.id, row.job_id
            counts.append({"series_id": row.id, "more": len(part), "at": last_at})
        else:
            series_id = upsert_series(work, part[0][0], last_at, len(part))
            joined[uid] = series_id, receiving_job(work, series_id, uid, last_at)
    if counts:
        COUNT.run(work.connection, counts)
    return joined


def repeated(
    work: Work, known: InstanceRow, new: NewInstance, now: datetime
) -> Recorded | Exception:
    """Return what becomes of an instance that is known already."""
    if new.corrects is not None and new.corrects == known.sha256:
        return correct(work, known, new, now)
    try:
        refuse_other_content(known, new)
    except ConflictingInstance as error:
        return error
    if known.removal_id is not None:
        return restore(work, known, new, now)
    return Recorded(outcome="duplicate", job_id=newest_job(work, known.series_id).id)


def upsert_series(work: Work, new: NewInstance, now: datetime, count: int) -> int:
    """Return the id of the series of `new`, which counts `count` instances more from now on."""
    values = {"uid": new.series_uid, "more": count, "at": now}
    series_id = work.connection.execute(COUNT_BY_UID, values).scalar_one_or_none()
    if series_id is not None:
        return int(series_id)
    row = {name: getattr(new, name) for name in OF_SERIES}
    row |= {"acknowledged": count, "created_at": now, "last_received_at": now}
    return int(NEW_SERIES.run(work.connection, [row]).scalar_one())


def restore(work: Work, known: InstanceRow, new: NewInstance, now: datetime) -> Recorded:
    """Return what became of an instance that had lost its file to retention, and has it again.

    A series that is held for want of its images is received again; any other job stays as it is,
    and a person can requeue it once the last image is back.
    """
    put_back(work, known, new, now)
    newest = newest_job(work, known.series_id)
    if newest.state == JobState.HELD and can_reopen(newest):
        reason = "Images that retention had deleted arrived again."
        move(work, newest.id, "receive", now, reason=reason)
    return Recorded(outcome="restored", job_id=int(newest.id))


def correct(work: Work, known: InstanceRow, new: NewInstance, now: datetime) -> Recorded:
    """Return what became of an instance that arrived with other patient or study data.

    Whatever was derived from it carries the wrong ones: it is withdrawn, and the series is made
    again from the corrected images.
    """
    put_back(work, known, new, now, event="instance.corrected")
    values = {"attributes_sha256": new.attributes_sha256, "header": new.header}
    replaced = [*known.replaced, known.attributes_sha256]
    # A person may put an older version back.
    values |= {"replaced": [one for one in replaced if one != new.attributes_sha256]}
    this = schema.instance.c.id == known.id
    work.execute(sa.update(schema.instance).where(this).values(**values))
    reason = f"{new.calling_ae} has sent images of the series with other patient or study data."
    before = state_before(work, known.series_id)
    grounds = Grounds(title=SAFETY, reason=reason)
    withdraw_results(work, known.series_id, grounds, now)
    newest = newest_job(work, known.series_id)
    if newest.published_at is not None:  # perhaps only just, before we had its lock
        withdraw_results(work, known.series_id, grounds, now)
        newest = newest_job(work, known.series_id)
    if before in STAYS and newest.state in STAYS:
        return Recorded(outcome="corrected", job_id=int(newest.id))
    why = "Corrected images arrived; the series is being received again."
    if can_reopen(newest):
        move(work, newest.id, "receive", now, reason=why)
        return Recorded(outcome="corrected", job_id=int(newest.id))
    job_id = new_generation(work, newest, now, reason=why)
    return Recorded(outcome="corrected", job_id=job_id)


def state_before(work: Work, series_id: int) -> str:
    """Return the state of the newest job, not locked: older ones are to be locked before it."""
    job = schema.job
    query = sa.select(job.c.state).where(job.c.series_id == series_id)
    return str(work.execute(query.order_by(job.c.generation.desc()).limit(1)).scalar_one())


def put_back(
    work: Work,
    known: InstanceRow,
    new: NewInstance,
    now: datetime,
    event: str = "instance.restored",
) -> None:
    """Let the rows of an instance, and of its forwarding, speak of the new file."""
    series, sent = schema.series, schema.derived_instance
    work.execute(
        sa.update(series).where(series.c.id == known.series_id).values(last_received_at=now)
    )
    file = {"path": str(new.path), "sha256": new.sha256, "bytes": new.bytes, "removal_id": None}
    work.execute(sa.update(sent).where(sent.c.sop_uid == new.sop_uid).values(**file))
    file |= {"transfer_syntax": new.transfer_syntax}
    this = schema.instance.c.id == known.id
    work.execute(sa.update(schema.instance).where(this).values(**file))
    work.record(event, now, sop=new.sop_uid, series=new.series_uid, calling_ae=new.calling_ae)


def receiving_job(work: Work, series_id: int, series_uid: str, now: datetime) -> int:
    """Return the job that a new instance of the series belongs to, reopened where needed."""
    newest = newest_job(work, series_id)
    if newest is None:
        return create_job(work, series_id, series_uid, now, generation=1)
    if newest.state in STAYS:
        return int(newest.id)
    reason = "A late slice arrived; the series is being received again."
    if can_reopen(newest):
        move(work, newest.id, "receive", now, reason=reason)
        return int(newest.id)
    return new_generation(work, newest, now, reason=reason)


def can_reopen(job: sa.Row[Any]) -> bool:
    """Return True while nobody has begun to work on this generation."""
    if job.state == JobState.HELD:
        return job.held_by in ("completeness", "rule")
    if job.state == JobState.DEAD:
        return job.published_at is None
    return job.state in (JobState.SKIPPED, JobState.QUEUED)


def refuse_other_content(known: InstanceRow, new: NewInstance) -> None:
    """Raise ConflictingInstance unless `new` has the content of `known`.

    Equal pixels may come in another transfer syntax, so the file's hash counts only where nobody
    decoded or compared the pixels.
    """
    if new.attributes_sha256 in known.replaced:
        raise CorrectedSince(f"was corrected since: this is an older version of {new.sop_uid}")
    same_pixels = known.sha256 in (new.sha256, new.same_as)
    if known.pixels_sha256 and new.pixels_sha256:
        same_pixels = known.pixels_sha256 == new.pixels_sha256
    if known.attributes_sha256 != new.attributes_sha256 or not same_pixels:
        raise ConflictingInstance(f"SOP instance {new.sop_uid} is known with other content")
