"""How fast this node receives, and Orthanc beside it, in one run.

python -m benchmarks.receive [--quick]

dcmtk's storescu sends series of 16-bit MR instances over 1, 4 and 8 associations, to the one and to
the other in turn; both sync every file before they answer. Then a small sender with a stop-watch
times every answer. Printed is a table: the medians of images/s and of the rounds' ratios, the
latencies, and each receiver's processor time for one image. With --json the same as a document.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import probe
from benchmarks.instances import Instance, Scanner, write
from benchmarks.receivers import NodeReceiver, OrthancReceiver, Receiver, cpu_s
from tests.integration.partners import ENVIRONMENT, find_program

MOST_BYTES = 256 * 2**20  # of one trial, on the disk and in memory


@dataclass(kw_only=True)
class Cell:
    """What was measured of one receiver with one size and number of associations."""

    receiver: str
    size: int
    associations: int
    images_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def median(self) -> dict[str, float]:
        """Return one figure of each kind."""
        ordered = sorted(self.latencies_ms)
        return {
            "images_per_s": statistics.median(self.images_per_s),
            "cpu_ms": statistics.median(self.cpu_ms),
            "p50_ms": ordered[len(ordered) // 2],
            "p99_ms": ordered[len(ordered) * 99 // 100],
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark of the command line; 0 when the node kept up in every row."""
    arguments = parse(argv)
    if find_program("storescu") is None or find_program("Orthanc") is None:
        print("dcmtk and orthanc are needed: make system-packages", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="receive-") as folder, ExitStack() as stack:
        node = NodeReceiver(Path(folder) / "node")
        stack.callback(node.stop)
        orthanc = OrthancReceiver(Path(folder) / "orthanc")
        stack.callback(orthanc.stop)
        bench = Bench(arguments, Path(folder) / "sent", [node, orthanc])
        cells = bench.run()
        idle = bench.with_idle(node, arguments.idle) if arguments.idle else {}
    if arguments.json:
        documents = [asdict(cell) | {"median": cell.median} for cell in cells]
        print(json.dumps({"cells": documents, "idle": idle}, indent=1))
    else:
        print(table(cells))
        print(idle_line(idle) if idle else "", end="")
    return 0 if all(share >= goal for share, goal in shares(cells)) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; --quick takes about a minute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, two rounds")
    parser.add_argument("--rounds", type=int, help="how often each receiver has its turn")
    parser.add_argument("--images", type=int, help="in the series of each association")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--idle", type=int, default=50, help="idle associations beside one, or 0")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.images = arguments.images or (48 if arguments.quick else 192)
    return arguments


class Bench:
    """The trials, receivers in turn."""

    def __init__(
        self, arguments: argparse.Namespace, folder: Path, receivers: Sequence[Receiver]
    ) -> None:
        self._arguments = arguments
        self._folder = folder
        self._receivers = receivers

    def run(self) -> list[Cell]:
        """Return every cell of the table."""
        return [
            cell
            for size in self._arguments.sizes
            for associations in self._arguments.associations
            for cell in self._row(size, associations)
        ]

    def _row(self, size: int, associations: int) -> list[Cell]:
        """Return one cell of each receiver; who begins alternates."""
        most = MOST_BYTES // (2 * size * size) // associations
        scanner = Scanner(size, min(self._arguments.images, most))
        cells = {
            one: Cell(receiver=one.name, size=size, associations=associations)
            for one in self._receivers
        }
        self._trial(scanner, Cell(receiver="", size=size, associations=1), self._receivers[0])
        self._trial(scanner, Cell(receiver="", size=size, associations=1), self._receivers[1])
        for number in range(self._arguments.rounds):
            order = self._receivers if number % 2 else self._receivers[::-1]
            for receiver in order:
                self._trial(scanner, cells[receiver], receiver)
            for receiver in order:
                loads = [scanner.scan() for _ in range(associations)]
                seconds = probe.latencies_s(receiver.port, receiver.title, loads)
                cells[receiver].latencies_ms += [1e3 * each for each in seconds]
        return list(cells.values())

    def _trial(self, scanner: Scanner, cell: Cell, receiver: Receiver) -> None:
        """Send one series over each association, and note how fast it went."""
        loads = [scanner.scan() for _ in range(cell.associations)]
        before, cpu = receiver.count(), cpu_s(receiver)
        took_s = send(loads, self._folder, receiver)
        sent = sum(map(len, loads))
        kept = receiver.count() - before
        if kept != sent:
            raise SystemExit(f"{receiver.name} kept {kept} of {sent} instances")
        cell.images_per_s.append(sent / took_s)
        cell.cpu_ms.append(1e3 * (cpu_s(receiver) - cpu) / sent)

    def with_idle(self, receiver: Receiver, count: int) -> dict[str, float]:
        """Return images/s over one association alone, and beside `count` idle ones."""
        scanner = Scanner(256, self._arguments.images)
        alone, beside = (Cell(receiver=receiver.name, size=256, associations=1) for _ in range(2))
        for _ in range(self._arguments.rounds):
            self._trial(scanner, alone, receiver)
            with idle_associations(receiver, count):
                self._trial(scanner, beside, receiver)
        return {
            "idle": count,
            "alone": statistics.median(alone.images_per_s),
            "beside": statistics.median(beside.images_per_s),
        }


