"""Pairs for training: first everything random is drawn, then the draw is applied.

The same axis operators (physics/forward_model) serve the data-consistency step at run time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_engine.physics.bspline import interpolation_matrix
from sr_engine.physics.forward_model import AxisModel, ProfileName
from sr_engine.training.lesions import plant

DROPPED = 0.3  # share of draws in which b or g is unknown to the network
LESION_SHARE = 0.6  # of the draws: without them a network takes every small contrast for noise


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One simulated acquisition.

    Attributes
    ----------
    ratio : 3 floats       low over high voxel size
    profile : 3 strings    of AxisModel
    snr                    mean of the head over the noise sigma of one channel; 0 is noiseless
    bias : (20,)           coefficients of the log bias field over `monomials`
    warp : (3, 20)         likewise of the displacement in cm
    """

    ratio: tuple[float, float, float]
    profile: tuple[ProfileName, ProfileName, ProfileName]
    snr: float
    gamma: float
    flips: tuple[bool, bool, bool]
    bias: np.ndarray
    bias_known: bool
    warp: np.ndarray
    warp_known: bool
    lesions: int  # one in this many voxels of the head is the centre of one; 0: none
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A simulated pair on the grid of the high-resolution volume, ready to be cut into slices.

    Attributes
    ----------
    high, low : (K, J, I), float32    target, and the interpolated input; normalised alike
    mask : (K, J, I), bool            head
    planted : (K, J, I), bool         where a lesion was planted
    noise                             sigma of one channel in normalised units
    error                             mean squared error of `low` in the head
    """

    high: Tensor
    low: Tensor
    mask: Tensor
    planted: Tensor
    noise: float
    error: float
    draw: Draw


def monomials(coordinates: Tensor) -> Tensor:
    """Return all monomials up to degree 3, (20, ...), of `coordinates` (3, ...) in -1 .. 1."""
    z, y, x = coordinates
    one = torch.ones_like(x)
    terms = [
        a_power * b_power * c_power
        for i, a_power in enumerate((one, z, z * z, z * z * z))
        for j, b_power in enumerate((one, y, y * y, y * y * y))
        for k, c_power in enumerate((one, x, x * x, x * x * x))
        if i + j + k <= 3
    ]
    return torch.stack(terms)


def draw(rng: np.random.Generator) -> Draw:
    """Return a random acquisition: isotropic 3-D, or thick 2-D slices along any axis."""
    ratio = [1.0, 1.0, 1.0]
    profile: list[ProfileName] = ["identity"] * 3
    kind = rng.random()
    if kind < 0.5:  # 3-D: truncated k-space on all axes
        factor = 2.0 if rng.random() < 0.4 else rng.uniform(1.05, 2.6)
        jitter = rng.uniform(0.9, 1.1, 3) if rng.random() < 0.5 else np.ones(3)
        ratio = list(np.maximum(1.05, factor * jitter))
        profile = ["kspace"] * 3
    else:  # 2-D: one thick axis, the plane as it is or coarser
        thick = rng.integers(3)
        in_plane = 1.0 if rng.random() < 0.7 else rng.uniform(1.05, 1.8)
        for axis in range(3):
            if axis == thick:
                ratio[axis] = rng.choice([4.0, rng.uniform(1.8, 6.0)])
                profile[axis] = "gaussian" if rng.random() < 1 / 3 else "box"
            elif in_plane > 1:
                ratio[axis], profile[axis] = in_plane, "kspace"
    snr = 0.0 if rng.random() < 0.25 else float(np.exp(rng.uniform(np.log(12), np.log(60))))
    flips = rng.random(3) < 0.5
    decay = np.array([0 if i + j + k == 0 else 1.0 / (i + j + k) for i in range(4)
                      for j in range(4) for k in range(4) if i + j + k <= 3])  # fmt: skip
    return Draw(
        ratio=(float(ratio[0]), float(ratio[1]), float(ratio[2])),
        profile=(profile[0], profile[1], profile[2]),
        snr=snr,
        gamma=float(np.exp(rng.uniform(-0.25, 0.25))),
        flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])),
        bias=rng.normal(0, 0.12, 20) * decay * (rng.random() < 0.7),
        bias_known=bool(rng.random() >= DROPPED),
        warp=rng.normal(0, 0.15, (3, 20)) * decay,
        warp_known=bool(rng.random() >= DROPPED),
        lesions=int(rng.integers(1000, 4000)) if rng.random() < LESION_SHARE else 0,
        seed=int(rng.integers(2**31)),
    )


def grid_coordinates(shape: tuple[int, int, int]) -> Tensor:
    """Return the coordinates (3, K, J, I) of a grid, -1 .. 1 along each axis."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def bias_log(coordinates: Tensor, coefficients: np.ndarray) -> Tensor:
    """Return the log bias field (...) at `coordinates` (3, ...)."""
    weights = torch.as_tensor(coefficients, dtype=torch.float32)
    return torch.tensordot(weights, monomials(coordinates), dims=1)


