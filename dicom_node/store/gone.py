"""Work that needs files which retention has taken is refused, in a sentence."""

from datetime import UTC
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import FilesGone
from dicom_node.store import schema
from dicom_node.store.database import Work


def gone_originals(connection: sa.Connection, series_id: int) -> int:
    """Return how many images of a series are gone by a decision of retention, or are to go."""
    instance = schema.instance
    gone = (instance.c.series_id == series_id) & instance.c.removal_id.is_not(None)
    return int(connection.scalar(sa.select(sa.func.count()).where(gone)) or 0)


def gone_results(work: Work, job_id: int) -> int:
    """Return how many files of what a job sends are gone by retention, or are to go."""
    derived = schema.derived_instance
    gone = (derived.c.job_id == job_id) & derived.c.removal_id.is_not(None)
    return int(work.connection.scalar(sa.select(sa.func.count()).where(gone)) or 0)


def refuse_gone_originals(work: Work, job: sa.Row[Any]) -> None:
    """Raise FilesGone when not all images of the job's series are here any more."""
    gone = gone_originals(work.connection, job.series_id)
    if not gone:
        return
    instance, removal = schema.instance, schema.removal
    of_series = instance.c.series_id == job.series_id
    total = work.execute(sa.select(sa.func.count()).where(of_series)).scalar()
    last = sa.select(sa.func.max(removal.c.decided_at)).join(
        instance, instance.c.removal_id == removal.c.id
    )
    day = work.execute(last.where(of_series)).scalar_one().astimezone(UTC).date()
    raise FilesGone(
        f"job {job.id} cannot be processed: {gone} of its {total} received images were deleted by "
        f"retention (the last on {day}); send the series to this node again, then repeat this"
    )
