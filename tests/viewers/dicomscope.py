"""Key objects and presentation states in DICOMscope (Debian), which knows both."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from tests.integration.partners import find_program, wait_for
from tests.viewers import seen
from tests.viewers.screen import Screen

JAR, LIBRARY = "/usr/share/java/DICOMscope.jar", "/usr/lib/x86_64-linux-gnu/jni"
# Without the sections for communication it opens no port and starts no server.
CONFIG = """[[GENERAL]]
[MONITOR]
Resolution = 1152\\864
Screensize = 400\\300
PreviewSize = 256\\256
[DATABASE]
Directory = {folder}
[LUT]
Directory = /usr/share/dicomscope/lut
[REPORT]
Directory = /usr/share/dicomscope/reports
[GUI]
HighResolutionGraphics = false
AutoUpdateStudyBrowser = true
PSPanelOn = true
WarnUnsignedObjectsInSR = true
"""
SELECTED = (184, 207, 229)  # the row of the tree that is chosen
LINK = (0, 0, 255)
BROWSER_TAB, TREE = (36, 41), (900, 700)
FIRST_STATE, SECOND_STATE = 3, 4  # rows of the tree below its root, when what is above is open
KEY_OBJECTS = 5
OF_THE_WINDOW = 0.1
SAME = 8.0  # grey levels of 256, of an enlarged image: about 2 to 4; a window a quarter wider: 16
SHORTEST_LINK, SHORTEST_LABEL = 20, 100  # pixels


class DicomScope:
    """The viewer with a database of its own, on a screen of its own."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        folder.mkdir(parents=True)
        index = find_program("dcmqridx") or "dcmqridx"
        subprocess.run([index, folder, *paths], check=True, capture_output=True, timeout=120)
        config = folder / "viewer.cfg"
        config.write_text(CONFIG.format(folder=folder))
        self.screen = Screen()
        with (folder / "viewer.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["java", f"-Djava.library.path={LIBRARY}", "-jar", JAR, config],
                env=self.screen.environment, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for("DICOMscope draws its window", lambda: np.any(self.screen.picture()), 120)
        self.screen.settled()

    def open(self, row: int) -> Image.Image:
        """Open what stands in a row of the tree and return what is to be seen."""
        self.screen.click(BROWSER_TAB)
        self.screen.click(TREE)
        shown = self.screen.type("Home", *["Down"] * row)
        left, top, right, bottom = seen.largest(np.all(np.asarray(shown) == SELECTED, axis=2))
        self.screen.click(((left + right) // 2, (top + bottom) // 2), double=True)
        wait_for("DICOMscope opens it", self._left_the_list, 60)
        return self.screen.settled()

    def _left_the_list(self) -> bool:
        return bool(seen.dark(self.screen.picture()).mean() > OF_THE_WINDOW)  # the panel

    def unfold(self, row: int) -> None:
        """Show what lies below a row of the tree."""
        self.screen.click(BROWSER_TAB)
        self.screen.click(TREE)
        self.screen.type("Home", *["Down"] * row, "Right")

    def close(self) -> None:
        """End the viewer and its screen."""
        self.process.terminate()
        self.process.wait(20)
        self.screen.close()


def panel(picture: Image.Image) -> Image.Image:
    """Return the part of the window where images are: the largest dark thing."""
    return picture.crop(seen.largest(seen.dark(picture)))


def links(picture: Image.Image) -> list[tuple[int, int]]:
    """Return a place on each link of a document, in reading order; two where a line breaks it."""
    blue = np.all(np.asarray(picture) == LINK, axis=2)
    found = []
    for y, row in enumerate(blue):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            if right - left >= SHORTEST_LINK:  # its underline; letters are narrower
                found.append((int(left + right) // 2, y - 4))
    return found


def check(files: dict[str, list[Path]], folder: Path, out: Path) -> dict[str, str]:
    """Open both states and the key objects; return what was seen, or fail.

    Parameters
    ----------
    files
        What the archive gives back, by kind: "source", "classic", "key_objects", "presentation".
    """
    of_derived, of_original = sorted(
        files["presentation"], key=lambda path: pydicom.dcmread(path).InstanceNumber
    )
    order = [of_derived, of_original, *files["key_objects"], *files["classic"], *files["source"]]
    images = seen.rendered([*files["classic"], *files["source"]])
    viewer = DicomScope(folder, order)
    try:
        viewer.unfold(1)
        viewer.unfold(2)
        told = {}
        for row, state in ((SECOND_STATE, of_original), (FIRST_STATE, of_derived)):
            shown = viewer.open(row)
            shown.save(out / "dicomscope-state.png")
            first = pydicom.dcmread(state).ReferencedSeriesSequence[0].ReferencedImageSequence[0]
            told[f"state {row - 2}"] = _same(panel(shown), images, first)
            drawn = seen.letters(panel(shown))
            assert drawn >= SHORTEST_LABEL, f"no label under the presentation state: {drawn}"
        viewer.unfold(KEY_OBJECTS)
        document = viewer.open(KEY_OBJECTS + 1)
        told |= _follow(viewer.screen, document, files["key_objects"][0], images)
        viewer.screen.picture().save(out / "dicomscope-key-objects.png")
    finally:
        viewer.close()
    return told


def _follow(
    screen: Screen, document: Image.Image, path: Path, images: dict[str, np.ndarray]
) -> dict[str, str]:
    """Return what the first pair of links leads to: an original and the derived one beside it."""
    content = pydicom.dcmread(path).ContentSequence
    named = [one.ReferencedSOPSequence[0] for one in content if "ReferencedSOPSequence" in one]
    places = links(document)
    assert len(places) >= len(named), f"{len(places)} links of {len(named)}"
    told = {"links": f"{len(named)}, in {len(places)} pieces"}
    for place, one in zip(places[:2], named[:2], strict=True):
        shown = panel(screen.click(place))
        told[f"link at {place}"] = _same(shown, images, one)
        drawn = seen.letters(shown)
        assert drawn == 0, f"a label without a presentation state: {drawn}"
    return told


def _same(shown: Image.Image, images: dict[str, np.ndarray], reference: pydicom.Dataset) -> str:
    uid, apart = seen.closest(shown, images)
    assert uid == str(reference.ReferencedSOPInstanceUID), f"another image is shown ({apart:.1f})"
    assert apart < SAME, f"the image looks otherwise: {apart:.1f} grey levels"
    return f"the image it names, of {len(images)}, to {apart:.1f} grey levels of 256"
