"""The acquisition as a linear operator: k-space truncation, slice profile, noise.

Numpy only: training imports the same operators on a machine that has nothing else.

The measured volume is y = A x + n. A is separable: one dense matrix an axis takes the samples of
the fine grid to those of the measured one. Positions are in mm along the axis, counted from the
centre of the first fine voxel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from sr_engine.errors import GeometryError

Array = np.ndarray
Acquisition = Literal["2D", "3D"]
ProfileName = Literal["kspace", "box", "gaussian", "identity"]

BANDS = 8  # frequency bands an axis in `consistent`; 8 ** 3 hold >= 100 components each in practice
COINCIDE = 1e-3  # voxels: grids nearer than this are the same grid
SAME_SPACING = 0.02  # relative: an acquired voxel this near the spacing is the spacing
PARALLEL = 1e-3  # radians between axes that count as parallel
SMALLEST_GAIN = 0.1  # singular values below this share of the largest are not inverted further
THICK = 1.5  # a voxel side longer than this times the shortest is taken for a slice's


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
        """Return the damped pseudo-inverse of A: (n_high, n_low), float64, read-only."""
        return _inverse(self)


def _kspace(axis: AxisModel) -> Array:
    """Return the truncation of k-space at half a wave an acquired voxel.

    The fine grid is one period. A wave beyond the limit is dropped, one on it counts half, and one
    within half a step of it counts in part, which makes every ratio of grids possible and equals a
    centre crop where both share one field of view, for even and odd counts.
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
    u, s, vt = np.linalg.svd(axis.matrix(), full_matrices=False)
    inverse = (vt.T * (s / np.maximum(s * s, (SMALLEST_GAIN * s[0]) ** 2))) @ u.T
    inverse.setflags(write=False)
    return inverse


def _apply(matrices: Sequence[Array | None], x: Array) -> Array:
    """Return `x` multiplied along each axis; the steps that shrink most go first."""
    order = sorted(range(3), key=lambda a: 1.0 if (m := matrices[a]) is None else m.shape[0] / m.shape[1])
    for axis in order:
        matrix = matrices[axis]
        if matrix is None:
            continue
        m = np.asarray(matrix, np.float32)
        if axis == 0:
            x = (m @ x.reshape(x.shape[0], -1)).reshape(m.shape[0], *x.shape[1:])
        elif axis == 1:
            x = m @ x
        else:
            x = x @ m.T
    return x


@dataclass(frozen=True, kw_only=True)
class AcquisitionModel:
    """A: what the scanner measures of a volume on the fine grid; axes in array order (k, i, j)."""

    axes: tuple[AxisModel, AxisModel, AxisModel]

    @property
    def high_shape(self) -> tuple[int, ...]:
        """Return the shape of the fine grid."""
        return tuple(axis.n_high for axis in self.axes)

    @property
    def low_shape(self) -> tuple[int, ...]:
        """Return the shape of the measured grid."""
        return tuple(axis.n_low for axis in self.axes)

    @classmethod
    def from_grids(
        cls,
        high_shape: Sequence[int],
        high_affine: Array,
        low_shape: Sequence[int],
        low_affine: Array,
        *,
        profiles: Sequence[Profile],
    ) -> "AcquisitionModel":
        """Return the model between two grids whose axes are parallel.

        Parameters
        ----------
        high_affine, low_affine : (4, 4)
            Voxel index to patient mm.
        profiles
            One an axis, e.g. from `choose_profiles`.

        Raises
        ------
        GeometryError
            If an axis of one grid is not parallel to, and in the sense of, the other's.
        """
        high_mm, low_mm, offset_mm = _along_axes(high_affine, low_affine)
        axes = [
            _axis(int(high_shape[a]), int(low_shape[a]), high_mm[a], low_mm[a], offset_mm[a], profiles[a])
            for a in range(3)
        ]
        return cls(axes=(axes[0], axes[1], axes[2]))

    def forward(self, high: Array) -> Array:
        """Return A x, float32, on the measured grid."""
        return _apply(self._matrices("matrix"), self._checked(high, self.high_shape))

    def adjoint(self, low: Array) -> Array:
        """Return the transpose of A applied to `low`, float32, on the fine grid."""
        matrices = [None if m is None else m.T for m in self._matrices("matrix")]
        return _apply(matrices, self._checked(low, self.low_shape))

    def covered(self) -> Array:
        """Return which measured voxels have their centre within the fine grid, bool."""
        k, i, j = (axis.covered() for axis in self.axes)
        return k[:, None, None] & i[None, :, None] & j[None, None, :]

    def consistent(
        self, high: Array, low: Array, noise_sigma: float, weight: float = 1.0
    ) -> Array:
        """Return `high`, moved towards the measured data as far as noise allows.

        The residual y - A x is the error that the data can show plus noise of known power. In each
        band of spatial frequency it is shrunk by the empirical Wiener gain (P - w sigma^2) / P, P
        being its mean power, and what remains goes back through the pseudo-inverse of A. A band
        with nothing but noise in it is left alone, so noise is not copied back.

        Parameters
        ----------
        noise_sigma
            Standard deviation of the noise of `low`, a channel; 0 imposes the data.
        weight
            Above 1 the model is trusted more, below 1 the data; 0 imposes the data.
        """
        residual = self._checked(low, self.low_shape) - self.forward(high)
        residual = np.where(self.covered(), residual, np.float32(0))
        power = weight * noise_sigma**2 / self._band_share()
        shrunk = wiener_shrink(residual, power)
        return np.asarray(high, np.float32) + _apply(self._matrices("inverse"), shrunk)

    def _band_share(self) -> float:
        """Return the share of the measured grid's spectrum that the scanner sampled.

        Zero filling squeezes the noise into fewer components, each of which carries more of it.
        """
        ratios = [
            min(1.0, axis.low_mm / axis.thickness_mm) for axis in self.axes if axis.profile == "kspace"
        ]
        return math.prod(ratios)

    def _matrices(self, kind: Literal["matrix", "inverse"]) -> list[Array | None]:
        return [
            None if axis.profile == "identity" else getattr(axis, kind)() for axis in self.axes
        ]

    @staticmethod
    def _checked(array: Array, shape: tuple[int, ...]) -> Array:
        if array.shape != shape:
            raise GeometryError(f"the acquisition model takes a volume of {shape}, not {array.shape}")
        return np.asarray(array, np.float32)


