"""From slice headers to one uniform stack: order, spacing, affine.

Index axes are (k, i, j) = (slice, row, column); coordinates are LPS millimetres, the affine maps
voxel *centres*. k runs along +normal, the cross product of the row and the column direction of
ImageOrientationPatient; the axes (k, i, j) are therefore always left-handed ((j, i, k) are
right-handed), which is what a stack of DICOM planes in normal order is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from sr_engine.dicom.fitness import differing_key
from sr_engine.dicom.headers import number, numbers, required, sop_uid, text
from sr_engine.errors import GeometryError, HeaderError, UnsupportedInput

MIN_SLICES = 4
# Reconstructors round each slice's orientation on their own; two real orientations differ by
# far more than this (1 for perpendicular ones).
ORIENTATION_JITTER = 3e-4
# Old scanners round positions to 0.1 mm (GE, 2001: steps of 6.96 and 7.07 mm): this fraction of
# the slice distance is rounding, whatever the tolerance.
ROUNDING = 0.02
SAME_POSITION_MM = 1e-3
# No bore and no coil makes a field of view beyond these: the spacing is in another unit.
FIELD_OF_VIEW_MM = (20.0, 1000.0)
# The attributes without which a slice has no place, with their number of values.
PLANE = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A uniform stack of slices."""

    order: tuple[int, ...]  # header indices, along +normal
    affine: np.ndarray  # (4, 4), (k, i, j) -> LPS mm
    spacing_mm: tuple[float, float, float]  # k, i, j


def stack_of(headers: Sequence[Dataset], *, tolerance_mm: float) -> Stack:
    """Return how `headers`, one per slice in any order, form a stack.

    Raises
    ------
    HeaderError
        If an attribute of the image plane is missing or impossible.
    GeometryError
        If the planes are not parallel, congruent and evenly spaced within `tolerance_mm`.
    UnsupportedInput
        If the slices are several volumes, or their field of view cannot be true.
    """
    pixel_spacing = [required(header, "PixelSpacing", 2) for header in headers]
    positions = np.array([required(header, "ImagePositionPatient", 3) for header in headers])
    row, column = _directions(headers)
    _refuse_unequal_planes(headers, pixel_spacing)
    _refuse_impossible_size(headers[0], pixel_spacing[0])
    normal = np.cross(row, column)
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    _refuse_shared_positions(headers, distances, order)
    if len(headers) < MIN_SLICES:
        raise GeometryError(f"too few slices: {len(headers)}, at least {MIN_SLICES} are needed")
    spacing = _uniform_spacing(headers, distances, order, tolerance_mm)
    ranks = np.arange(len(order))
    offsets = positions[order] - spacing * ranks[:, None] * normal
    origin = offsets.mean(axis=0)
    # Orientations carry five or six digits only: a long stack drifts by rounding alone.
    limit_mm = max(tolerance_mm, ROUNDING * spacing, 0.05)
    _refuse_drift(offsets - origin, [headers[index] for index in order], limit_mm)
    spacing_i, spacing_j = np.mean(pixel_spacing, axis=0)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * spacing, column * spacing_i, row * spacing_j], axis=1)
    affine[:3, 3] = origin
    return Stack(
        order=tuple(int(index) for index in order),
        affine=affine,
        spacing_mm=(float(spacing), float(spacing_i), float(spacing_j)),
    )


