"""Smooth noise in calm tissue becomes less, edges stay, and what is explained is left alone."""

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.physics.noise_reduction import reduce_noise

SHAPE = (40, 40, 40)
SPACING_MM = 0.7
MASK = np.zeros(SHAPE, bool)
MASK[2:-2, 2:-2, 2:-2] = True
CALM = (slice(8, 32), slice(8, 32), slice(4, 14))
STEP = 20  # of the last axis: dark before it, bright from it on


def head(noise: float) -> np.ndarray:
    volume = np.full(SHAPE, 0.4, np.float32)
    volume[:, :, STEP:] = 0.8
    smooth = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal(SHAPE), 0.8)
    return (volume + noise * smooth / smooth.std()).astype(np.float32)


def test_noise_that_sigma_does_not_explain_becomes_less_and_an_edge_stays():
    volume = head(0.02)
    made, hidden = reduce_noise(volume, MASK, SPACING_MM, sigma=0.002)

    assert made[CALM].std() < 0.85 * volume[CALM].std()
    assert 0.01 < hidden < 0.02
    rise = made[:, :, STEP] - made[:, :, STEP - 1]
    assert float(np.median(rise[8:32, 8:32])) == pytest.approx(0.4, abs=0.02)


def test_texture_that_the_known_noise_explains_is_left_alone():
    volume = head(0.02)
    made, hidden = reduce_noise(volume, MASK, SPACING_MM, sigma=0.03)

    assert hidden == 0
    assert np.array_equal(made, volume)


def test_the_mean_of_tissue_stays():
    volume = head(0.02)
    made, _ = reduce_noise(volume, MASK, SPACING_MM, sigma=0.0)

    assert float(made[CALM].mean()) == pytest.approx(float(volume[CALM].mean()), abs=1e-3)


def test_a_volume_without_texture_or_without_a_head_is_returned_as_it_is():
    flat = np.full(SHAPE, 0.5, np.float32)
    for volume, mask in ((flat, MASK), (head(0.02), np.zeros(SHAPE, bool))):
        made, hidden = reduce_noise(volume, mask, SPACING_MM, sigma=0.0)
        assert np.allclose(made, volume, atol=1e-6)
        assert hidden < 1e-3
