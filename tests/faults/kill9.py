"""kill -9 of the service and its workers at random moments while a real series is sent.

python -m tests.faults.kill9 --series DIR --kills 200

Every round sends one copy of the series, with UIDs of its own, to a node that is killed at random
moments while it receives, decides, computes and delivers; the scanner (dcmtk's storescu) repeats
what was not acknowledged, as scanners do. Afterwards every acknowledged instance must be there and
equal, every job must have ended by itself, and the archive must hold exactly one derived series.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import torch
from pydicom.uid import generate_uid

from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from tests.integration import marks
from tests.integration.partners import Node, Orthanc, free_port, run_storescu, wait_for

RULES = """
[[rules]]
name = "everything MR"
when = { modality = ["MR"] }
action = "enhance"
to = ["orthanc"]
"""


@dataclass
class Tally:
    """What happened in a campaign."""

    rounds: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"serve": 0, "worker": 0})
    states_at_kill: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    lost: int = 0
    unequal: int = 0
    not_delivered: int = 0
    duplicate_series: int = 0
    seconds: float = 0.0

    @property
    def total_kills(self) -> int:
        return sum(self.kills.values())

    @property
    def clean(self) -> bool:
        """Return whether every promise held."""
        return not (self.lost or self.unequal or self.not_delivered or self.duplicate_series)


def copy_series(sources: list[Path], folder: Path) -> tuple[str, list[Path]]:
    """Write the series under new UIDs; return its UID and the files."""
    folder.mkdir(parents=True)
    series_uid, study_uid, paths = generate_uid(), generate_uid(), []
    for number, source in enumerate(sources):
        dataset = pydicom.dcmread(source)
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series_uid, study_uid
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        paths.append(folder / f"{number:04d}.dcm")
        dataset.save_as(paths[-1])
    return series_uid, paths


def acknowledged_of(output: str, sent: list[Path]) -> set[Path]:
    """Return the files that storescu -v reports a Success for."""
    known, done, current = {str(path): path for path in sent}, set(), None
    for line in output.splitlines():
        name = re.search(r"Sending file: (.+)$", line)
        if name:
            current = known.get(name.group(1).strip())
        elif "Received Store Response (Success)" in line and current is not None:
            done.add(current)
    return done


class Campaign:
    """A node, an archive, and somebody with kill -9."""

    def __init__(self, folder: Path, sources: list[Path], seed: int) -> None:
        self.folder, self.sources, self.random = folder, sources, random.Random(seed)
        self.tally = Tally()
        torch.manual_seed(0)
        weights = folder / "small.safetensors"
        model = SuperResolver(ModelConfig(widths=(4, 8), condition_channels=4, condition_width=4))
        bundle.save(weights, model, {"stage": "student"})
        port = free_port()
        self.archive = Orthanc(folder / "orthanc", port)
        self.node = Node(
            folder / "node",
            archives=[self.archive],
            port=port,
            rules=RULES,
            assembly="idle_s = 1.5",
            engine=(
                f'weights = "{weights}"\nsteps = 1\ndevice = "cpu"\nspacing_mm = 3.0\n'
                "lease_s = 4.0\nheartbeat_s = 1.0\nmax_attempts = 100"
            ),
        )
        self.sent: dict[str, list[Path]] = {}

    def start(self) -> None:
        """Start archive and node."""
        self.archive.start()
        self.node.start()

    def round(self, kills: int) -> None:
        """Send one copy; kill `kills` times on its way; wait for its end."""
        self.tally.rounds += 1
        name = f"round{self.tally.rounds:03d}"
        series_uid, paths = copy_series(self.sources, self.folder / name)
        self.sent[series_uid] = paths
        during_send = self.random.randint(0, max(1, 3 * kills // 4))
        waiting = list(paths)
        for _ in range(during_send):
            waiting = self._send_and_kill(waiting)
        wait_for("all are acknowledged", lambda: not self._send(waiting), 120)
        for _ in range(kills - during_send - 1):
            time.sleep(self.random.uniform(0.05, 6.0))
            self._kill(self.random.choice(["serve", "worker"]), series_uid)
        if kills > during_send:
            self._kill_while_delivering(series_uid)
        job = self.node.wait_state(series_uid, ["DELIVERED", "DEAD", "HELD"], 240)
        self.tally.not_delivered += job["state"] != "DELIVERED"

    def _send(self, waiting: list[Path]) -> list[Path]:
        """Send what is waiting; take out, in place, and count what was acknowledged."""
        if waiting:
            done = run_storescu(self.node.port, waiting, seconds=120)
            acknowledged = acknowledged_of(done.stdout + done.stderr, waiting)
            self.tally.acknowledged += len(acknowledged)
            waiting[:] = [path for path in waiting if path not in acknowledged]
        return waiting

    def _send_and_kill(self, waiting: list[Path]) -> list[Path]:
        """Send, and kill the service at a moment on the way."""
        assert self.node.process is not None
        timer = threading.Timer(self.random.uniform(0.0, 0.6), self.node.process.kill)
        timer.start()
        self._send(waiting)
        timer.join()
        self._count("serve", "RECEIVING")
        self._restart()
        return waiting

    def _kill(self, what: str, series_uid: str) -> None:
        job = self.node.job(series_uid)
        state = job["state"] if job else "none"
        if what == "worker":
            workers = self.node.workers()
            if not workers:
                return
            os.kill(workers[0], signal.SIGKILL)
            self._count("worker", state)
            return
        assert self.node.process is not None
        self.node.process.kill()
        self._count("serve", state)
        self._restart()

    def _kill_while_delivering(self, series_uid: str) -> None:
        """Kill the service a moment after the result is published."""
        states = ("DERIVED", "DELIVERED", "DEAD", "HELD")
        end = time.monotonic() + 240
        while time.monotonic() < end and self.node.job(series_uid)["state"] not in states:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0.0, 0.8))
        self._kill("serve", series_uid)

    def _restart(self) -> None:
        assert self.node.process is not None
        self.node.process.wait(20)
        self.node.start()

    def _count(self, what: str, state: str) -> None:
        self.tally.kills[what] += 1
        where = f"{what} in {state}"
        self.tally.states_at_kill[where] = self.tally.states_at_kill.get(where, 0) + 1

    def settle(self) -> Tally:
        """Check every promise; return the tally."""
        stored = {
            path.stem: path for path in (self.folder / "node" / "state" / "in").rglob("*.dcm")
        }
        for paths in self.sent.values():
            for path in paths:
                dataset = pydicom.dcmread(path)
                kept = stored.get(str(dataset.SOPInstanceUID))
                if kept is None:
                    self.tally.lost += 1
                elif pydicom.dcmread(kept) != dataset:
                    self.tally.unequal += 1
        derived = [
            row for row in self.archive.series()
            if row["MainDicomTags"]["SeriesInstanceUID"] not in self.sent
        ]  # fmt: skip
        self.tally.duplicate_series = abs(len(derived) - len(self.sent))
        verified = self.node.cli("verify")
        if verified.returncode != 0:
            print(verified.stdout, verified.stderr, file=sys.stderr)
            self.tally.lost += 1
        return self.tally

    def stop(self) -> None:
        """End node and archive."""
        try:
            self.node.stop()
        finally:
            self.archive.stop()


def run(folder: Path, sources: list[Path], kills: int, per_round: int, seed: int) -> Tally:
    """Run a campaign of `kills` kills; return its tally."""
    started = time.monotonic()
    campaign = Campaign(folder, sources, seed)
    try:
        campaign.start()
        while campaign.tally.total_kills < kills:
            left = kills - campaign.tally.total_kills
            campaign.round(min(per_round, left))
            tally = campaign.tally
            print(f"round {tally.rounds}: {tally.total_kills} kills", file=sys.stderr, flush=True)
        tally = campaign.settle()
    finally:
        campaign.stop()
    tally.seconds = round(time.monotonic() - started, 1)
    return tally


def source_files(series: Path | None, folder: Path) -> list[Path]:
    """Return the files of `series`, or of a phantom written into `folder`."""
    if series is None:
        return marks.write_marked(folder / "phantom", marks.marked_volume("axial")[0])
    return sorted(path for path in series.iterdir() if path.is_file())


def main() -> int:
    """Run the campaign of the command line; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=Path, help="folder of one MR series [a phantom]")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-round", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill9-") as folder:
        sources = source_files(arguments.series, Path(folder))
        tally = run(Path(folder), sources, arguments.kills, arguments.per_round, arguments.seed)
    print(json.dumps(vars(tally), indent=1))
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
