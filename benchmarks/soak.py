"""The soak: mixed traffic from several senders for half an hour, as fast as the node takes it.

python -m benchmarks.soak [--minutes 30] [--senders 8] [--seed 1] [--json FILE]

Each sender chooses at random: a new series (of small images, so that the disk lasts), one that a
rule forwards to an archive, a series once more, an image with other pixels under a known UID, a
C-ECHO, dcmtk's storescu, and a storescu that is killed in the middle, after which everything is
sent again. The page and its metrics are read meanwhile. At the end every job must be over, every
instance that was acknowledged must have its row and file and no other may have one, `dicom-node
verify` must find ledger, hashes and audit trail in order, and the memory must not have grown by
more than 5 % since the first minutes. Prints what it saw; exits with 1 if anything of that is not
so.
"""

import argparse
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.instances import Instance, Scanner, write
from benchmarks.receivers import NodeReceiver
from benchmarks.send import storescp
from dicom_node import telemetry
from dicom_node.network.parcels import Item
from dicom_node.network.scu import echo, send
from dicom_node.settings import PeerSettings
from dicom_node.store import open_store
from tests.integration.partners import ENVIRONMENT, find_program, storescu

CONFLICT = 0x0111
MOST_GROWTH = 0.05
WARM_UP_S = 300.0
SAMPLE_S = 5.0
REMEMBERED = 6  # series of each sender that may be sent again
OPTIONS = """
[assembly]
idle_s = 5
[[peers]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
roles = ["destination"]
[[rules]]
name = "3 T goes on as it is"
when = {{ modality = ["MR"], field_strength_t = [2.9, 3.1] }}
action = "forward"
to = ["archive"]
[[rules]]
name = "the rest stays"
when = {{ modality = ["MR"] }}
action = "skip"
reason = "soak"
"""
WEIGHTS = {
    "series": 55, "forwarded": 12, "again": 12, "conflict": 5, "echo": 6, "storescu": 5, "cut": 5,
}  # fmt: skip


class Tally:
    """What all senders have seen."""

    def __init__(self) -> None:
        self.acts: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.sent = 0
        self.wrong: list[str] = []  # answers that were not the right ones
        self._lock = threading.Lock()

    def take(self, act: str, statuses: dict[str, int], expected: int, asked: Sequence[str]) -> None:
        """Note what became of the instances that were asked for."""
        with self._lock:
            self.sent += len(statuses)
            for uid in asked:
                if statuses.get(uid) == expected:
                    self.acknowledged |= {uid} if expected == 0 else set()
                else:
                    self.wrong.append(f"{act}: {statuses.get(uid, 'no answer')}")


