"""`dicom-node demo`: one series from a scanner through a whole node into an archive, on loopback.

The node is the real one, in processes of its own; scanner and archive are simulated.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from dicom_node.demo.picture import DIFFERENCE_SHARE, Pair, draw
from dicom_node.errors import NodeError
from dicom_node.network import scu
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.parcels import Item
from dicom_node.retry import describe
from dicom_node.settings import PeerSettings, Settings
from dicom_node.states import FINAL, JobState
from dicom_node.store import Store, open_store
from dicom_node.store.overview import series_lines

HOST = "127.0.0.1"
SCANNER_AE, ARCHIVE_AE = "DEMOSCANNER", "DEMOARCHIVE"
PATIENT = "DEMO^INVENTED"
VOXEL_MM = (1.0, 1.0, 3.0)  # left-right, back-front, foot-head
SNR = 30.0
UNITS = 1000.0  # scanner units of the brightest tissue
START_S, POLL_S, STALLED_S = 60.0, 0.5, 3600.0

Say = Callable[[str], None]


class DemoFailed(NodeError):
    """The series did not arrive in the archive; the message says where it stopped."""


@dataclass(frozen=True, kw_only=True)
class RunningNode:
    """The addresses of the node that the demo has started."""

    port: int
    page: str


class Teller:
    """Tells what happens: lines, and on a terminal one line of progress that is written over."""

    def __init__(self) -> None:
        """Nothing has been told."""
        self._started = time.monotonic()
        self._over = sys.stdout.isatty()
        self._last = ""

    def line(self, text: str) -> None:
        """Print one line."""
        self._erase()
        print(text, flush=True)

    def progress(self, text: str, share: float | None) -> None:
        """Show how far the job is; without a terminal only every new stage gets a line."""
        if not self._over:
            if text != self._last:
                print(f"  {self._clock()}  {text}", flush=True)
            self._last = text
            return
        filled = round(24 * (share or 0.0))
        bar = f"[{'#' * filled}{'.' * (24 - filled)}] {100 * (share or 0.0):3.0f} %"
        self._erase()
        self._last = f"  {self._clock()}  {bar}  {text}"
        print(self._last, end="\r", flush=True)

    def _erase(self) -> None:
        if self._over and self._last:
            print(" " * len(self._last), end="\r")

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:2d}:{seconds % 60:02d}"


def run(settings: Settings, *, series: Path | None, out: Path, keep_serving: bool) -> None:
    """Send one series through a node and leave what came out in `out`.

    Parameters
    ----------
    settings
        Its [engine] section is used; the rest of the node is the demo's own.
    series
        Folder of a real series; None for a simulated 1.5 T head.

    Raises
    ------
    DemoFailed
        If no derived series arrived.
    """
    tell = Teller()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as parts:
        temporary = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="dicom-node-")))
        paths = scan(temporary / "scan", tell.line) if series is None else files_of(series)
        archive = parts.enter_context(LoopbackArchive(out / "archive", ae_title=ARCHIVE_AE))
        config = temporary / "node.toml"
        config.write_text(
            configuration(settings, temporary, archive.port, any_mr=series is not None)
        )
        if series is not None:
            tell.line("rules       relaxed for the demo: every MR series of 2 slices and more")
        node = parts.enter_context(started(config, out / "node.log"))
        tell.line(f"status page {node.page}")
        store = open_store(f"sqlite:///{temporary / 'state' / 'node.db'}")
        parts.callback(store.close)
        transmit(paths, node.port, tell.line)
        job = wait_for_delivery(store, tell, out / "node.log")
        report(job, paths, archive, node, out, tell.line)
        if keep_serving:
            tell.line("The node keeps running for you to look at its page; Ctrl-C ends it.")
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1.0)


def configuration(settings: Settings, folder: Path, archive_port: int, *, any_mr: bool) -> str:
    """Return the demo's node.toml: ports of its own, the archive, no waiting."""
    engine = settings.engine.model_dump(exclude_unset=True)
    sections: dict[str, dict[str, Any]] = {
        "node": {"port": 0, "state_dir": str(folder / "state")},
        "web": {"port": 0},
        "assembly": {"idle_s": 1.5, "min_slices": 2 if any_mr else settings.assembly.min_slices},
        "engine": {"heartbeat_s": 1.0, "lease_s": 30.0} | engine,
        "files": {"min_free_bytes": 100_000_000},
    }
    scanner = {"name": "scanner", "ae_title": SCANNER_AE, "host": HOST, "roles": ["source"]}
    archive = {
        "name": "archive",
        "ae_title": ARCHIVE_AE,
        "host": HOST,
        "port": archive_port,
        "roles": ["destination"],
    }
    lines = [f"[{name}]\n{toml(values)}" for name, values in sections.items()]
    lines += [f"[[peers]]\n{toml(peer)}" for peer in (scanner, archive)]
    if any_mr:
        rule = 'name = "any MR"\nwhen = { modality = ["MR"] }\naction = "enhance"\n'
        lines.append(f"[[rules]]\n{rule}")
    return "\n".join(lines)


