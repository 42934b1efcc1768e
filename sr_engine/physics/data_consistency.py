"""The result agrees with what was measured, as far as noise allows and no further.

What may be taken back from the residual before it is smaller than noise is little. A part of it is
left to `small_structures`, which comes later: a lesion needs it more than the rest of the head.
"""

import math

import numpy as np

from sr_engine.physics.forward_model import AcquisitionModel

PASSES = 4
FLOOR = 0.8  # of the noise: no smaller does this step make the residual


def hold_to_data(
    model: AcquisitionModel,
    volume: np.ndarray,
    measured: np.ndarray,
    sigma: float,
    mask: np.ndarray,
    *,
    weight: float = 1.0,
) -> np.ndarray:
    """Return `volume` moved towards the data, never below zero, float32.

    A magnitude is not negative, and what is cut off at zero must be made up for: the step is
    repeated after the cut (projection onto convex sets). It ends where the residual in the head is
    FLOOR of the noise, or less where `weight` trusts the data more. Only the head counts: outside
    it the magnitude has turned negative ringing positive, which no signal explains.

    Parameters
    ----------
    volume : fine grid (k, i, j)
    measured, mask : measured grid
    sigma
        Noise of one channel of `measured`; 0 imposes the data.
    weight
        See `AcquisitionModel.consistent`.
    """
    volume = np.maximum(volume, 0)
    counts = model.covered() & mask
    floor = min(weight, 1.0) * (FLOOR * sigma) ** 2 * int(counts.sum())
    residual = model.residual(volume, measured, sigma) * counts
    for _ in range(PASSES):
        if _power(residual) <= floor:
            break
        moved = model.consistent(volume, measured, sigma, weight=weight, mask=mask)
        moved = np.maximum(moved, 0, out=moved)
        rest = model.residual(moved, measured, sigma) * counts
        if _power(rest) < floor:  # the last step is as long as the floor lets it be
            moved -= volume
            moved *= np.float32(_share(residual, rest, floor))
            moved += volume
            return np.maximum(moved, 0, out=moved)
        volume, residual = moved, rest
    return volume


def _power(residual: np.ndarray) -> float:
    return float(np.square(residual, dtype=np.float64).sum())


def _share(before: np.ndarray, after: np.ndarray, floor: float) -> float:
    """Return how far from `before` to `after` the square sum is `floor`, which lies between."""
    step = after - before
    a, b, c = _power(step), float(np.vdot(before, step)), _power(before) - floor
    return (-b - math.sqrt(max(b * b - a * c, 0.0))) / a