class Sender:
    """One scanner with a folder of its own."""

    def __init__(self, number: int, folder: Path, peer: PeerSettings, tally: Tally, seed: int):
        self._rng = random.Random(seed * 1000 + number)
        self._folder, self._peer, self._tally = folder / str(number), peer, tally
        self._scanners = [
            Scanner(64, 48),
            Scanner(128, 24),
            Scanner(64, 24, MagneticFieldStrength="3.0"),
        ]
        self._known: list[tuple[list[Instance], list[Path]]] = []
        self._made = 0

    def act(self) -> None:
        """Do one thing."""
        name = self._rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        if name in ("again", "conflict") and not self._known:
            name = "series"
        self._tally.acts[name] += 1
        getattr(self, name)()

    def series(self) -> None:
        """Send a new series."""
        self._send("series", *self._new(self._rng.choice(self._scanners[:2])))

    def forwarded(self) -> None:
        """Send one that the node has to send on."""
        self._send("forwarded", *self._new(self._scanners[2]))

    def again(self) -> None:
        """Send a known series once more."""
        self._send("again", *self._rng.choice(self._known))

    def conflict(self) -> None:
        """Send a known image with other pixels: it must be refused."""
        instances, _ = self._rng.choice(self._known)
        instance = self._rng.choice(instances)
        file = instance.file[:-1] + bytes([instance.file[-1] ^ 1])
        path = self._folder / "conflict.dcm"
        path.write_bytes(file)
        self._send("conflict", [instance], [path], CONFLICT)

    def echo(self) -> None:
        """Ask whether the node is there."""
        echo(self._peer, "SCANNER")

    def storescu(self) -> None:
        """Let dcmtk send a new series."""
        instances, paths = self._new(self._scanners[0])
        told = storescu(self._peer.port, paths).count("Received Store Response (Success)")
        uids = [one.sop_uid for one in instances]
        self._tally.take("storescu", dict.fromkeys(uids[:told], 0), 0, uids)

    def cut(self) -> None:
        """Let dcmtk break off anywhere, then send the whole series."""
        instances, paths = self._new(self._scanners[0])
        command = [find_program("storescu") or "storescu", "-aet", "SCANNER", "-aec", "SRNODE"]
        command += ["127.0.0.1", str(self._peer.port), *map(str, paths)]
        with subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as victim:
            time.sleep(self._rng.uniform(0, 0.3))
            victim.kill()
        self._send("cut", instances, paths)

    def _new(self, scanner: Scanner) -> tuple[list[Instance], list[Path]]:
        """Return a series and its files, which write over those of the oldest known one.

        Nothing is removed meanwhile: where the file system has no journal, every inode freed in the
        last minutes makes the next file slower (docs/throughput.md).
        """
        if len(self._known) == REMEMBERED:
            self._known.pop(0)
        instances = scanner.scan()
        paths = write(instances, self._folder / f"series-{self._made % (REMEMBERED + 1)}")
        self._made += 1
        self._known.append((instances, paths))
        return instances, paths

    def _send(
        self, act: str, instances: Sequence[Instance], paths: Sequence[Path], expected: int = 0
    ) -> None:
        uids = [one.sop_uid for one in instances]
        items = [
            Item(key=place, sop_uid=uid, path=path)
            for place, (uid, path) in enumerate(zip(uids, paths, strict=True))
        ]
        statuses = {
            outcome.item.sop_uid: outcome.fault
            for outcome in send(items, self._peer, "SCANNER")
            if isinstance(outcome.fault, int)
        }
        self._tally.take(act, statuses, expected, uids)


class Memory:
    """Samples of a process' resident memory; the page is read with each."""

    def __init__(self, node: NodeReceiver, minutes: float) -> None:
        self._node = node
        self._minutes = minutes
        self._every_s = min(SAMPLE_S, minutes * 0.5)
        self.samples: list[tuple[float, float]] = []  # seconds from the start, MiB
        self.page_failures = 0

    def run(self, stop: threading.Event) -> None:
        """Sample until `stop`."""
        started = time.monotonic()
        with httpx.Client(base_url=f"http://127.0.0.1:{self._node.web}", timeout=60) as page:
            while not stop.wait(self._every_s):
                text = Path(f"/proc/{self._node.process.pid}/status").read_text()
                kib = int(text.partition("VmRSS:")[2].split()[0])
                self.samples.append((time.monotonic() - started, kib / 1024))
                self.page_failures += sum(page.get(path).status_code != 200 for path in PAGES)

    def growth(self) -> tuple[float, float]:
        """Return the MiB after the warm-up and in the end, medians of a minute (or a tenth)."""
        span, last = min(60.0, self._minutes * 6), self.samples[-1][0]
        warm = min(WARM_UP_S, self._minutes * 20)
        after = [mib for at, mib in self.samples if warm <= at <= warm + span]
        end = [mib for at, mib in self.samples if at >= last - span]
        return statistics.median(after), statistics.median(end)


PAGES = ("/", "/metrics")


