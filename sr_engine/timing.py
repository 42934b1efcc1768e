"""Wall time, processor time and peak memory of named stages."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Collects what each named stage took, and the process's peak memory at its end.

    Processor time counts all threads; beside busy neighbours it says more than wall time.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as stage `name`."""
        started, used = time.monotonic(), time.process_time()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)
        self.cpu_seconds[name] = round(time.process_time() - used, 3)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_mib[name] = round(peak_kib / 1024, 1)
