"""What is withdrawn, why, and which destinations are still to be told (IHE IOCM).

A withdrawn job is CANCELLED, whatever it was before, and keeps its grounds. Who has, or may have,
something of what it sent is owed a rejection note. The note is a job of its own beside the series'
generations, so that everything that sends a result (status per instance, retry, commitment) sends
it, too, and nothing that happens to the series afterwards can stop it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.rejection_notes import SAFETY
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database, Work, parts
from dicom_node.store.moves import (
    create_deliveries,
    create_job,
    locked_job,
    move,
    series_uid_of,
)
from dicom_node.store.notes import has_something, note_job, put_file_back, reopen, untold
from dicom_node.store.results import DerivedInstance, series_made, store_instances

AT_ONCE = 50  # notes whose instances are read at once
NOTE_STATES = (JobState.DERIVED, JobState.DELIVERED, JobState.DEAD, JobState.CANCELLED)
# States in which a job may have a result that a recall of its weights is about.
WITH_RESULT = (
    *(JobState.HELD, JobState.DERIVED, JobState.DELIVERED),
    *(JobState.DEAD, JobState.CANCELLED, JobState.SUPERSEDED),
)


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """Why a result is withdrawn: the title of its rejection note, and a sentence."""

    title: str
    reason: str
    modifiers: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """One withdrawn job."""

    job_id: int
    series_uid: str
    generation: int
    derived_series_uid: str | None
    state: JobState
    at: datetime
    grounds: Grounds
    destinations: tuple[str, ...]  # that have something of it, or may have
    series_made: tuple[str, ...] = ()  # all that it made: volumes, forms, companions


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One instance that a rejection note is about."""

    sop_class: str
    sop_uid: str
    series_uid: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Owed:
    """A rejection note that destinations are still to get."""

    job_id: int
    generation: int
    series_uid: str  # of what was sent
    at: datetime
    grounds: Grounds
    destinations: tuple[str, ...]
    instances: tuple[Sent, ...] = field(repr=False)


