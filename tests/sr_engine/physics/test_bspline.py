"""The spline matrix is scipy's cubic spline."""

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.physics.bspline import interpolation_matrix


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_the_matrix_equals_the_cubic_spline_of_scipy(n):
    samples = np.random.default_rng(n).normal(size=n)
    positions = np.linspace(-0.4, n - 0.6, 3 * n + 1)

    ours = interpolation_matrix(n, positions) @ samples
    theirs = ndimage.map_coordinates(samples, positions[None], order=3, mode="mirror")

    assert np.allclose(ours, theirs, atol=1e-10)


def test_a_constant_stays_constant():
    assert np.allclose(interpolation_matrix(9, np.linspace(-0.5, 8.5, 31)).sum(axis=1), 1)
