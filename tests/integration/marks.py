"""A head-like phantom with a Gaussian mark near each corner, and where the marks are found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset

from sr_engine.dicom.scanner import write_acquisition
from tests import phantoms
from tests.integration.readers import Read

SHAPE = (24, 44, 40)
SPACING_MM = (2.0, 1.5, 1.75)
SIGMA_MM = 3.0  # wide enough that no sampling here can alias it
INSET_MM = 10.0
WINDOW_MM = 9.9  # the centroid is taken within this of a mark


def marked_volume(orientation: str) -> tuple[Volume, np.ndarray]:
    """Return the phantom and the LPS positions (8, 3) of its marks."""
    affine = phantoms.affine_of(orientation, SPACING_MM, SHAPE)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    far = np.array(SHAPE) - 1
    inset = INSET_MM / np.array(SPACING_MM)
    # Off the voxel centres by different fractions, so that rounding to a voxel would show.
    corners = np.array(
        [
            [inset[a] + 0.3 if not bits >> a & 1 else far[a] - inset[a] - 0.2 for a in range(3)]
            for bits in range(8)
        ]
    )
    centre = (far / 2)[:, None, None, None]
    scale = (np.array([9.0, 15.0, 13.0]) / np.array(SPACING_MM))[:, None, None, None]
    radius = np.sqrt((((index - centre) / scale) ** 2).sum(axis=0))
    array = 500.0 / (1 + np.exp(8 * (radius - 0.9)))
    spacing = np.array(SPACING_MM)[:, None, None, None]
    for corner in corners:
        distance = ((index - corner[:, None, None, None]) * spacing) ** 2
        array += 1500 * np.exp(-distance.sum(axis=0) / (2 * SIGMA_MM**2))
    positions = corners @ affine[:3, :3].T + affine[:3, 3]
    return Volume(array.astype(np.float32), affine, coordinate_system="PATIENT"), positions


def write_marked(folder: Path, volume: Volume) -> list[Path]:
    """Write the phantom as a scanner would."""
    return write_acquisition(volume, folder, tags={})


def voxel_positions(dataset: Dataset) -> np.ndarray:
    """Return the LPS position of every pixel: (rows, columns, 3)."""
    row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    spacing = np.array(dataset.PixelSpacing, float)
    j, i = np.meshgrid(np.arange(dataset.Columns), np.arange(dataset.Rows))
    origin = np.array(dataset.ImagePositionPatient, float)
    return origin + i[..., None] * column * spacing[0] + j[..., None] * row * spacing[1]


def marks_of(datasets: Sequence[Dataset], near: np.ndarray) -> np.ndarray:
    """Return the centroids (8, 3) in LPS mm of the brightness around each of `near`."""
    where = np.stack([voxel_positions(d) for d in datasets]).reshape(-1, 3)
    what = np.stack([d.pixel_array for d in datasets]).astype(float).ravel()
    return marks_among(where, what, near)


def marks_in(read: Read, near: np.ndarray) -> np.ndarray:
    """Return the same of a volume as somebody else has read it."""
    index = np.stack(np.meshgrid(*map(np.arange, read.array.shape), indexing="ij"), axis=-1)
    where = index.reshape(-1, 3) @ read.affine[:3, :3].T + read.affine[:3, 3]
    return marks_among(where, read.array.astype(float).ravel(), near)


def marks_among(where: np.ndarray, what: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the centroids (8, 3) of the values `what` (n,) at the places `where` (n, 3)."""
    found = []
    for mark in near:
        centre = mark
        around = np.abs(where - mark).max(axis=1) < 2 * WINDOW_MM
        places, values = where[around], what[around]
        for _ in range(20):  # the window follows the mark, so that its cut is symmetric
            inside = np.linalg.norm(places - centre, axis=1) < WINDOW_MM
            taper = np.exp(-((np.linalg.norm(places[inside] - centre, axis=1) / 5.0) ** 2))
            weight = np.clip(values[inside] - 20, 0, None) * taper
            centre = weight @ places[inside] / weight.sum()
        found.append(centre)
    return np.array(found)
