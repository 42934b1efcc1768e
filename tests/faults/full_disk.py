"""The disk is full: a small tmpfs that somebody else fills and empties while series pass.

python -m tests.faults.full_disk --fillings 20

As root: the state folder is a tmpfs of a few MB. A file of ours fills it to the last bytes at
random moments, stays for a while, and goes. With the node's guard (`files.min_free_bytes`) nothing
is accepted any more before the disk is full; without it the disk is full for everybody, the
database included. The scanner sends again what was refused.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.accounts import settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.stand import Stand

SIZE_BYTES = 24_000_000
GUARD_BYTES = 4_000_000


@contextmanager
def small_disk(folder: Path, size_bytes: int = SIZE_BYTES) -> Iterator[Path]:
    """Mount a tmpfs on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Return a file that leaves only so many bytes free."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        while (free := free_bytes(disk)) > leave_bytes:
            try:
                file.write(bytes(min(65536, free - leave_bytes)))
                file.flush()
            except OSError:  # the node took the last of it
                break
    return ballast


def free_bytes(disk: Path) -> int:
    """Return the free space."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def campaign(folder: Path, fillings: int, seed: int, *, guard_bytes: int) -> Row:
    """Fill the disk again and again while series pass; return the row."""
    state = folder / "node" / "state"
    row = Row(name="full_disk", unit="fillings", count=fillings)
    with small_disk(state):
        files = {"min_free_bytes": guard_bytes, "results_reserve_bytes": guard_bytes * 3 // 4}
        with Stand(folder, seed=seed, files=files) as stand:
            stop = threading.Event()
            scanner = threading.Thread(target=send_series, args=(stand, stop))
            scanner.start()
            try:
                for number in range(fillings):
                    time.sleep(stand.random.uniform(0.2, 2.0))
                    ballast = fill(state, stand.random.choice([0, 0, 4096, 20_000, 100_000]))
                    time.sleep(stand.random.uniform(0.5, 6.0))
                    ballast.unlink()
                    say(f"filling {number + 1} of {fillings}, guard {guard_bytes}")
            finally:
                stop.set()
                scanner.join()
            stand.settle(900.0)
            row.account = settle_account(stand)
            log = stand.node.log.read_text()
        row.details = {
            "guard": f"{guard_bytes} bytes",  # no number: what is counted adds up
            "instances refused": log.count('"status": "A700"'),
            "attempts that failed": log.count('"event": "job.retry"'),
            "lines that say the database did not commit": log.count("did not commit"),
        }
    return row


def send_series(stand: Stand, stop: threading.Event) -> None:
    """Send a few series, one after the other, each until it is acknowledged."""
    while not stop.is_set() and len(stand.flights) < 40:
        stand.send_all(stand.new(), 400.0)
        stop.wait(stand.random.uniform(0.5, 4.0))


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for: half with the guard, half without."""
    half = max(1, arguments.fillings // 2)
    with_guard = campaign(folder / "guard", half, arguments.seed, guard_bytes=GUARD_BYTES)
    row = campaign(folder / "none", half, arguments.seed + 1, guard_bytes=0)
    row.count += with_guard.count
    row.account.add(with_guard.account)
    row.details = {"with guard": with_guard.details, "without": row.details}
    return row


if __name__ == "__main__":
    sys.exit(main("full_disk", __doc__, run, fillings=20))
