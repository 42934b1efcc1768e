"""What a connection may cost: how many, how large, how slow; and how loudly it is refused.

pynetdicom has no such limits: an accepted socket waits for ever, an announced PDU of 4 GiB is
believed, and ten silent connections fill a maximum of ten. The numbers stand in [limits] and
[node] of the configuration; `lobby` keeps those that hold before an association, `transport` those
that hold inside one.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from dicom_node import telemetry
from dicom_node.settings import Settings

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one listener; the defaults are for a loopback archive."""

    associations: int = 100
    associations_per_peer: int = 100
    waiting: int = 256
    request_s: float = 10.0
    request_bytes: int = 2**18
    pdu_bytes: int = 2**24
    pdu_s: float = 30.0
    message_bytes: int = 2**30
    message_bytes_per_s: int = 1000

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits of the configuration."""
        return cls(
            associations=settings.node.max_associations,
            request_s=settings.node.acse_timeout_s,
            **settings.limits.model_dump(),
        )


class LimitExceeded(OSError):
    """The connection is closed; `kind` is what the metric calls it.

    An OSError, because that is what pynetdicom takes for a lost connection.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Seats:
    """Who has how many associations; a seat is taken before a thread is spent."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, peer: str) -> str:
        """Take a seat for `peer`; return why there is none, or nothing."""
        with self._lock:
            if self._taken.total() >= self._limits.associations:
                return f"{self._limits.associations} associations are open"
            if self._taken[peer] >= self._limits.associations_per_peer:
                return f"{peer} has {self._taken[peer]} associations open"
            self._taken[peer] += 1
            return ""

    def leave(self, peer: str) -> None:
        """Give a seat back."""
        with self._lock:
            self._taken[peer] -= 1


class Meter:
    """How much of the present message has arrived, and since when."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._bytes = 0
        self._since = 0.0

    def add(self, nr_bytes: int) -> None:
        """Count bytes that are about to be read.

        Raises
        ------
        LimitExceeded
            If the PDU or the message is too long, or the message too slow.
        """
        limits = self._limits
        if nr_bytes > limits.pdu_bytes:
            text = f"a PDU of {nr_bytes} bytes is announced, {limits.pdu_bytes} is the most"
            raise LimitExceeded("long PDU", text)
        if not self._bytes:
            self._since = self._clock()
        self._bytes += nr_bytes
        if self._bytes > limits.message_bytes:
            raise LimitExceeded("long message", f"a message exceeds {limits.message_bytes} bytes")
        passed_s = self._clock() - self._since
        if passed_s > limits.pdu_s + self._bytes / limits.message_bytes_per_s:
            text = f"{self._bytes} bytes of a message in {passed_s:.0f} s"
            raise LimitExceeded("slow message", text)

    def restart(self) -> None:
        """Begin the next message."""
        self._bytes = 0


class Complaints:
    """Counts every refusal, and logs the first few of a kind in a minute."""

    def __init__(self, throttle: telemetry.Throttle | None = None) -> None:
        self._throttle = throttle or telemetry.Throttle()

    def count(self, kind: str) -> None:
        """Count a refusal of this kind."""
        telemetry.connections_refused.labels(kind=kind).inc()

    def note(self, kind: str, event: str, **fields: Any) -> None:
        """Count a refusal of this kind; log `event` unless it has been said often enough."""
        self.count(kind)
        kept_back = self._throttle.kept_back(kind)
        if kept_back is not None:
            more = {"count": kept_back} if kept_back else {}
            log.warning(event, kind=kind, **fields, **more)
            if event == "association.rejected":
                telemetry.refusals.add({"kind": kind} | fields | more)
