"""Small structures that the data show are not shown weaker than they were measured.

A network that minimises the squared error takes part of every small contrast for noise. What it
loses of a lesion of 2 mm is about one sigma of the noise, too little to be found in the residual
y - A x alone. A network that was trained for it (`model/structures`) says what of the residual is
structure. Where the weights hold none, the places are found in y itself: where it rises above, or
falls below, its neighbours along all three axes by more than noise does; there, what was measured
beyond the result goes back in, under the blur of such a structure, which holds most of the noise
back. Some comes with it, so only as much of this is done as leaves the residual looking like noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from sr_engine.physics.data_consistency import share_down_to
from sr_engine.physics.forward_model import AcquisitionModel
from sr_engine.physics.lines import gaussian_filter

STRUCTURE_MM = 2.0  # FWHM of the blur under which structures are looked for, and given back
RESIDUAL_FLOOR = 0.71  # of the noise: a smaller residual means that noise was copied
SOFT = 1.0  # sigmas of significance between nothing and all of the residual
LEAST, MOST = 1.0, 8.0  # sigmas of significance asked for
HALVINGS = 6  # to 0.1
ROUNDS = 6  # of giving back: a structure is narrower than the blur shows it
FWHM = 2.355
TOGETHER_MM = 3.0  # FWHM over which what is drawn together keeps its sum
CURVATURE = np.array([1.0, -2.0, 1.0])
NEIGHBOURS = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is looked at for structure: the head's box on the measured grid, (k, i, j), float32.

    Attributes
    ----------
    box          where it lies on the measured grid
    residual     measured less predicted, 0 outside of the head
    measured, predicted : normalised
    counts       the head, bool
    sigma        noise of one channel of `measured`
    """

    model: AcquisitionModel
    box: tuple[slice, slice, slice]
    residual: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray
    sigma: float


class Finder(Protocol):
    """Whoever says what of a residual is structure: `model/structures.StructureNet`."""

    def find(self, seen: Seen) -> np.ndarray:
        """Return the structure that the result lacks, as `seen.residual`."""
        ...


def keep_small_structures(
    model: AcquisitionModel,
    volume: np.ndarray,
    measured: np.ndarray,
    sigma: float,
    mask: np.ndarray,
    finder: Finder | None = None,
) -> np.ndarray:
    """Return `volume` with the small structures that the data show, float32.

    The residual in the head stays at RESIDUAL_FLOOR of the noise; a result whose residual is
    smaller already stays as it is.

    Parameters
    ----------
    volume : fine grid (k, i, j), not negative
    measured, mask : measured grid
    sigma
        Noise of one channel of `measured`, hidden noise included (`noise_reduction`); 0: nothing is
        done, since the data are imposed then.
    finder
        Says what of the residual is structure; None: the rule of this file.
    """
    counts = model.covered() & mask
    if sigma <= 0 or not counts.any():
        return volume
    residual = model.residual(volume, measured, sigma) * counts
    floor = (RESIDUAL_FLOOR * sigma) ** 2 * int(counts.sum())
    if float(np.square(residual, dtype=np.float64).sum()) <= floor:
        return volume
    box = ndimage.find_objects(counts.astype(np.int8))[0]
    seen = Seen(
        model=model,
        box=box,
        residual=residual[box],
        measured=measured[box],
        predicted=model.forward(volume)[box],
        counts=counts[box],
        sigma=sigma,
    )
    given_back = np.zeros(mask.shape, np.float32)
    if finder is None:
        given_back[box] = _outstanding(seen, measured, floor)
        moved = model.back(given_back)
    else:
        given_back[box] = finder.find(seen) * seen.counts
        moved = drawn_together(model, model.back(given_back))
        moved *= _affordable(seen, model.forward(moved)[box] * seen.counts, floor)
    moved += volume
    return np.maximum(moved, 0, out=moved)