def along(matrix: np.ndarray, volume: Tensor, axis: int) -> Tensor:
    """Return `volume` with `matrix` (m, n) applied along `axis`."""
    product = torch.tensordot(torch.from_numpy(matrix.astype(np.float32)), volume, ([1], [axis]))
    return product.movedim(0, axis)


def axis_operators(
    n: int, ratio: float, profile: ProfileName
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (acquisition, interpolation back) of an axis of `n` samples; None: left alone."""
    if profile == "identity":
        return None
    n_low = max(4, int(round(n / ratio)))
    high_mm, low_mm = 1.0, n / n_low  # both grids share the field of view
    model = AxisModel(
        n_high=n,
        n_low=n_low,
        high_mm=high_mm,
        low_mm=low_mm,
        offset_mm=(low_mm - high_mm) / 2,
        profile=profile,
        thickness_mm=low_mm,
    )
    positions = (np.arange(n) + 0.5) * n_low / n - 0.5
    return model.matrix(), interpolation_matrix(n_low, positions)


def simulate(high: Tensor, mask: Tensor, d: Draw) -> Scene:
    """Return the scene that acquisition `d` makes of a volume.

    Parameters
    ----------
    high : (K, J, I), float32    normalised: 99.9th percentile in the head is 1
    mask : (K, J, I), bool
    """
    axes = [axis for axis, flip in enumerate(d.flips) if flip]
    high, mask = high.flip(axes), mask.flip(axes)
    high = high.clamp(min=0) ** d.gamma
    if d.bias.any():
        high = high * bias_log(grid_coordinates(tuple(high.shape)), d.bias).exp()
    planted = torch.zeros_like(mask)
    if d.lesions:
        high, planted = plant(high, mask, int(mask.sum()) // d.lesions, d.seed)
    operators = [
        axis_operators(n, r, p) for n, r, p in zip(high.shape, d.ratio, d.profile, strict=True)
    ]
    low = high
    for axis, pair in enumerate(operators):
        if pair is not None:
            low = along(pair[0], low, axis)
    sigma = 0.0
    if d.snr:
        generator = torch.Generator().manual_seed(d.seed)
        sigma = float(high[mask].mean()) / d.snr
        real = low + sigma * torch.randn(low.shape, generator=generator)
        low = torch.hypot(real, sigma * torch.randn(low.shape, generator=generator))
    else:
        low = low.abs()
    for axis, pair in enumerate(operators):
        if pair is not None:
            low = along(pair[1], low, axis)
    scale = float(torch.quantile(low[mask][::7].float(), 0.999))
    high, low = high / scale, low / scale
    error = float((high - low)[mask].square().mean())
    return Scene(
        high=high,
        low=low,
        mask=mask,
        planted=planted,
        noise=sigma / scale,
        error=error,
        draw=d,
    )