def soak(folder: Path, archive: PeerSettings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was seen."""
    node = NodeReceiver(folder / "node", OPTIONS.format(port=archive.port))
    peer = PeerSettings(name="node", ae_title="SRNODE", host="127.0.0.1", port=node.port)
    tally, memory, stop = Tally(), Memory(node, arguments.minutes), threading.Event()
    watch = threading.Thread(target=memory.run, args=(stop,))
    try:
        watch.start()
        rates = let_send(folder, peer, tally, arguments)
        stop.set()
        watch.join()
        states = settled(node)
        warm_mib, end_mib = memory.growth()
        kept = node.count()
        database = (node.folder / "state" / "node.db").stat().st_size
        verified = verify(node)
    finally:
        stop.set()
        node.stop()
    return {
        "minutes": arguments.minutes, "senders": arguments.senders, "acts": dict(tally.acts),
        "instances_sent": tally.sent, "acknowledged": len(tally.acknowledged), "kept": kept,
        "database_mib": round(database / 2**20), "images_per_s": rates,
        "wrong_answers": Counter(tally.wrong),
        "page_failures": memory.page_failures, "jobs": states, "verify": verified,
        "rss_mib": [round(warm_mib, 1), round(end_mib, 1)],
        "rss_growth": round(end_mib / warm_mib - 1, 4),
    }  # fmt: skip


def let_send(
    folder: Path, peer: PeerSettings, tally: Tally, arguments: argparse.Namespace
) -> list[float]:
    """Return the images a second in each tenth of the time."""
    end = time.monotonic() + 60 * arguments.minutes
    senders = [
        Sender(number, folder / "scanners", peer, tally, arguments.seed)
        for number in range(arguments.senders)
    ]

    def run(sender: Sender) -> None:
        while time.monotonic() < end:
            sender.act()

    rates, before = [], 0
    with ThreadPoolExecutor(arguments.senders) as pool:
        running = [pool.submit(run, sender) for sender in senders]
        for _ in range(10):
            time.sleep(6 * arguments.minutes)
            rates.append(round((tally.sent - before) / (6 * arguments.minutes), 1))
            before = tally.sent
            print(f"{rates[-1]} images/s", file=sys.stderr, flush=True)
        for future in running:
            future.result()
    return rates


def settled(node: NodeReceiver) -> dict[str, int]:
    """Return how many jobs are in which state, once nothing is under way."""
    store = open_store(f"sqlite:///{node.folder / 'state' / 'node.db'}")
    try:
        return wait_until_over(store.series.states)
    finally:
        store.close()


def wait_until_over(states: Callable[[], dict[str, int]], seconds: float = 900.0) -> dict[str, int]:
    """Return the states when only final ones are left, or the time is over."""
    until = time.monotonic() + seconds
    while True:
        found = {str(state): count for state, count in states().items() if count}
        if set(found) <= {"SKIPPED", "DELIVERED"} or time.monotonic() > until:
            return found
        time.sleep(1)


def verify(node: NodeReceiver) -> int:
    """Return with what `dicom-node verify` ends."""
    command = [sys.executable, "-m", "dicom_node.cli", "verify"]
    command += ["--config", str(node.folder / "node.toml")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:] + done.stderr[-2000:], file=sys.stderr)
    return done.returncode


def good(report: dict[str, Any]) -> bool:
    """Return whether everything is as it should be."""
    return (
        not report["wrong_answers"]
        and report["kept"] == report["acknowledged"]
        and set(report["jobs"]) <= {"SKIPPED", "DELIVERED"}
        and report["verify"] == report["page_failures"] == 0
        and report["rss_growth"] < MOST_GROWTH
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    telemetry.configure_logging(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        with storescp(folder / "archive", "--ignore") as archive:
            report = soak(folder, archive, arguments)
        report["good"] = good(report)
        text = json.dumps(report, indent=1)
        print(text, flush=True)  # before the files go, which takes minutes
        if arguments.json:
            arguments.json.write_text(text)
    return 0 if report["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
