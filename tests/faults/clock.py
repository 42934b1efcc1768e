"""The wall clock is set forwards and backwards while series pass, and while the node is down.

python -m tests.faults.clock --jumps 24

Service and workers run with a clock of ours (`wall_clock.c`, loaded before libc): one file says by
how many seconds their time of day is off; the monotonic clock goes on, as it does when a real clock
is set. Jumps of seconds to days, to and fro, come while a series is being received (half of it
sent, from one end: what is there looks complete), waits, is computed, is sent, or waits for the
archive to come back. Nobody may wait longer, and nothing may be decided early.
"""

import argparse
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.accounts import settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.processes import warm_up
from tests.faults.stand import COMMITTING, ENDED, SENDING, Flight, Stand

SOURCE = Path(__file__).with_name("wall_clock.c")
DAY_S = 86400
JUMPS_S = (-DAY_S, DAY_S, -3600, 3600, -7 * DAY_S, 300, -300, -10)
IDLE_S = 4.0
STUCK_S = 240.0  # less than the jumps that could hold something up


def compile_clock(folder: Path) -> Path:
    """Return the library that fakes the wall clock of whoever loads it."""
    library = folder / "wall_clock.so"
    compiled = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run(compiled, check=True)
    return library


def write_offset(file: Path, offset_s: int) -> None:
    """Set the clock of every process that has mapped `file`, in the same instant."""
    with file.open("r+b" if file.exists() else "wb") as mapped:
        mapped.write(struct.pack("q", offset_s))


class WallClock:
    """The clock of the processes that are started after it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self._offset_s = 0
        write_offset(self._file, 0)
        warm_up(LD_PRELOAD=str(compile_clock(folder)), WALL_CLOCK=str(self._file))

    def jump(self, by_s: int) -> None:
        """Set the clock by so much."""
        self._offset_s += by_s
        write_offset(self._file, self._offset_s)


class Jumps:
    """One trial for each moment of a series' life at which the clock may jump."""

    def __init__(self, stand: Stand, clock: WallClock) -> None:
        self.stand, self.clock = stand, clock
        self.problems: list[str] = []

    def receiving(self, by_s: int) -> None:
        """Between the two halves of a series, sent from one end."""
        flight = self.stand.new()
        flight.paths.sort()
        half = len(flight.paths) // 2
        first = Flight(series_uid=flight.series_uid, paths=flight.paths[:half])
        self.stand.send_all(first)
        self.clock.jump(by_s)
        time.sleep(1.5)  # housekeeping looks every second
        flight.acknowledged |= first.acknowledged
        self.stand.send_all(flight)

    def computing(self, by_s: int) -> None:
        """While a worker has it; then the worker dies."""
        flight = self.stand.new()
        self.stand.send_all(flight)
        self.stand.wait_for_state(flight, {"RUNNING", SENDING, COMMITTING, *ENDED})
        self.clock.jump(by_s)
        victims = self.stand.node.workers()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        self.stand.node.bury(victims)
        self.stand.node.tend()

    def waiting(self, by_s: int) -> None:
        """While the archive is away and the delivery waits for its next try."""
        self.stand.pacs.stop()
        flight = self.stand.new()
        self.stand.send_all(flight)
        self.stand.wait_for_state(flight, {SENDING})
        time.sleep(1.0)
        self.clock.jump(by_s)
        self.stand.pacs.start()

    def committing(self, by_s: int) -> None:
        """While it is sent and committed."""
        flight = self.stand.new()
        self.stand.send_all(flight)
        self.stand.wait_for_state(flight, {SENDING, COMMITTING, *ENDED})
        self.clock.jump(by_s)

    def down(self, by_s: int) -> None:
        """While the node is not running."""
        flight = self.stand.new()
        self.stand.send_all(flight)
        time.sleep(self.stand.random.uniform(0.0, 3.0))
        self.stand.node.stop()
        self.clock.jump(by_s)
        self.stand.node.start()

    def check(self, what: str) -> None:
        """Everything ends as soon as it does without a jump."""
        took_s = self.stand.settle(STUCK_S * 4)
        if took_s > STUCK_S:
            self.problems.append(f"{what}: {took_s} s until every series had ended")


MOMENTS = (Jumps.receiving, Jumps.computing, Jumps.waiting, Jumps.committing, Jumps.down)


def campaign(folder: Path, jumps: list[int], seed: int) -> Row:
    """Jump by each of `jumps` at a moment of a series' life, in turn; return the row."""
    clock = WallClock(folder)
    with Stand(folder, seed=seed, assembly={"idle_s": IDLE_S}) as stand:
        trials = Jumps(stand, clock)
        for number, (by_s, moment) in enumerate(
            zip(jumps, itertools.cycle(MOMENTS), strict=False), 1
        ):
            moment(trials, by_s)
            trials.check(f"{moment.__name__}, {by_s} s")
            say(f"jump {number} of {len(jumps)}: {moment.__name__}, {by_s} s")
        row = Row(name="clock", unit="jumps", count=len(jumps))
        row.account = settle_account(stand)
        row.account.problems += trials.problems
        log = stand.node.log.read_text()
        row.details = {
            "seconds": sorted(set(jumps)),
            "noticed while running": log.count('"event": "clock.set"'),
        }
    return row


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    jumps = list(itertools.islice(itertools.cycle(JUMPS_S), arguments.jumps))
    return campaign(folder, jumps, arguments.seed)


if __name__ == "__main__":
    sys.exit(main("clock", __doc__, run, jumps=40))
