"""Senders that repeat themselves, and senders that use one UID for two things.

python -m tests.faults.same_uids --rounds 6

Duplicates must be acknowledged and change nothing, whatever the state of their series; another
content under a known SOP Instance UID must be refused (0x0111) and leave the first one as it is.
"""

import argparse
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pydicom

from tests.faults.accounts import settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.stand import ENDED, Flight, Stand
from tests.integration.partners import run_storescu

AT_ONCE = 4


class Senders:
    """What senders do wrong with UIDs; every method is one trial."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.said: Counter[str] = Counter()
        self.problems: list[str] = []

    def twice_at_once(self) -> None:
        """Send one series over several associations at the same time."""
        flight = self.stand.new()
        threads = [
            threading.Thread(target=self._send, args=(flight.paths,)) for _ in range(AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._all_acknowledged(flight)

    def again_while_receiving(self) -> None:
        """Send half, then everything, then everything in another transfer syntax."""
        flight = self.stand.new()
        self._send(flight.paths[: len(flight.paths) // 2])
        self._send(flight.paths)
        self._send(flight.paths, "-xi")  # implicit VR: other bytes, the same content
        self._all_acknowledged(flight)

    def again_in_the_end(self) -> None:
        """Send a delivered series once more."""
        flight = self.stand.new()
        self.stand.send_all(flight)
        self.stand.wait_for_state(flight, ENDED)
        self._send(flight.paths)
        self._send(flight.paths, "-xi")
        state = self.stand.node.states()[flight.series_uid]
        self._expect(state == "DELIVERED", f"a repeated series is {state}")

    def other_pixels(self) -> None:
        """Send a known instance with other pixels."""
        self._conflict(lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[::-1]))

    def other_attributes(self) -> None:
        """Send a known instance with another position."""
        self._conflict(lambda dataset: setattr(dataset, "ImagePositionPatient", [1, 2, 3]))

    def other_series(self) -> None:
        """Send a known instance as part of another series."""
        self._conflict(lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3.4711"))

    def _conflict(self, change: Callable[[pydicom.Dataset], None]) -> None:
        flight = self.stand.new()
        self.stand.send_all(flight)
        false = flight.paths[0].parent / "false"
        false.mkdir()
        for path in flight.paths[1:4]:
            dataset = pydicom.dcmread(path)
            change(dataset)
            dataset.save_as(false / path.name)
        paths = sorted(false.iterdir())
        said = self._send(paths)
        refused = len(re.findall(r"0x0?111\b", said))
        self.said["conflicts refused"] += refused
        self._expect(
            refused == len(paths) and "(Success)" not in said,
            f"{refused} of {len(paths)} conflicts were refused",
        )

    def _send(self, paths: list[Path], *options: str) -> str:
        done = run_storescu(self.stand.node.port, paths, "-nh", *options, seconds=240)
        said = done.stdout + done.stderr
        self.said["instances sent"] += len(paths)
        self.said["answered with success"] += said.count("(Success)")
        return said

    def _all_acknowledged(self, flight: Flight) -> None:
        said = self._send(flight.paths)
        flight.acknowledged |= set(flight.paths)
        self._expect(
            said.count("(Success)") == len(flight.paths), "a duplicate was not acknowledged"
        )

    def _expect(self, held: bool, problem: str) -> None:
        if not held:
            self.problems.append(problem)


TRIALS = (
    Senders.twice_at_once,
    Senders.again_while_receiving,
    Senders.again_in_the_end,
    Senders.other_pixels,
    Senders.other_attributes,
    Senders.other_series,
)


def campaign(folder: Path, rounds: int, seed: int) -> Row:
    """Let senders err in each way `rounds` times; return the row."""
    with Stand(folder, seed=seed) as stand:
        senders = Senders(stand)
        for number in range(rounds):
            for trial in TRIALS:
                trial(senders)
            say(f"round {number + 1} of {rounds}")
        stand.settle(900.0)
        account = settle_account(stand)
    account.problems += senders.problems
    count = rounds * len(TRIALS)
    return Row(
        name="same_uids", unit="series", count=count, account=account, details=dict(senders.said)
    )


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    return campaign(folder, arguments.rounds, arguments.seed)


if __name__ == "__main__":
    sys.exit(main("same_uids", __doc__, run, rounds=6))