def drawn_together(model: AcquisitionModel, given: np.ndarray) -> np.ndarray:
    """Return what goes back nearer to its peaks, its sum over TOGETHER_MM kept, float32.

    The inverse of A spreads over the whole of a measured voxel what may be a structure of
    STRUCTURE_MM in it. The longer the voxel, the more: where none of its sides is longer than the
    structure nothing is moved, from twice as long on values become their squares.
    """
    longest = max(axis.acquired_mm() for axis in model.axes)
    power = float(np.clip(longest / STRUCTURE_MM - 1, 0, 1))
    if power == 0:
        return given
    blur = [TOGETHER_MM / FWHM / axis.high_mm for axis in model.axes]
    size = np.abs(given)
    peaked = size ** np.float32(1 + power)
    before, after = gaussian_filter(size, blur), gaussian_filter(peaked, blur)
    share = np.divide(before, after, out=np.zeros_like(after), where=after > 0)
    return np.sign(given) * peaked * share


def _affordable(seen: Seen, shown: np.ndarray, floor: float) -> np.float32:
    """Return the share of what is `shown` that leaves a residual with a square sum of `floor`."""
    rest = seen.residual - shown
    if float(np.square(rest, dtype=np.float64).sum()) >= floor:
        return np.float32(1)
    return np.float32(share_down_to(floor, seen.residual, rest))


def _outstanding(seen: Seen, measured: np.ndarray, floor: float) -> np.ndarray:
    """Return what of the residual lies where the data stand out of their neighbours.

    Only what is weaker in the result than in the data, and only where the significance exceeds the
    least threshold, of LEAST or more, at which the square sum of the residual stays at `floor`.
    """
    spacing_mm = [axis.low_mm for axis in seen.model.axes]
    blur = [STRUCTURE_MM / FWHM / mm for mm in spacing_mm]
    stands_out = [x[seen.box] for x in significance(measured, seen.sigma, spacing_mm)]

    def left(threshold: float) -> np.ndarray:
        """Return the residual after the step."""
        rest = seen.residual
        for _ in range(ROUNDS):
            smooth = gaussian_filter(rest, blur) * seen.counts
            significant = np.where(smooth > 0, *stands_out)
            rest = rest - smooth * np.clip((significant - threshold) / SOFT, 0, 1)
        return rest

    return seen.residual - _least_left(left, seen.residual, floor)


def significance(
    measured: np.ndarray, sigma: float, spacing_mm: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far bright, and dark, structures stand out of their neighbours, in noise sigmas.

    The least of the curvatures along the three axes, so that edges, sheets and vessels, which are
    level along one, count for nothing; a voxel's own or that of a neighbour across a face.
    """
    blur = [STRUCTURE_MM / FWHM / mm for mm in spacing_mm]
    reach = [2 * int(np.ceil(4 * one)) + 5 for one in blur]
    impulse = np.zeros(reach, np.float32)
    impulse[tuple(n // 2 for n in reach)] = 1
    smooth, kernel = (gaussian_filter(x, blur) for x in (measured, impulse))
    curvatures = []
    for axis in range(3):
        gain = float(np.linalg.norm(ndimage.correlate1d(kernel, CURVATURE, axis=axis)))
        curvatures.append(-ndimage.correlate1d(smooth, CURVATURE, axis=axis) / (gain * sigma))
    bright = np.maximum(np.minimum.reduce(curvatures), 0)
    dark = np.maximum(-np.maximum.reduce(curvatures), 0)
    return (
        ndimage.grey_dilation(bright, footprint=NEIGHBOURS),
        ndimage.grey_dilation(dark, footprint=NEIGHBOURS),
    )


def _least_left(
    left: Callable[[float], np.ndarray], residual: np.ndarray, floor: float
) -> np.ndarray:
    """Return what is `left` at about the least threshold that leaves a square sum of `floor`.

    `residual` itself, where no threshold up to MOST does.
    """

    def enough(rest: np.ndarray) -> bool:
        return float(np.square(rest, dtype=np.float64).sum()) >= floor

    kept = left(LEAST)
    if enough(kept):
        return kept
    kept, low, high = residual, LEAST, MOST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rest = left(middle)
        if enough(rest):
            kept, high = rest, middle
        else:
            low = middle
    return kept
