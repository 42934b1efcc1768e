"""Wall time and peak memory of named stages."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Collects seconds, and the process's peak memory at its end, for each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as stage `name`."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_mib[name] = round(peak_kib / 1024, 1)
