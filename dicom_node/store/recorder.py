"""What arrives, recorded in the quickest way that fits: nearly always by one statement.

Nearly everything that arrives is a new instance of a series that is being received. On SQLite the
driver lets go of the interpreter several times for each statement, and who records stands in the
queue for it each time, while others wait for the transaction to end. So a trigger does what is to
be done for such an instance, and the statement that it belongs to is the whole transaction.
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from dicom_node.errors import StoreUnavailable
from dicom_node.store import schema
from dicom_node.store.arrivals import INSTANCE, SERIES, STAYS, Arrival, Recorded, record_all
from dicom_node.store.database import Database
from dicom_node.store.instances import OF_INSTANCE, NewInstance
from dicom_node.store.prepared import OfRows, Values

MOST_SERIES = 1024  # whose jobs are remembered

COLUMNS = (*OF_INSTANCE, "received_at")
TYPES = {name: INSTANCE[name].type for name in COLUMNS}
TYPES |= {"series_uid": SERIES.series_uid.type, "job_id": schema.job.c.id.type}
NAMES = ", ".join(COLUMNS)
# Of the connection that writes, and of no other: nothing of it is in the file.
TRIGGER = (
    "CREATE TEMP VIEW IF NOT EXISTS arriving AS "
    f"SELECT {NAMES}, '' AS series_uid, 0 AS job_id FROM main.instance",
    f"""CREATE TEMP TRIGGER IF NOT EXISTS arrive INSTEAD OF INSERT ON arriving BEGIN
        SELECT RAISE(ABORT, 'the series is not being received') WHERE NOT EXISTS (
            SELECT 1 FROM main.job AS job JOIN main.series AS series ON series.id = job.series_id
            WHERE job.id = NEW.job_id AND series.series_uid = NEW.series_uid
            AND job.state IN ({", ".join(f"'{state.value}'" for state in sorted(STAYS))})
            AND job.generation =
                (SELECT max(generation) FROM main.job WHERE series_id = series.id));
        INSERT INTO instance (series_id, {NAMES})
            SELECT series_id, {", ".join(f"NEW.{name}" for name in COLUMNS)}
            FROM main.job WHERE id = NEW.job_id;
        UPDATE series SET acknowledged = acknowledged + 1, last_received_at = NEW.received_at
            WHERE series_uid = NEW.series_uid;
    END""",
)
ARRIVING = sa.table("arriving", *map(sa.column, TYPES))
ARRIVE = OfRows(TYPES, lambda rows: sa.insert(ARRIVING).values(rows))


class Recorder:
    """Records what arrives; it remembers the jobs of the series that are being received.

    What it remembers may be out of date: then the trigger refuses, and it is looked up.
    """

    def __init__(self, database: Database) -> None:
        """Record in `database`."""
        self._database = database
        self._jobs: dict[str, int] = {}  # by series UID

    def record_all(self, batch: Sequence[Arrival]) -> Sequence[Recorded | Exception]:
        """Return what became of each instance, all durable; a bad one hurts no other."""
        try:
            jobs = self._record_at_once(batch) if self._database.is_sqlite else []
        except StoreUnavailable as error:
            return [StoreUnavailable(str(error)) for _ in batch]
        if jobs:
            return [Recorded(outcome="new", job_id=job_id) for job_id in jobs]
        outcomes = record_all(self._database, batch)
        self._remember(batch, outcomes)
        return outcomes

    def _record_at_once(self, batch: Sequence[Arrival]) -> list[int]:
        """Return the job of each instance; nothing, if they are not all new ones of series known.

        Nothing was kept then.
        """
        known = self._jobs
        jobs = [known[new.series_uid] for new, _ in batch if new.series_uid in known]
        if len(jobs) < len(batch):
            return []
        rows = [values_of(*arrival, job) for arrival, job in zip(batch, jobs, strict=True)]
        rows.sort(key=lambda row: row["received_at"].timestamp())  # the last one stays
        return jobs if self._database.run_at_once(ARRIVE, rows, TRIGGER) else []

    def _remember(self, batch: Sequence[Arrival], outcomes: Sequence[Recorded | Exception]) -> None:
        for (new, _), outcome in zip(batch, outcomes, strict=True):
            self._jobs.pop(new.series_uid, None)
            if isinstance(outcome, Recorded):
                self._jobs[new.series_uid] = outcome.job_id
        while len(self._jobs) > MOST_SERIES:
            del self._jobs[next(iter(self._jobs))]


def values_of(new: NewInstance, now: datetime, job_id: int) -> Values:
    """Return what the trigger is told of an instance."""
    values = {name: getattr(new, name) for name in (*OF_INSTANCE, "series_uid")}
    return values | {"path": str(new.path), "received_at": now, "job_id": job_id}