@contextmanager
def idle_associations(receiver: Receiver, count: int) -> Iterator[None]:
    """Hold associations that say nothing."""
    held = [probe.associate(receiver.port, receiver.title)[0] for _ in range(count)]
    try:
        yield
    finally:
        for connection in held:
            probe.release(connection)


def send(loads: Sequence[Sequence[Instance]], folder: Path, receiver: Receiver) -> float:
    """Return the seconds in which one storescu for each load has sent it.

    The files of the round before are written over: to remove them would slow whoever makes new ones
    (docs/throughput.md, a pitfall of measuring).
    """
    paths = [write(load, folder / str(place)) for place, load in enumerate(loads)]
    options = ["-aet", "SCANNER", "-aec", receiver.title, "127.0.0.1", str(receiver.port)]
    started = time.perf_counter()
    senders = [
        subprocess.Popen(
            [find_program("storescu"), *options, *files],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for files in paths
    ]
    words = [sender.communicate(timeout=600)[0].decode() for sender in senders]
    took_s = time.perf_counter() - started
    if any(sender.returncode for sender in senders):
        ends = [sender.returncode for sender in senders]  # of a signal nothing is said
        raise SystemExit(f"storescu to {receiver.name} ended with {ends}: {words}")
    return took_s


def pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Return the node's cell and Orthanc's of each row."""
    node = [cell for cell in cells if cell.receiver == "node"]
    return list(zip(node, [cell for cell in cells if cell.receiver != "node"], strict=True))


def shares(cells: Sequence[Cell]) -> list[tuple[float, float]]:
    """Return for each row the node's share of Orthanc's rate, and the least it should be."""
    return [(share(*pair), GOAL[pair[0].associations > 1]) for pair in pairs(cells)]


def share(one: Cell, other: Cell) -> float:
    """Return the median of the rounds' ratios: what slows the machine for a while slows both."""
    rounds = zip(one.images_per_s, other.images_per_s, strict=True)
    return statistics.median(ours / theirs for ours, theirs in rounds)


GOAL = {False: 0.8, True: 1.0}  # with one association, with several


def table(cells: Sequence[Cell]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| images | associations | node images/s | Orthanc | share | node p50 / p99 ms | Orthanc "
        "| node CPU ms/image | Orthanc |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one, other in pairs(cells):
        a, b = one.median, other.median
        lines.append(
            f"| {one.size}² | {one.associations} | {a['images_per_s']:.0f} "
            f"| {b['images_per_s']:.0f} | {share(one, other):.2f} "
            f"| {a['p50_ms']:.1f} / {a['p99_ms']:.1f} | {b['p50_ms']:.1f} / {b['p99_ms']:.1f} "
            f"| {a['cpu_ms']:.2f} | {b['cpu_ms']:.2f} |"
        )
    return "\n".join(lines)


def idle_line(idle: dict[str, float]) -> str:
    """Return what idle associations cost another one, as a sentence."""
    return (
        f"one association, 256²: {idle['alone']:.0f} images/s alone, {idle['beside']:.0f} beside "
        f"{idle['idle']:.0f} idle associations ({idle['beside'] / idle['alone']:.2f})\n"
    )


if __name__ == "__main__":
    sys.exit(main())