def wiener_shrink(residual: Array, noise_power: float) -> Array:
    """Return the part of `residual` that is more than white noise, float32.

    Parameters
    ----------
    noise_power
        Variance of the noise of one voxel.
    """
    if noise_power <= 0:
        return np.asarray(residual, np.float32)
    spectrum = np.fft.rfftn(np.asarray(residual, np.float32), norm="ortho")
    shape, n = spectrum.shape, residual.shape
    band = np.zeros(shape, np.int32)
    for axis in range(3):
        frequency = np.abs(np.fft.fftfreq(n[axis])[: shape[axis]])  # cycles a voxel, up to 0.5
        step = np.minimum((frequency * 2 * BANDS).astype(np.int32), BANDS - 1)
        band = band * BANDS + step.reshape([-1 if a == axis else 1 for a in range(3)])
    band = band.ravel()
    count = np.bincount(band, minlength=BANDS**3)
    total = np.bincount(band, np.abs(spectrum.ravel()) ** 2, minlength=BANDS**3)
    power = total / np.maximum(count, 1)
    gain = np.clip(1.0 - noise_power / np.maximum(power, 1e-30), 0.0, 1.0).astype(np.float32)
    spectrum *= gain[band].reshape(shape)
    return np.fft.irfftn(spectrum, s=n, norm="ortho").astype(np.float32)


def _along_axes(high_affine: Array, low_affine: Array) -> tuple[list[float], list[float], list[float]]:
    """Return voxel sizes of both grids and the offset of the first voxels along the axes, in mm."""
    high, low = np.asarray(high_affine, float), np.asarray(low_affine, float)
    high_mm = np.linalg.norm(high[:3, :3], axis=0)
    low_mm = np.linalg.norm(low[:3, :3], axis=0)
    if min(high_mm.min(), low_mm.min()) <= 0:
        raise GeometryError("a voxel has no extent along one of its axes")
    high_unit, low_unit = high[:3, :3] / high_mm, low[:3, :3] / low_mm
    for axis, apart in enumerate(np.linalg.norm(high_unit - low_unit, axis=0)):
        if apart > PARALLEL:
            raise GeometryError(
                f"axis {axis} of the two grids is not parallel: {np.round(high_unit[:, axis], 4)} "
                f"and {np.round(low_unit[:, axis], 4)}"
            )
    offset_mm = np.linalg.solve(high_unit, low[:3, 3] - high[:3, 3])
    return high_mm.tolist(), low_mm.tolist(), offset_mm.tolist()


