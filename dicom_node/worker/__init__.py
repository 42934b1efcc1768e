"""The worker: claim, enhance, gate, publish. The only door from the service to the engine.

The process that runs this loads torch; nothing heavy is imported before the first job.
"""

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from dicom_node import pixel_files, release_gate, telemetry
from dicom_node.errors import (
    GateRefused,
    IllegalTransition,
    LeaseLost,
    StoreUnavailable,
    WeightsRecalled,
)
from dicom_node.retry import backoff_s
from dicom_node.settings import Settings
from dicom_node.states import HeldBy, JobState
from dicom_node.store import ClaimedJob, DerivedSeries, JobRow, Store
from dicom_node.worker.figures import derived_series
from dicom_node.worker.folders import attempt_name, discard, discard_others
from dicom_node.worker.orders import Engine, Order, Progress, carry_out, orders_of
from dicom_node.worker.outputs import file_sha256, gate, kept_volumes, readers, volumes_made
from dicom_node.worker.processes import worker_name
from dicom_node.worker.readiness import Readiness
from dicom_node.worker.room import is_for_want_of_room
from dicom_node.worker.sources import sources_of
from dicom_node.worker.watch import GivenBack, Shutdown, Watch, utc_now
from dicom_node.worker.weights import load_bundle, usable_weights
from sr_engine.errors import InputRefused

if TYPE_CHECKING:
    from sr_engine.pipeline import EnhanceResult

log = telemetry.get_logger()

IDLE_S = 1.0  # how long a worker sleeps when the queue is empty
NO_ROOM_S = 60.0  # until a job is tried again that found no room for its result


