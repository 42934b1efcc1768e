"""Commands of the product as processes, forked from one that has imported everything already.

Python needs seconds to import the service, and more for the engine: a thousand kills would be a
thousand imports. A forked process runs `dicom_node.cli.main` with the same arguments as one from a
shell, has its own process number, and is killed by the same signal.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

PRELOAD = [
    "alembic.command",
    "dicom_node.cli.operations",
    "dicom_node.cli.processes",
    "dicom_node.service",
    "dicom_node.worker",
    "sr_engine.model.bundle",
    "sr_engine.pipeline",
]
# Several processes on few cores: libraries that take every core only wait for each other.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}
_context = multiprocessing.get_context("forkserver")
_lock = threading.Lock()


def warm_up(**environment: str) -> None:
    """Start the process that the others are forked from; they inherit `environment`."""
    _context.set_forkserver_preload(PRELOAD)
    kept = dict(os.environ)
    os.environ.update(ENVIRONMENT | environment)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)


class Command:
    """One running `dicom-node` command, with what `subprocess.Popen` offers of it."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        with _lock:
            warm_up()
            self._process = _context.Process(
                target=run, args=(list(arguments), str(log)), daemon=True
            )
            self._process.start()

    @property
    def pid(self) -> int:
        """The process number."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it: SIGKILL."""
        self._process.kill()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Return the exit code once it has ended."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("dicom-node", timeout_s)
        return code


def let_work(pid: int, seconds: float, limit_s: float = 30.0) -> None:
    """Return when a process has had so many seconds of the processor, or has waited for long.

    A moment on the way of its start, however busy the machine is with others.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return
        if (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds:
            return
        time.sleep(0.005)


def run(arguments: list[str], log: str) -> None:
    """Be the command; its output goes to `log`."""
    from dicom_node.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))
