"""Cubic B-spline interpolation along one axis as a matrix; numpy only.

An interpolation between parallel grids is three small matrices, which the pipeline, the training
simulation and the evaluation share.
"""

import numpy as np


def _mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Return `index` reflected into 0 .. n - 1 about the outer samples (scipy's mode "mirror")."""
    if n == 1:
        return np.zeros_like(index)
    period = 2 * (n - 1)
    index = np.abs(index) % period
    return np.where(index < n, index, period - index)


def _weights(t: np.ndarray) -> np.ndarray:
    """Return the four cubic B-spline weights (4, ...) at fractional position `t`."""
    return np.stack(
        [
            (1 - t) ** 3 / 6,
            (4 - 6 * t**2 + 3 * t**3) / 6,
            (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
            t**3 / 6,
        ]
    )


def _basis(n: int, positions: np.ndarray) -> np.ndarray:
    """Return the matrix (len(positions), n) of B-spline values with mirrored edges."""
    base = np.floor(positions).astype(int)
    weights = _weights(positions - base)
    matrix = np.zeros((len(positions), n))
    for tap in range(4):
        np.add.at(matrix, (np.arange(len(positions)), _mirror(base - 1 + tap, n)), weights[tap])
    return matrix


def interpolation_matrix(n: int, positions: np.ndarray) -> np.ndarray:
    """Return the matrix (len(positions), n) that interpolates `n` samples at `positions`.

    Parameters
    ----------
    n
        Number of samples, at indices 0 .. n - 1.
    positions : (m,), float64
        In units of samples; outside the samples the signal is mirrored.

    Source: Unser 1999, "Splines: a perfect fit for signal and image processing"; equal to
    ``scipy.ndimage.map_coordinates(order=3, mode="mirror")``.
    """
    positions = np.asarray(positions, float)
    if n == 1:
        return np.ones((len(positions), 1))
    collocation = _basis(n, np.arange(n, dtype=float))
    return np.linalg.solve(collocation.T, _basis(n, positions).T).T
