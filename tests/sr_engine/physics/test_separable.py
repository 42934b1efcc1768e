"""The fast ways of the physics against the plain ones of numpy and scipy."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.physics import lines, separable, wiener

SHAPE = (13, 24, 19)
SIZES = (5, 40, None)  # along an axis: fewer samples, more, as many as there were


def volume(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(7).random(shape, dtype=np.float32)


@pytest.mark.parametrize("sizes", list(itertools.product(SIZES, repeat=3)))
def test_one_matrix_an_axis_is_the_plain_product(sizes):
    x = volume()
    rng = np.random.default_rng(3)
    matrices = [
        None if m is None else rng.random((m, n)) for m, n in zip(sizes, SHAPE, strict=True)
    ]

    plain = x.astype(float)
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            plain = np.moveaxis(np.tensordot(matrix, plain, (1, axis)), 0, axis)

    assert np.allclose(separable.apply(matrices, x), plain, rtol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, (16, 16, 16), (1, 24, 19)])
def test_shrinking_is_that_of_the_plain_transform(shape):
    residual = volume(shape) - 0.5
    noise_power = 0.04

    spectrum = np.fft.rfftn(residual.astype(float), norm="ortho")
    bands = [
        np.minimum(np.abs(np.fft.fftfreq(n)[:kept]) * 2 * wiener.BANDS, wiener.BANDS - 1)
        for n, kept in zip(shape, spectrum.shape, strict=True)
    ]
    number = np.ravel_multi_index(
        np.meshgrid(*[b.astype(int) for b in bands], indexing="ij"), [wiener.BANDS] * 3
    )
    for band in np.unique(number):
        power = np.mean(np.abs(spectrum[number == band]) ** 2)
        spectrum[number == band] *= max(0.0, 1 - noise_power / power)
    plain = np.fft.irfftn(spectrum, s=shape, axes=(0, 1, 2), norm="ortho")

    assert np.abs(plain).max() > 0.01
    assert np.allclose(wiener.wiener_shrink(residual, noise_power), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("fast", "plain", "argument"),
    [
        (lines.mean_filter, ndimage.uniform_filter, 3),
        (lines.largest_filter, ndimage.maximum_filter, 5),
        (lines.smallest_filter, ndimage.minimum_filter, 3),
        (lines.gaussian_filter, ndimage.gaussian_filter, [0.0, 1.5, 0.7]),
    ],
)
def test_a_filter_line_by_line_gives_the_same_bytes(fast, plain, argument):
    assert np.array_equal(fast(volume(), argument), plain(volume(), argument))
