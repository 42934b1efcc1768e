"""One axis of the acquisition: the matrix from fine samples to measured ones.

Numpy only, like `forward_model`. Positions are in mm along the axis, counted from the centre of
the first fine voxel.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from sr_engine.errors import GeometryError

Array = np.ndarray
ProfileName = Literal["kspace", "box", "gaussian", "identity"]

COINCIDE = 1e-3  # voxels: grids nearer than this are the same grid
SMOOTHNESS = (
    0.3  # measured voxels over which what is put back is smooth (0.3 to 0.6 measured alike)
)
SMALLEST_GAIN = 0.01  # share of the largest power gain below which nothing is amplified further


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How one axis was sampled; `width_mm` is the acquired voxel, or the thickness of a slice."""

    name: ProfileName
    width_mm: float


@dataclass(frozen=True, kw_only=True)
class AxisModel:
    """One axis of the acquisition.

    Parameters
    ----------
    offset_mm
        Centre of the first measured voxel minus centre of the first fine one.
    thickness_mm
        ``kspace``: acquired voxel (the finest wave is twice as long); ``box``: slice thickness;
        ``gaussian``: full width at half maximum of the slice profile.

    Raises
    ------
    GeometryError
        If a size is not positive, or the profile is ``identity`` and the grids differ.
    """

    n_high: int
    n_low: int
    high_mm: float
    low_mm: float
    offset_mm: float
    profile: ProfileName
    thickness_mm: float

    def __post_init__(self) -> None:
        if min(self.n_high, self.n_low) < 1 or min(self.high_mm, self.low_mm) <= 0:
            raise GeometryError(
                f"an axis of {self.n_high} voxels of {self.high_mm} mm cannot be measured as "
                f"{self.n_low} voxels of {self.low_mm} mm"
            )
        if self.profile not in MATRICES:
            raise GeometryError(f"unknown acquisition profile {self.profile!r}")
        if self.profile != "identity" and self.thickness_mm <= 0:
            raise GeometryError(f"the slice thickness must be positive, not {self.thickness_mm} mm")
        if self.profile == "identity" and not self.coincides():
            raise GeometryError("an axis can be 'identity' only where both grids are the same")

    def coincides(self) -> bool:
        """Return whether the fine grid and the measured one are the same along this axis."""
        drift_mm = abs(self.high_mm - self.low_mm) * self.n_high + abs(self.offset_mm)
        return self.n_high == self.n_low and drift_mm < COINCIDE * self.high_mm

    def distance_mm(self) -> Array:
        """Return where each fine centre lies, seen from each measured one: (n_low, n_high)."""
        low = self.offset_mm + self.low_mm * np.arange(self.n_low)
        return self.high_mm * np.arange(self.n_high)[None, :] - low[:, None]

    def covered(self) -> Array:
        """Return which measured voxels have their centre within the fine grid: (n_low,), bool."""
        low = self.offset_mm + self.low_mm * np.arange(self.n_low)
        half = 0.5 * self.high_mm + COINCIDE * self.low_mm
        return (low >= -half) & (low <= self.high_mm * (self.n_high - 1) + half)

    def matrix(self) -> Array:
        """Return A: (n_low, n_high), float64, read-only; rows sum to 1, or to 0 off the grid."""
        return _matrix(self)

    def inverse(self) -> Array:
        """Return the damped inverse of A: (n_high, n_low), float64, read-only.

        Of all volumes that A maps onto the data it gives the most likely one if neighbouring fine
        voxels are alike over a third of a measured one; a plain pseudo-inverse leaves steps at the
        faces of thick slices.
        """
        return _inverse(self)


def _kspace(axis: AxisModel) -> Array:
    """Return the truncation of k-space at half a wave an acquired voxel.

    The fine grid is one period, as for the scanner: real series show it at the rim of the field of
    view, and mirroring there explains them worse. A wave beyond the limit is dropped, one on it
    counts half, and one within half a step of it counts in part, which makes every ratio of grids
    possible and equals a centre crop where both share one field of view, for even and odd counts.
    """
    field_mm = axis.n_high * axis.high_mm
    finest_mm = max(axis.thickness_mm, axis.low_mm, axis.high_mm)
    limit = field_mm / (2 * finest_mm)  # waves in the field
    waves = np.arange(1, min(math.floor(limit + 0.5), axis.n_high // 2) + 1)
    weights = np.clip(limit + 0.5 - waves, 0.0, 1.0)
    weights[2 * waves == axis.n_high] = 0.5  # the finest wave of the grid has no mirror image
    turns = 2 * np.pi / field_mm
    high = turns * axis.high_mm * np.arange(axis.n_high)
    low = turns * (axis.offset_mm + axis.low_mm * np.arange(axis.n_low))
    cosines = (weights * np.cos(np.outer(low, waves))) @ np.cos(np.outer(waves, high))
    sines = (weights * np.sin(np.outer(low, waves))) @ np.sin(np.outer(waves, high))
    return (1.0 + 2.0 * (cosines + sines)) / axis.n_high


def _box(axis: AxisModel) -> Array:
    """Return the mean over a slice with sharp faces; a fine voxel counts by what lies inside."""
    distance = axis.distance_mm()
    half_slice, half_voxel = 0.5 * axis.thickness_mm, 0.5 * axis.high_mm
    upper = np.minimum(distance + half_voxel, half_slice)
    lower = np.maximum(distance - half_voxel, -half_slice)
    return np.clip(upper - lower, 0.0, None)


def _gaussian(axis: AxisModel) -> Array:
    """Return the mean over a Gaussian slice profile, integrated over each fine voxel."""
    sigma = axis.thickness_mm / math.sqrt(8 * math.log(2))
    edges = np.arange(axis.n_high + 1) * axis.high_mm - 0.5 * axis.high_mm
    low = axis.offset_mm + axis.low_mm * np.arange(axis.n_low)
    erf = np.vectorize(math.erf, otypes=[float])
    return np.diff(erf((edges[None, :] - low[:, None]) / (sigma * math.sqrt(2))), axis=1)


def _identity(axis: AxisModel) -> Array:
    return np.eye(axis.n_low, axis.n_high)


MATRICES = {"kspace": _kspace, "box": _box, "gaussian": _gaussian, "identity": _identity}


@lru_cache(maxsize=16)
def _matrix(axis: AxisModel) -> Array:
    weights = MATRICES[axis.profile](axis)
    weights = np.where(axis.covered()[:, None], weights, 0.0)
    total = weights.sum(axis=1, keepdims=True)  # a slice at the rim is cut: renormalised
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 1e-9)
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=16)
def _inverse(axis: AxisModel) -> Array:
    if axis.profile == "identity":
        return axis.matrix()
    index = np.arange(axis.n_high)
    apart_mm = axis.high_mm * (index[:, None] - index[None, :])
    smooth = np.exp(-0.5 * (apart_mm / (SMOOTHNESS * axis.low_mm)) ** 2)
    spread = smooth @ axis.matrix().T  # (n_high, n_low)
    gain, basis = np.linalg.eigh(axis.matrix() @ spread)
    damped = gain / np.maximum(gain**2, (SMALLEST_GAIN * gain[-1]) ** 2)
    inverse = spread @ (basis * damped) @ basis.T
    inverse.setflags(write=False)
    return inverse
