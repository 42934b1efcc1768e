"""OHIF (npm) beside Orthanc's DICOMweb, in Chromium: what it lists and what it shows."""

import json
import re
import shutil
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image

from tests.integration.partners import Orthanc
from tests.viewers import seen

VIEWER, DRIVER = "@ohif/app@3.13.2", "playwright-core@1.65.1"
SCRIPT = Path(__file__).with_name("ohif.cjs")
DICOMWEB = "/dicom-web"
SAME = 8.0  # grey levels of 256, see dicomscope
# What this version says of both. One that can show them fails here: then the docs change too.
UNSUPPORTED = "SOP Class UID is not supported"
WARNED = ("PR", "KO")
SOURCE = {
    "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
    "sourceName": "orthanc",
    "configuration": {
        "friendlyName": "Orthanc",
        "name": "orthanc",
        "qidoRoot": DICOMWEB,
        "wadoRoot": DICOMWEB,
        "wadoUriRoot": DICOMWEB,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True,
        "qidoSupportsIncludeField": False,
        "omitQuotationForMultipartRequest": True,
    },
}
SETTINGS = {
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "showStudyList": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "orthanc",
    "dataSources": [SOURCE],
}


def package(name: str, folder: Path) -> Path:
    """Return a package of the npm registry, unpacked; its dependencies are not fetched."""
    target = folder / name.replace("/", "+")
    if not target.is_dir():
        if shutil.which("npm") is None or shutil.which("node") is None:
            raise SystemExit("node and npm are not installed")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", name]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        archive = folder / done.stdout.split()[-1]
        with tarfile.open(archive) as packed:
            packed.extractall(target.with_suffix(".part"), filter="data")
        archive.unlink()
        target.with_suffix(".part").rename(target)
    return target / "package"


@contextmanager
def served(viewer: Path, archive: Orthanc) -> Iterator[str]:
    """Yield the address of the viewer; below it, one origin, the archive's DICOMweb."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(viewer))

        def log_message(self, *_: Any) -> None:
            """Keep the terminal for what was found."""

        def do_GET(self) -> None:
            if self.path.startswith(DICOMWEB):
                self.answer(*forwarded(archive, self.path, self.headers.get("Accept", "*/*")))
            elif self.path == "/app-config.js":
                script = f"window.config = {json.dumps(SETTINGS)};"
                self.answer(200, "text/javascript", script.encode())
            else:
                if not (viewer / self.path.split("?")[0].lstrip("/")).is_file():
                    self.path = "/index.html"  # it is one page for every address
                super().do_GET()

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def forwarded(archive: Orthanc, path: str, accept: str) -> tuple[int, str, bytes]:
    """Return status, content type and body of the archive's answer."""
    address = f"http://127.0.0.1:{archive.http}{path}"
    request = urllib.request.Request(address, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.headers.get("Content-Type", ""), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Content-Type", ""), error.read()


def look(archive: Orthanc, packages: Path, **asked: Any) -> dict[str, Any]:
    """Return what the viewer lists, warns of and shows of the archive's only study."""
    (study,) = archive.get("/studies")
    uid = archive.get(f"/studies/{study}")["MainDicomTags"]["StudyInstanceUID"]
    asked |= {
        "playwright": str(package(DRIVER, packages)),
        "browser": shutil.which("chromium") or shutil.which("chromium-browser"),
    }
    with served(package(VIEWER, packages) / "dist", archive) as address:
        asked["address"] = f"{address}/viewer?StudyInstanceUIDs={uid}"
        command = ["node", str(SCRIPT), json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(
    archive: Orthanc, files: dict[str, list[Path]], packages: Path, out: Path
) -> dict[str, str]:
    """Open the derived series; return what was seen, or fail."""
    picture = out / "ohif.png"
    first = pydicom.dcmread(min(files["classic"], key=_number))
    found = look(
        archive,
        packages,
        series=len(archive.series()),
        description=str(first.SeriesDescription),
        images=len(files["classic"]),
        picture=str(picture),
        warned=WARNED,
    )
    listed = sorted((row[0], row[1], row[-1]) for row in found["listed"])
    assert listed == sorted(map(_as_listed, archive.series())), listed
    for modality in WARNED:
        assert UNSUPPORTED in found["warnings"][modality], found["warnings"]
    window = [str(round(float(first.WindowWidth))), str(round(float(first.WindowCenter)))]
    words = [word.strip() for word in found["shown"]]
    stated = [words[words.index(name) + 1] for name in ("W:", "L:")]
    assert stated == window, f"window {stated}, not {window}"
    box = found["box"]
    edges = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
    with Image.open(picture) as shown:
        uid, apart = seen.closest(shown.convert("RGB").crop(edges), seen.rendered(files["classic"]))
    (stated_number,) = re.findall(r"I:\s*(\d+) \(1/", "\n".join(found["shown"]))
    numbers = {
        str(pydicom.dcmread(path).SOPInstanceUID): _number(path) for path in files["classic"]
    }
    assert numbers[uid] == int(stated_number), f"image {numbers[uid]}, called {stated_number}"
    assert apart < SAME, f"the image looks otherwise: {apart:.1f} grey levels"
    return {
        "listed": ", ".join(f"{modality} ({count})" for modality, _, count in listed),
        f"derived image {stated_number}": f"window {stated}, to {apart:.1f} grey levels of 256",
        **{name: UNSUPPORTED for name in WARNED},
    }


def _as_listed(series: dict) -> tuple[str, str, str]:
    tags = series["MainDicomTags"]
    modality = {"OT": "PMAP"}.get(tags["Modality"], tags["Modality"])
    return modality, tags["SeriesDescription"], str(len(series["Instances"]))


def _number(path: Path) -> int:
    return int(pydicom.dcmread(path, stop_before_pixels=True).InstanceNumber)