class WithdrawalStore:
    """Recalls of weights, withdrawn jobs and the notes about them."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def recall(self, weights_sha256: str, grounds: Grounds, now: datetime) -> list[Withdrawn]:
        """Return every job that was made with these weights; all of them are withdrawn now.

        The recall is committed first: whatever happens to the rest, from here on nothing that is
        made with them is published, and `catch_up` withdraws what is left.
        """
        table, job = schema.recall, schema.job
        this = table.c.weights_sha256 == weights_sha256
        made = (job.c.weights_sha256 == weights_sha256) & (job.c.generation > 0)
        with self._database.transaction() as work:
            if work.execute(sa.select(table).where(this)).first() is None:
                row = {"weights_sha256": weights_sha256, "reason": grounds.reason, "at": now}
                work.execute(sa.insert(table).values(**row))
                fields = {"weights_sha256": weights_sha256, "reason": grounds.reason}
                work.record("weights.recalled", now, **fields)
        self.catch_up(now)
        with self._database.reading() as connection:
            return withdrawn(connection, made & job.c.derived_series_uid.is_not(None))

    def lift(self, weights_sha256: str, reason: str, now: datetime) -> bool:
        """Return whether a recall was lifted: the weights may be used again.

        What was withdrawn stays so: archives have been told.
        """
        table = schema.recall
        with self._database.transaction() as work:
            this = table.c.weights_sha256 == weights_sha256
            if work.execute(sa.delete(table).where(this)).rowcount == 0:
                return False
            fields = {"weights_sha256": weights_sha256, "reason": reason}
            work.record("weights.recall_lifted", now, **fields)
            return True

    def recalled(self) -> dict[str, str]:
        """Return the recalled weights, each with the reason."""
        table = schema.recall
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(table.c.weights_sha256, table.c.reason))
            return {row[0]: row[1] for row in rows}

    def weights(self) -> list[str]:
        """Return the weight files that results were made with, or that are recalled."""
        job = schema.job
        made = sa.select(job.c.weights_sha256).where(job.c.weights_sha256.is_not(None))
        with self._database.reading() as connection:
            found = set(connection.execute(made.distinct()).scalars())
            found |= set(connection.execute(sa.select(schema.recall.c.weights_sha256)).scalars())
        return sorted(found)

    def catch_up(self, now: datetime, most: int | None = None) -> None:
        """Withdraw what was made with recalled weights, at most so many jobs; oldest first.

        Each job has its own transaction: images arrive meanwhile. A worker may have published one
        while its weights were being recalled.
        """
        recall, job = schema.recall, schema.job
        with self._database.reading() as connection:
            recalled = connection.execute(sa.select(recall.c.weights_sha256, recall.c.reason))
            reasons = {row.weights_sha256: row.reason for row in recalled}
            query = (
                sa.select(job.c.id, job.c.weights_sha256)
                .where(job.c.weights_sha256.in_(reasons), job.c.withdrawn_at.is_(None))
                .where(job.c.state.in_(WITH_RESULT), job.c.derived_series_uid.is_not(None))
                .where(job.c.generation > 0)
                .order_by(job.c.id)
                .limit(most)
            )
            missed = connection.execute(query).all() if reasons else []
        for row in missed:
            with self._database.transaction() as work:
                reason = reasons[row.weights_sha256]
                withdraw(work, row.id, Grounds(title=SAFETY, reason=reason), now)

    def reject(
        self, sop_uids: Iterable[str], calling_ae: str, grounds: Grounds, now: datetime
    ) -> list[Withdrawn]:
        """Return what is withdrawn now because some of `sop_uids` are no longer to be used.

        They may be received images, images that we have made, or such as never came here: nothing
        is made of them then. What is withdrawn already stays as it is: a note that is sent back to
        us changes nothing.
        """
        job, uids = schema.job, sorted(set(sop_uids))
        with self._database.transaction() as work:
            note_rejected(work, uids, calling_ae, grounds.title, now)
            jobs = sa.select(job.c.id).where(job.c.generation > 0, job.c.withdrawn_at.is_(None))
            ids: list[int] = []
            for some in parts(concerned(work, uids)):
                ids += work.execute(jobs.where(job.c.series_id.in_(some))).scalars()
            for job_id in sorted(ids):
                withdraw(work, job_id, grounds, now)
            found = (withdrawn(work.connection, job.c.id.in_(some)) for some in parts(sorted(ids)))
            return list(chain.from_iterable(found))

    def rejected_among(self, series_id: int) -> list[tuple[str, str]]:
        """Return title and sender of the notes that have named each rejected image of a series."""
        table, instance = schema.rejection, schema.instance
        query = sa.select(table.c.title, table.c.calling_ae)
        query = query.join(instance, instance.c.sop_uid == table.c.sop_uid)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(instance.c.series_id == series_id))
            return [(row.title, row.calling_ae) for row in rows]

    def all(self) -> list[Withdrawn]:
        """Return every withdrawn job, oldest first."""
        with self._database.reading() as connection:
            return withdrawn(connection, schema.job.c.withdrawn_at.is_not(None))

    def note_states(self) -> dict[str, int]:
        """Return how many rejection notes stand in each state that one can be in."""
        job = schema.job
        query = sa.select(job.c.state, sa.func.count()).where(schema.IS_NOTE)
        with self._database.reading() as connection:
            rows = connection.execute(query.group_by(job.c.state))
            found = {row[0]: row[1] for row in rows}
        return {state.value: found.get(state.value, 0) for state in NOTE_STATES}

    def owed(self, after: int = 0) -> list[Owed]:
        """Return the first of the notes that destinations are still to get.

        Only those about jobs with a number greater than `after`.
        """
        with self._database.reading() as connection:
            names: dict[int, list[str]] = {}
            query = untold().where(schema.job.c.id > after).limit(AT_ONCE)
            for row in connection.execute(query).all():
                names.setdefault(row.job_id, []).append(row.destination)
            waiting = withdrawn(connection, schema.job.c.id.in_(names))
            return [to_owed(connection, one, names[one.job_id]) for one in waiting]

    def announce(self, owed: Owed, note: DerivedInstance, series_uid: str, now: datetime) -> None:
        """Queue the note for the destinations that do not have it yet, its file being durable."""
        with self._database.transaction() as work:
            old = locked_job(work, owed.job_id)
            still = work.execute(untold().where(schema.job.c.id == owed.job_id)).all()
            names = [row.destination for row in still]
            if not names:  # somebody was faster
                return
            note_id = note_job(work, old)
            if note_id is None:
                series = series_uid_of(work.connection, old.series_id)
                note_id = create_job(work, old.series_id, series, now, generation=-old.generation)
                store_instances(work, note_id, [note])
                columns: dict[str, Any] = {"derived_series_uid": series_uid, "published_at": now}
                move(work, note_id, "reject", now, priority="urgent", **columns)
            else:
                put_file_back(work, note_id, note)
                reopen(work, note_id, now)
            create_deliveries(work, note_id, names)

    def give_up(self, owed: Owed, reason: str, now: datetime) -> None:
        """Put on record that no note can be made: a person must reject it in the archive."""
        with self._database.transaction() as work:
            row = locked_job(work, owed.job_id)
            values = {"unsendable": True, "reason": f"{row.reason} {reason}"}
            this = schema.job.c.id == owed.job_id
            work.execute(sa.update(schema.job).where(this).values(**values))
            work.record("withdrawal.unsendable", now, job=owed.job_id, reason=reason)


def withdraw(work: Work, job_id: int, grounds: Grounds, now: datetime) -> None:
    """Withdraw one job, unless it is withdrawn already."""
    if locked_job(work, job_id).withdrawn_at is not None:
        return
    values = {"withdrawal": asdict(grounds), "withdrawn_at": now}
    move(work, job_id, "withdraw", now, reason=f"Withdrawn: {grounds.reason}", **values)


def withdraw_results(work: Work, series_id: int, grounds: Grounds, now: datetime) -> None:
    """Withdraw every result of a series that was published; what was forwarded is no result."""
    job = schema.job
    query = sa.select(job.c.id).where(job.c.series_id == series_id, job.c.generation > 0)
    query = query.where(job.c.published_at.is_not(None), job.c.derived_series_uid.is_not(None))
    for job_id in work.execute(query.order_by(job.c.id)).scalars().all():
        withdraw(work, job_id, grounds, now)


def note_rejected(
    work: Work, sop_uids: Sequence[str], calling_ae: str, title: str, now: datetime
) -> None:
    """Keep which images a note has named."""
    table = schema.rejection
    known: set[str] = set()
    for some in parts(sop_uids):
        query = sa.select(table.c.sop_uid).where(table.c.sop_uid.in_(some))
        known |= set(work.execute(query).scalars())
    rows = [
        {"sop_uid": uid, "title": title, "calling_ae": calling_ae, "at": now}
        for uid in sop_uids
        if uid not in known
    ]
    if rows:
        work.connection.execute(sa.insert(table), rows)


def concerned(work: Work, sop_uids: Sequence[str]) -> list[int]:
    """Return the series of received images, or of the images that we made from them."""
    instance, derived, job = schema.instance, schema.derived_instance, schema.job
    found: set[int] = set()
    for some in parts(sop_uids):
        received = sa.select(instance.c.series_id).where(instance.c.sop_uid.in_(some))
        made = sa.select(job.c.series_id).join(derived, derived.c.job_id == job.c.id)
        made = made.where(derived.c.sop_uid.in_(some), job.c.generation > 0)
        for query in (received, made):
            found |= set(work.execute(query).scalars())
    return sorted(found)


def withdrawn(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Withdrawn]:
    """Return the withdrawn jobs that meet the condition."""
    job, series = schema.job, schema.series
    query = sa.select(job, series.c.series_uid).join(series, series.c.id == job.c.series_id)
    query = query.where(condition, job.c.withdrawn_at.is_not(None)).order_by(job.c.id)
    made = series_made(connection, sa.select(query.subquery().c.id))
    return [
        Withdrawn(
            job_id=row.id,
            series_uid=row.series_uid,
            generation=row.generation,
            derived_series_uid=row.derived_series_uid,
            state=JobState(row.state),
            at=row.withdrawn_at,
            grounds=to_grounds(row.withdrawal),
            destinations=tuple(has_something(connection, row.id)),
            series_made=tuple(made.get(row.id, [])),
        )
        for row in connection.execute(query).all()
    ]


def to_grounds(stored: Mapping[str, Any]) -> Grounds:
    """Return the grounds as the database keeps them."""
    return Grounds(
        title=stored["title"], reason=stored["reason"], modifiers=tuple(stored["modifiers"])
    )


def to_owed(connection: sa.Connection, one: Withdrawn, names: Sequence[str]) -> Owed:
    """Return a note that is owed, with what it is about: all that the job's deliveries name.

    Forwarded originals belong to the newest generation, but an older one has sent them, too.
    """
    table, part, delivery = schema.derived_instance, schema.delivery_instance, schema.delivery
    sent = sa.select(part.c.derived_instance_id).join(delivery, delivery.c.id == part.c.delivery_id)
    sent = sent.where(delivery.c.job_id == one.job_id)
    query = sa.select(table.c.sop_class, table.c.sop_uid, table.c.series_uid, table.c.path)
    rows = connection.execute(query.where(table.c.id.in_(sent)).order_by(table.c.id))
    series_uid = one.derived_series_uid or one.series_uid
    return Owed(
        job_id=one.job_id,
        generation=one.generation,
        series_uid=series_uid,
        at=one.at,
        grounds=one.grounds,
        destinations=tuple(names),
        instances=tuple(
            Sent(
                sop_class=row.sop_class,
                sop_uid=row.sop_uid,
                series_uid=row.series_uid or series_uid,
                path=Path(row.path),
            )
            for row in rows
        ),
    )
