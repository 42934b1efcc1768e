"""Another process holds SQLite's write lock: for a moment, for seconds, for longer than we wait.

python -m tests.faults.sqlite_lock --locks 30

A child process of ours holds `BEGIN IMMEDIATE` on the node's database again and again while series
pass through. Up to 30 s (the store's busy time-out) everybody waits; beyond it receiving must
answer with a refusal that the scanner repeats, and workers, sender and housekeeping must go on by
themselves.
"""

import argparse
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.faults.accounts import settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.stand import Stand

LOCKER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
database.execute("ROLLBACK")
"""
TOO_LONG_S = 34.0  # more than dicom_node.store.engines.BUSY_TIMEOUT_S


def hold(database: Path, seconds: float) -> None:
    """Return after the database was locked for so long by another process."""
    subprocess.run(
        [sys.executable, "-c", LOCKER, str(database), str(seconds)],
        check=True,
        capture_output=True,
        timeout=seconds + 120,
    )


def durations(locks: int, rng: random.Random) -> list[float]:
    """Return how long each lock is held; every fifteenth outlasts everybody's patience."""
    return [TOO_LONG_S if n % 15 == 7 else rng.uniform(0.1, 5.0) for n in range(locks)]


def campaign(folder: Path, held_s: list[float], seed: int) -> Row:
    """Hold the lock for each of the durations while series pass; return the row."""
    with Stand(folder, seed=seed) as stand:
        stop = threading.Event()
        scanner = threading.Thread(target=send_series, args=(stand, stop))
        scanner.start()
        try:
            for number, seconds in enumerate(held_s, 1):
                hold(stand.node.database, seconds)
                time.sleep(stand.random.uniform(0.1, 1.5))
                say(f"lock {number} of {len(held_s)}: {seconds:.1f} s")
        finally:
            stop.set()
            scanner.join()
        stand.settle(900.0)
        row = Row(name="sqlite_lock", unit="locks", count=len(held_s))
        row.account = settle_account(stand)
        log = stand.node.log.read_text()
        row.details = {
            "seconds locked": round(sum(held_s), 1),
            "longer than the busy time-out": sum(seconds > 30 for seconds in held_s),
            "lines that say the database did not answer": log.count("the database did not"),
        }
    return row


def send_series(stand: Stand, stop: threading.Event) -> None:
    """Send one series after the other until the end, each until it is acknowledged."""
    while not stop.is_set():
        flight = stand.new()
        stand.send_all(flight, 400.0)
        stop.wait(stand.random.uniform(0.0, 3.0))


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    held_s = durations(arguments.locks, random.Random(arguments.seed))
    return campaign(folder, held_s, arguments.seed)


if __name__ == "__main__":
    sys.exit(main("sqlite_lock", __doc__, run, locks=30))
