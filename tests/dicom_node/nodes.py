"""A node's store with one complete phantom series in its queue, for tests of what comes after."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dicom_node import assembly
from dicom_node.intake import submit_file
from dicom_node.pixel_files import PixelFiles
from dicom_node.settings import Settings
from dicom_node.store import Store, open_store
from dicom_node.worker import Order, Progress
from sr_engine.dicom.reader import read_series
from sr_engine.dicom.writer import JobIdentity
from sr_engine.pipeline import EnhanceResult
from sr_engine.quality import QualityReport
from sr_engine.recipe import Recipe
from sr_engine.timing import Stages
from tests import phantoms
from tests.rigs import SOURCE, rig_settings

ANY_MR = {"name": "any MR", "when": {"modality": ["MR"]}, "action": "enhance"}
PACS = {
    "name": "pacs",
    "ae_title": "PACS",
    "host": "127.0.0.1",
    "port": 104,
    "roles": ["destination"],
}


@dataclass(frozen=True, kw_only=True)
class QueuedNode:
    """A store whose only job is QUEUED, and what it came from."""

    settings: Settings
    store: Store
    files: PixelFiles
    paths: list[Path]  # as the scanner wrote them

    @property
    def job(self):
        """The newest job."""
        return self.store.jobs.of_series(self.store.series.listing()[0]["series_uid"])[-1]

    def submit(self, path: Path) -> None:
        """Take in one more file."""
        submit_file(path, self.files, self.store, datetime.now(UTC))

    def assemble(self) -> None:
        """Let the idle time pass."""
        later = datetime.now(UTC) + timedelta(seconds=self.settings.assembly.idle_s + 1)
        assembly.tick(self.store, self.settings, later)


def queued_node(
    folder: Path, *, leave_out: int = 0, paths: list[Path] | None = None, **sections: Any
) -> QueuedNode:
    """Return a node that has received a phantom series but its last `leave_out` middle slices.

    Parameters
    ----------
    paths
        The series; default: one stack.
    """
    sections = {
        "assembly": {"idle_s": 1.0, "min_slices": 2},
        "peers": [SOURCE, PACS],
        "rules": [ANY_MR],
    } | sections
    settings = rig_settings(folder / "state", **sections)
    store = open_store(settings.database_url)
    files = PixelFiles(folder / "state" / "in", 0)
    paths = paths or phantoms.corner_series(folder / "scan").paths
    node = QueuedNode(settings=settings, store=store, files=files, paths=paths)
    middle = len(paths) // 2
    for path in [*paths[: middle - leave_out], *paths[middle:]]:
        node.submit(path)
    node.assemble()
    return node


def copying_engine(*, passed: bool = True, spoil: Any = None) -> Any:
    """Return an engine that writes the source on a finer grid: a real result, at no cost."""

    def run(order: Order, settings: Settings, progress: Progress) -> EnhanceResult:
        progress("read", 0.0)
        derived = phantoms.derive(
            read_series(order.paths),
            order.folder,
            recipe=Recipe(),
            job=JobIdentity(
                job_id=17,
                created=order.job.created_at,
                generation=order.job.generation,
                replaces=order.replaces,
                part=order.part,
            ),
            kinds=order.kinds,
        )
        if spoil:
            spoil([path for one in derived.outputs for path in one.paths])
        findings = () if passed else ("The residual is twice the noise.",)
        return EnhanceResult(
            outputs=derived.outputs,
            report=QualityReport(passed=passed, findings=findings, figures={"residual": 2.0}),
            provenance=derived.provenance,
            stages=Stages(),
            shape=(1, 1, 1),
        )

    return run
