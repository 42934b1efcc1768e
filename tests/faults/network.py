"""A network that cuts, delays, drips and swallows: between scanner and node, and node and archive.

python -m tests.faults.network --rounds 4

Each trial is one series. A proxy of ours on loopback spoils the connections of one side in one of
the ways of `proxy.WEATHERS`, and heals when a few of them have been hit. The scanner repeats what
was not acknowledged; the node has its own time-outs and pauses, shortened to seconds.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

from tests.faults.accounts import settle_account
from tests.faults.ledger import Row, main, say
from tests.faults.proxy import WEATHERS, Proxy
from tests.faults.stand import COMMITTING, ENDED, SENDING, Stand
from tests.integration.partners import Orthanc, free_port

PATIENCE = ("-to", "3", "-ta", "3", "-td", "3")  # of the scanner, in seconds
HITS, LASTS_S = 3, 6.0
SIDES = ("scanner to node", "node to archive")


def campaign(folder: Path, trials: list[tuple[str, str]], seed: int) -> Row:
    """Run one trial for each pair of side and weather; return the row."""
    port = free_port()
    archive = Orthanc(folder / "orthanc", port)
    with Proxy(archive.port, seed) as to_archive:
        stand = Stand(
            folder,
            pacs=archive,
            via=to_archive.port,
            seed=seed,
            port=port,
            sending={"timeout_s": 2.0},
            limits={"pdu_s": 3.0},
        )
        with stand, Proxy(stand.node.port, seed) as to_node:
            for number, (side, weather) in enumerate(trials, 1):
                proxy = to_node if side == SIDES[0] else to_archive
                trial(stand, to_node, proxy, weather)
                say(f"{number} of {len(trials)}: {side}, {weather}")
            stand.settle(900.0)
            row = Row(name="network", unit="series", count=len(trials))
            row.account = settle_account(stand)
            row.details = {
                "connections spoiled": {
                    side: dict(proxy.hit)
                    for side, proxy in zip(SIDES, (to_node, to_archive), strict=True)
                }
            }
    return row


def trial(stand: Stand, to_node: Proxy, proxy: Proxy, weather: str) -> None:
    """Let one series pass while `proxy` has its weather."""
    flight = stand.new()
    before = proxy.hit.total()

    def over() -> bool:
        return proxy.hit.total() >= before + HITS or time.monotonic() > end

    if proxy is to_node:
        proxy.set(weather)
        end = time.monotonic() + LASTS_S
        while flight.waiting and not over():
            stand.send(flight, *PATIENCE, port=proxy.port)
        proxy.clear()
        stand.send_all(flight, port=proxy.port)
        return
    stand.send_all(flight)
    stand.wait_for_state(flight, {SENDING, COMMITTING, *ENDED})
    proxy.set(weather)
    end = time.monotonic() + LASTS_S
    while stand.node.states()[flight.series_uid] not in ENDED and not over():
        time.sleep(0.05)
    proxy.clear()


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    pairs = list(itertools.product(SIDES, WEATHERS))
    return campaign(folder, pairs * arguments.rounds, arguments.seed)


if __name__ == "__main__":
    sys.exit(main("network", __doc__, run, rounds=4))
