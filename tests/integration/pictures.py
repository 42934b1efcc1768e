"""Pictures of a derived series and its companions in programs that are not ours.

    python -m tests.integration.pictures docs/pictures

Orthanc's pages in Chromium, and what dcmtk makes of the documents. The head is simulated.
"""

import re
import shutil
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pydicom
from PIL import Image, ImageDraw, ImageFont

from dicom_node.demo import scan
from sr_engine.dicom.kinds import COMPANIONS
from sr_engine.dicom.template import JobIdentity
from sr_engine.model.bundle import load
from sr_engine.pipeline import enhance
from sr_engine.recipe import Recipe
from tests.integration.partners import PLUGINS, Orthanc, find_program, free_port

KINDS = ["classic", *(f"classic+{name}" for name in COMPANIONS)]
SLICES = 16  # of the middle of the head: a picture needs no more
PANEL = 440
FRAME = "ReferencedSOPSequence"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
COLOURS = 64  # of a picture: enough for grey images and pages


def shoot(address: str, picture: Path, profile: Path, size: str = "1100,1000") -> None:
    """Write what Chromium shows at `address`."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("chromium is not installed")
    command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size}"]
    command += ["--virtual-time-budget=20000", f"--screenshot={picture}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with Image.open(picture) as image:
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS).save(picture)


def store(archive: Orthanc, paths: list[Path]) -> None:
    """Store files in the archive by its REST interface."""
    for path in paths:
        address = f"http://127.0.0.1:{archive.http}/instances"
        with urllib.request.urlopen(address, data=path.read_bytes(), timeout=60) as reply:
            reply.read()


def document(path: Path, page: Path) -> str:
    """Return the address of an SR or KO document as dcmtk renders it."""
    command = [find_program("dsr2html") or "dsr2html", "+Rd", "+Ci", str(path), str(page)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return page.as_uri()


def presented(state: Path, image: Path, folder: Path) -> Image.Image:
    """Return an image under a presentation state as dcmtk shows it, its label below.

    dcmtk applies the window and reads the label, but draws no text: that is done here.
    """
    picture = folder / "presented.pgm"
    command = [find_program("dcmp2pgm") or "dcmp2pgm", "-v", "-p", str(state), str(image)]
    done = subprocess.run([*command, str(picture)], check=True, capture_output=True, text=True)
    label = re.findall(r'text 1: "(.*)"', done.stdout + done.stderr)[0]
    with Image.open(picture) as shown:
        size = (PANEL, round(PANEL * shown.height / shown.width))
        sheet = Image.new("L", (PANEL, size[1] + 30))
        sheet.paste(shown.resize(size), (0, 0))
    font = ImageFont.load_default(15)
    ImageDraw.Draw(sheet).text((8, size[1] + 6), label, fill=235, font=font)
    return sheet


def levels(files: dict[str, list[Path]], picture: Path, folder: Path) -> None:
    """Write an original slice and the derived one at its level, side by side."""
    of_derived, of_original = files["classic+presentation"]
    keys = pydicom.dcmread(files["classic+key_objects"][0]).ContentSequence
    pairs = [one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in keys if FRAME in one]
    paths = {
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path
        for path in (*files["source"], *files["classic"])
    }
    middle = len(pairs) // 4 * 2
    shown = [
        presented(of_original, paths[pairs[middle]], folder),
        presented(of_derived, paths[pairs[middle + 1]], folder),
    ]
    sheet = Image.new("L", (2 * PANEL + 8, max(one.height for one in shown)), 80)
    for column, one in enumerate(shown):
        sheet.paste(one, (column * (PANEL + 8), 0))
    sheet.save(picture)


def derived(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a simulated head and of everything that is made of it."""
    whole = scan(folder / "whole", lambda *_: None)
    middle = len(whole) // 2
    sources = whole[middle - SLICES // 2 : middle + SLICES // 2]
    made = enhance(
        sources,
        folder / "out",
        recipe=Recipe(),
        job=JobIdentity(job_id=1, created=datetime.now(UTC)),
        bundle=load("default"),
        kinds=KINDS,
    )
    return {"source": sources} | {one.kind: list(one.paths) for one in made.outputs}


def main(out: Path) -> None:
    """Write the pictures into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as made:
        folder = Path(made)
        files = derived(folder)
        archive = Orthanc(folder / "orthanc", free_port(), plugins=[PLUGINS]).start()
        try:
            for paths in files.values():
                store(archive, paths)
            base = f"http://127.0.0.1:{archive.http}"
            (study,) = archive.get("/studies")
            shoot(f"{base}/app/explorer.html#study?uuid={study}", out / "study.png", folder / "a")
            (spread,) = (
                row["ID"] for row in archive.series() if row["MainDicomTags"]["Modality"] == "OT"
            )
            viewer = f"{base}/web-viewer/app/viewer.html?series={spread}"
            shoot(viewer, out / "spread.png", folder / "b", "700,700")
        finally:
            archive.stop()
        page = document(files["classic+report"][0], folder / "report.html")
        shoot(page, out / "report.png", folder / "c", "900,1000")
        levels(files, out / "levels.png", folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
