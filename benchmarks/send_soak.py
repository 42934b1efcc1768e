"""The sender soak: the node's whole sender, for a long time, on a busy machine.

python -m benchmarks.send_soak [--series 100] [--instances 192] [--associations 1 4 8] [--idle]

Deliveries are published in a real database and sent by `Sender` to dcmtk's storescp over so many
associations at a time, while two processes keep the cores busy. storescp keeps nothing (--ignore)
but says what it saw: how many C-STOREs, releases and aborts. After each few series storescu sends
the same files, as so many processes. A lost reply would be an instance without a status, a second
C-STORE or an abort. Exits with 1 when there is one.
"""

import argparse
import json
import logging
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.instances import Instance, Scanner, write
from benchmarks.send import at_once, busy_cores, storescp, with_storescu
from dicom_node import telemetry
from dicom_node.network.parcels import Item
from dicom_node.pixel_files import sha256_of
from dicom_node.sender import Sender
from dicom_node.settings import PeerSettings
from dicom_node.store import DerivedInstance, DerivedSeries, NewInstance, Store, open_store
from dicom_node.store.overview import series_lines
from tests.rigs import MR, rig_settings

AT_ONCE = 4  # series that are published together
SAID = re.compile(r"Received Store Request|Association Release|Association Aborted|^E: .*", re.M)
LEASE = timedelta(minutes=5)
HEAD = (
    "| associations | instances | without success | sent twice | aborts | errors "
    "| images/s | storescu | ratio |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(kw_only=True)
class Result:
    """What became of everything that was sent over so many associations."""

    associations: int
    sent: int = 0
    seconds: float = 0.0
    storescu_seconds: float = 0.0
    without_success: int = 0  # no status 0x0000 on record
    sent_twice: int = 0  # C-STOREs beyond one for each instance
    aborts: int = 0  # as storescp saw them
    errors: int = 0  # of which storescp complains
    storescu_lost: int = 0

    @property
    def good(self) -> bool:
        """Return whether nothing was lost and nothing broke."""
        return not (self.without_success or self.sent_twice or self.aborts or self.errors)

    def line(self) -> str:
        """Return one line of the table."""
        ours, theirs = self.sent / self.seconds, self.sent / self.storescu_seconds
        return (
            f"| {self.associations} | {self.sent} | {self.without_success} | {self.sent_twice} "
            f"| {self.aborts} | {self.errors} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |"
        )


class Log:
    """What storescp has said since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def counts(self) -> Counter[str]:
        """Return how often it said what; errors count as "E"."""
        with self._path.open() as log:
            log.seek(self._at)
            text = log.read()
            self._at = log.tell()
        return Counter("E" if said.startswith("E: ") else said for said in SAID.findall(text))


def publish(store: Store, slices: Sequence[Instance], paths: Sequence[Path]) -> int:
    """Return a job whose derived series waits for its delivery."""
    now, first = datetime.now(UTC), slices[0]
    source = NewInstance(
        sop_uid=f"{first.sop_uid}.1", sop_class=MR, series_uid=f"{first.series_uid}.1",
        study_uid="1.2.3", modality="MR", description="soak", path=paths[0], bytes=1,
        sha256="0" * 64, attributes_sha256="0" * 64, transfer_syntax="1.2.840.10008.1.2.1",
        calling_ae="MR1", header={},
    )  # fmt: skip
    job_id = store.series.record_instance(source, now).job_id
    store.jobs.transition(job_id, "enqueue", now, destinations=["pacs"])
    store.jobs.claim("soak", now, LEASE)
    derived = DerivedSeries(
        series_uid=first.series_uid, recipe_digest="a" * 64, weights_sha256="b" * 64, figures={},
        instances=tuple(
            DerivedInstance(
                sop_uid=one.sop_uid, sop_class=MR, path=path, sha256=sha256_of(path) or "",
                bytes=path.stat().st_size,
            )
            for one, path in zip(slices, paths, strict=True)
        ),
    )  # fmt: skip
    store.jobs.publish(job_id, "soak", derived, ["pacs"], now)
    return job_id


def scan(scanner: Scanner, folder: Path, series: int) -> list[tuple[list[Instance], list[Path]]]:
    """Return so many new series and their files."""
    scans = [scanner.scan() for _ in range(series)]
    return [(slices, write(slices, folder / str(place))) for place, slices in enumerate(scans)]


class Soak:
    """A sender, its database and an archive; each `send` is counted in `result`."""

    def __init__(self, folder: Path, archive: PeerSettings, log: Path, associations: int) -> None:
        peer = archive.model_copy(update={"name": "pacs", "associations": associations})
        settings = rig_settings(folder / "state").model_copy(update={"peers": (peer,)})
        self._store = open_store(settings.database_url)
        self._sender = Sender(self._store, settings)
        self._archive = archive
        self._log = Log(log)
        self._log.counts()  # of whether it listens
        self.result = Result(associations=associations)

    def send(self, scans: Sequence[tuple[list[Instance], list[Path]]]) -> None:
        """Send some series, then let storescu do the same."""
        jobs = [publish(self._store, slices, paths) for slices, paths in scans]
        result, instances = self.result, sum(len(paths) for _, paths in scans)
        started = time.monotonic()
        self._sender.run_once(datetime.now(UTC))
        result.seconds += time.monotonic() - started
        result.sent += instances
        result.without_success += instances - self._succeeded(jobs)
        said = self._settled()
        result.sent_twice += said["Received Store Request"] - instances
        result.aborts += said["Association Aborted"]
        result.errors += said["E"]
        self._compare(scans)

    def _succeeded(self, jobs: Sequence[int]) -> int:
        """Return how many instances have 0x0000 on record, and nothing else."""
        lines = [
            line for job_id in jobs for line in series_lines(self._store.database, job_id=job_id)
        ]
        figures = [delivery for line in lines for delivery in line["deliveries"]]
        return sum(each["sent"] - each["warned"] for each in figures if each["state"] == "SENT")

    def _settled(self) -> Counter[str]:
        """Return what storescp has said when it says nothing more."""
        said, fresh = Counter[str](), self._log.counts()
        while fresh:
            said += fresh
            time.sleep(0.2)
            fresh = self._log.counts()
        return said

    def _compare(self, scans: Sequence[tuple[list[Instance], list[Path]]]) -> None:
        items = [
            Item(key=0, sop_uid=one.sop_uid, path=path)
            for slices, paths in scans
            for one, path in zip(slices, paths, strict=True)
        ]
        started = time.monotonic()
        lost = at_once(with_storescu, items, self._archive, self.result.associations)
        self.result.storescu_seconds += time.monotonic() - started
        self.result.storescu_lost += lost
        self._settled()

    def close(self) -> None:
        """Let go of the database."""
        self._store.close()


def run(folder: Path, associations: int, arguments: argparse.Namespace) -> Result:
    """Return the result of the whole soak over so many associations."""
    log = folder / "storescp.log"
    scanner = Scanner(arguments.side, arguments.instances)
    with log.open("w") as said, storescp(folder / "kept", "-v", "--ignore", log=said) as archive:
        soak = Soak(folder, archive, log, associations)
        left = arguments.series
        while left:
            some = min(left, AT_ONCE)
            soak.send(scan(scanner, folder / "images", some))
            shutil.rmtree(folder / "images")
            left -= some
        soak.close()
    return soak.result


def main() -> int:
    """Run the soak of the command line; 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--instances", type=int, default=192, help="in each series")
    parser.add_argument("--side", type=int, default=256, help="rows and columns")
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--idle", action="store_true", help="without keeping the cores busy")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    telemetry.configure_logging(level=logging.WARNING)
    results = []
    print(HEAD, flush=True)
    with nullcontext() if arguments.idle else busy_cores(2):
        for associations in arguments.associations:
            with tempfile.TemporaryDirectory(prefix="send-soak-") as folder:
                results.append(run(Path(folder), associations, arguments))
            print(results[-1].line(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in results], indent=1))
    return 0 if all(each.good for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
