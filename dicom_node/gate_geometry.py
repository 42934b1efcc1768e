"""Geometry of stored instances for the release gate, independent of the engine's own.

The gate must not repeat a mistake of the writer, so nothing here is shared with it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pydicom.dataset import Dataset

PLANE = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
EDGE_TOLERANCE_MM = 0.05
ROUNDING = 0.02  # of the source's slice distance: old scanners round positions to 0.1 mm


def text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text, "" when it is absent or empty."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def values(dataset: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an attribute, [] when it is absent, empty or no number."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    try:
        return [float(part) for part in np.atleast_1d(np.asarray(value, dtype=object))]
    except ValueError:
        return []


def stored(dataset: Dataset) -> np.ndarray:
    """Return the stored values of an uncompressed 16-bit instance."""
    return np.frombuffer(dataset.PixelData, "<u2")


def directions(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row direction, column direction and normal of the mean of (n, 6) orientations."""
    row, column = planes.mean(axis=0).reshape(2, 3)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    return row, column, np.cross(row, column)


def _gather(instances: Sequence[Dataset], keyword: str) -> np.ndarray:
    """Return the values of a plane attribute, one row per slice."""
    return np.array([values(dataset, keyword) for dataset in instances])


def mean_orientation(instances: Sequence[Dataset]) -> np.ndarray:
    """Return the mean ImageOrientationPatient."""
    return _gather(instances, "ImageOrientationPatient").mean(axis=0)


def along_normal(instances: Sequence[Dataset]) -> list[Dataset]:
    """Return classic instances in the order of their positions along the normal."""
    normal = directions(_gather(instances, "ImageOrientationPatient"))[2]
    order = np.argsort(_gather(instances, "ImagePositionPatient") @ normal, kind="stable")
    return [instances[index] for index in order]


def steps(instances: Sequence[Dataset]) -> np.ndarray:
    """Return the distances of neighbouring slices along the normal, in mm."""
    normal = directions(_gather(instances, "ImageOrientationPatient"))[2]
    return np.diff(_gather(instances, "ImagePositionPatient") @ normal)


def drift_mm(instances: Sequence[Dataset]) -> float:
    """Return how far a slice lies beside the normal through the first one."""
    normal = directions(_gather(instances, "ImageOrientationPatient"))[2]
    positions = _gather(instances, "ImagePositionPatient")
    offsets = positions - positions[0]
    return float(np.abs(offsets - np.outer(offsets @ normal, normal)).max())


def _box(instances: Sequence[Dataset], axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outer voxel edges along `axes` (rows: slice, row, column), low and high, mm."""
    positions = _gather(instances, "ImagePositionPatient") @ axes.T
    spacing = _gather(instances, "PixelSpacing").mean(axis=0)
    along = np.sort(positions[:, 0])
    distance = (along[-1] - along[0]) / max(len(along) - 1, 1)
    size = np.array([1, int(instances[0].Rows), int(instances[0].Columns)])
    voxel = np.array([distance, *spacing])
    first = positions.mean(axis=0)
    low = np.array([along[0], first[1], first[2]]) - voxel / 2
    high = np.array([along[-1], first[1], first[2]]) - voxel / 2 + size * voxel
    return low, high


def field_of_view_faults(derived: Sequence[Dataset], source: Sequence[Dataset]) -> Iterator[str]:
    """Yield where the derived box leaves out a part of the source's, or exceeds it by a voxel."""
    row, column, normal = directions(_gather(source, "ImageOrientationPatient"))
    axes = np.stack([normal, column, row])
    source_low, source_high = _box(source, axes)
    low, high = _box(derived, axes)
    count = np.array([len(derived), int(derived[0].Rows), int(derived[0].Columns)])
    voxel = (high - low) / count
    slices = len(_gather(source, "ImagePositionPatient"))
    tolerance = max(EDGE_TOLERANCE_MM, ROUNDING * (source_high - source_low)[0] / slices)
    for axis, name in enumerate(("slice", "row", "column")):
        for uncovered in (low[axis] - source_low[axis], source_high[axis] - high[axis]):
            if uncovered > tolerance:
                yield f"{uncovered:.2f} mm of the source are not covered along the {name} axis"
            elif -uncovered > voxel[axis] + tolerance:
                yield f"the {name} axis reaches {-uncovered:.2f} mm beyond the source"
