"""What a person may decide about a job: the same for the command line and for the page."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dicom_node.settings import Settings
from dicom_node.store import Store
from dicom_node.worker import release
from dicom_node.worker.outputs import kinds_of


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision; `run` returns the number of the job that goes on."""

    text: str
    run: Callable[[Settings, Store, int, datetime], int]


def requeue_job(settings: Settings, store: Store, job_id: int, now: datetime) -> int:
    """Try a job again; a new generation has another number."""
    names = settings.destinations()
    wanted = {name: [kind.name for kind in kinds_of(settings, name)] for name in names}
    return store.jobs.requeue(job_id, now, names, wanted)


def release_job(settings: Settings, store: Store, job_id: int, now: datetime) -> int:
    """Let a held job go on."""
    release(store, job_id, now)
    return job_id


def cancel_job(settings: Settings, store: Store, job_id: int, now: datetime) -> int:
    """Put a job aside."""
    store.jobs.cancel(job_id, now)
    return job_id


DECISIONS = {
    "requeue": Decision(text="try a job again", run=requeue_job),
    "release": Decision(text="let a held job go on", run=release_job),
    "cancel": Decision(text="put a job aside; its files stay", run=cancel_job),
}