class Worker:
    """One worker: takes job after job from the store until it is asked to end."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        name: str | None = None,
        shutdown: Shutdown | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Work on `store` with `engine` (default: the real one)."""
        self._settings, self._store = settings, store
        self.name = name or worker_name()
        self._shutdown = shutdown or Shutdown()
        self._engine = engine or run_engine
        self._waits = False  # for room on the disk
        self._order = settings.queue_order()
        self._readiness = Readiness(settings, store, partial(usable_weights, settings))

    def run(self) -> None:
        """Work until the shutdown is requested."""
        prepare_environment(self._settings)
        log.info("worker.start", worker=self.name, device=self._settings.engine.device)
        while not self._shutdown.requested:
            try:
                busy = self.run_once()
            except StoreUnavailable as error:
                log.error("worker.store_unavailable", worker=self.name, error=str(error))
                busy = False
            if not busy:
                self._shutdown.wait(IDLE_S)
        log.info("worker.stop", worker=self.name)

    def run_once(self) -> bool:
        """Process one job; False when there was none, or it may not be begun."""
        # Loading the engine takes seconds and much memory: not for an empty queue.
        if not self._has_room() or not self._store.jobs.has_queued():
            return False
        if not self._readiness.is_given():
            return False
        lease = timedelta(seconds=self._settings.engine.lease_s)
        job = self._store.jobs.claim(self.name, utc_now(), lease, self._order)
        if job is None:
            return False
        folder = attempts_dir(self._settings) / str(job.job_id) / attempt_name(job)
        try:
            self._attempt(job, folder)
        except LeaseLost as error:
            log.warning("job.dropped", job=job.job_id, attempt=job.attempt, reason=str(error))
            discard(folder)
        except GivenBack as error:
            reason = str(error)
            self._end(job, folder, lambda: self._give_back(job, reason))
        except StoreUnavailable as error:
            # Nobody knows whether a result was published, so its files stay; housekeeping sweeps
            # the folders that no row points into.
            reason = failure_text(error, job)
            if is_for_want_of_room(error):
                self._settle(job, lambda: self._wait_for_room(job))
            else:
                self._settle(job, lambda: self._fail(job, reason))
        except (InputRefused, WeightsRecalled) as error:
            reason = f"The series cannot be processed: {error}"
            self._end(job, folder, lambda: self._move(job, "refuse", reason=reason))
        except Exception as error:  # the worker's edge: one bad job must not end the worker
            log.exception("job.failed", job=job.job_id, attempt=job.attempt)
            if is_for_want_of_room(error):
                discard(folder)  # first: the database needs room, too
                self._end(job, folder, lambda: self._wait_for_room(job))
                return True
            reason = failure_text(error, job)
            self._end(job, folder, lambda: self._fail(job, reason))
        return True

    def _has_room(self) -> bool:
        """Return whether a result may be written; while there is no room, jobs stay queued."""
        room = pixel_files.room(self._settings)
        waits = room.results_bytes < 0
        if waits != self._waits:
            event = "worker.no_room" if waits else "worker.room"
            needed = self._settings.files.min_free_for_results_bytes
            fields = {"free_bytes": room.free_bytes, "needed_bytes": needed}
            log.warning(event, worker=self.name, **fields)
        self._waits = waits
        return not waits

    def _attempt(self, job: ClaimedJob, folder: Path) -> None:
        """Enhance, gate, publish; every way out but publishing or holding raises."""
        row = self._store.jobs.get(job.job_id)
        wanted = readers(self._settings, row.destinations)
        sources = sources_of(self._store, job.series_id)
        replaced = self._store.jobs.replaced_by(row)
        orders = list(orders_of(sources, folder, row, tuple(wanted), replaced))
        folder.mkdir(parents=True)
        with Watch(self._store, job, self.name, self._settings, self._shutdown) as watch:
            results = carry_out(orders, self._engine, self._settings, watch.progress)
            watch.progress("release gate", 0.98)
            derived = derived_series(sources, results, wanted)
            findings = gate(volumes_made(sources, results))
            conclude = partial(self._conclude, job, row, derived, findings)
            self._persist(job, watch, folder, conclude)
        discard_others(folder)

    def _persist(
        self, job: ClaimedJob, watch: Watch, folder: Path, conclude: Callable[[], None]
    ) -> None:
        """Carry out `conclude`, again while the database is away and the lease still holds.

        An answer that got lost on the way back from the database may have been a success.
        """
        while True:
            try:
                conclude()
                return
            except LeaseLost:
                if folder in {one.path.parent for one in self._store.jobs.derived(job.job_id)}:
                    return
                raise
            except StoreUnavailable as error:
                if watch.lost:
                    raise
                log.warning("worker.store_unavailable", job=job.job_id, error=str(error))
                time.sleep(IDLE_S)

    def _conclude(
        self,
        job: ClaimedJob,
        row: JobRow,
        derived: DerivedSeries,
        findings: Sequence[release_gate.Finding],
    ) -> None:
        """Publish the result, or hold it with the reason."""
        if findings:
            reason = gate_text(findings)
            self._store.jobs.hold_result(
                job.job_id, self.name, derived, HeldBy.GATE, reason, utc_now()
            )
        elif not derived.figures["passed"]:
            reason = f"The result is doubtful: {' '.join(derived.figures['findings'])}"
            self._store.jobs.hold_result(
                job.job_id, self.name, derived, HeldBy.QUALITY, reason, utc_now()
            )
        else:
            self._store.jobs.publish(job.job_id, self.name, derived, row.destinations, utc_now())

    def _end(self, job: ClaimedJob, folder: Path, move: Callable[[], Any]) -> None:
        """Settle a failed attempt that leaves nothing behind."""
        self._settle(job, move)
        discard(folder)

    def _settle(self, job: ClaimedJob, move: Callable[[], Any]) -> None:
        """Move the job on, unless it has become somebody else's."""
        try:
            move()
        except (LeaseLost, IllegalTransition) as error:
            log.warning("job.dropped", job=job.job_id, attempt=job.attempt, reason=str(error))
        except StoreUnavailable as error:  # the lease runs out and gives the job back
            log.error("worker.store_unavailable", job=job.job_id, error=str(error))

    def _move(self, job: ClaimedJob, event: str, **columns: Any) -> JobState:
        return self._store.jobs.transition(
            job.job_id, event, utc_now(), lessee=self.name, **columns
        )

    def _give_back(self, job: ClaimedJob, reason: str) -> JobState:
        # It was not the job's fault, so the attempt does not count.
        return self._move(job, "expire", reason=reason, attempts=job.attempt - 1)

    def _wait_for_room(self, job: ClaimedJob) -> JobState:
        # Not the job's fault either: it waits for as long as it takes.
        reason = "There was no room on the disk for the result; it is tried again by itself."
        later = utc_now() + timedelta(seconds=NO_ROOM_S)
        attempts = job.attempt - 1
        return self._move(job, "expire", reason=reason, attempts=attempts, not_before=later)

    def _fail(self, job: ClaimedJob, reason: str) -> JobState:
        now = utc_now()
        wait_s = backoff_s(job.attempt, Random(), cap_s=600.0)
        return self._store.jobs.fail_attempt(
            job.job_id,
            self.name,
            reason,
            now,
            max_attempts=self._settings.engine.max_attempts,
            not_before=now + timedelta(seconds=wait_s),
        )


