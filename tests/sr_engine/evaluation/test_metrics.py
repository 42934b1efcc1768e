"""A perfect result scores perfectly, a worse one worse."""

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.evaluation.cases import read_case
from sr_engine.evaluation.metrics import fsc_resolution_mm, psnr_db, ssim

VOXEL = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def case(data):
    return read_case(data / "brain.nii.gz")


def test_a_perfect_result_scores_perfectly_and_a_blurred_one_does_not(case):
    x, mask = case.volume.array, case.mask
    blurred = (x + np.roll(x, 1, 0) + np.roll(x, 2, 0)) / 3
    rng = np.random.default_rng(0)
    noisy = x + rng.normal(0, 0.1, x.shape)
    lost = x + rng.normal(0, 1.0, x.shape)
    assert psnr_db(noisy, x, mask) == pytest.approx(20, abs=0.2)
    assert ssim(x, x, mask) == pytest.approx(1)
    assert ssim(blurred, x, mask) < 0.98
    assert fsc_resolution_mm(x, x, mask, VOXEL) == 2.0
    assert fsc_resolution_mm(lost, x, mask, VOXEL) > 2.0


def test_a_blur_through_the_slices_shows_in_their_cone(case):
    x, mask = case.volume.array, case.mask
    noise = np.random.default_rng(1).normal(0, 0.02, x.shape)
    thick = ndimage.gaussian_filter1d(x, 3.0, axis=2) + noise
    through = fsc_resolution_mm(thick, x, mask, VOXEL, cone_axis=2)
    assert through > fsc_resolution_mm(thick, x, mask, VOXEL, cone_axis=0)
    assert fsc_resolution_mm(x, x, mask, VOXEL, cone_axis=2) == 2.0
