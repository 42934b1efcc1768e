"""A thread that does one thing again and again, whatever becomes of it once."""

import threading
from collections.abc import Callable

from dicom_node import telemetry
from dicom_node.edges import failure_of
from dicom_node.errors import NodeError

log = telemetry.get_logger()


class Loop:
    """Calls `step` every `interval_s` until it is stopped; /healthz asks whether it fails.

    Parameters
    ----------
    grace_s
        How long after `wake` the step comes.
    """

    def __init__(
        self, name: str, step: Callable[[], object], interval_s: float, *, grace_s: float = 0.0
    ) -> None:
        self._name = name
        self._step = step
        self._interval_s = interval_s
        self._grace_s = grace_s
        self._stop = threading.Event()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False

    def start(self) -> None:
        """Begin; the first step comes after the first interval."""
        self._stop.clear()
        self._news.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the next step come before its time: there is something to do."""
        self._news.set()

    @property
    def ending(self) -> bool:
        """Return whether it is being stopped: a long step may end early."""
        return self._stop.is_set()

    def stop(self, timeout_s: float) -> None:
        """End after the step under way."""
        self._stop.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def failing(self) -> bool:
        """Return whether the last step failed, or the thread is gone that was to go on."""
        gone = self._thread is not None and not self._thread.is_alive()
        return self._failed or gone and not self._stop.is_set()

    def _run(self) -> None:
        while not self._pause():
            error = failure_of(self._step)
            self._failed = error is not None
            if isinstance(error, NodeError):  # the database is away, for example: it says all
                log.error(f"{self._name}.failed", reason=str(error))
            elif error:
                log.error(f"{self._name}.failed", exc_info=error)

    def _pause(self) -> bool:
        """Wait until the next step is due; return whether there is to be none."""
        woken = self._news.wait(self._interval_s)
        self._news.clear()
        return self._stop.wait(self._grace_s if woken else 0.0)
