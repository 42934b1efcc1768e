"""Sending: this node's sender beside dcmtk's storescu, to the same archives in the same run.

python -m benchmarks.send [--instances 192] [--rounds 3] [--associations 1 4 8] [--load]

Both send the same instances to dcmtk's storescp and to Orthanc, by turns, over so many associations
at a time (storescu: so many processes), all with TCP_NODELAY=1. Images per second are the median of
the rounds. Lost is what has no status, or a bad one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from benchmarks.instances import Scanner, write
from dicom_node.network import scu
from dicom_node.network.connecting import Timeouts
from dicom_node.network.parcels import Item
from dicom_node.pixel_files import sha256_of
from dicom_node.settings import PeerSettings
from tests.integration.partners import (
    ENVIRONMENT,
    Orthanc,
    find_program,
    free_port,
    listens,
    wait_for,
)
from tests.rigs import destination

BURN = "while True: sum(range(10000))"


@dataclass(kw_only=True)
class Result:
    """What one sender did to one archive over so many associations."""

    archive: str
    associations: int
    sender: str
    images_per_s: list[float] = field(default_factory=list)
    sent: int = 0
    lost: int = 0

    @property
    def median(self) -> float:
        """Return the usual speed."""
        return statistics.median(self.images_per_s)


def write_images(folder: Path, count: int, side: int) -> list[Item]:
    """Return the slices of a new series as files."""
    slices = Scanner(side, count).scan()
    return [
        Item(key=number, sop_uid=one.sop_uid, path=path, sha256=sha256_of(path))
        for number, (one, path) in enumerate(zip(slices, write(slices, folder), strict=True), 1)
    ]


def shares(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """Return the items dealt to so many associations."""
    return [items[at::count] for at in range(count)]


def with_ours(items: Sequence[Item], peer: PeerSettings) -> int:
    """Send over one association with the node's own sender; return how many came to nothing."""
    outcomes = scu.send(items, peer, "SRNODE", timeouts=Timeouts(reply_s=60.0))
    good = sum(outcome.fault == 0x0000 for outcome in outcomes)
    return len(items) - good


def with_storescu(items: Sequence[Item], peer: PeerSettings) -> int:
    """Send over one association with dcmtk; return how many came to nothing."""
    program = [str(find_program("storescu")), "-aet", "SRNODE", "-aec", peer.ae_title]
    paths = [str(item.path) for item in items]
    command = [*program, peer.host, str(peer.port), *paths]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    return 0 if done.returncode == 0 else len(items)


Send = Callable[[Sequence[Item], PeerSettings], int]
SENDERS: dict[str, Send] = {
    "ours": with_ours,
    "storescu": with_storescu,
}


def send(result: Result, items: Sequence[Item], peer: PeerSettings) -> None:
    """Send everything once, and add to the result."""
    started = time.monotonic()
    lost = at_once(SENDERS[result.sender], items, peer, result.associations)
    result.images_per_s.append(round(len(items) / (time.monotonic() - started), 1))
    result.sent += len(items)
    result.lost += lost


def at_once(act: Send, items: Sequence[Item], peer: PeerSettings, associations: int) -> int:
    """Send the items over so many associations at a time; return how many came to nothing."""
    with ThreadPoolExecutor(associations) as pool:
        return sum(pool.map(lambda share: act(share, peer), shares(items, associations)))


@contextmanager
def storescp(
    folder: Path, *options: str, log: int | TextIO = subprocess.DEVNULL
) -> Iterator[PeerSettings]:
    """Run dcmtk's archive, which promises nothing; what it says goes to `log`."""
    folder.mkdir(parents=True)
    port = free_port()
    command = [str(find_program("storescp")), "--fork", *options, "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        wait_for("storescp", lambda: listens(port), 20)
        yield destination(port, "STORESCP")
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def orthanc(folder: Path) -> Iterator[PeerSettings]:
    """Run Orthanc, with fsync."""
    archive = Orthanc(folder, free_port()).start()
    try:
        yield destination(archive.port, "ORTHANC")
    finally:
        archive.stop()


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep so many cores busy with something else."""
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def measure(folder: Path, arguments: argparse.Namespace) -> list[Result]:
    """Return every result: by archive, associations and sender."""
    items = write_images(folder / "images", arguments.instances, arguments.side)
    results = []
    with ExitStack() as stack:
        archives = {"storescp": storescp, "Orthanc": orthanc}
        peers = {
            name: stack.enter_context(archives[name](folder / name)) for name in arguments.archives
        }
        if arguments.load:
            stack.enter_context(busy_cores(2))
        for name, peer in peers.items():
            for associations in arguments.associations:
                pair = [
                    Result(archive=name, associations=associations, sender=sender)
                    for sender in SENDERS
                ]
                for _ in range(arguments.rounds):
                    for result in pair:
                        send(result, items, peer)
                results += pair
                print(line(*pair), flush=True)
    return results


def line(ours: Result, theirs: Result) -> str:
    """Return one line of the table."""
    return (
        f"| {ours.archive} | {ours.associations} | {ours.median:.0f} | {theirs.median:.0f} "
        f"| {ours.median / theirs.median:.2f} | {ours.lost} of {ours.sent} |"
    )


def main() -> int:
    """Measure as the command line says; 1 when our sender lost an instance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=192)
    parser.add_argument("--side", type=int, default=256, help="rows and columns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--archives", nargs="+", default=["storescp", "Orthanc"])
    parser.add_argument("--load", action="store_true", help="with both cores busy")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print("| archive | associations | ours, images/s | storescu | ratio | lost |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="send-") as folder:
        results = measure(Path(folder), arguments)
    if arguments.json:
        told = [asdict(result) | {"median": result.median} for result in results]
        arguments.json.write_text(json.dumps(told, indent=1))
    return 1 if any(result.lost for result in results if result.sender == "ours") else 0


if __name__ == "__main__":
    sys.exit(main())
