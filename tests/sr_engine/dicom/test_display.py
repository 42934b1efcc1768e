"""The window shows a derived volume like its source, whatever lies beside the head."""

import numpy as np
import pytest
from pydicom.dataset import Dataset

from sr_engine.dicom import display
from tests import phantoms

CENTRE, WIDTH = 600.0, 900.0


def header(**values) -> Dataset:
    dataset = Dataset()
    dataset.WindowCenter, dataset.WindowWidth = CENTRE, WIDTH
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def source_and_derived() -> tuple[np.ndarray, np.ndarray]:
    """Return the phantom, and a result that is as bright, in which nothing is negative."""
    volume, _ = phantoms.corner_volume()
    return volume.array, volume.array.copy()


def test_a_negative_rim_does_not_move_the_window():
    source, derived = source_and_derived()
    rim = np.zeros(source.shape, bool)
    rim[:, :4] = rim[:, -4:] = True  # a fifth of all voxels: their mean is far below the air
    source[rim], derived[rim] = -5000, 0

    centre, width = display.window([header()], source, derived)

    assert source.mean() < source[~rim].min()
    assert (centre, width) == pytest.approx((CENTRE, WIDTH), rel=0.01)


def test_a_brighter_result_gets_a_brighter_window():
    source, derived = source_and_derived()

    centre, width = display.window([header()], source, 1.5 * derived)

    assert (centre, width) == pytest.approx((1.5 * CENTRE, 1.5 * WIDTH))


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_result_of_another_contrast_keeps_the_window_of_the_source(factor):
    source, derived = source_and_derived()

    assert display.window([header()], source, factor * derived) == (CENTRE, WIDTH)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", ""])
def test_a_straight_window_is_carried_over(function):
    assert display.source_window([header(VOILUTFunction=function)]) == (CENTRE, WIDTH)


def test_a_sigmoid_is_no_window():
    source, derived = source_and_derived()
    sigmoid = header(VOILUTFunction="SIGMOID")
    low, high = np.percentile(derived, (1, 99))

    assert display.source_window([sigmoid]) is None
    window = display.window([sigmoid], source, derived)

    assert window == pytest.approx(((low + high) / 2, high - low))