def run_engine(order: Order, settings: Settings, progress: Progress) -> "EnhanceResult":
    """Return the derived series that the engine makes of the order; loads torch."""
    from dicom_node import signing
    from sr_engine.dicom.digital_signature import Notary
    from sr_engine.dicom.seal import Signer
    from sr_engine.dicom.template import JobIdentity
    from sr_engine.pipeline import enhance

    key = signing.own_key(settings.node.state_dir)
    certified = signing.certified(settings.signing, utc_now())
    notary = None
    if certified is not None:
        at = max(order.job.created_at, certified.valid_from)
        notary = Notary(certificate=certified.certificate, sign=certified.sign, at=at)
    return enhance(
        order.paths,
        order.folder,
        recipe=settings.recipe(),
        # The job's own time, so that a repeated attempt writes the same bytes.
        job=JobIdentity(
            job_id=order.job.id,
            created=order.job.created_at,
            generation=order.job.generation,
            replaces=order.replaces,
            part=order.part,
        ),
        bundle=load_bundle(settings.engine.weights, settings.engine.weights_sha256),
        device=settings.engine.device,
        memory_mib=settings.engine.memory_mib,
        incomplete_release=order.job.incomplete_release,
        kinds=order.kinds,
        signer=Signer(key=signing.public_text(key), sign=key.sign, notary=notary),
        progress=progress,
    )


def prepare_environment(settings: Settings) -> None:
    """Set what the engine's libraries read when they are loaded."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a busy neighbour costs a factor of 4 else
    if settings.engine.threads:
        for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
            os.environ[name] = str(settings.engine.threads)


def release(store: Store, job_id: int, now: datetime) -> JobState:
    """Return the state after a person's release of a HELD job.

    A series held for completeness or by a rule is queued; a result held by quality goes through
    the gate once more and is published as it is.

    Raises
    ------
    GateRefused
        If the gate held the result, or finds something now.
    IllegalTransition
        If the job is not held.
    """
    job = store.jobs.get(job_id)
    if job.state is not JobState.HELD:
        raise IllegalTransition(f"job {job_id} is {job.state.value}, not HELD")
    if job.held_by is HeldBy.GATE:
        raise GateRefused(f"job {job_id} cannot be released, the gate held it: {job.reason}")
    if job.held_by is not HeldBy.QUALITY:
        return store.jobs.release(job_id, now)
    findings = gate_again(store, job)
    if findings:
        raise GateRefused(f"job {job_id} cannot be released. {gate_text(findings)}")
    store.jobs.publish_held(job_id, job.destinations, now)
    return store.jobs.get(job_id).state


def gate_again(store: Store, job: JobRow) -> Sequence[release_gate.Finding]:
    """Return what the gate finds in a result that was kept."""
    kept = store.jobs.derived(job.id)
    for one in kept:
        if not one.path.is_file() or file_sha256(one.path) != one.sha256:
            raise GateRefused(f"job {job.id}: the kept result {one.path} is gone or was changed")
    return gate(kept_volumes(kept, sources_of(store, job.series_id)))


def gate_text(findings: Sequence[release_gate.Finding]) -> str:
    """Return the gate's findings as a sentence for an administrator."""
    first = findings[0]
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    refused = f"The release gate refused the result by its rule {first.rule}: {first.message}{more}"
    return f"{refused}. Nothing was sent. {first.next_step}."


def failure_text(error: Exception, job: ClaimedJob) -> str:
    """Return why an attempt failed, without words that may quote a data set."""
    words = str(error) if telemetry.own_error(error) else type(error).__name__
    return f"Attempt {job.attempt} failed: {words} (details: log lines with job {job.job_id})"


def attempts_dir(settings: Settings) -> Path:
    """Return the folder of all derived files: ``<state>/out/<job>/<attempt>/``."""
    return settings.node.state_dir.resolve() / "out"
