"""What waits for a point in time, when the wall clock has been set.

Every wait on record ends at a time of day: the idle time of a series that is being received,
leases, pauses before another try. A clock that is set back by a day would make them a day longer,
one that is set forward would end them at once.
"""

from datetime import datetime, timedelta

import sqlalchemy as sa

from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Database
from dicom_node.store.transactions import OPEN


class WaitStore:
    """The waits of all parts of the store."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def restart(
        self,
        now: datetime,
        lease: timedelta,
        *,
        not_after: datetime,
        step_s: float | None = None,
    ) -> None:
        """Begin again to wait for slices and for workers; let long pauses end now.

        Parameters
        ----------
        lease
            What a worker gets that holds a job: a living one renews it long before it ends.
        not_after
            A pause that would last longer than until then is over.
        step_s
            By how much the clock was set, where that is known: for the audit trail.
        """
        series, job, delivery = schema.series, schema.job, schema.delivery
        commitment, export = schema.commitment, schema.audit_export
        receiving = sa.select(job.c.series_id).where(job.c.state == JobState.RECEIVING)
        running, asked = job.c.state == JobState.RUNNING, commitment.c.state == OPEN
        with self._database.transaction() as work:
            for statement in (
                sa.update(series).where(series.c.id.in_(receiving)).values(last_received_at=now),
                sa.update(job).where(running).values(lease_until=now + lease),
                sa.update(job).where(job.c.not_before > not_after).values(not_before=now),
                sa.update(job).where(job.c.queued_at > now).values(queued_at=now),
                sa.update(delivery)
                .where(delivery.c.next_try_at > not_after)
                .values(next_try_at=now),
                sa.update(commitment)
                .where(asked, commitment.c.next_try_at > not_after)
                .values(next_try_at=now),
                sa.update(commitment)
                .where(asked, commitment.c.created_at > now)
                .values(created_at=now),
                sa.update(export).where(export.c.next_try_at > not_after).values(next_try_at=now),
            ):
                work.execute(statement)
            if step_s is not None:
                work.record("clock.set", now, seconds=round(step_s, 1))
