"""What receiving costs the processor, part by part, without a network.

python -m benchmarks.parts [--database URL]

Series of 16-bit MR instances are examined, written and recorded as C-STOREs are, first one instance
after the other, then with several in one transaction. Printed is the processor time of one instance
(`time.thread_time`: what other programs do changes it little), the median and the mean.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from benchmarks.instances import Instance, Scanner
from dicom_node.examination import Examined, Incoming, examine
from dicom_node.pixel_files import PixelFiles
from dicom_node.store import NewInstance, open_store
from dicom_node.store.recorder import Recorder

T = TypeVar("T")
BATCHES = (2, 4, 8)  # instances in one transaction, each of another series


class Parts:
    """The processor times of each part, in milliseconds for one instance."""

    def __init__(self, folder: Path, url: str) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._files = PixelFiles(folder / "in", 0)
        store = open_store(url or f"sqlite:///{folder}/node.db")
        self._recorder = Recorder(store.database)

    def one_by_one(self, instances: Sequence[Instance]) -> None:
        """Take in a series over one association."""
        for instance in instances:
            incoming = arrive(instance)
            examined = self._timed("examine", partial(examine, incoming))
            path = self._timed("write the file", partial(self._write, examined))
            self._record([row_of(examined, path)], "record, alone")

    def together(self, series: Sequence[Sequence[Instance]]) -> None:
        """Record series that come at the same time, an instance of each in one transaction."""
        for instances in zip(*series, strict=True):
            new = [row_of(examine(arrive(each)), Path("not written")) for each in instances]
            self._record(new, f"record, {len(new)} series at once")

    def _write(self, examined: Examined) -> Path:
        with self._files.exclusive(examined.sop_uid):
            parts = [examined.meta, examined.encoded]
            path = self._files.create(examined.series_uid, examined.sop_uid, parts)
        assert path is not None
        return path

    def _record(self, new: Sequence[NewInstance], part: str) -> None:
        now = datetime.now(UTC)
        batch = [(each, now) for each in new]
        self._timed(part, partial(self._recorder.record_all, batch), len(new))

    def _timed(self, part: str, work: Callable[[], T], count: int = 1) -> T:
        started = time.thread_time()
        result = work()
        self.times[part].append(1e3 * (time.thread_time() - started) / count)
        return result


def arrive(instance: Instance) -> Incoming:
    """Return an instance as an association hands it over."""
    return Incoming(
        encoded=instance.file[instance.data_set_at :],
        transfer_syntax=ExplicitVRLittleEndian,
        calling_ae="SCANNER",
        sop_class=MRImageStorage,
        sop_uid=instance.sop_uid,
    )


def row_of(examined: Examined, path: Path) -> NewInstance:
    """Return what is recorded of an instance."""
    return NewInstance(
        sop_uid=examined.sop_uid,
        sop_class=examined.sop_class,
        series_uid=examined.series_uid,
        study_uid=examined.study_uid,
        modality="MR",
        description="",
        path=path,
        bytes=examined.size_bytes,
        sha256=examined.sha256,
        attributes_sha256=examined.attributes_sha256,
        transfer_syntax=ExplicitVRLittleEndian,
        calling_ae="SCANNER",
        header=examined.header,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="rows and columns of a slice")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=96, help="in each series")
    parser.add_argument("--database", default="", help="a URL; SQLite in a new file without it")
    arguments = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    scanner = Scanner(arguments.size, arguments.images)
    with tempfile.TemporaryDirectory(prefix="parts-") as folder:
        parts = Parts(Path(folder), arguments.database)
        for _ in range(arguments.rounds):
            parts.one_by_one(scanner.scan())
            for count in BATCHES:
                parts.together([scanner.scan() for _ in range(count)])
    for part, times in parts.times.items():
        median, mean = statistics.median(times), statistics.mean(times)
        print(f"{part:30s} {median:6.3f} {mean:6.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
