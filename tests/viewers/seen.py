"""Which image a viewer shows: its screenshot against renderings of every image it could be."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from scipy import ndimage

SIZE = (160, 160)  # that heads are compared at: no viewer shows them at the size of another
INSIDE = 40  # grey levels: brighter than a background with noise
BRIGHT = 200  # of letters, white on black


def rendered(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    """Return the head of each image, by its SOP Instance UID, as its own window shows it.

    Source: PS3.3 C.11.2.1.2.1, linear.
    """
    shown = {}
    for path in paths:
        dataset = pydicom.dcmread(path)
        slope = float(dataset.get("RescaleSlope", 1))
        values = dataset.pixel_array * slope + float(dataset.get("RescaleIntercept", 0))
        centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
        greys = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
        picture = Image.fromarray(np.clip(greys, 0, 255).astype(np.uint8))
        shown[str(dataset.SOPInstanceUID)] = head(picture)
    return shown


def largest(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the largest connected thing in a mask."""
    labels, count = ndimage.label(mask)
    if count == 0:
        raise AssertionError("nothing of that kind is to be seen")
    rows, columns = ndimage.find_objects(labels)[np.argmax(np.bincount(labels.ravel())[1:])]
    return columns.start, rows.start, columns.stop, rows.stop


def dark(picture: Image.Image) -> np.ndarray:
    """Return where a picture is as dark as the background of an image."""
    return np.asarray(picture.convert("L")) <= INSIDE


def head(picture: Image.Image) -> np.ndarray:
    """Return the head alone, at one size for all."""
    cut = picture.convert("L").crop(largest(~dark(picture)))
    return np.asarray(cut.resize(SIZE, Image.Resampling.BOX), float)


def closest(picture: Image.Image, images: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """Return the image that `picture` shows, and the mean difference in grey levels of 256."""
    found = head(picture)
    apart = {uid: float(np.abs(found - image).mean()) for uid, image in images.items()}
    best = min(apart, key=apart.__getitem__)
    return best, apart[best]


def letters(picture: Image.Image) -> int:
    """Return how many bright pixels lie below the head: a label that was drawn there."""
    below = largest(~dark(picture))[3]
    return int((np.asarray(picture.convert("L"))[below:] > BRIGHT).sum())
