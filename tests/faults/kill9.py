"""kill -9 of every process in every state, again and again, while series pass through.

python -m tests.faults.kill9 --kills 1000

Several nodes, each with an archive, a worker or two and a scanner of its own, are killed at random
moments of the state that is due: PLAN says how often each process is to die in each state. It is
started again at once, and sometimes killed again while it starts. One of the nodes is started from
a shell with a worker that it keeps itself; the others are forked warm (see `processes`). The
scanners send again what was not acknowledged. Afterwards everything acknowledged must be there and
equal, every series must have ended by itself, and each must be at its archive once.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.accounts import Account, settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.processes import Command, let_work
from tests.faults.stand import COMMITTING, ENDED, SENDING, Flight, Stand

WARM_NODES, IN_FLIGHT = 3, 3
COLD_SHARE = 0.05
PATIENCE_S = 600.0  # the machine may be busy with others
START, COLD_START_CPU_S = "start", 3.5
# Process -> state of the series that is aimed at -> share of all kills. "all" is the service and
# its workers in one instant, as by a power cut of the machine.
PLAN = {
    "serve": {
        "RECEIVING": 16, "QUEUED": 7, "RUNNING": 8, SENDING: 12, COMMITTING: 12, START: 10,
    },
    "worker": {"RECEIVING": 1, "QUEUED": 2, "RUNNING": 14, SENDING: 2, COMMITTING: 1, START: 2},
    "all": {"RECEIVING": 2, "QUEUED": 2, "RUNNING": 3, SENDING: 2, COMMITTING: 2},
    "submit": {"RECEIVING": 2},
}  # fmt: skip
# How long after the state was seen the kill may come: about as long as the state lasts here.
WITHIN_S = {"RECEIVING": 0.5, "QUEUED": 0.3, "RUNNING": 1.0, SENDING: 0.5, COMMITTING: 0.3}


@dataclass
class Tally:
    """The kills so far, by process and the state that the series was in; shared by the nodes."""

    wanted: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    aimed: Counter[tuple[str, str]] = field(default_factory=Counter)
    cold: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.kills.values())

    @property
    def enough(self) -> bool:
        """Whether there were as many as wanted."""
        return self.total >= self.wanted

    @property
    def cold_enough(self) -> bool:
        """Whether the node that starts from a shell has had its share: each start takes seconds."""
        return self.cold >= COLD_SHARE * self.wanted

    def next_aim(self, rng: random.Random) -> tuple[str, str]:
        """Return process and state that are furthest behind their share."""
        with self._lock:
            shares = {(who, where): n for who, row in PLAN.items() for where, n in row.items()}
            behind = {
                cell: (self.kills[cell] + self.aimed[cell] + rng.random()) / share
                for cell, share in shares.items()
            }
            cell = min(behind, key=behind.__getitem__)
            self.aimed[cell] += 1
            return cell

    def give_up(self, cell: tuple[str, str]) -> None:
        """Note that the aim was missed or met: it is no longer under way."""
        with self._lock:
            self.aimed[cell] -= 1

    def count(self, who: str, where: str, *, cold: bool) -> None:
        """Note one kill."""
        with self._lock:
            self.kills[who, where] += 1
            self.cold += cold

    def table(self) -> dict[str, dict[str, int]]:
        """Return the kills as a table."""
        found: dict[str, dict[str, int]] = {}
        for (who, where), number in sorted(self.kills.items()):
            found.setdefault(who, {})[where] = number
        return found


class Killer:
    """One node and who kills it; `run` works until the tally has enough."""

    def __init__(self, stand: Stand, tally: Tally) -> None:
        self.stand, self.node, self.tally = stand, stand.node, tally
        self.random = stand.random

    def run(self) -> None:
        """Aim and kill until there were enough."""
        while not self.tally.enough and not (self.node.cold and self.tally.cold_enough):
            cell = self.tally.next_aim(self.random)
            try:
                self._one(*cell)
            finally:
                self.tally.give_up(cell)

    def _one(self, who: str, where: str) -> None:
        if where == START:
            self._kill_starting(who)
        elif who == "submit":
            self._kill_submit()
        elif where == "RECEIVING":
            self._kill_receiving(who)
        else:
            self._kill_in(who, where)

    def _kill_in(self, who: str, where: str) -> None:
        """Kill while a series is in a state; what is seen right before the kill is counted."""
        flight = self._await(where)
        if flight is None:
            return
        time.sleep(self.random.uniform(0.0, WITHIN_S[where]) * self.random.random())
        self._kill(who, flight)
        self._restart()

    def _kill_receiving(self, who: str) -> None:
        """Kill while the scanner sends."""
        flight = self.stand.new()
        sender = threading.Thread(target=self.stand.send, args=(flight,))
        sender.start()
        time.sleep(self.random.uniform(0.0, WITHIN_S["RECEIVING"]))
        self._kill(who, flight, otherwise="RECEIVING")
        sender.join()
        self._restart()
        self._resend()

    def _kill_submit(self) -> None:
        """Kill `dicom-node submit` while it imports; a person then runs it again."""
        flight = self.stand.new()
        arguments = ["submit", "--config", str(self.node.config), *map(str, flight.paths)]
        importer = Command(arguments, self.node.folder / "submit.log")
        time.sleep(self.random.uniform(0.02, 0.4))
        if importer.poll() is None:
            importer.kill()
            self.tally.count("submit", "RECEIVING", cold=False)
        importer.wait()
        self.node.command("submit", *map(str, flight.paths))
        flight.acknowledged |= set(flight.paths)

    def _kill_starting(self, who: str) -> None:
        """Kill what has just been started, on its way."""
        if self._kill_processes(who):
            self.tally.count(who, self._most_advanced(), cold=self.node.cold)
        if who == "serve":
            self.node.start(wait=False)
        else:
            self.node.tend()
        assert self.node.process is not None
        started = self.node.process.pid if who == "serve" else (self.node.workers() or [0])[-1]
        let_work(
            started, self.random.uniform(0.0, COLD_START_CPU_S if self.node.cold else 0.25), 5.0
        )
        if not self._kill_processes(who):  # a worker that its service has not started yet
            self._restart()
            return
        self.tally.count(who, START, cold=self.node.cold)
        self._restart()

    def _kill(self, who: str, flight: Flight, otherwise: str = "") -> None:
        holder = self.node.holder(flight.series_uid) if who == "worker" else None
        state = otherwise or self.node.states().get(flight.series_uid, "RECEIVING")
        if self._kill_processes(who, holder):
            self.tally.count(who, "ended" if state in ENDED else state, cold=self.node.cold)

    def _kill_processes(self, who: str, holder: int | None = None) -> bool:
        """Return whether there was somebody to kill; of workers one, the `holder` if there is."""
        workers = self.node.workers() if who != "serve" else []
        if who == "worker":
            victims = [holder] if holder in workers else workers[-1:]
        else:
            assert self.node.process is not None
            victims = [self.node.process.pid, *workers]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.node.bury(victims)
        if who != "worker" and self.node.process is not None:
            self.node.process.wait(PATIENCE_S)
        return bool(victims)

    def _restart(self) -> None:
        """Start again what does not run."""
        assert self.node.process is not None
        if self.node.process.poll() is not None:
            self.node.start()
        else:
            self.node.wait_until_it_listens()
            self.node.tend()

    def _await(self, where: str, seconds: float = 30.0) -> Flight | None:
        """Return a series in the state that is wanted; None when none came there in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.tally.enough:
            states = self.node.states()
            live = [f for f in self.stand.flights if states.get(f.series_uid, "") not in ENDED]
            for flight in live:
                if states.get(flight.series_uid) == where:
                    return flight
            if len(live) < IN_FLIGHT:
                self.stand.new()
            self._resend()
            self.node.tend()
            time.sleep(0.01)
        return None

    def _resend(self) -> None:
        for flight in self.stand.flights:
            if flight.waiting:
                self.stand.send_all(flight, PATIENCE_S)

    def _most_advanced(self) -> str:
        """Return the state of the live series that is furthest, for a kill that aims at none."""
        states = [state for state in self.node.states().values() if state not in ENDED]
        order = [COMMITTING, SENDING, "RUNNING", "QUEUED", "RECEIVING"]
        return next((state for state in order if state in states), "ended")


