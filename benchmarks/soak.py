"""Many associations at once into one node, for minutes: does every instance arrive, exactly once?

Prints one JSON document; exits with 1 when an instance got no success, or a row or file is missing.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dicom_node import telemetry
from dicom_node.network.scu import Item, send
from dicom_node.retry import Verdict
from tests.rigs import Rig, running_node, write_series


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--instances", type=int, default=192, help="in each series")
    arguments = parser.parse_args(argv)
    telemetry.configure_logging(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, running_node(Path(folder) / "state") as rig:
        report = soak(rig, Path(folder) / "sent", arguments)
    print(json.dumps(report, indent=2))
    return 0 if report["lost"] == [] and report["balanced"] else 1


def soak(rig: Rig, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how many instances were sent and accounted for, and how fast."""
    lost: list[str] = []
    sent, busy_s = 0, 0.0
    end = time.monotonic() + 60 * arguments.minutes
    with ThreadPoolExecutor(arguments.associations) as pool:
        while time.monotonic() < end:
            batches = [
                write_series(folder / str(place), arguments.instances)
                for place in range(arguments.associations)
            ]
            started = time.monotonic()
            for failed in pool.map(lambda items: send_all(rig, items), batches):
                lost += failed
            busy_s += time.monotonic() - started
            lost += not_kept(rig, batches)
            sent += sum(map(len, batches))
            for item in (item for items in batches for item in items):
                item.path.unlink()
    ledger = rig.store.ledger()
    return {
        "associations": arguments.associations,
        "sent": sent,
        "acknowledged": ledger.acknowledged,
        "balanced": ledger.balanced and ledger.acknowledged == sent,
        "lost": lost,
        "images_per_s": round(sent / busy_s, 1),
    }


def send_all(rig: Rig, items: Sequence[Item]) -> list[str]:
    """Return the instances that the node did not answer with success."""
    outcomes = {outcome.item.sop_uid: outcome for outcome in send(items, rig.peer, "MR1")}
    return [
        item.sop_uid
        for item in items
        if item.sop_uid not in outcomes or outcomes[item.sop_uid].verdict is not Verdict.SENT
    ]


def not_kept(rig: Rig, batches: Sequence[Sequence[Item]]) -> list[str]:
    """Return the instances without a row or without a file."""
    rows = {
        item.sop_uid: rig.store.series.find_instance(item.sop_uid) for b in batches for item in b
    }
    return [uid for uid, row in rows.items() if row is None or not Path(row.path).is_file()]


if __name__ == "__main__":
    sys.exit(main())
