"""The data pull the result towards them, until the residual is down to a share of the noise."""

import numpy as np
import pytest

from sr_engine.physics.data_consistency import FLOOR, hold_to_data
from sr_engine.physics.forward_model import add_rician_noise
from tests.sr_engine.physics.models import twice_as_coarse

SIGMA = 0.02
LOW = (16, 16, 16)
MASK = np.ones(LOW, bool)


@pytest.fixture(scope="module")
def model():
    return twice_as_coarse(LOW[0])


@pytest.fixture(scope="module")
def truth():
    wave = np.cos(np.arange(32) * 2 * np.pi / 16).astype(np.float32)
    return 0.5 + 0.2 * wave[:, None, None] * wave[None, :, None] * np.ones(32, np.float32)


def residual(model, volume, data, sigma):
    return float(np.sqrt(np.mean(model.residual(volume, data, sigma) ** 2)))


def test_an_error_that_the_data_show_is_taken_back_as_far_as_the_floor(model, truth):
    data = add_rician_noise(model.forward(truth), SIGMA, seed=3)
    wrong = 0.5 * truth + 0.25
    made = hold_to_data(model, wrong, data, SIGMA, MASK)

    assert residual(model, wrong, data, SIGMA) > 2 * SIGMA
    assert FLOOR * SIGMA * 0.99 <= residual(model, made, data, SIGMA) < 1.1 * SIGMA


def test_a_result_that_is_below_the_floor_stays_as_it_is(model, truth):
    data = add_rician_noise(model.forward(truth), SIGMA, seed=3)
    copied = np.maximum(model.consistent(truth, data, SIGMA, weight=0), 0)

    assert np.array_equal(hold_to_data(model, copied, data, SIGMA, MASK), copied)


def test_the_last_step_ends_on_the_floor(model, truth):
    """Detail everywhere at once: the whole step would copy noise with it."""
    data = add_rician_noise(model.forward(truth), SIGMA, seed=3)
    detail = np.random.default_rng(4).normal(0, 0.1, truth.shape).astype(np.float32)
    made = hold_to_data(model, truth + detail, data, SIGMA, MASK)

    assert residual(model, made, data, SIGMA) == pytest.approx(FLOOR * SIGMA, rel=0.02)


def test_data_without_noise_are_imposed_and_nothing_is_negative(model, truth):
    data = model.forward(truth)
    made = hold_to_data(model, 0.5 * truth - 0.1, data, 0.0, MASK)

    assert made.min() >= 0
    assert residual(model, made, data, 0.0) < 1e-3