def _directions(headers: Sequence[Dataset]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean row and column direction, orthonormal."""
    orientations = np.array([required(h, "ImageOrientationPatient", 6) for h in headers])
    rows, columns = orientations[:, :3], orientations[:, 3:]
    lengths = np.linalg.norm(orientations.reshape(-1, 2, 3), axis=2)
    skew = np.abs(np.sum(rows * columns, axis=1))
    for header, length, cosine in zip(headers, lengths, skew, strict=True):
        if np.any(np.abs(length - 1) > 0.01) or cosine > 0.01:
            raise HeaderError(
                f"ImageOrientationPatient of {sop_uid(header)} is no pair of perpendicular "
                "unit vectors"
            )
    mean = np.median(orientations, axis=0)
    away = np.abs(orientations - mean).max(axis=1)
    if away.max() > ORIENTATION_JITTER:
        odd = headers[int(away.argmax())]
        raise GeometryError(
            f"the slices have more than one orientation: ImageOrientationPatient of "
            f"{sop_uid(odd)} differs by {away.max():.4f}"
        )
    mean = orientations.mean(axis=0)
    row = mean[:3] / np.linalg.norm(mean[:3])
    column = mean[3:] - row * (row @ mean[3:])
    return row, column / np.linalg.norm(column)


def _refuse_unequal_planes(headers: Sequence[Dataset], spacing: list[list[float]]) -> None:
    """Refuse slices of different size, pixel spacing or frame of reference."""
    if min(spacing[0]) <= 0:
        raise HeaderError(f"PixelSpacing of {sop_uid(headers[0])} is not positive: {spacing[0]}")
    first = headers[0]
    for header, values in zip(headers, spacing, strict=True):
        if not np.allclose(values, spacing[0], rtol=1e-4):
            raise GeometryError(
                f"the slices have more than one PixelSpacing: {spacing[0]} and {values} "
                f"({sop_uid(header)})"
            )
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise GeometryError(
                f"the slices have more than one size: {first.Rows} x {first.Columns} and "
                f"{header.Rows} x {header.Columns} ({sop_uid(header)})"
            )
        if text(header, "FrameOfReferenceUID") != text(first, "FrameOfReferenceUID"):
            raise GeometryError(
                f"the slices have more than one FrameOfReferenceUID ({sop_uid(header)})"
            )


def _refuse_impossible_size(header: Dataset, spacing_mm: Sequence[float]) -> None:
    """Refuse a plane that fits no scanner, before a grid of that size is asked for."""
    extents_mm = [header.Rows * spacing_mm[0], header.Columns * spacing_mm[1]]
    least_mm, most_mm = FIELD_OF_VIEW_MM
    if min(extents_mm) < least_mm or max(extents_mm) > most_mm:
        raise UnsupportedInput(
            f"the field of view of {sop_uid(header)} is {extents_mm[0]:g} x {extents_mm[1]:g} mm "
            f"(PixelSpacing {spacing_mm}), which is not between {least_mm:g} and {most_mm:g} mm"
        )


def _refuse_shared_positions(
    headers: Sequence[Dataset], distances: np.ndarray, order: np.ndarray
) -> None:
    """Refuse two slices at one position: several volumes, or a slice stored twice."""
    steps = np.diff(distances[order])
    if len(headers) < 2 or steps.min() > SAME_POSITION_MM:
        return
    groups = np.concatenate([[0], np.cumsum(steps > SAME_POSITION_MM)])
    counts = Counter(groups.tolist())
    fullest = max(counts, key=lambda group: counts[group])
    sharing = [headers[index] for index, g in zip(order, groups, strict=True) if g == fullest]
    keyword = differing_key(sharing)
    if keyword:
        raise UnsupportedInput(
            f"the series holds several volumes: {len(sharing)} slices at one position differ in "
            f"{keyword} ({sop_uid(sharing[0])} and others)"
        )
    if len(counts) > 1 and set(counts.values()) == {len(sharing)}:
        raise UnsupportedInput(
            f"the series holds {len(sharing)} volumes: every position occurs {len(sharing)} times"
        )
    raise GeometryError(
        f"two slices have the same position: {sop_uid(sharing[0])} and {sop_uid(sharing[1])}"
    )


def _uniform_spacing(
    headers: Sequence[Dataset], distances: np.ndarray, order: np.ndarray, tolerance_mm: float
) -> float:
    """Return the distance of neighbouring slice centres."""
    along = distances[order]
    steps = np.diff(along)
    usual = float(np.median(steps))
    widest = int(steps.argmax())
    if steps[widest] > 1.5 * usual:
        missing = round(steps[widest] / usual) - 1
        between = [sop_uid(headers[order[widest + n]]) for n in (0, 1)]
        raise GeometryError(
            f"gap in the stack: {missing} slice(s) missing at {along[widest] + usual:.2f} mm "
            f"along the normal, between {between[0]} and {between[1]}"
        )
    ranks = np.arange(len(along))
    spacing, start = np.polyfit(ranks, along, 1)
    away = np.abs(along - start - spacing * ranks)
    if away.max() > max(tolerance_mm, ROUNDING * spacing):
        odd = headers[order[int(away.argmax())]]
        raise GeometryError(
            f"the slices are not evenly spaced: steps from {steps.min():.4f} to "
            f"{steps.max():.4f} mm; {sop_uid(odd)} is {away.max():.4f} mm off its place"
        )
    return round(float(spacing), 9)  # picometres: 1.5 stays 1.5


def _refuse_drift(offsets: np.ndarray, headers: Sequence[Dataset], limit_mm: float) -> None:
    """Refuse a sheared stack: slices that move sideways (offsets: from the straight stack)."""
    away = np.linalg.norm(offsets, axis=1)
    if away.max() > limit_mm:
        odd = headers[int(away.argmax())]
        raise GeometryError(
            f"the stack is sheared: {sop_uid(odd)} lies {away.max():.3f} mm beside the normal"
        )


def acquired_voxel_mm(header: Dataset, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Return the acquired resolution (slice, row, column axis), finer after zero-filling.

    In the plane it is the field of view over the AcquisitionMatrix where that is credible (two of
    its four values are zero, and the result is 1 to 4 times the pixel spacing), otherwise the
    pixel spacing. Across it is SliceThickness, for 3-D slices that overlap their distance.
    """
    spacing_k, spacing_i, spacing_j = spacing_mm
    return (
        _acquired_slice_mm(header, spacing_k),
        *_acquired_plane_mm(header, spacing_i, spacing_j),
    )


def _acquired_slice_mm(header: Dataset, spacing_mm: float) -> float:
    thickness = number(header, "SliceThickness")
    if not thickness or thickness < 0:
        return spacing_mm
    if text(header, "MRAcquisitionType") == "3D":
        return min(thickness, spacing_mm)
    return thickness


def _acquired_plane_mm(header: Dataset, spacing_i: float, spacing_j: float) -> tuple[float, float]:
    matrix = numbers(header, "AcquisitionMatrix")
    if len(matrix) != 4 or sum(value > 0 for value in matrix) != 2:
        return spacing_i, spacing_j
    frequency, phase = max(matrix[:2]), max(matrix[2:])
    if not frequency or not phase:
        return spacing_i, spacing_j
    direction = text(header, "InPlanePhaseEncodingDirection")
    phase_along_rows = direction == "ROW" if direction else matrix[2] > 0
    extent_i, extent_j = header.Rows * spacing_i, header.Columns * spacing_j
    frequency_mm, shown_mm = (extent_i, extent_j) if phase_along_rows else (extent_j, extent_i)
    # The scanner may pad a narrow phase field of view to a square image: the fraction is of the
    # frequency field of view, whatever the size of the image is. Unstated, it is what is shown.
    percent = number(header, "PercentPhaseFieldOfView")
    phase_mm = frequency_mm * percent / 100.0 if percent else shown_mm
    along_frequency, along_phase = frequency_mm / frequency, phase_mm / phase
    along = (along_frequency, along_phase) if phase_along_rows else (along_phase, along_frequency)
    return _credible(along[0], spacing_i), _credible(along[1], spacing_j)


def _credible(acquired_mm: float, spacing_mm: float) -> float:
    """Return the acquired size where it can be true: no finer and not much coarser."""
    return acquired_mm if 1.02 < acquired_mm / spacing_mm <= 4.0 else spacing_mm
