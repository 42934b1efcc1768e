"""Worker processes: their names, and whether they still live."""

import os
import secrets
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from dicom_node.errors import IllegalTransition, LeaseLost
from dicom_node.store import Store
from dicom_node.store.overview import leases


def worker_name() -> str:
    """Return a name for one life of this process: ``host/pid namespace/pid/token``."""
    return f"{home()}/{os.getpid()}/{secrets.token_hex(4)}"


def home() -> str:
    """Return what all processes share that this one could signal: host and pid namespace."""
    namespace = Path("/proc/self/ns/pid")
    number = namespace.stat().st_ino if namespace.exists() else 0
    return f"{socket.gethostname()}/{number}"


def expire_gone_workers(store: Store, now: datetime, max_attempts: int) -> list[int]:
    """Return the jobs that are queued again because their worker on this host has ended."""
    expired = []
    for lease in leases(store.database):
        if not is_gone(lease.worker):
            continue
        reason = f"The worker ended in attempt {lease.attempt}"
        with suppress(LeaseLost, IllegalTransition):  # ended meanwhile in another way
            store.jobs.fail_attempt(
                lease.job_id, lease.worker, reason, now, max_attempts=max_attempts
            )
            expired.append(lease.job_id)
    return expired


def return_jobs(store: Store, now: datetime) -> list[int]:
    """Return the jobs of workers that we ended ourselves: queued, the attempt not counted."""
    returned = []
    for lease in leases(store.database):
        if not is_gone(lease.worker):
            continue
        with suppress(LeaseLost, IllegalTransition):
            store.jobs.transition(
                lease.job_id,
                "expire",
                now,
                lessee=lease.worker,
                reason="The node was stopped; the series waits for a worker.",
                attempts=lease.attempt - 1,
            )
            returned.append(lease.job_id)
    return returned


def is_gone(worker: str) -> bool:
    """Return True when `worker` lived on this host and its process has ended."""
    place, _, rest = worker.rpartition("/")[0].rpartition("/")
    if place != home() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, another user's
        return False
    return False
