"""The test stand of the campaign: a scanner that repeats, a node of processes, an archive.

The node runs the real pipeline with a tiny network on small phantoms. The scanner is dcmtk's
storescu: it sends again whatever was not acknowledged, as scanners do.
"""

import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import generate_uid

from tests import phantoms
from tests.faults.processes import Command
from tests.integration import marks
from tests.integration.partners import Node, Orthanc, free_port, listens, run_storescu, wait_for

RULES = """
[[rules]]
name = "everything MR"
when = { modality = ["MR"] }
action = "enhance"
to = ["pacs"]
"""
# Waits of minutes become seconds: a campaign waits for very many of them.
SECTIONS: dict[str, dict[str, Any]] = {
    "assembly": {"idle_s": 1.0, "min_slices": 4},
    "engine": {
        "steps": 1,
        "device": "cpu",
        "spacing_mm": 3.0,
        "threads": 1,
        "lease_s": 4.0,
        "heartbeat_s": 1.0,
        "max_attempts": 100,
    },
    "files": {"min_free_bytes": 0},
    "sending": {
        "interval_s": 0.2,
        "timeout_s": 10.0,
        "backoff_first_s": 0.2,
        "backoff_last_s": 1.0,
    },
    "commitment": {"wait_s": 0.5, "timeout_s": 3.0},
}
ENDED = ("DELIVERED", "DEAD", "HELD", "SKIPPED", "CANCELLED", "SUPERSEDED")
SENDING, COMMITTING = "DERIVED, sending", "DERIVED, waiting for commitment"


@cache
def tiny_weights(folder: Path) -> Path:
    """Return the file of an untrained network that costs next to nothing."""
    import torch

    from sr_engine.model import bundle
    from sr_engine.model.diffusion import ModelConfig, SuperResolver

    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    model = SuperResolver(ModelConfig(widths=(4, 8), condition_channels=4, condition_width=4))
    bundle.save(path, model, {"stage": "student", "note": "untrained, for tests"})
    return path


@dataclass(kw_only=True)
class Flight:
    """One series on its way: its files, and which of them were acknowledged."""

    series_uid: str
    paths: list[Path]
    acknowledged: set[Path] = field(default_factory=set)

    @property
    def waiting(self) -> list[Path]:
        """What the scanner has to send (again)."""
        return [path for path in self.paths if path not in self.acknowledged]


