"""Where the head is, how bright it is, and how much noise lies on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import ndimage, special

from sr_engine.errors import UnsupportedInput
from sr_engine.physics.lines import gaussian_filter
from sr_engine.threads import in_pieces

STRIPPED_ZEROS = 0.4  # a larger share of exact zeros: the air, or the skull, was removed
THIN = 4  # an axis with fewer than a fourth of the samples of the longest has thick slices
NONZERO_AIR = 0.9  # share of the air that must be above zero to be read as noise
SAFE_DISTANCE = 3  # voxels between the head and the air that is measured
BLOCK = 6  # voxels, side of the boxes of air that are measured
ENOUGH_BLOCKS = 20
HIGH_PASS = np.array([1.0, -4.0, 6.0, -4.0, 1.0], np.float32) / np.float32(math.sqrt(70.0))
CALM_WINDOW = 2.0  # voxels, width over which detail is averaged
CALM_SHARE = 0.1  # the calmest tenth is taken for noise alone ...
CALM_BIAS = 0.83  # ... and lies this much below sigma where there is nothing but noise

# Interpolation rings beside a bright edge: a sinc takes 0.4 % of a stripped phantom below this
# level, a cubic spline 0.3 %. An offset or a signed image takes far more there.
NEGATIVE = -0.1  # of the 99.9th percentile
NEGATIVE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The division that made intensities comparable."""

    divisor: float

    def back(self, array: np.ndarray) -> np.ndarray:
        """Return `array` in the units of the scanner, float32."""
        return np.asarray(array, np.float32) * np.float32(self.divisor)


@dataclass(frozen=True, kw_only=True)
class NoiseEstimate:
    """Standard deviation of the Gaussian noise of one channel, and how it was found."""

    sigma: float
    method: Literal["rician-background", "high-pass"]


def refuse_negative(array: np.ndarray, name: str) -> None:
    """Return when `array` is a magnitude image, up to the ringing of an interpolation.

    Parameters
    ----------
    name
        What the message calls the volume: "series 1.2.3".

    Raises
    ------
    UnsupportedInput
        If more than 1 % of the voxels are further below 0 than a tenth of the brightness.
    """
    if not (array < 0).any():
        return
    bright = max(float(np.percentile(array, 99.9)), 0.0)
    share = float((array < NEGATIVE * bright).mean())
    if share > NEGATIVE_SHARE:
        raise UnsupportedInput(
            f"{name} is no magnitude image: {share:.1%} of its voxels are below "
            f"{NEGATIVE * bright:g}, the darkest is {float(array.min()):g}"
        )


