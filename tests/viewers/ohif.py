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
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image

from tests.integration.partners import Orthanc
from tests.viewers import seen

VIEWER, DRIVER = "@ohif/app@3.13.2", "playwright-core@1.65.1"
SCRIPT = Path(__file__).with_name("ohif.cjs")
EXTENSION = Path(__file__).parents[2] / "deploy" / "ohif" / "companions.js"
DICOMWEB = "/dicom-web"
SAME = 8.0  # grey levels of 256, see dicomscope
# What this version says of both by itself. One that can show them fails here: then the docs change.
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
def served(viewer: Path, archive: Orthanc, configuration: str) -> Iterator[str]:
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
                self.answer(200, "text/javascript", configuration.encode())
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


def look(
    archive: Orthanc, packages: Path, *, extended: bool = False, **asked: Any
) -> dict[str, Any]:
    """Return what the viewer lists, warns of and shows of the archive's only study.

    `extended` is how a site that follows docs/operations.md has it.
    """
    configuration = f"window.config = {json.dumps(SETTINGS)};"
    if extended:
        extensions = "window.config.extensions = [window.dicomNodeCompanions];"
        configuration = f"{EXTENSION.read_text()}\n{configuration}\n{extensions}"
    (study,) = archive.get("/studies")
    uid = archive.get(f"/studies/{study}")["MainDicomTags"]["StudyInstanceUID"]
    asked |= {
        "playwright": str(package(DRIVER, packages)),
        "browser": shutil.which("chromium") or shutil.which("chromium-browser"),
        "series": len(archive.series()),
    }
    with served(package(VIEWER, packages) / "dist", archive, configuration) as address:
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
        description=str(first.SeriesDescription),
        images=len(files["classic"]),
        picture=str(picture),
        warned=WARNED,
    )
    listed = sorted((row[0], row[1], row[-1]) for row in found["listed"])
    assert listed == sorted(map(_as_listed, archive.series())), listed
    for modality in WARNED:
        assert UNSUPPORTED in found["warnings"][modality], found["warnings"]
    view = View.of(found | {"picture": str(picture)}, files["classic"])
    assert view.window == stated_window(first), f"window {view.window}"
    return {
        "listed": ", ".join(f"{modality} ({count})" for modality, _, count in listed),
        f"derived image {view.number}": f"window {view.window}, {view.likeness}",
        **{name: UNSUPPORTED for name in WARNED},
    }


def check_documents(
    archive: Orthanc, files: dict[str, list[Path]], packages: Path, out: Path
) -> dict[str, str]:
    """Open key objects and states with our extension; return what was seen, or fail."""
    (key_objects,) = files["key_objects"]
    states = [pydicom.dcmread(path) for path in files["presentation"]]
    unkept = [str(out / f"{number}.png") for number in range(len(states))]
    kept = [str(out / "ohif-key-objects.png"), str(out / "ohif-state.png")]
    documents = [{"modality": "KO", "row": 0, "pictures": [unkept[0], kept[0]]}]
    for row, picture in enumerate([*unkept[1:], kept[1]]):
        documents.append({"modality": "PR", "row": row, "pictures": [picture]})
    found = look(archive, packages, extended=True, documents=documents)
    images = [*files["source"], *files["classic"]]
    views = [(view["modality"], View.of(view, images)) for view in found["views"]]
    told = {}

    named = named_by(pydicom.dcmread(key_objects))
    for place, view in enumerate(view for modality, view in views if modality == "KO"):
        assert view.uid == named[place], f"image {place + 1} of the key objects is another one"
        assert view.count == len(named), f"{view.count} images of {len(named)}"
        told[f"key objects, image {place + 1} of {view.count}"] = view.likeness

    shown = [view for modality, view in views if modality == "PR"]
    of_states = {count_of(state): state for state in states}
    assert {view.count for view in shown} == set(of_states), "not every state was opened"
    for view in shown:
        state = of_states[view.count]
        label, window = said_of(state, view.uid), stated_window(state.SoftcopyVOILUTSequence[0])
        assert label in view.words, f"the label {label!r} is not to be seen"
        assert view.window == window, f"window {view.window}, not {window}"
        told[f"state of {view.count} images"] = f"window {window}, {label!r}, {view.likeness}"
    for picture in unkept:  # looked at, and like the others
        Path(picture).unlink()
    return told


@dataclass(frozen=True, kw_only=True)
class View:
    """What the viewport shows: words, and the image that the picture is most like."""

    words: list[str]
    window: list[str]
    number: int
    count: int
    uid: str
    apart: float

    @property
    def likeness(self) -> str:
        """Return how like the image it is."""
        return f"to {self.apart:.1f} grey levels of 256"

    @classmethod
    def of(cls, found: dict[str, Any], images: list[Path]) -> "View":
        """Return what was found, or fail: the picture is not what the words say."""
        words = [word.strip() for word in found["shown"]]
        (stated,) = re.findall(r"I:\s*(\d+) \(\d+/(\d+)\)", "\n".join(words))
        box = found["box"]
        edges = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
        with Image.open(found["picture"]) as shown:
            uid, apart = seen.closest(shown.convert("RGB").crop(edges), seen.rendered(images))
        numbers = {str(pydicom.dcmread(path).SOPInstanceUID): _number(path) for path in images}
        assert numbers[uid] == int(stated[0]), f"image {numbers[uid]}, called {stated[0]}"
        assert apart < SAME, f"the image looks otherwise: {apart:.1f} grey levels"
        return cls(
            words=words,
            window=[words[words.index(name) + 1] for name in ("W:", "L:")],
            number=int(stated[0]),
            count=int(stated[1]),
            uid=uid,
            apart=apart,
        )


def stated_window(dataset: pydicom.Dataset) -> list[str]:
    """Return width and centre as the viewer writes them."""
    return [str(round(float(dataset.WindowWidth))), str(round(float(dataset.WindowCenter)))]


def named_by(key_objects: pydicom.Dataset) -> list[str]:
    """Return the images of a Key Object Selection in its order, each once."""
    images = [item for item in key_objects.ContentSequence if item.ValueType == "IMAGE"]
    uids = [str(image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for image in images]
    return list(dict.fromkeys(uids))


def count_of(state: pydicom.Dataset) -> int:
    """Return how many images a presentation state is about."""
    return sum(len(series.ReferencedImageSequence) for series in state.ReferencedSeriesSequence)


def said_of(state: pydicom.Dataset, uid: str) -> str:
    """Return the label of one image."""
    (label,) = [
        str(item.TextObjectSequence[0].UnformattedTextValue)
        for item in state.GraphicAnnotationSequence
        if item.ReferencedImageSequence[0].ReferencedSOPInstanceUID == uid
    ]
    return label


def _as_listed(series: dict) -> tuple[str, str, str]:
    tags = series["MainDicomTags"]
    modality = {"OT": "PMAP"}.get(tags["Modality"], tags["Modality"])
    return modality, tags["SeriesDescription"], str(len(series["Instances"]))


def _number(path: Path) -> int:
    return int(pydicom.dcmread(path, stop_before_pixels=True).InstanceNumber)
