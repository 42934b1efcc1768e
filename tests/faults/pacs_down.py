"""The archive is away for a day while series go on arriving, then it comes back.

python -m tests.faults.pacs_down --series 30

A day of 86,400 s lasts 86.4 s here: every pause of the sender is a thousandth of its default
(first 5 s, last 900 s, a look each second, 700 attempts as they are). The clock itself runs as
always. The node is killed and started again a few times in that day. Then everything must arrive,
once.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.faults.accounts import settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.stand import SENDING, Stand

FASTER = 1000
DAY_S = 86400 / FASTER
SENDING_OF_A_DAY = {
    "interval_s": 1.0 / FASTER * 20,  # a look takes longer than a millisecond
    "backoff_first_s": 5.0 / FASTER,
    "backoff_last_s": 900.0 / FASTER,
    "max_attempts": 700,
}
KILLS = 3


def campaign(folder: Path, series: int, seed: int, day_s: float = DAY_S) -> Row:
    """Let `series` series arrive while the archive is away; return the row."""
    with Stand(folder, seed=seed, sending=SENDING_OF_A_DAY) as stand:
        stand.pacs.stop()
        started = time.monotonic()
        for number in range(series):
            stand.send_all(stand.new())
            time.sleep(max(0.0, started + day_s * (number + 1) / series - time.monotonic()))
            if (number + 1) % max(1, series // KILLS) == 0:
                stand.node.process.kill()
                stand.node.process.wait()
                stand.node.start()
                say(f"{number + 1} of {series} series")
        stand.settle(900.0, lambda state: state == SENDING)
        waiting = sum(state == SENDING for state in stand.node.states().values())
        away_s = time.monotonic() - started
        stand.pacs.start()
        took_s = stand.settle(900.0)
        row = Row(name="pacs_down", unit="series", count=series)
        row.account = settle_account(stand)
        if waiting != series:
            row.account.problems.append(f"{waiting} of {series} series waited for the archive")
        log = stand.node.log.read_text()
        row.details = {
            "hours away, at a thousandth": round(away_s * FASTER / 3600, 1),
            "attempts without an archive": log.count('"outcome": "transient"'),
            "seconds until everything had arrived": took_s,
        }
    return row


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    return campaign(folder, arguments.series, arguments.seed)


if __name__ == "__main__":
    sys.exit(main("pacs_down", __doc__, run, series=30))
