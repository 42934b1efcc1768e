"""A node with real files and a history: series received, derived, sent and committed at will."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import retention
from dicom_node.intake import Taken, take_in
from dicom_node.pixel_files import PixelFiles, sha256_of
from dicom_node.retention import Departure
from dicom_node.settings import Settings
from dicom_node.states import HeldBy, JobState
from dicom_node.store import (
    DerivedInstance,
    DerivedSeries,
    JobRow,
    Report,
    Resends,
    Store,
    open_store,
)
from tests.rigs import MR, NOW, SOURCE, due_at, encoded, incoming, make_instance, rig_settings

SERIES = "1.2.826.0.3"
PACS = {"name": "pacs", "ae_title": "PACS", "host": "localhost", "roles": ["destination"]}
COMMITTING = PACS | {"commitment": True}
NO_PAUSE = Resends(most=1, pause=lambda count: timedelta())
LONG = timedelta(days=3650)
PLANE = {
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [1, 1],
    "FrameOfReferenceUID": "1.2.826.0.4",
}


def image(number: int = 1, series_uid: str = SERIES, **values: Any) -> Dataset:
    """Return image `number` of a series."""
    uids = {"SOPInstanceUID": f"{series_uid}.{number}", "SeriesInstanceUID": series_uid}
    return make_instance(number, **uids | PLANE | values)


@cache
def empty_database() -> bytes:
    """Return a database of the newest revision: migrating one for every test takes longer."""
    with TemporaryDirectory() as folder:
        open_store(f"sqlite:///{folder}/node.db").close()
        return Path(folder, "node.db").read_bytes()


@dataclass(frozen=True, kw_only=True)
class AgedNode:
    """A node's state folder, and what can happen to it."""

    scratch: Path  # beside the state folder, which may be full
    settings: Settings
    store: Store
    files: PixelFiles
    derived_uids: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    def take(
        self, dataset: Dataset, now: datetime = NOW, syntax: str = ExplicitVRLittleEndian
    ) -> Taken:
        """Take in one image as if a scanner had sent it."""
        arrived = incoming(encoded(dataset, syntax), self.scratch)
        return take_in(arrived, self.files, self.store, now)

    def received(self, count: int = 3, series_uid: str = SERIES, now: datetime = NOW) -> JobRow:
        """Return the job of `count` received images."""
        for number in range(1, count + 1):
            self.take(image(number, series_uid), now)
        return self.job(series_uid)

    def job(self, series_uid: str = SERIES) -> JobRow:
        """Return the newest job of a series."""
        return self.store.jobs.of_series(series_uid)[-1]

    def running(self, series_uid: str = SERIES, now: datetime = NOW) -> JobRow:
        """Let a worker claim the series' job."""
        job = self.job(series_uid)
        if job.state is JobState.RECEIVING:
            self.store.jobs.transition(job.id, "enqueue", now, destinations=["pacs"])
        claimed = self.store.jobs.claim("w", now, timedelta(seconds=60))
        assert claimed is not None and claimed.job_id == job.id
        return self.job(series_uid)

    def result(self, job: JobRow, count: int = 2) -> DerivedSeries:
        """Return a result of the job, with its files on the disk."""
        folder = self.settings.node.state_dir.resolve() / "out" / str(job.id) / "1-a"
        folder.mkdir(parents=True)
        uid = f"2.25.{next(self.derived_uids)}"
        made = []
        for number in range(1, count + 1):
            path = folder / f"{uid}.{number}.dcm"
            path.write_bytes(encoded(make_instance(number, SOPInstanceUID=f"{uid}.{number}")))
            sha256, size = sha256_of(path), path.stat().st_size
            one = {"sop_uid": f"{uid}.{number}", "sop_class": MR, "path": path}
            made.append(DerivedInstance(**one, sha256=sha256 or "", bytes=size))
        digests = {"recipe_digest": "a" * 64, "weights_sha256": "b" * 64}
        return DerivedSeries(series_uid=uid, instances=tuple(made), **digests)

    def published(
        self, series_uid: str = SERIES, now: datetime = NOW, to: tuple[str, ...] = ("pacs",)
    ) -> JobRow:
        """Bring the received series' job to DERIVED."""
        job = self.running(series_uid, now)
        self.store.jobs.publish(job.id, "w", self.result(job), to, now)
        return self.job(series_uid)

    def held(self, by: HeldBy, now: datetime = NOW) -> JobRow:
        """Bring the received series' job to HELD."""
        if by in (HeldBy.COMPLETENESS, HeldBy.RULE):
            self.store.jobs.transition(self.job().id, "hold", now, held_by=by.value)
        else:
            job = self.running(now=now)
            self.store.jobs.hold_result(job.id, "w", self.result(job), by, "doubtful", now)
        return self.job()

    def sent(self, job: JobRow, now: datetime = NOW, *, commitment: bool = True) -> JobRow:
        """Let the destinations of a published job take everything; DELIVERED without commitment."""
        for task in due_at(self.store, now):
            for one in task.instances:
                self.store.deliveries.record_status(
                    task.delivery_id, one.derived_instance_id, 0x0000, now
                )
            self.store.deliveries.finish(
                task.delivery_id, "sent", "stored", now, commitment=commitment
            )
        return self.store.jobs.get(job.id)

    def committed(self, job: JobRow, now: datetime = NOW) -> JobRow:
        """Let the destinations commit what they were sent: the job is DELIVERED."""
        for number, wanted in enumerate(self.store.commitments.due(now)):
            transaction = f"2.25.77{job.id}{number}"
            self.store.commitments.ask(wanted, transaction, now, now + timedelta(minutes=5))
            report = Report(transaction_uid=transaction, everything=True)
            self.store.commitments.record_report(report, now, again_at=now, resends=NO_PAUSE)
        return self.store.jobs.get(job.id)

    def delivered(self, series_uid: str = SERIES, now: datetime = NOW) -> JobRow:
        """Bring a series from its arrival to DELIVERED."""
        self.received(series_uid=series_uid, now=now)
        job = self.committed(self.sent(self.published(series_uid, now), now), now)
        assert job.state is JobState.DELIVERED
        return job

    def purge(self, now: datetime = NOW + LONG, **options: Any) -> list[Departure]:
        """Let retention run."""
        return list(retention.purge(self.store, self.settings, now, **options))

    def paths(self, top: str) -> list[Path]:
        """Return the files below "in" or "out"."""
        return sorted((self.settings.node.state_dir / top).glob("**/*.dcm"))

    def events(self) -> list[str]:
        """Return the names of the audit trail's rows."""
        return [row.event for row in self.store.audit.listing()]


@contextmanager
def aged_node(folder: Path, scratch: Path | None = None, **sections: Any) -> Iterator[AgedNode]:
    """Yield a node whose only destination commits."""
    settings = rig_settings(folder / "state", **{"peers": [SOURCE, COMMITTING]} | sections)
    (folder / "state").mkdir()
    (folder / "state" / "node.db").write_bytes(empty_database())
    store = open_store(settings.database_url)
    files = PixelFiles(folder / "state" / "in", settings.files.min_free_bytes)
    yield AgedNode(scratch=scratch or folder, settings=settings, store=store, files=files)
    store.close()
