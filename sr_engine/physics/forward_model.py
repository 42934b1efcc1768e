"""The acquisition as a linear operator: k-space truncation, slice profile, noise.

Numpy only: training imports the same operators on a machine that has nothing else.

The measured volume is y = A x + n. A is separable: one dense matrix an axis (`axis_model`) takes
the samples of the fine grid to those of the measured one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sr_engine.errors import GeometryError
from sr_engine.physics import separable
from sr_engine.physics.axis_model import AxisModel, Profile, ProfileName
from sr_engine.physics.wiener import wiener_shrink
from sr_engine.threads import in_pieces

__all__ = [
    "AcquisitionModel",
    "AxisModel",
    "Profile",
    "ProfileName",
    "add_rician_noise",
    "choose_profiles",
    "expected_magnitude",
    "shared_field",
    "simulate",
    "wiener_shrink",
]

Array = np.ndarray
Acquisition = Literal["2D", "3D"]

SAME_SPACING = 0.02  # relative: an acquired voxel this near the spacing is the spacing
PARALLEL = 1e-3  # radians between axes that count as parallel
THICK = 1.5  # a voxel side longer than this times the shortest is taken for a slice's


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
        k, i, j = (
            _axis(
                AxisModel(
                    n_high=int(high_shape[a]),
                    n_low=int(low_shape[a]),
                    high_mm=high_mm[a],
                    low_mm=low_mm[a],
                    offset_mm=offset_mm[a],
                    profile="box",
                    thickness_mm=low_mm[a],
                ),
                profiles[a],
            )
            for a in range(3)
        )
        return cls(axes=(k, i, j))

    def forward(self, high: Array) -> Array:
        """Return A x, float32, on the measured grid."""
        return separable.apply(self._matrices("matrix"), self._checked(high, self.high_shape))

    def adjoint(self, low: Array) -> Array:
        """Return the transpose of A applied to `low`, float32, on the fine grid."""
        matrices = [None if m is None else m.T for m in self._matrices("matrix")]
        return separable.apply(matrices, self._checked(low, self.low_shape))

    def covered(self) -> Array:
        """Return which measured voxels have their centre within the fine grid, bool."""
        k, i, j = (axis.covered() for axis in self.axes)
        return k[:, None, None] & i[None, :, None] & j[None, None, :]

    def consistent(
        self,
        high: Array,
        low: Array,
        noise_sigma: float,
        weight: float = 1.0,
        mask: Array | None = None,
    ) -> Array:
        """Return `high`, moved towards the measured data as far as noise allows.

        The residual y - A x is the error that the data can show plus noise of known power. In each
        band of spatial frequency it is shrunk by the empirical Wiener gain (P - w sigma^2) / P, P
        being its mean power, and what remains goes back through the inverse of A. A band with
        nothing but noise in it is left alone, so noise is not copied back.

        Parameters
        ----------
        noise_sigma
            Standard deviation of the noise of `low`, a channel; 0 imposes the data.
        weight
            Above 1 the model is trusted more, below 1 the data; 0 imposes the data.
        mask : bool, shape of `low`
            Where the data count, e.g. the head; default everywhere. Air
            would dilute the power of the error.
        """
        counts = self.covered() if mask is None else self.covered() & mask
        residual = self.residual(high, low, noise_sigma if weight > 0 else 0.0) * counts
        power = weight * noise_sigma**2 * float(counts.mean()) / self._band_share()
        shrunk = wiener_shrink(residual, power)
        moved = self.back(shrunk)
        moved += high
        return moved

    def back(self, low: Array) -> Array:
        """Return the inverse of A applied to `low`, float32, on the fine grid."""
        return separable.apply(self._matrices("inverse"), self._checked(low, self.low_shape))

    def residual(self, high: Array, low: Array, noise_sigma: float) -> Array:
        """Return y minus the magnitude expected of A x in noise, float32, on the measured grid."""
        low = self._checked(low, self.low_shape)
        return low - expected_magnitude(self.forward(high), low, noise_sigma)

    def _band_share(self) -> float:
        """Return the share of the measured grid's spectrum that the scanner sampled.

        Zero filling squeezes the noise into fewer components, each of which carries more of it.
        """
        return math.prod(
            min(1.0, axis.low_mm / axis.thickness_mm)
            for axis in self.axes
            if axis.profile == "kspace"
        )

    def _matrices(self, kind: Literal["matrix", "inverse"]) -> list[Array | None]:
        return [None if a.profile == "identity" else getattr(a, kind)() for a in self.axes]

    @staticmethod
    def _checked(array: Array, shape: tuple[int, ...]) -> Array:
        if array.shape != shape:
            raise GeometryError(f"the acquisition model takes {shape} voxels, not {array.shape}")
        return np.asarray(array, np.float32)


def expected_magnitude(signal: Array, measured: Array, sigma: float) -> Array:
    """Return the mean that a magnitude image has where the true signal is `signal`, float32.

    Noise never averages out in dark places: its magnitude is 1.25 sigma where there is no signal.
    Voxels that were measured as exactly 0 were blanked by the scanner and hold no noise.

    Source: Gudbjartsson and Patz 1995; interpolated between the limits, within 0.06 sigma.
    """
    signal = np.asarray(signal, np.float32)
    if sigma <= 0:
        return signal
    expected = np.empty_like(signal)

    def expect(piece: slice) -> None:
        amplitude = np.maximum(signal[piece], 0)
        darkness = np.exp(-0.5 * (amplitude / np.float32(sigma)) ** 2)
        floor = np.float32(sigma**2) * (1 + np.float32(math.pi / 2 - 1) * darkness)
        blank = measured[piece] == 0
        expected[piece] = np.where(blank, signal[piece], np.sqrt(amplitude**2 + floor))

    in_pieces(expect, len(signal))
    return expected


def _along_axes(
    high_affine: Array, low_affine: Array
) -> tuple[list[float], list[float], list[float]]:
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


def _axis(axis: AxisModel, profile: Profile) -> AxisModel:
    """Return `axis` with its profile; the identity where the grids coincide and nothing blurs."""
    width_mm, low_mm = profile.width_mm, axis.low_mm
    # No wave finer than two measured voxels is in the data, however small the acquired voxel.
    sampled = profile.name == "kspace" and width_mm < low_mm
    if sampled or profile.name == "identity" or abs(width_mm - low_mm) <= SAME_SPACING * low_mm:
        width_mm = low_mm
    if profile.name == "identity" or (axis.coincides() and width_mm <= low_mm):
        return replace(axis, profile="identity")
    return replace(axis, profile=profile.name, thickness_mm=width_mm)


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
    model = AcquisitionModel.from_grids(
        high.shape,
        affine,
        shape,
        low_affine,
        profiles=[
            Profile(name=p, width_mm=float(w)) for p, w in zip(profiles, widths, strict=True)
        ],
    )
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
