"""Retention on record: what may go, the decisions, and what is gone by them.

A decision is committed before the first file of it is touched, and ended when the last one is off
the disk; in between it can be taken up again by anybody, after any crash.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.store import schema
from dicom_node.store.database import Database, Work
from dicom_node.store.gone import gone_originals
from dicom_node.store.lots import DERIVED, ORIGINALS, Limits, Lot, lots, of_lot
from dicom_node.store.results import series_made

FILES = {ORIGINALS: schema.instance, DERIVED: schema.derived_instance}


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One decision."""

    id: int
    kind: str
    series_uid: str  # whose files go: the received series, or the derived one
    job_id: int
    reason: str
    decided_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """One file that is to go."""

    sop_uid: str
    path: Path
    pixels_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Gone:
    """What a decision has taken off the disk."""

    files: int
    bytes: int


class RemovalStore:
    """The decisions of retention."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def lots(self, limits: Limits) -> list[Lot]:
        """Return what may go, what has waited longest first."""
        with self._database.reading() as connection:
            return lots(connection, limits)

    def paths(self, lot: Lot) -> list[Path]:
        """Return where the files of a lot lie."""
        table = FILES[lot.kind]
        query = sa.select(table.c.path).where(of_lot(lot), table.c.removal_id.is_(None))
        with self._database.reading() as connection:
            return [Path(path) for path in connection.execute(query).scalars()]

    def decide(self, lot: Lot, limits: Limits, reason: str, now: datetime) -> Removal | None:
        """Return the decision about `lot`, committed; None when it may not go any more.

        From here on nothing is computed from these files, and nobody changes their mind: what
        arrives again is kept anew.
        """
        with self._database.transaction() as work:
            lock(work, lot.series_id)
            if not lots(work.connection, limits, lot):
                return None
            row = {"series_id": lot.series_id, "job_id": lot.job_id, "kind": lot.kind}
            row |= {"reason": reason, "decided_at": now}
            query = sa.insert(schema.removal).values(**row).returning(schema.removal.c.id)
            number = int(work.execute(query).scalar_one())
            count = doom(work, lot, number)
            fields = {"job": lot.job_id, "series": lot.series_uid, "kind": lot.kind}
            work.record("retention.decided", now, **fields, count=count, reason=reason)
            return find(work.connection, number)

    def unfinished(self) -> list[Removal]:
        """Return the decisions whose files may still be there, oldest first."""
        query = removals().where(schema.removal.c.ended_at.is_(None))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(schema.removal.c.id))
            return [Removal(**row._mapping) for row in rows]

    def of_job(self, job_id: int) -> list[Removal]:
        """Return the decisions about a job's result and about its series' originals."""
        removal, job = schema.removal, schema.job
        series = sa.select(job.c.series_id).where(job.c.id == job_id).scalar_subquery()
        originals = (removal.c.kind == ORIGINALS) & (removal.c.series_id == series)
        result = (removal.c.kind == DERIVED) & (removal.c.job_id == job_id)
        query = removals().where(originals | result).order_by(removal.c.id)
        with self._database.reading() as connection:
            return [Removal(**row._mapping) for row in connection.execute(query)]

    def gone_originals(self, series_id: int) -> int:
        """Return how many images of a series are not here any more."""
        with self._database.reading() as connection:
            return gone_originals(connection, series_id)

    def doomed(self, removal: Removal) -> list[Doomed]:
        """Return the files that are to go by a decision."""
        table = FILES[removal.kind]
        query = sa.select(table).where(table.c.removal_id == removal.id).order_by(table.c.id)
        with self._database.reading() as connection:
            return [
                Doomed(
                    sop_uid=row.sop_uid,
                    path=Path(row.path),
                    pixels_sha256=row._mapping.get("pixels_sha256"),
                )
                for row in connection.execute(query)
            ]

    def is_doomed(self, removal: Removal, sop_uid: str) -> bool:
        """Return whether the file is still to go: it may have arrived again."""
        table = FILES[removal.kind]
        this = (table.c.sop_uid == sop_uid) & (table.c.removal_id == removal.id)
        with self._database.reading() as connection:
            return connection.execute(sa.select(table.c.id).where(this)).first() is not None

    def note_pixels(self, removal: Removal, digests: Mapping[str, str]) -> None:
        """Keep the digests by which originals are known again once their files are gone."""
        table = schema.instance
        this = (table.c.sop_uid == sa.bindparam("uid")) & (table.c.removal_id == removal.id)
        rows = [{"uid": uid, "digest": digest} for uid, digest in digests.items()]
        if rows:
            with self._database.transaction() as work:
                place = sa.update(table).where(this).values(pixels_sha256=sa.bindparam("digest"))
                work.connection.execute(place, rows)

    def end(self, removal: Removal, now: datetime) -> Gone | None:
        """Return what is gone, on record from now on; None when somebody else has ended it."""
        table, files = schema.removal, FILES[removal.kind]
        mine = files.c.removal_id == removal.id
        parts = sa.select(files.c.sop_class, sa.func.count().label("number"))
        with self._database.transaction() as work:
            open_one = (table.c.id == removal.id) & table.c.ended_at.is_(None)
            if not work.execute(sa.update(table).where(open_one).values(ended_at=now)).rowcount:
                return None
            counts = {
                row.sop_class: row.number
                for row in work.execute(parts.where(mine).group_by(files.c.sop_class))
            }
            total = work.execute(sa.select(sa.func.sum(files.c.bytes)).where(mine)).scalar()
            gone = Gone(files=sum(counts.values()), bytes=int(total or 0))
            study_uid, whole = study_of(work, removal)
            event = "retention.study_deleted" if whole else "retention.deleted"
            named = [removal.series_uid]
            if removal.kind == DERIVED:
                named = series_made(work.connection, [removal.job_id]).get(removal.job_id, named)
            fields = {"job": removal.job_id, "series": ", ".join(named), "study": study_uid}
            fields |= {"kind": removal.kind, "count": gone.files, "counts": counts}
            work.record(event, now, **fields, bytes=gone.bytes, reason=removal.reason)
            return gone


def lock(work: Work, series_id: int) -> None:
    """Keep late images and decisions of people away from a series until the transaction ends."""
    for table, column in ((schema.series, "id"), (schema.job, "series_id")):
        query = sa.select(table.c.id).where(table.c[column] == series_id).order_by(table.c.id)
        # Not the keys: who makes a new generation holds the job and points at the series.
        work.execute(query.with_for_update(key_share=True)).all()


def doom(work: Work, lot: Lot, number: int) -> int:
    """Return how many files go by the decision `number`; forwarded originals go in both tables."""
    table, sent = FILES[lot.kind], schema.derived_instance
    mine = sa.update(table).where(of_lot(lot), table.c.removal_id.is_(None))
    count = work.execute(mine.values(removal_id=number)).rowcount
    if lot.kind == ORIGINALS:
        uids = sa.select(table.c.sop_uid).where(table.c.removal_id == number)
        same = sa.update(sent).where(sent.c.sop_uid.in_(uids)).values(removal_id=number)
        work.execute(same)
    return int(count)


def removals() -> sa.Select[Any]:
    """Return the query of whole decisions."""
    removal, series, job = schema.removal, schema.series, schema.job
    names = ("id", "kind", "job_id", "reason", "decided_at", "ended_at")
    derived = (removal.c.kind == DERIVED, job.c.derived_series_uid)
    whose = sa.case(derived, else_=series.c.series_uid).label("series_uid")
    query = sa.select(*(removal.c[name] for name in names), whose)
    query = query.join(series, series.c.id == removal.c.series_id)
    return query.join(job, job.c.id == removal.c.job_id)


def find(connection: sa.Connection, number: int) -> Removal:
    """Return the decision `number`."""
    row = connection.execute(removals().where(schema.removal.c.id == number)).one()
    return Removal(**row._mapping)


def study_of(work: Work, removal: Removal) -> tuple[str, bool]:
    """Return the study of a decision, and whether no file of it is left here."""
    series, job = schema.series, schema.job
    query = sa.select(series.c.study_uid).join(job, job.c.series_id == series.c.id)
    study_uid = str(work.execute(query.where(job.c.id == removal.job_id)).scalar_one())
    ours = sa.select(series.c.id).where(series.c.study_uid == study_uid)
    jobs = sa.select(job.c.id).where(job.c.series_id.in_(ours))
    received, sent = schema.instance, schema.derived_instance
    for table, these in (
        (received, received.c.series_id.in_(ours)),
        (sent, sent.c.job_id.in_(jobs)),
    ):
        left = sa.select(table.c.id).outerjoin(
            schema.removal, schema.removal.c.id == table.c.removal_id
        )
        left = left.where(these, schema.removal.c.ended_at.is_(None)).limit(1)
        if work.execute(left).first() is not None:
            return study_uid, False
    return study_uid, True
