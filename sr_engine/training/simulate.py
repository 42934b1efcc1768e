"""Pairs for training: first everything random is drawn, then the draw is applied.

The same axis operators (physics/forward_model) serve the data-consistency step at run time, and the
same estimate of the noise is what the network is told.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_engine.physics.bspline import interpolation_matrix
from sr_engine.physics.forward_model import AxisModel, ProfileName
from sr_engine.physics.intensity import estimate_noise_sigma
from sr_engine.training.lesions import plant

ISOTROPIC = (1.05, 3.3)  # low over high voxel size of a 3-D scan: up to 2.3 mm at a target of 0.7
DROPPED = 0.3  # share of draws in which b or g is unknown to the network
LESION_SHARE = 0.6  # of the draws: without them a network takes every small contrast for noise
ZOOMED = 0.5  # share of the draws whose reference is a coarser one: new anatomy in voxels, for free
RECOLOURED = 0.15  # share with another contrast than T1w
MONOMIALS = 20  # of three coordinates up to degree 3
KNOTS = 5  # of the curve that recolours
FILTERED, ZERO_FILLED, PATCHY, GHOSTED = 0.15, 0.2, 0.3, 0.1  # shares of what scanners do


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One simulated acquisition.

    Attributes
    ----------
    ratio : 3 floats       low over high voxel size
    profile : 3 strings    of AxisModel
    snr                    mean of the head over the noise sigma of one channel; 0 is noiseless
    thickness              slice thickness over slice distance, of the thick axis
    zoom : 3 floats        voxel size of the reference over that of the volume it is made of
    colours : (KNOTS,)     intensities that equal steps of intensity become; empty: as they are
    filter                 share of k-space, from its rim, that the scanner tapers; 0: none
    zero_fill              acquired over reconstructed voxel size where k-space is sampled
    patchy : (20,)         like `bias`, of the log noise; empty: the noise is the same everywhere
    ghost                  brightness of a copy, shifted along `ghost_axis` by `ghost_shift`
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
    thickness: float = 1.0
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0)
    colours: np.ndarray = field(default_factory=lambda: np.zeros(0))
    filter: float = 0.0
    zero_fill: float = 1.0
    patchy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ghost: float = 0.0
    ghost_axis: int = 0
    ghost_shift: float = 0.5  # of the field of view


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A simulated pair on the grid of the high-resolution volume, ready to be cut into slices.

    Attributes
    ----------
    high, low : (K, J, I), float32    target, and the interpolated input; normalised alike
    mask : (K, J, I), bool            head
    planted : (K, J, I), uint8        weight of the planted lesions' samples, 0 elsewhere
    noise                             sigma of one channel in normalised units, as estimated
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
    ratio = np.ones(3)
    profile: list[ProfileName] = ["identity"] * 3
    kind, thickness = rng.random(), 1.0
    if kind < 0.5:  # 3-D: truncated k-space on all axes
        factor = rng.choice([2.0, rng.uniform(*ISOTROPIC)], p=[0.25, 0.75])
        jitter = rng.uniform(0.9, 1.1, 3) if rng.random() < 0.5 else np.ones(3)
        ratio = np.maximum(1.05, factor * jitter)
        if rng.random() < 0.2:  # one axis finer or coarser than the others
            ratio[rng.integers(3)] = rng.uniform(*ISOTROPIC)
        profile = ["kspace"] * 3
    else:  # 2-D: one thick axis, the plane as it is or coarser
        thick = rng.integers(3)
        in_plane = 1.0 if rng.random() < 0.5 else rng.uniform(1.05, 2.0)
        for axis in range(3):
            if axis == thick:
                ratio[axis] = rng.choice([4.0, rng.uniform(1.8, 8.0)])
                profile[axis] = "gaussian" if rng.random() < 1 / 3 else "box"
            elif in_plane > 1:
                ratio[axis], profile[axis] = in_plane, "kspace"
        thickness = rng.uniform(0.7, 1.0) if rng.random() < 0.3 else 1.0
    zoom = np.ones(3)
    if rng.random() < ZOOMED:
        zoom = np.maximum(1.0, rng.uniform(1.0, 1.4) * rng.uniform(0.93, 1.07, 3))
    return Draw(
        ratio=triple(ratio),
        profile=(profile[0], profile[1], profile[2]),
        snr=0.0 if rng.random() < 0.25 else float(np.exp(rng.uniform(np.log(12), np.log(60)))),
        gamma=float(np.exp(rng.uniform(-0.25, 0.25))),
        flips=triple(rng.random(3) < 0.5),
        bias=rng.normal(0, 0.12, MONOMIALS) * smooth_decay() * (rng.random() < 0.7),
        bias_known=bool(rng.random() >= DROPPED),
        warp=rng.normal(0, 0.15, (3, MONOMIALS)) * smooth_decay(),
        warp_known=bool(rng.random() >= DROPPED),
        lesions=int(rng.integers(1000, 4000)) if rng.random() < LESION_SHARE else 0,
        seed=int(rng.integers(2**31)),
        thickness=float(thickness),
        zoom=triple(zoom),
        colours=rng.uniform(0.05, 1.0, KNOTS) if rng.random() < RECOLOURED else np.zeros(0),
        filter=float(rng.uniform(0.2, 0.8)) if rng.random() < FILTERED else 0.0,
        zero_fill=float(rng.uniform(1.3, 2.0)) if rng.random() < ZERO_FILLED else 1.0,
        patchy=rng.normal(0, 0.3, MONOMIALS) * smooth_decay()
        if rng.random() < PATCHY
        else np.zeros(0),
        ghost=float(rng.uniform(0.005, 0.04)) if rng.random() < GHOSTED else 0.0,
        ghost_axis=int(rng.integers(3)),
        ghost_shift=float(rng.choice([0.5, rng.uniform(0.1, 0.9)])),
    )


def triple(values: np.ndarray) -> tuple[Any, Any, Any]:
    """Return three numbers of numpy as Python's own."""
    a, b, c = values.tolist()
    return a, b, c


