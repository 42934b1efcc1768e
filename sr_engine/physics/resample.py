"""The one interpolation of a series: cubic B-spline, onto a grid that loses nothing measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from scipy import ndimage

from sr_engine.errors import GeometryError, UnsupportedInput
from sr_engine.physics import separable
from sr_engine.physics.bspline import interpolation_matrix

PARALLEL = 1e-6  # voxels: off-diagonal terms below this times the grid's size are rounding
SAME = 1e-4  # relative: a spacing this near the target is kept, so that the grids coincide
MOST_VOXELS = 2**31  # 1290 cubed: a head takes 370 cubed at 0.7 mm; 8 GiB in float32
SLAB_POINTS = 4_000_000  # points interpolated at once between oblique grids: 100 MB of coordinates


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Voxel count along each axis (k, i, j) and voxel index to patient mm (LPS)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the voxel sizes (k, i, j)."""
        k, i, j = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return k, i, j


def grid_like(affine: np.ndarray, shape: Sequence[int]) -> Grid:
    """Return the grid of another image.

    Raises
    ------
    GeometryError
        If an axis has no voxel or the affine is singular or not finite.
    """
    affine = np.array(affine, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError("the affine of the grid must be 4 x 4 finite numbers")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError("the affine of the grid is singular: its voxels have no volume")
    if len(shape) != 3 or min(shape) < 1:
        raise GeometryError(f"a grid needs three axes with voxels, not {tuple(shape)}")
    k, i, j = (int(n) for n in shape)
    return Grid(shape=(k, i, j), affine=affine)


def target_grid(volume: Volume, *, spacing_mm: float, acquired_voxel_mm: Sequence[float]) -> Grid:
    """Return the grid of the result: same orientation and field of view, finer where it helps.

    Along each axis the voxel is the smaller of the target and the acquired one, so nothing that
    was measured is lost. The outer face of the first voxel stays where it was; the last voxel
    may reach over the field of view by less than its own size.

    Raises
    ------
    UnsupportedInput
        If the grid would have more than 2**31 voxels, which no head needs and no memory holds.
    """
    source = grid_like(volume.affine, volume.spatial_shape)
    step = [
        _out_mm(spacing_mm, acquired, spacing)
        for acquired, spacing in zip(acquired_voxel_mm, source.spacing_mm, strict=True)
    ]
    ratio = np.array(step) / np.array(source.spacing_mm)
    n = [math.ceil(c / r - 1e-6) for c, r in zip(source.shape, ratio, strict=True)]
    if math.prod(n) > MOST_VOXELS:
        raise UnsupportedInput(
            f"voxels of {' x '.join(f'{mm:g}' for mm in source.spacing_mm)} mm ask for a result of "
            f"{' x '.join(map(str, n))} voxels, more than {MOST_VOXELS}"
        )
    affine = source.affine.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] += source.affine[:3, :3] @ (0.5 * ratio - 0.5)
    return grid_like(affine, n)


def _out_mm(target_mm: float, acquired_mm: float, spacing_mm: float) -> float:
    out_mm = min(target_mm, max(acquired_mm, spacing_mm))
    return spacing_mm if abs(out_mm - spacing_mm) <= SAME * spacing_mm else out_mm


def interpolate(volume: Volume, grid: Grid, order: int = 3) -> Volume:
    """Return `volume` on `grid`, float32: B-spline of `order`, mirrored at its edges.

    Voxels further than their own size outside the field of view are 0: nothing was measured there.
    """
    to_source = np.linalg.inv(volume.affine) @ grid.affine  # index of grid -> index of volume
    array = np.asarray(volume.array, np.float32)
    size = max(*grid.shape, *array.shape)
    linear = to_source[:3, :3]
    off_axis = np.abs(linear - np.diag(np.diag(linear))).max() * size
    if order == 3 and off_axis < max(PARALLEL * size, 1e-4):
        out = _along_axes(array, grid.shape, to_source)
    else:
        out = _oblique(array, grid.shape, to_source, order)
    return Volume(
        out,
        grid.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=volume.frame_of_reference_uid,
    )


def _along_axes(array: np.ndarray, shape: Sequence[int], to_source: np.ndarray) -> np.ndarray:
    """Return the interpolation as one matrix an axis."""
    matrices: list[np.ndarray | None] = []
    for axis in range(3):
        n, step = array.shape[axis], float(to_source[axis, axis])
        positions = float(to_source[axis, 3]) + step * np.arange(shape[axis])
        same = n == shape[axis] and np.abs(positions - np.arange(n)).max() < 1e-6
        matrix = interpolation_matrix(n, positions)
        matrix[~_inside(positions, n, abs(step))] = 0
        matrices.append(None if same else matrix)
    return np.ascontiguousarray(separable.apply(matrices, array))


def _inside(positions: np.ndarray, n: int, reach: float) -> np.ndarray:
    """Return which positions (in voxels) lie in the field of view, or just outside."""
    return (positions >= -0.5 - reach) & (positions <= n - 0.5 + reach)


def _oblique(
    array: np.ndarray, shape: Sequence[int], to_source: np.ndarray, order: int
) -> np.ndarray:
    """Return the interpolation between grids that are not parallel, slab by slab."""
    smooth = array
    if order > 1:
        smooth = ndimage.spline_filter(array, order, output=np.float32, mode="mirror")
    out = np.empty(tuple(shape), np.float32)
    reach = np.linalg.norm(to_source[:3, :3], axis=1)
    slab = max(1, SLAB_POINTS // (shape[1] * shape[2]))
    for start in range(0, shape[0], slab):
        stop = min(start + slab, shape[0])
        index = np.mgrid[start:stop, : shape[1], : shape[2]].reshape(3, -1)
        position = to_source[:3, :3] @ index + to_source[:3, 3:]
        values = ndimage.map_coordinates(
            smooth, position, output=np.float32, order=order, mode="mirror", prefilter=False
        )
        for axis in range(3):
            values[~_inside(position[axis], array.shape[axis], reach[axis])] = 0
        out[start:stop] = values.reshape(stop - start, *shape[1:])
    return out