def toml(values: Mapping[str, Any]) -> str:
    """Return plain values as TOML, which writes them as JSON does."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def scan(folder: Path, say: Say) -> list[Path]:
    """Return the files of a simulated 1.5 T acquisition of the MNI152 head (nilearn carries it)."""
    from nilearn.datasets import load_mni152_template

    from sr_engine.dicom.scanner import write_acquisition
    from sr_engine.nifti import read_nifti
    from sr_engine.training.degrade import degrade_file

    folder.mkdir()
    true, measured = folder / "true.nii.gz", folder / "measured.nii.gz"
    load_mni152_template(resolution=1).to_filename(true)
    degrade_file(true, measured, voxel_mm=VOXEL_MM, snr=SNR, seed=0)
    volume = read_nifti(measured).to_patient_orientation("HPL")  # axial slices, feet first
    volume = volume.with_array(np.clip(volume.array, 0, None) * UNITS)
    paths = write_acquisition(volume, folder / "dicom", tags={}, patient_name=PATIENT)
    size = " x ".join(f"{mm:g}" for mm in VOXEL_MM)
    say(f"scanner     {len(paths)} slices of a simulated 1.5 T head, {size} mm, {PATIENT}")
    return paths


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder, or raise DemoFailed when there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise DemoFailed(f"{folder}: no such folder, or no file in it")
    return paths


@contextmanager
def started(config: Path, log: Path) -> Iterator[RunningNode]:
    """Run `dicom-node serve` with one worker; drain it at the end."""
    command = [sys.executable, "-m", "dicom_node.cli", "serve", "--managed", "--config"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        yield addresses(process, log)
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()


def addresses(process: subprocess.Popen[str], log: Path) -> RunningNode:
    """Return where the node listens: it prints that when it does."""
    said = ""
    for line in process.stdout or ():
        said += line
        port = re.search(r"^receiving .*:(\d+)$", said, re.MULTILINE)
        page = re.search(r"^status page\s+(\S+)$", said, re.MULTILINE)
        if port and page:
            return RunningNode(port=int(port[1]), page=page[1])
    raise DemoFailed(f"the node did not start; the last line of {log} says why")


def transmit(paths: Sequence[Path], port: int, say: Say) -> None:
    """Send the files to the node as a scanner does: C-STORE over one association.

    Raises
    ------
    DemoFailed
        If a file is no DICOM instance, or the node refuses one.
    """
    items = []
    for number, path in enumerate(paths):
        try:
            sop_uid = str(read_file_meta_info(path).MediaStorageSOPInstanceUID)
        except (InvalidDicomError, AttributeError, OSError) as error:
            raise DemoFailed(f"{path} is no DICOM file") from error
        items.append(Item(key=number, sop_uid=sop_uid, path=path))
    node = PeerSettings(
        name="node", ae_title=Settings().node.ae_title, host=HOST, port=port, roles=("destination",)
    )
    begun = time.monotonic()
    for outcome in scu.send(items, node, SCANNER_AE):
        if outcome.fault != 0x0000:
            why = " ".join([describe(outcome.fault), outcome.comment]).strip()
            raise DemoFailed(f"the node refused {outcome.item.path}: {why}")
    say(f"sent        {len(items)} instances by C-STORE in {time.monotonic() - begun:.1f} s")


def wait_for_delivery(store: Store, tell: Teller, log: Path) -> dict[str, Any]:
    """Return the job's line when the archive has the derived series.

    Raises
    ------
    DemoFailed
        If the job ends in another way.
    """
    deadline = time.monotonic() + STALLED_S
    while time.monotonic() < deadline:
        job = series_lines(store.database, limit=1)[0]
        state = JobState(job["state"])
        if state is JobState.DELIVERED:
            return job
        if state is JobState.HELD or state in FINAL:
            raise DemoFailed(f"the series is {state.value}: {job['reason']} (log: {log})")
        stage = f": {job['stage']}" if state is JobState.RUNNING and job["stage"] else ""
        tell.progress(f"{state.value}{stage}", job["progress"] if stage else None)
        time.sleep(POLL_S)
    raise DemoFailed(f"nothing has happened for {STALLED_S:g} s (log: {log})")


def report(
    job: dict[str, Any],
    paths: Sequence[Path],
    archive: LoopbackArchive,
    node: RunningNode,
    out: Path,
    say: Say,
) -> None:
    """Leave picture and page in `out` and say where everything is."""
    uid = job["derived_series_uid"]
    derived = sorted(path for path in archive.paths() if path.parent.name == uid)
    if not derived:
        raise DemoFailed(f"the archive does not have the derived series {uid}")
    size = compare(paths, derived, out / "before-after.png")
    save_page(node.page, job["job_id"], out)
    say(f"derived     {len(derived)} slices, {size}: {derived[0].parent}")
    say(f"picture     {out / 'before-after.png'}")
    say(f"page        {out / 'status.html'} (as it was at {node.page})")


def compare(before: Sequence[Path], after: Sequence[Path], path: Path) -> str:
    """Draw the derived series and the input at the same places; return the derived voxel size.

    One slice as it was derived, and one plane across all slices, where thick slices show.
    """
    from sr_engine.dicom.reader import read_series

    source = read_series(before)
    slices = sorted((dcmread(one) for one in after), key=lambda one: int(one.InstanceNumber))
    affine, gain = stack_affine(slices), gain_of(slices[0])
    derived = np.stack([one.pixel_array for one in slices]).astype(np.float32) / gain
    old = " x ".join(f"{mm:.2g}" for mm in source.spacing_mm)
    new = " x ".join(f"{mm:.2g}" for mm in np.linalg.norm(affine[:3, :3], axis=0))
    captions = [
        f"received: {old} mm\ncubic interpolation",
        f"derived: {new} mm\nfor research, not for diagnosis",
        f"difference\nwhite: {DIFFERENCE_SHARE:.0%} of the white on the left",
    ]
    pairs = [middle_plane(source.volume, derived, affine, axis) for axis in (0, 1)]
    draw(pairs, captions=captions, path=path)
    return f"{new} mm"


def middle_plane(before: Any, derived: np.ndarray, affine: np.ndarray, axis: int) -> Pair:
    """Return the middle plane of `derived` along `axis` and the volume `before` on that plane."""
    from sr_engine.physics.resample import grid_like, interpolate

    middle = derived.shape[axis] // 2
    plane = affine.copy()
    plane[:3, 3] += middle * affine[:3, axis]
    shape = [1 if n == axis else size for n, size in enumerate(derived.shape)]
    cubic = interpolate(before, grid_like(plane, shape)).array.squeeze(axis)
    down_mm, right_mm = np.delete(np.linalg.norm(affine[:3, :3], axis=0), axis)
    # A plane across the slices has the first of them, the lowest as a rule, at its foot.
    upright = slice(None, None, -1 if axis else 1)
    return Pair(
        before=np.clip(cubic, 0, None)[upright],
        after=derived.take(middle, axis)[upright],
        aspect=down_mm / right_mm,
    )


def gain_of(instance: Any) -> float:
    """Return stored value per scanner unit, as the provenance has it."""
    from sr_engine.dicom.provenance import from_dataset

    return from_dataset(instance).pixel_gain


def stack_affine(slices: Sequence[Any]) -> np.ndarray:
    """Return the affine of a stack of slices: (slice, row, column) index to LPS mm."""
    first, last = (np.array(one.ImagePositionPatient, float) for one in (slices[0], slices[-1]))
    along_row, along_column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = (float(mm) for mm in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / max(1, len(slices) - 1)
    affine[:3, 1] = along_column * row_mm
    affine[:3, 2] = along_row * column_mm
    affine[:3, 3] = first
    return affine


def save_page(page: str, job_id: int, out: Path) -> None:
    """Save the status page and the job's page, each with its style inside."""
    style = fetch(f"{page}static/node.css")
    for name, address in (("status.html", page), ("job.html", f"{page}jobs/{job_id}")):
        html = re.sub(r'<meta http-equiv="refresh"[^>]*>', "", fetch(address))
        html = re.sub(r", renewed every \d+ s", "", html)
        html = re.sub(r'<link rel="icon"[^>]*>', "", html)
        html = re.sub(r'<link rel="stylesheet"[^>]*>', lambda _: f"<style>{style}</style>", html)
        html = html.replace('href="/"', 'href="status.html"')
        (out / name).write_text(html.replace(f'href="/jobs/{job_id}"', 'href="job.html"'))


def fetch(address: str) -> str:
    """Return the text at one of the node's own addresses."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())