class Phantoms:
    """Makes series under new UIDs: copies of a few phantoms, or of one that is given."""

    def __init__(self, folder: Path, sources: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._count = 0
        self._templates = [list(sources)] if sources else self._write(folder / "phantoms")

    @staticmethod
    def _write(folder: Path) -> list[list[Path]]:
        return [
            phantoms.corner_series(folder / "small").paths,
            marks.write_marked(folder / "larger", marks.marked_volume("axial")[0]),
        ]

    def new(self, rng: random.Random, **values: Any) -> Flight:
        """Return a series that nobody has seen; `values` are attributes by keyword."""
        self._count += 1
        folder = self._folder / f"series{self._count:05d}"
        folder.mkdir(parents=True)
        uids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
        template, paths = rng.choice(self._templates), []
        for number, source in enumerate(template):
            dataset = pydicom.dcmread(source)
            for keyword, value in (uids | values).items():
                setattr(dataset, keyword, value)
            dataset.SOPInstanceUID = generate_uid()
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            paths.append(folder / f"{number:04d}.dcm")
            dataset.save_as(paths[-1])
        return Flight(series_uid=uids["SeriesInstanceUID"], paths=ends_first(paths))


def ends_first(paths: list[Path]) -> list[Path]:
    """Return first and last slice before the others.

    Whatever a fault leaves out then is a hole, and the node waits for it. Half a stack from one end
    would look complete, and what comes later would rightly make a second derived series.
    """
    return [paths[0], paths[-1], *paths[1:-1]]


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """Return sections of plain values as TOML."""
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        for key, value in values.items():
            written = f'"{value}"' if isinstance(value, str | Path) else str(value).lower()
            lines.append(f"{key} = {written}")
    return "\n".join(lines)


class StandNode(Node):
    """A node whose processes are forked warm, or started from a shell with `cold`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        pacs: tuple[str, int],
        asks: bool = True,
        rules: str = RULES,
        workers: int = 1,
        cold: bool = False,
        **sections: dict[str, Any],
    ) -> None:
        merged = {
            name: SECTIONS.get(name, {}) | sections.get(name, {})
            for name in (*SECTIONS, *(sections.keys() - SECTIONS.keys()))
        }
        folder.mkdir(parents=True, exist_ok=True)
        engine = {"weights": tiny_weights(folder)} | merged.pop("engine")
        assembly = merged.pop("assembly")
        peer = (
            f'[[peers]]\nname = "pacs"\nae_title = "{pacs[0]}"\nhost = "127.0.0.1"\n'
            f'port = {pacs[1]}\nroles = ["source", "destination"]\n'
            f"commitment = {str(asks).lower()}\n"
        )
        super().__init__(
            folder,
            port=port,
            rules=rules,
            engine=toml({"engine": engine}).partition("\n")[2],
            assembly=toml({"assembly": assembly}).partition("\n")[2],
            extra=f"{toml(merged)}\n{peer}",
        )
        self.cold = cold
        self.workers_wanted = workers
        self._workers: list[Command] = []

    @property
    def database(self) -> Path:
        """The file of the SQLite database."""
        return self.folder / "state" / "node.db"

    def start(self, wait: bool = True, workers: bool = True) -> "StandNode":
        """Start the service, and the workers that do not run."""
        if self.cold:
            super().start(wait=False)
        else:
            self.process = Command(  # type: ignore[assignment]
                ["serve", "--config", str(self.config), "--workers", "0"], self.log
            )
        if wait:
            self.wait_until_it_listens()
        if workers:
            self.tend()
        return self

    def wait_until_it_listens(self, seconds: float = 600.0) -> None:
        """Return once associations are accepted."""
        wait_for("the node listens", lambda: self.alive() and listens(self.port), seconds, 0.02)

    def tend(self) -> None:
        """Start the workers that are missing; a cold node does so by itself."""
        self._workers = [one for one in self._workers if one.poll() is None]
        while len(self._workers) < self.workers_wanted and not self.cold:
            self._workers.append(Command(["work", "--config", str(self.config)], self.log))

    def workers(self) -> list[int]:
        """Return the process numbers of the running workers."""
        if self.cold:
            return super().workers()
        return [one.pid for one in self._workers if one.poll() is None]

    def holder(self, series_uid: str) -> int | None:
        """Return the process number of the worker that has a series; None when nobody has it."""
        query = (
            "SELECT j.worker FROM job j JOIN series s ON s.id = j.series_id"
            " WHERE s.series_uid = ? AND j.state = 'RUNNING'"
        )
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            row = connection.execute(query, [series_uid]).fetchone()
        return int(row[0].split("/")[-2]) if row else None

    def bury(self, pids: Sequence[int]) -> None:
        """Wait for the end of workers that were killed."""
        for one in self._workers:
            if one.pid in pids:
                one.wait(600.0)

    def command(self, name: str, *arguments: str) -> str:
        """Run another `dicom-node` command, warm; return what it said, fail where it failed."""
        said = self.folder / f"{name}.log"
        said.unlink(missing_ok=True)
        command = Command([name, "--config", str(self.config), *arguments], said)
        code = command.wait(300.0)
        assert code == 0, f"{name}: {code}: {said.read_text()[-500:]}"
        return said.read_text()

    def stop(self, *arguments: Any, **options: Any) -> int:
        """End workers and service."""
        for one in self._workers:
            one.kill()
            one.wait()
        return super().stop(*arguments, **options)

    def states(self) -> dict[str, str]:
        """Return the state of every series by its UID, that of the delivery included."""
        query = (
            "SELECT s.series_uid, j.state, d.state, d.awaits_commitment FROM series s"
            " JOIN job j ON j.series_id = s.id LEFT JOIN delivery d ON d.job_id = j.id"
            " ORDER BY j.generation"
        )
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            rows = connection.execute(query).fetchall()
        return {uid: named(state, delivery, awaits) for uid, state, delivery, awaits in rows}


def named(state: str, delivery: str | None, awaits: int | None) -> str:
    """Return a job's state as the campaign counts it."""
    if state != "DERIVED":
        return state
    return COMMITTING if delivery == "SENT" and awaits else SENDING


def acknowledged_of(output: str, sent: Sequence[Path]) -> set[Path]:
    """Return the files that storescu -v reports a Success for."""
    known, done, current = {str(path): path for path in sent}, set(), None
    for line in output.splitlines():
        name = re.search(r"Sending file: (.+)$", line)
        if name:
            current = known.get(name.group(1).strip())
        elif "Received Store Response (Success)" in line and current is not None:
            done.add(current)
    return done


class Stand:
    """Node, archive and scanner in one folder; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        pacs: Any = None,
        via: int | None = None,
        port: int | None = None,
        seed: int = 1,
        sources: Sequence[Path] = (),
        **options: Any,
    ) -> None:
        """Stand in `folder`; `pacs` is an Orthanc of our own if it is not given.

        Parameters
        ----------
        via
            The port at which the node shall find the archive: somebody's who stands between them.
        port
            Of the node, when somebody has to know it beforehand.
        options
            Of `StandNode`, sections of its configuration among them.
        """
        port = port or free_port()
        self.folder, self.random = folder, random.Random(seed)
        self.pacs = pacs or Orthanc(folder / "orthanc", port)
        self.node = StandNode(
            folder / "node",
            port=port,
            pacs=(self.pacs.ae_title, via or self.pacs.port),
            **options,
        )
        self.phantoms = Phantoms(folder / "scanner", sources)
        self.flights: list[Flight] = []

    def __enter__(self) -> "Stand":
        self.pacs.start()
        self.node.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.node.stop()
        finally:
            self.pacs.stop()

    def new(self, **values: Any) -> Flight:
        """Return a new series, which the account will ask for."""
        flight = self.phantoms.new(self.random, **values)
        self.flights.append(flight)
        return flight

    def send(self, flight: Flight, *options: str, port: int | None = None) -> bool:
        """Send what is waiting once; True when everything is acknowledged."""
        waiting = flight.waiting
        if waiting:
            done = run_storescu(port or self.node.port, waiting, *options, seconds=240)
            flight.acknowledged |= acknowledged_of(done.stdout + done.stderr, waiting)
        return not flight.waiting

    def send_all(self, flight: Flight, seconds: float = 600.0, port: int | None = None) -> None:
        """Send again and again until everything is acknowledged."""
        wait_for(
            "the series is acknowledged", lambda: self.send(flight, port=port), seconds, pause=0.1
        )

    def settle(self, seconds: float, done: Callable[[str], bool] = lambda s: s in ENDED) -> float:
        """Wait until every series has ended, `seconds` at most; return how long it took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            self.node.tend()
            states = self.node.states()
            if all(done(states.get(flight.series_uid, "")) for flight in self.flights):
                break
            time.sleep(0.2)
        return round(time.monotonic() - started, 1)

    def wait_for_state(
        self, flight: Flight, wanted: Iterable[str], seconds: float = 600.0, pause: float = 0.02
    ) -> str:
        """Return the state of a series once it is one of `wanted`."""
        wanted = set(wanted)

        def reached() -> str | None:
            state = self.node.states().get(flight.series_uid, "")
            return state if state in wanted else None

        return str(wait_for(f"the series is in {wanted}", reached, seconds, pause))
