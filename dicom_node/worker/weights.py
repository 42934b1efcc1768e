"""A worker whose weights are recalled takes no job: what is queued waits for other weights."""

from collections.abc import Callable

from dicom_node import telemetry
from dicom_node.store import Store

log = telemetry.get_logger()


class RecallGuard:
    """Knows whether the configured weights may still be used."""

    def __init__(self, store: Store, digest: Callable[[], str]) -> None:
        """Ask `store`; `digest` returns the SHA-256 of the configured weights, at some cost."""
        self._store, self._digest = store, digest
        self._waits = False

    def stands(self) -> bool:
        """Return False while the weights are recalled; what is queued then says so."""
        recalled = self._store.withdrawals.recalled()
        digest = self._digest() if recalled else ""
        waits = digest in recalled
        if waits:
            what_to_do = "Configure other ones (engine.weights) and restart."
            self._store.jobs.explain_wait(f"Waits: {recalled[digest]} {what_to_do}")
        if waits != self._waits:
            event = "worker.weights_recalled" if waits else "worker.weights_stand"
            log.warning(event, weights_sha256=digest)
        self._waits = waits
        return not waits