def _axis(
    n_high: int, n_low: int, high_mm: float, low_mm: float, offset_mm: float, profile: Profile
) -> AxisModel:
    """Return the axis; it is the identity where the grids coincide and nothing blurs them."""
    width_mm = profile.width_mm
    if abs(width_mm - low_mm) <= SAME_SPACING * low_mm or (profile.name == "kspace" and width_mm < low_mm):
        width_mm = low_mm
    axis = AxisModel(
        n_high=n_high,
        n_low=n_low,
        high_mm=high_mm,
        low_mm=low_mm,
        offset_mm=offset_mm,
        profile="gaussian" if profile.name == "identity" else profile.name,
        thickness_mm=width_mm,
    )
    blurs = profile.name != "identity" and width_mm > low_mm
    if axis.coincides() and not blurs:
        return AxisModel(**{**vars(axis), "profile": "identity"})
    if profile.name == "identity":
        raise GeometryError("an axis can be 'identity' only where both grids are the same")
    return axis


def choose_profiles(
    acquisition: Acquisition | None,
    spacing_mm: Sequence[float],
    acquired_voxel_mm: Sequence[float],
) -> tuple[Profile, Profile, Profile]:
    """Return how each axis (slice, row, column) was sampled.

    3D: k-space along all axes. 2D: k-space in the plane, a slice with sharp faces across it.
    None (a NIfTI file does not say): a side much longer than the shortest is taken for a slice's.
    """
    shortest = min(spacing_mm)
    thick = {
        "3D": [False, False, False],
        "2D": [True, False, False],
        None: [side > THICK * shortest for side in spacing_mm],
    }[acquisition]
    k, i, j = (
        Profile(name="box" if is_slice else "kspace", width_mm=float(width))
        for is_slice, width in zip(thick, acquired_voxel_mm, strict=True)
    )
    return k, i, j


def shared_field(
    shape: Sequence[int], affine: Array, low_mm: Sequence[float]
) -> tuple[tuple[int, int, int], Array]:
    """Return shape and affine of the coarse grid whose outer voxel faces are those of the fine one.

    The voxel count is rounded, so that the voxels are those of `low_mm` to half a voxel a field.
    """
    high_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    n = [max(1, round(c * h / w)) for c, h, w in zip(shape, high_mm, low_mm, strict=True)]
    ratio = np.array([c / m for c, m in zip(shape, n, strict=True)])
    low = np.array(affine, float)
    low[:3, :3] = low[:3, :3] * ratio
    low[:3, 3] += np.asarray(affine, float)[:3, :3] @ (0.5 * ratio - 0.5)
    return (n[0], n[1], n[2]), low


def add_rician_noise(low: Array, sigma: float, seed: int) -> Array:
    """Return the magnitude of `low` plus complex Gaussian noise of `sigma` a channel, float32."""
    rng = np.random.default_rng(seed)
    real = low + rng.standard_normal(low.shape, dtype=np.float32) * np.float32(sigma)
    imaginary = rng.standard_normal(low.shape, dtype=np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary).astype(np.float32)


def simulate(
    high: Array,
    spacing_mm: Sequence[float],
    low_mm: Sequence[float],
    *,
    profiles: Sequence[ProfileName] = ("kspace", "kspace", "kspace"),
    snr: float = 0.0,
    seed: int = 0,
    mask: Array | None = None,
) -> Array:
    """Return what a scanner would have measured of `high`, float32, on the grid of `shared_field`.

    Parameters
    ----------
    snr
        Mean of the result in the mask over the noise of one channel; 0: no noise.
    mask
        Head on the grid of `high`; without it, what is brighter than the mean.
    """
    affine = np.diag([*map(float, spacing_mm), 1.0])
    shape, low_affine = shared_field(high.shape, affine, low_mm)
    widths = np.diag(low_affine)[:3]
    chosen = [Profile(name=name, width_mm=float(w)) for name, w in zip(profiles, widths, strict=True)]
    model = AcquisitionModel.from_grids(high.shape, affine, shape, low_affine, profiles=chosen)
    low = np.abs(model.forward(high))
    if snr <= 0:
        return low
    return add_rician_noise(low, _mean_signal(low, mask) / snr, seed)


def _mean_signal(low: Array, mask: Array | None) -> float:
    """Return the mean of `low` where the fine mask holds its voxel centres."""
    inside = low > low.mean()
    if mask is not None:
        steps = [m / n for m, n in zip(mask.shape, low.shape, strict=True)]
        nearest = [
            np.minimum((np.arange(n) * f + 0.5 * f).astype(int), m - 1)
            for n, f, m in zip(low.shape, steps, mask.shape, strict=True)
        ]
        inside = np.asarray(mask, bool)[np.ix_(*nearest)]
    if not inside.any():
        raise GeometryError("the mask holds no voxel of the coarse grid")
    return float(low[inside].mean())
