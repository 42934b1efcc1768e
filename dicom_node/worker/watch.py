"""The lease of a running job, and the two reasons to end an attempt early."""

import threading
import time
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from dicom_node import telemetry
from dicom_node.errors import LeaseLost, NodeError, StoreUnavailable
from dicom_node.settings import Settings
from dicom_node.store import ClaimedJob, Store

log = telemetry.get_logger()


class GivenBack(NodeError):
    """The worker must end before its job does: the job goes back to the queue."""


class Shutdown:
    """A request to end, and how long a running job may still take."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._asked = threading.Event()
        self._deadline = float("inf")

    def request(self, grace_s: float) -> None:
        """Ask to end within `grace_s` seconds; of several requests the earliest end counts."""
        self._deadline = min(self._deadline, time.monotonic() + grace_s)
        self._asked.set()

    @property
    def requested(self) -> bool:
        """True as soon as somebody has asked."""
        return self._asked.is_set()

    @property
    def overdue(self) -> bool:
        """True when the grace is used up."""
        return self.requested and time.monotonic() >= self._deadline

    def wait(self, timeout_s: float) -> bool:
        """Sleep, at most `timeout_s`; True when the end was asked for."""
        return self._asked.wait(timeout_s)


class Watch:
    """Keeps the lease of one job alive, and ends the attempt that must not go on.

    The engine tells its progress; that is where an attempt can be ended.
    """

    def __init__(
        self, store: Store, job: ClaimedJob, worker: str, settings: Settings, shutdown: Shutdown
    ) -> None:
        """Watch over `job`, which `worker` has claimed."""
        self._shutdown = shutdown
        self._store, self._job, self._worker = store, job, worker
        self._lease = timedelta(seconds=settings.engine.lease_s)
        self._every_s = settings.engine.heartbeat_s
        self._held_until = time.monotonic() + settings.engine.lease_s
        self._lost = threading.Event()
        self._done = threading.Event()
        self._at: tuple[str, float] = ("start", 0.0)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin to beat, at once."""
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop beating."""
        self._done.set()
        self._thread.join()

    def progress(self, stage: str, share: float) -> None:
        """Remember how far the engine is.

        Raises
        ------
        LeaseLost
            If the job belongs to somebody else.
        GivenBack
            If the worker must end now.
        """
        self._at = (stage, share)
        if self.lost:
            raise LeaseLost(f"job {self._job.job_id} is no longer held by {self._worker}")
        if self._shutdown.overdue:
            raise GivenBack("The worker was stopped; the series waits for another one.")

    @property
    def lost(self) -> bool:
        """True when the job belongs to somebody else, or may do so by now."""
        return self._lost.is_set() or time.monotonic() >= self._held_until

    def _run(self) -> None:
        while not self._done.wait(self._every_s) and not self._lost.is_set():
            self._beat()

    def _beat(self) -> None:
        asked_at = time.monotonic()
        stage, share = self._at
        try:
            mine = self._store.jobs.heartbeat(
                self._job.job_id, self._worker, utc_now(), self._lease, stage=stage, progress=share
            )
        except StoreUnavailable as error:  # the lease holds a while; the next beat may get through
            log.warning("worker.heartbeat_failed", job=self._job.job_id, error=str(error))
            return
        if mine:
            self._held_until = asked_at + self._lease.total_seconds()
        else:
            self._lost.set()


def utc_now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)
