"""Small structures that the data show are not shown weaker than they were measured.

A network that minimises the squared error takes part of every small contrast for noise. What it
loses of a lesion of 2 mm is about one sigma of the noise, too little to be found in the residual
y - A x. So the places are found in y itself: where it rises above, or falls below, its neighbours
along all three axes by more than noise does. There, what was measured beyond the result goes back
in, under the blur of such a structure, which holds most of the noise back. Some comes with it, so
only as much of this is done as leaves the residual looking like noise.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from sr_engine.physics.forward_model import AcquisitionModel
from sr_engine.physics.lines import gaussian_filter

STRUCTURE_MM = 2.0  # FWHM of the blur under which structures are looked for, and given back
RESIDUAL_FLOOR = 0.71  # of the noise: a smaller residual means that noise was copied
SOFT = 1.0  # sigmas of significance between nothing and all of the residual
LEAST, MOST = 1.0, 8.0  # sigmas of significance asked for
HALVINGS = 6  # to 0.1
ROUNDS = 6  # of giving back: a structure is narrower than the blur shows it
FWHM = 2.355
CURVATURE = np.array([1.0, -2.0, 1.0])
NEIGHBOURS = ndimage.generate_binary_structure(3, 1)


def keep_small_structures(
    model: AcquisitionModel,
    volume: np.ndarray,
    measured: np.ndarray,
    sigma: float,
    mask: np.ndarray,
) -> np.ndarray:
    """Return `volume` with small structures at least as strong as they were measured, float32.

    Only what is weaker in the result than in the data is changed, and only where the structure's
    significance exceeds the least threshold, of LEAST or more, at which the residual in the head
    stays at RESIDUAL_FLOOR of the noise. A result whose residual is smaller already stays as it is.

    Parameters
    ----------
    volume : fine grid (k, i, j), not negative
    measured, mask : measured grid
    sigma
        Noise of one channel of `measured`, hidden noise included (`noise_reduction`); 0: nothing is
        done, since the data are imposed then.
    """
    counts = model.covered() & mask
    if sigma <= 0 or not counts.any():
        return volume
    residual = model.residual(volume, measured, sigma) * counts
    floor = (RESIDUAL_FLOOR * sigma) ** 2 * int(counts.sum())
    if float(np.square(residual, dtype=np.float64).sum()) <= floor:
        return volume
    spacing_mm = [axis.low_mm for axis in model.axes]
    blur = [STRUCTURE_MM / FWHM / mm for mm in spacing_mm]
    (head,) = ndimage.find_objects(counts.astype(np.int8))
    residual, counts = residual[head], counts[head]
    stands_out = [x[head] for x in significance(measured, sigma, spacing_mm)]

    def left(threshold: float) -> np.ndarray:
        """Return the residual after the step."""
        rest = residual
        for _ in range(ROUNDS):
            smooth = gaussian_filter(rest, blur) * counts
            significant = np.where(smooth > 0, *stands_out)
            rest = rest - smooth * np.clip((significant - threshold) / SOFT, 0, 1)
        return rest

    given_back = np.zeros(mask.shape, np.float32)
    given_back[head] = residual - _least_left(left, residual, floor)
    moved = model.back(given_back)
    moved += volume
    return np.maximum(moved, 0, out=moved)


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