def head_mask(array: np.ndarray) -> np.ndarray:
    """Return where the head is: (k, i, j), bool, one closed and filled component.

    Raises
    ------
    UnsupportedInput
        If the volume holds NaN or infinity, or is constant.
    """
    x = np.asarray(array, np.float32)
    if not np.isfinite(x).all():
        raise UnsupportedInput("the volume holds values that are not finite")
    if x.min() == x.max():
        raise UnsupportedInput(f"the volume is empty: every voxel is {x.flat[0]:g}")
    stripped = float((x == 0).mean()) > STRIPPED_ZEROS
    thin = [THIN * n < max(x.shape) for n in x.shape]  # thick slices: neighbours are far apart
    smooth = gaussian_filter(x, [0.0 if t else 1.0 for t in thin])
    values = smooth[smooth > 0.01 * smooth.max()] if stripped else smooth.ravel()
    threshold = otsu(np.clip(values, 0, np.percentile(values, 99.5))) * (0.5 if stripped else 1.0)
    return _filled(_largest(smooth > threshold), thin)


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that parts `values` into the two most different classes.

    Source: Otsu 1979, maximum of the variance between classes.
    """
    counts, edges = np.histogram(values, bins)
    centres = 0.5 * (edges[:-1] + edges[1:])
    below, total = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = total / below - (total[-1] - total) / above
    between = np.nan_to_num(below * above * apart**2)
    return float(centres[int(np.argmax(between))])


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(np.argmax(sizes))


def _filled(mask: np.ndarray, thin: Sequence[bool]) -> np.ndarray:
    """Return `mask` without gaps and holes; gaps across thin axes are anatomy."""
    cross = ndimage.generate_binary_structure(3, 1)
    for axis in (a for a in range(3) if thin[a]):
        cross[tuple(slice(None, None, 2) if a == axis else slice(None) for a in range(3))] = False
    # Padded with its own edge: closing would eat the head where it leaves the field of view.
    padded = ndimage.binary_closing(np.pad(mask, 3, mode="edge"), cross, iterations=2)
    mask = padded[3:-3, 3:-3, 3:-3] | mask
    for axis in range(3):
        _fill_slices(np.moveaxis(mask, axis, 0))
    return mask


def _fill_slices(mask: np.ndarray) -> None:
    """Fill the holes of each slice of `mask`, in place."""

    def fill(piece: slice) -> None:
        mask[piece.start] = ndimage.binary_fill_holes(mask[piece.start])

    in_pieces(fill, len(mask))


def normalise(array: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, Scale]:
    """Return `array` over its 99.9th percentile in the mask, float32, and the way back.

    Raises
    ------
    UnsupportedInput
        If the mask is empty, or nothing in it is above zero.
    """
    divisor = float(np.percentile(array[mask], 99.9)) if mask.any() else 0.0
    if not divisor > 0:
        raise UnsupportedInput(f"the head has no signal: its 99.9th percentile is {divisor:g}")
    return np.asarray(array, np.float32) / np.float32(divisor), Scale(divisor=divisor)


def estimate_noise_sigma(
    array: np.ndarray,
    mask: np.ndarray,
    *,
    oversampling: Sequence[float] = (1.0, 1.0, 1.0),
) -> NoiseEstimate:
    """Return the noise of one channel, in the units of `array`.

    From the air where there is any, else from the finest detail within the head, which
    overestimates where the anatomy itself is as fine as the voxels.

    Parameters
    ----------
    oversampling
        Acquired voxel over spacing, an axis: a zero-filled image has no noise in its finest
        detail, so it is thinned out first.
    """
    background = _background(array, mask)
    if background is not None:
        return NoiseEstimate(sigma=background, method="rician-background")
    steps = tuple(slice(None, None, max(1, round(factor))) for factor in oversampling)
    if not mask[steps].any():  # what is left of a few thick slices may miss the head
        steps = (slice(None),) * array.ndim
    return NoiseEstimate(sigma=_high_pass(array[steps], mask[steps]), method="high-pass")


def _background(array: np.ndarray, mask: np.ndarray) -> float | None:
    """Return sigma of the air, or None where the air is missing or was set to zero.

    The median over small blocks, so that ghosts in less than half of the air do not matter.
    """
    outside = ~ndimage.binary_dilation(mask, iterations=SAFE_DISTANCE)
    side = [min(BLOCK, n) for n in array.shape]
    blocks = _blocks(np.asarray(array, np.float32), side)[_blocks(outside, side).all(axis=1)]
    if len(blocks) < ENOUGH_BLOCKS or float((blocks > 0).mean()) < NONZERO_AIR:
        return None
    mean, deviation = blocks.mean(axis=1), blocks.std(axis=1, ddof=1)
    sigmas = [rician_sigma(m, d) for m, d in zip(mean, deviation, strict=True)]
    return float(np.median(sigmas))


def _blocks(array: np.ndarray, side: Sequence[int]) -> np.ndarray:
    """Return `array` cut into boxes: (boxes, voxels of a box)."""
    n = [count // s for count, s in zip(array.shape, side, strict=True)]
    cut = array[tuple(slice(c * s) for c, s in zip(n, side, strict=True))]
    boxes = cut.reshape(n[0], side[0], n[1], side[1], n[2], side[2])
    return boxes.transpose(0, 2, 4, 1, 3, 5).reshape(math.prod(n), -1)


@lru_cache(maxsize=1)
def _rician_table() -> tuple[np.ndarray, np.ndarray]:
    """Return mean over deviation, and deviation over sigma, of magnitudes of rising signal."""
    a = np.linspace(0, 30, 600)  # signal over sigma
    bessel = (1 + a**2 / 2) * special.ive(0, a**2 / 4) + a**2 / 2 * special.ive(1, a**2 / 4)
    mean = math.sqrt(math.pi / 2) * bessel
    deviation = np.sqrt(2 + a**2 - mean**2)
    return mean / deviation, deviation


def rician_sigma(mean: float, deviation: float) -> float:
    """Return the noise of one channel of a magnitude with this mean and standard deviation.

    Source: Koay and Basser 2006, as a table: air deviates by 0.66 sigma, bright tissue by sigma.
    """
    if deviation <= 0:
        return 0.0
    ratio, share = _rician_table()
    return float(deviation / np.interp(mean / deviation, ratio, share))


def _high_pass(array: np.ndarray, mask: np.ndarray) -> float:
    """Return sigma from the finest detail in the calmest tenth of the bright head."""
    x = np.asarray(array, np.float32)
    detail = x
    for axis in range(3):
        if x.shape[axis] >= len(HIGH_PASS):
            detail = ndimage.correlate1d(detail, HIGH_PASS, axis=axis)
    local = np.sqrt(gaussian_filter(detail**2, [CALM_WINDOW] * 3))
    inside = ndimage.binary_erosion(mask, iterations=2)
    inside &= gaussian_filter(x, [1.5] * 3) > 0.5 * np.median(x[mask])
    inside = inside if inside.any() else mask
    return float(np.quantile(local[inside], CALM_SHARE)) / CALM_BIAS