def smooth_decay() -> np.ndarray:
    """Return weights (20,) that make a random field over `monomials` smooth, its mean zero."""
    powers = [i + j + k for i in range(4) for j in range(4) for k in range(4) if i + j + k <= 3]
    return np.array([0 if power == 0 else 1.0 / power for power in powers])


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
    n: int, ratio: float, profile: ProfileName, d: Draw
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray] | None:
    """Return what an axis of `n` samples goes through; None: left alone.

    The three matrices are the acquisition, the scanner's reconstruction of what it acquired (None
    where it does nothing), and the product's interpolation back. Noise enters before the second.
    """
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
        thickness_mm=low_mm * (1.0 if profile == "kspace" else d.thickness),
    )
    n_made, made = n_low, None
    if profile == "kspace" and (d.filter or d.zero_fill > 1):
        n_made = max(n_low, min(n, round(n_low * d.zero_fill)))
        made = reconstruction(n_low, n_made, d.filter)
    positions = (np.arange(n) + 0.5) * n_made / n - 0.5
    return model.matrix(), made, interpolation_matrix(n_made, positions)


def reconstruction(n: int, made: int, tapered: float) -> np.ndarray:
    """Return what a scanner makes of `n` samples: (made, n), a Tukey filter and zero filling.

    Parameters
    ----------
    tapered
        Share of k-space, from its rim, that the filter lets fall to zero; 0: no filter.
    """
    waves = np.fft.fftfreq(n) * n
    place = np.abs(waves) / (n / 2)  # 1 at the rim
    kept = np.clip((1 - place) / tapered, 0, 1) if tapered else np.ones(n)
    weight = 0.5 - 0.5 * np.cos(np.pi * kept)
    at = (np.arange(made) + 0.5) * n / made - 0.5  # the same field of view
    phase = 2j * np.pi / n * waves
    return np.real(
        np.exp(np.outer(at, phase)) * weight @ np.exp(np.outer(-phase, np.arange(n))) / n
    )


def recoloured(high: Tensor, colours: np.ndarray) -> Tensor:
    """Return the volume with another contrast: air stays dark, tissue goes where the knots say."""
    knots = np.linspace(0, 1, KNOTS + 1)
    values = np.concatenate([[0.0], colours])
    fine = np.linspace(0, 1.2, 241)
    curve = np.interp(fine, knots, values)  # beyond the brightest tissue it goes on level
    kernel = np.hanning(33) / np.hanning(33).sum()
    curve = np.convolve(np.pad(curve, 16, mode="edge"), kernel, "valid") * np.minimum(
        fine / 0.05, 1
    )
    return torch.from_numpy(np.interp(high.numpy(), fine, curve).astype(np.float32))


