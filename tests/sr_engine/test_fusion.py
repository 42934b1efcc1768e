"""The fused volume is the mean over the axes; the spread is their standard deviation."""

import numpy as np
import pytest

from sr_engine.errors import GeometryError
from sr_engine.fusion import axis_weights, fuse


def test_mean_and_spread_are_numpys():
    stacks = np.random.default_rng(0).random((3, 5, 6, 7)).astype(np.float32)

    fused = fuse(list(stacks))

    assert np.allclose(fused.mean, stacks.mean(axis=0), atol=1e-6)
    assert np.allclose(fused.spread, stacks.std(axis=0), atol=1e-6)


def test_a_weighted_mean_and_its_spread():
    stacks = [np.full((2, 3, 4), value, np.float32) for value in (1.0, 5.0)]

    fused = fuse(stacks, [3.0, 1.0])

    assert np.allclose(fused.mean, 2.0)
    assert np.allclose(fused.spread, np.sqrt(0.75 * 1 + 0.25 * 9))


def test_an_isotropic_scan_gets_the_plain_mean_and_the_slices_of_a_thick_one_count_less():
    assert axis_weights((2.0, 2.0, 2.0), (0, 1, 2)) == [1.0, 1.0, 1.0]
    assert axis_weights((4.0, 1.0, 1.0), (0, 1, 2)) == [1 / 4, 1.0, 1.0]
    assert axis_weights((4.0, 1.0, 1.0), (1,)) == [1.0]


def test_one_stack_has_no_spread():
    stack = np.random.default_rng(0).random((4, 4, 4)).astype(np.float32)

    fused = fuse([stack])

    assert np.array_equal(fused.mean, stack)
    assert not fused.spread.any()


@pytest.mark.parametrize("stacks", [[], [np.zeros((2, 2, 2)), np.zeros((2, 2, 3))]])
def test_stacks_on_different_grids_are_refused(stacks):
    with pytest.raises(GeometryError):
        fuse(stacks)
