"""What a worker looks at before it takes a job: a fault of the node must not use up its attempts.

While the signing key, the weights or the device cannot be used, or the weights are recalled, what
is queued stays queued and says why. Nobody has to requeue it afterwards.
"""

from collections.abc import Callable

from dicom_node import signing, telemetry
from dicom_node.errors import NodeError
from dicom_node.settings import Settings
from dicom_node.store import Store
from dicom_node.worker.watch import utc_now
from sr_engine.errors import EngineError

OTHER_WEIGHTS = "Configure other ones (engine.weights) and restart."

log = telemetry.get_logger()


class Readiness:
    """Knows whether a worker could process any job at all."""

    def __init__(self, settings: Settings, store: Store, weights: Callable[[], str]) -> None:
        """Ask `store`; `weights` returns the SHA-256 of what the engine can use, at some cost."""
        self._settings, self._store, self._weights = settings, store, weights
        self._obstacle: str | None = None  # what was found last; "": nothing; None: not yet asked

    def is_given(self) -> bool:
        """Return whether a queued job may be begun; if not, every queued job says why."""
        obstacle = self._find()
        if obstacle:
            self._store.jobs.explain_wait(obstacle)
        elif self._obstacle != "":  # an earlier life of this worker may have left its words
            self._store.jobs.explain_wait("")
        if obstacle != (self._obstacle or ""):
            if obstacle:
                log.error("worker.not_ready", reason=obstacle)
            else:
                log.info("worker.ready")
        self._obstacle = obstacle
        return not obstacle

    def _find(self) -> str:
        """Return what stands in the way of every job, as a sentence; "" if nothing does."""
        try:
            signing.own_key(self._settings.node.state_dir)
            signing.certified(self._settings.signing, utc_now())
        except (NodeError, OSError) as error:
            return f"the node's signing key cannot be used: {error}."
        try:
            sha256 = self._weights()
        except (EngineError, OSError) as error:
            return f"the engine cannot be used: {error}."
        recalled = self._store.withdrawals.recalled().get(sha256)
        return f"{recalled} {OTHER_WEIGHTS}" if recalled else ""
