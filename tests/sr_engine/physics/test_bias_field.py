"""N4 finds the shading that was put on a phantom."""

import time

import numpy as np
import pytest
from highdicom import Volume
from scipy import ndimage

from sr_engine.physics.bias_field import estimate_bias_field


def shaded(shape, spacing_mm):
    """Return a shaded phantom, the log field that shades it, and its head."""
    rng = np.random.default_rng(0)
    k, i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = np.sqrt((k / 0.9) ** 2 + (i / 0.8) ** 2 + (j / 0.7) ** 2) < 1
    width = [10 / mm for mm in spacing_mm]
    white = ndimage.gaussian_filter(rng.standard_normal(shape), width) > 0
    field = 0.25 * k - 0.2 * i + 0.3 * j**2 - 0.2 * i * k
    image = head * (0.4 + 0.4 * white) * np.exp(field)
    image = image + 0.01 * np.abs(rng.standard_normal(shape))
    volume = Volume(
        image.astype(np.float32), np.diag([*spacing_mm, 1.0]), coordinate_system="PATIENT"
    )
    return volume, field, head


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((64, 80, 80), (2.5, 3.0, 3.0)), ((30, 96, 96), (5.0, 2.0, 2.0))],
)
def test_the_field_is_recovered(shape, spacing_mm):
    volume, truth, head = shaded(shape, spacing_mm)

    field = estimate_bias_field(volume, head)

    assert field.dtype == np.float32 and field.shape == shape
    assert np.corrcoef(field[head], truth[head])[0, 1] > 0.9
    assert 0.7 < field[head].std() / truth[head].std() < 1.2
    assert abs(field[head].mean()) < 1e-4


def test_twice_the_same_field():
    volume, _, head = shaded((16, 20, 20), (10.0, 12.0, 12.0))

    assert np.array_equal(estimate_bias_field(volume, head), estimate_bias_field(volume, head))


def test_a_slab_too_thin_for_a_lattice_has_no_field():
    volume, _, head = shaded((3, 64, 64), (5.0, 3.0, 3.0))

    assert not estimate_bias_field(volume, head).any()


@pytest.mark.slow
def test_a_full_head_takes_seconds_of_one_core():
    volume, truth, head = shaded((160, 256, 256), (1.0, 1.0, 1.0))
    start = time.process_time()  # not wall time: the machine may be busy with something else

    field = estimate_bias_field(volume)

    assert time.process_time() - start < 15
    assert np.corrcoef(field[head], truth[head])[0, 1] > 0.9