def campaign(
    folder: Path,
    kills: int,
    seed: int,
    *,
    nodes: int = WARM_NODES,
    cold: bool = True,
    sources: Sequence[Path] = (),
    minutes: float = 0.0,
) -> Row:
    """Run a campaign and return its row.

    Parameters
    ----------
    sources
        The files of one series, instead of phantoms.
    minutes
        After which it ends even if there were fewer kills; 0: never.
    """
    tally = Tally(wanted=kills)
    end = time.monotonic() + minutes * 60 if minutes else float("inf")
    stands = [
        Stand(
            folder / f"stand{number}",
            seed=seed * 100 + number,
            workers=1 + number % 2,
            sources=sources,
        )
        for number in range(nodes)
    ]
    if cold:
        stands.append(Stand(folder / "cold", seed=seed * 100 + 99, cold=True, sources=sources))
    accounts: list[Account] = []
    errors: list[str] = []

    def work(stand: Stand) -> None:
        try:
            with stand:
                Killer(stand, tally).run()
                finish(stand)
                accounts.append(settle_account(stand))
        except Exception as error:  # a thread of ours: the row must show it
            errors.append(f"{stand.folder.name}: {type(error).__name__}: {error}")
            tally.wanted = 0

    threads = [threading.Thread(target=work, args=(stand,)) for stand in stands]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(10.0)
        threads[-1].join(5.0)
        say(f"{tally.total} kills")
        if time.monotonic() > end:
            tally.wanted = 0
    row = Row(name="kill9", unit="kills", count=tally.total)
    for account in accounts:
        row.account.add(account)
    row.account.problems += errors
    row.details = {"kills": tally.table(), "of which started from a shell": tally.cold}
    return row


def finish(stand: Stand) -> None:
    """Let everything that is under way come to its end."""
    for flight in stand.flights:
        stand.send_all(flight, PATIENCE_S)
    stand.settle(900.0)


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    sources = sorted(arguments.series.iterdir()) if arguments.series else ()
    return campaign(
        folder, arguments.kills, arguments.seed, sources=sources, minutes=arguments.minutes
    )


if __name__ == "__main__":
    sys.exit(main("kill9", __doc__, run, kills=1000, minutes=0, series=None))
