"""A flood of connections that ask for nothing good, while a scanner goes on sending.

python -m tests.faults.connections --count 10000

A node in a process of its own gets junk, health checks, half-open, stalled, dripping, aborted and
rejected connections from a few threads, most from an address that it knows and some from one that
it does not; hundreds are kept open at any time. Meanwhile one instance after another is sent, as a
scanner does. Printed are the counts, the slowest of these sends, and the node's memory, threads and
sockets before, at most, and after.
"""

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from dicom_node.network import scu
from dicom_node.network.connecting import Timeouts
from tests.faults.flood import Flood
from tests.faults.ledger import ROOT, commit
from tests.rigs import destination, write_series

SEND_EVERY_S = 0.1

CONFIG = """
[node]
port = 0
state_dir = "{state}"
acse_timeout_s = 5.0
[limits]
pdu_s = 5.0
[web]
port = 0
[files]
min_free_bytes = 0
[[peers]]
name = "scanner"
ae_title = "MR1"
host = "127.0.0.1"
[[peers]]
name = "other"
ae_title = "MR2"
host = "127.0.0.1"
[[peers]]
name = "third"
ae_title = "MR3"
host = "127.0.0.1"
"""


class ServingNode:
    """`dicom-node serve` as a process, watched from outside; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "node.toml"
        config.write_text(CONFIG.format(state=folder / "state"))
        self.log = folder / "log"
        command = [sys.executable, "-m", "dicom_node.cli", "serve", "--workers", "0"]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--config", config], cwd=ROOT, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().decode()
        assert said.startswith("receiving"), self.log.read_text()
        self.port = int(said.rpartition(":")[2])

    def status(self, name: str) -> int:
        """Return one number of /proc/PID/status: VmRSS in kB, Threads."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        assert found is not None
        return int(found.group(1))

    def allow_files(self, count: int) -> None:
        """Leave the node only so many file descriptors."""
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (count, count))

    def open_files(self) -> int:
        """Return how many file descriptors the node has."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def open_sockets(self) -> int:
        """Return how many of them are sockets; a pool of database connections keeps files open."""
        folder = Path(f"/proc/{self._process.pid}/fd")
        return sum(is_socket(descriptor) for descriptor in folder.iterdir())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def is_socket(descriptor: Path) -> bool:
    """Return whether a link below /proc/PID/fd leads to a socket."""
    try:
        return os.readlink(descriptor).startswith("socket:")
    except FileNotFoundError:  # closed meanwhile
        return False


@dataclass
class Tally:
    """What happened in a campaign."""

    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    sends: int = 0
    sends_failed: int = 0
    slowest_send_s: float = 0.0
    rss_before_mb: float = 0.0
    rss_peak_mb: float = 0.0
    rss_after_mb: float = 0.0
    threads: tuple[int, int, int] = (0, 0, 0)  # before, at most, after
    sockets: tuple[int, int, int] = (0, 0, 0)
    log_lines: int = 0

    @property
    def clean(self) -> bool:
        """Return whether every promise held."""
        return (
            self.sends > 0
            and not self.sends_failed
            and self.slowest_send_s < 5
            and self.rss_peak_mb - self.rss_before_mb < 20
            and self.threads[2] <= self.threads[0]
            and self.sockets[2] <= self.sockets[0]
        )


class Scanner:
    """Sends one instance after another and notes how long each took."""

    def __init__(self, port: int, folder: Path, tally: Tally) -> None:
        self._items = itertools.cycle(write_series(folder, 20))
        self._peer = destination(port)
        self._tally = tally

    def send(self) -> None:
        """Send the next instance over an association of its own."""
        started = time.monotonic()
        limits = Timeouts(connect_s=10, association_s=10, reply_s=10)
        outcomes = list(scu.send([next(self._items)], self._peer, "MR1", timeouts=limits))
        took_s = round(time.monotonic() - started, 3)
        self._tally.sends += 1
        self._tally.sends_failed += [outcome.fault for outcome in outcomes] != [0x0000]
        self._tally.slowest_send_s = max(self._tally.slowest_send_s, took_s)


def settle(node: ServingNode, threads: int, sockets: int, seconds: float = 30.0) -> None:
    """Wait until the node has let go of everything, for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if node.status("Threads") <= threads and node.open_sockets() <= sockets:
            return
        time.sleep(0.2)


def run(folder: Path, count: int, seed: int) -> Tally:
    """Run a campaign of `count` connections; return its tally."""
    tally = Tally(count=count)
    with ServingNode(folder / "node") as node:
        scanner = Scanner(node.port, folder / "scan", Tally())
        for _ in range(20):  # what every node grows to at its first work is no leak
            scanner.send()
        time.sleep(1.0)
        scanner._tally = tally
        threads, sockets, rss = node.status("Threads"), node.open_sockets(), node.status("VmRSS")
        peaks = [threads, sockets, rss]
        flood = Flood(node.port, count, seed)
        started = time.monotonic()
        flood.start()
        while flood.running:
            scanner.send()
            now = (node.status("Threads"), node.open_sockets(), node.status("VmRSS"))
            peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
            time.sleep(SEND_EVERY_S)
        flood.stop()
        tally.seconds = round(time.monotonic() - started, 1)
        tally.kinds = flood.kinds
        settle(node, threads, sockets)
        tally.threads = (threads, peaks[0], node.status("Threads"))
        tally.sockets = (sockets, peaks[1], node.open_sockets())
        tally.rss_before_mb, tally.rss_peak_mb, tally.rss_after_mb = (
            round(kb / 1024, 1) for kb in (rss, peaks[2], node.status("VmRSS"))
        )
    tally.log_lines = len((folder / "node" / "log").read_text().splitlines())
    return tally


def document(tally: Tally, seed: int) -> dict[str, object]:
    """Return the tally as docs/reliability.md reads it."""
    return {
        "unit": "connections",
        "count": tally.count,
        "violations": 0 if tally.clean else 1,
        "seconds": tally.seconds,
        "command": f"python -m tests.faults.connections --count {tally.count} --seed {seed}",
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "details": vars(tally),
    }


def main() -> int:
    """Run the campaign of the command line; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="connections-") as folder:
        tally = run(Path(folder), arguments.count, arguments.seed)
    print(json.dumps(vars(tally), indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(document(tally, arguments.seed), indent=1))
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
