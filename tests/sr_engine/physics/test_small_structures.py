"""Small contrasts that the result lost come back; noise does not, nor does what is no structure."""

import numpy as np
import pytest

from sr_engine.physics.forward_model import add_rician_noise
from sr_engine.physics.small_structures import (
    RESIDUAL_FLOOR,
    keep_small_structures,
    significance,
)
from tests.sr_engine.physics.models import twice_as_coarse

SIGMA = 0.02
LOW = (24, 24, 24)
MIDDLE = (12, 12, 12)
MASK = np.zeros(LOW, bool)
MASK[2:-2, 2:-2, 2:-2] = True


@pytest.fixture(scope="module")
def model():
    return twice_as_coarse(LOW[0])


def volume_with(contrast, width=2):
    volume = np.full((48, 48, 48), 0.5, np.float32)
    place = slice(24, 24 + width)
    volume[place, place, place] += contrast
    return volume


def measured(model, volume):
    return add_rician_noise(model.forward(volume), SIGMA, seed=7)


def at_middle(model, volume):
    return float(model.forward(volume)[MIDDLE]) - 0.5


@pytest.mark.parametrize("contrast", [0.2, -0.2])
def test_a_structure_that_the_result_lost_comes_back(model, contrast):
    truth, lost = volume_with(contrast), volume_with(0.6 * contrast)
    data = measured(model, truth)
    shown = at_middle(model, keep_small_structures(model, lost, data, SIGMA, MASK))

    before = at_middle(model, lost)
    assert abs(shown) > abs(before)
    assert shown == pytest.approx(data[MIDDLE] - 0.5, abs=0.3 * SIGMA)


def test_a_structure_that_is_stronger_than_measured_is_left_alone(model):
    truth, strong = volume_with(0.2), volume_with(0.4)
    made = keep_small_structures(model, strong, measured(model, truth), SIGMA, MASK)

    assert at_middle(model, made) == pytest.approx(at_middle(model, strong), abs=0.2 * SIGMA)


def test_noise_is_not_copied_beyond_the_floor(model):
    flat = volume_with(0)
    data = measured(model, flat)
    made = keep_small_structures(model, flat, data, SIGMA, MASK)
    residual = model.residual(made, data, SIGMA)[MASK]

    assert RESIDUAL_FLOOR - 0.02 <= np.sqrt(np.mean(residual**2)) / SIGMA < 1


def test_a_result_that_holds_the_noise_already_stays_as_it_is(model):
    data = measured(model, volume_with(0.2))
    copied = model.consistent(volume_with(0.1), data, SIGMA, weight=0)
    copied = np.maximum(copied, 0)

    assert np.array_equal(keep_small_structures(model, copied, data, SIGMA, MASK), copied)


def test_data_without_noise_and_an_empty_head_change_nothing(model):
    volume, data = volume_with(0.1), model.forward(volume_with(0.2))

    assert np.array_equal(keep_small_structures(model, volume, data, 0.0, MASK), volume)
    nowhere = np.zeros(LOW, bool)
    assert np.array_equal(keep_small_structures(model, volume, data, SIGMA, nowhere), volume)


def test_the_unit_of_significance_is_the_noise():
    noise = np.random.default_rng(3).normal(0, SIGMA, LOW).astype(np.float32)
    bright, dark = significance(noise, SIGMA, [2.0, 2.0, 2.0])

    # The least of three is above 2 in no more than a few voxels, each with its six neighbours.
    assert float((bright > 2).mean()) < 0.08 and float((bright > 4).mean()) == 0
    assert bright.max() == pytest.approx(dark.max(), rel=0.5)


@pytest.mark.parametrize("shape", ["spot", "thread", "sheet"])
def test_only_what_ends_along_all_three_axes_counts(shape):
    data = np.full(LOW, 0.5, np.float32)
    place = {"spot": MIDDLE, "thread": (slice(None), 12, 12), "sheet": (slice(None), 12)}[shape]
    data[place] += 0.2
    bright, dark = significance(data, SIGMA, [2.0, 2.0, 2.0])

    assert (bright[MIDDLE] > 3) == (shape == "spot")
    assert dark[MIDDLE] < 1