def zoomed(
    high: Tensor, mask: Tensor, zoom: tuple[float, ...], smallest: int
) -> tuple[Tensor, Tensor]:
    """Return the volume and its mask as a scan with coarser voxels would be a reference.

    No side becomes shorter than `smallest` voxels by it.
    """
    for axis, factor in enumerate(zoom):
        n = high.shape[axis]
        fewer = max(round(n / factor), min(n, smallest))
        if fewer == n:
            continue
        model = AxisModel(
            n_high=n,
            n_low=fewer,
            high_mm=1.0,
            low_mm=n / fewer,
            offset_mm=(n / fewer - 1) / 2,
            profile="kspace",
            thickness_mm=n / fewer,
        )
        high = along(model.matrix(), high, axis)
        mask = mask.index_select(axis, nearest(fewer, n))
    return high.clamp(min=0), mask


def nearest(count: int, n: int) -> Tensor:
    """Return which of `n` samples is nearest to each of `count` over the same field of view."""
    return torch.as_tensor(((np.arange(count) + 0.5) * n / count).astype(int).clip(0, n - 1))


def measured(low: Tensor, sigma: float, d: Draw) -> Tensor:
    """Return the signal as the scanner receives it: a ghost, and complex noise."""
    if d.ghost:
        low = low + d.ghost * low.roll(round(d.ghost_shift * low.shape[d.ghost_axis]), d.ghost_axis)
    if not sigma:
        return low.to(torch.complex64)
    generator = torch.Generator().manual_seed(d.seed)
    noise = torch.complex(
        torch.randn(low.shape, generator=generator), torch.randn(low.shape, generator=generator)
    )
    if len(d.patchy):
        noise *= bias_log(grid_coordinates(tuple(low.shape)), d.patchy).exp()
    return low + sigma * noise


def estimated_noise(low: Tensor, mask: Tensor, d: Draw) -> float:
    """Return the noise that the product would find in the image `low`; `mask` is a finer one."""
    for axis, n in enumerate(low.shape):
        mask = mask.index_select(axis, nearest(n, mask.shape[axis]))
    oversampling = [d.zero_fill if p == "kspace" else 1.0 for p in d.profile]
    return estimate_noise_sigma(low.numpy(), mask.numpy(), oversampling=oversampling).sigma


def simulate(high: Tensor, mask: Tensor, d: Draw, smallest: int = 0) -> Scene:
    """Return the scene that acquisition `d` makes of a volume.

    Parameters
    ----------
    high : (K, J, I), float32    normalised: 99.9th percentile in the head is 1
    mask : (K, J, I), bool
    smallest
        Voxels along a side below which no coarser reference goes.
    """
    axes = [axis for axis, flip in enumerate(d.flips) if flip]
    high, mask = zoomed(high.flip(axes), mask.flip(axes), d.zoom, smallest)
    high = high.clamp(min=0) ** d.gamma
    if len(d.colours):
        high = recoloured(high, d.colours)
    if d.bias.any():
        high = high * bias_log(grid_coordinates(tuple(high.shape)), d.bias).exp()
    target, planted = high, torch.zeros_like(mask, dtype=torch.uint8)
    if d.lesions:
        voxel = float(np.prod(d.ratio)) ** (1 / 3)
        count = int(mask.sum()) // d.lesions
        high, target, planted = plant(high, mask, count, d.seed, voxel)
    operators = [
        axis_operators(n, r, p, d) for n, r, p in zip(high.shape, d.ratio, d.profile, strict=True)
    ]
    low = high
    for axis, parts in enumerate(operators):
        if parts is not None:
            low = along(parts[0], low, axis)
    received = measured(low, float(high[mask].mean()) / d.snr if d.snr else 0.0, d)
    real, imaginary = received.real, received.imag
    for axis, parts in enumerate(operators):
        if parts is not None and parts[1] is not None:
            real, imaginary = along(parts[1], real, axis), along(parts[1], imaginary, axis)
    low = torch.hypot(real, imaginary)
    noise = estimated_noise(low, mask, d)
    for axis, parts in enumerate(operators):
        if parts is not None:
            low = along(parts[2], low, axis)
    scale = float(torch.quantile(low[mask][::7].float(), 0.999))
    target, low = target / scale, low / scale
    error = float((target - low)[mask].square().mean())
    return Scene(
        high=target,
        low=low,
        mask=mask,
        planted=planted,
        noise=noise / scale,
        error=error,
        draw=d,
    )
