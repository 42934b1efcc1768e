"""What is declared to be no image is no intensity: PixelPaddingValue and its range."""

import numpy as np
import pydicom
import pytest

from sr_engine.dicom.pixels import without_padding
from sr_engine.dicom.reader import read_series
from sr_engine.errors import UnsupportedInput
from tests import phantoms, variants

CORNER = 9  # voxels: side of the triangles that a turned field of view leaves


def outside(shape: tuple[int, ...]) -> np.ndarray:
    """Return the four corners of every slice, bool."""
    i, j = np.indices(shape[-2:])
    rows, columns = shape[-2:]
    apart = np.minimum(i, rows - 1 - i) + np.minimum(j, columns - 1 - j)
    return np.broadcast_to(apart < CORNER, shape)


def padded_series(folder, stored, vr="US", *, signed=False, **tags):
    """Write the phantom with `stored` in its corners, which `tags` declare; return both."""
    phantom = phantoms.corner_series(folder)

    def pad(dataset):
        plane = dataset.pixel_array.copy()
        plane[outside(plane.shape)] = np.uint16(stored & 0xFFFF)
        dataset.PixelData = plane.astype(np.uint16).tobytes()
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.PixelRepresentation = int(signed)
        for keyword, value in tags.items():
            dataset.add_new(keyword, vr, value)

    for path in phantom.paths:
        phantoms.edit(path, pad)
    return phantom


@pytest.mark.parametrize(
    ("stored", "vr", "signed", "tags"),
    [
        (4095, "US", False, {"PixelPaddingValue": 4095}),
        (65535, "US", False, {"PixelPaddingValue": 65535}),
        (65535, "SS", False, {"PixelPaddingValue": -1}),
        (32767, "SS", True, {"PixelPaddingValue": 32767}),
        (-2000, "SS", True, {"PixelPaddingValue": -2000}),
        (-2000, "US", True, {"PixelPaddingValue": 63536}),
        (4000, "US", False, {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3990}),
        (4000, "US", False, {"PixelPaddingValue": 3990, "PixelPaddingRangeLimit": 4000}),
    ],
)
@pytest.mark.parametrize("enhanced", [False, True])
def test_declared_padding_is_as_dark_as_the_darkest_measurement(
    stored, vr, signed, tags, enhanced, tmp_path
):
    phantom = padded_series(tmp_path / "classic", stored, vr, signed=signed, **tags)
    paths = phantom.paths
    if enhanced:
        paths = [variants.write_enhanced(paths, tmp_path / "enhanced.dcm")]
    clean = phantom.volume.array
    where = outside(clean.shape)

    found = read_series(paths).volume.array

    assert np.array_equal(found[~where], clean[~where])
    fill = np.unique(found[where])
    assert fill.size == 1 and 0 <= fill[0] <= clean[~where].min()
    assert found.dtype == np.float32


def test_padding_is_looked_for_before_the_rescale(tmp_path):
    phantom = padded_series(tmp_path, 4095, PixelPaddingValue=4095)
    for path in phantom.paths:
        phantoms.edit(
            path, lambda d: (setattr(d, "RescaleSlope", 2), setattr(d, "RescaleIntercept", 3))
        )
    where = outside(phantom.volume.array.shape)

    found = read_series(phantom.paths).volume.array

    assert found[where].max() <= found[~where].min()
    assert np.array_equal(found[~where], 2 * phantom.volume.array[~where] + 3)


def test_zeros_that_are_declared_padding_stay_zeros(tmp_path):
    phantom = padded_series(tmp_path, 0, PixelPaddingValue=0)

    found = read_series(phantom.paths).volume.array

    assert not found[outside(found.shape)].any()


def test_values_without_a_declaration_are_intensities(tmp_path):
    phantom = padded_series(tmp_path, 4095, PixelPaddingRangeLimit=4095)

    assert read_series(phantom.paths).volume.array.max() == 4095


def test_an_empty_declaration_is_none(tmp_path):
    phantom = padded_series(tmp_path, 4095, PixelPaddingValue=None)

    assert read_series(phantom.paths).volume.array.max() == 4095


@pytest.mark.parametrize("enhanced", [False, True])
def test_an_image_of_padding_alone_is_refused_by_name(enhanced, tmp_path):
    phantom = padded_series(tmp_path / "classic", 4095, PixelPaddingValue=4095)
    blank = pydicom.dcmread(phantom.paths[5])
    blank.PixelData = np.full((blank.Rows, blank.Columns), 4095, np.uint16).tobytes()
    blank.save_as(phantom.paths[5])
    paths = phantom.paths
    if enhanced:
        paths = [variants.write_enhanced(paths, tmp_path / "enhanced.dcm")]
    uid = pydicom.dcmread(paths[0 if enhanced else 5]).SOPInstanceUID

    with pytest.raises(UnsupportedInput, match=rf"{uid} is nothing but padding .*4095"):
        read_series(paths)


def test_a_black_image_that_may_be_air_is_taken(tmp_path):
    phantom = padded_series(tmp_path, 0, PixelPaddingValue=0)
    phantoms.edit(
        phantom.paths[0], lambda d: setattr(d, "PixelData", bytes(2 * d.Rows * d.Columns))
    )

    assert not read_series(phantom.paths).volume.array[0].any()


def test_a_value_of_padding_inside_of_the_head_was_measured():
    plane = np.full((1, 12, 12), 100, np.float32)
    plane[0, :3, :3] = plane[0, 6, 6] = plane[0, 8, 7:9] = 4095  # the first reaches the rim
    padded = plane == 4095

    found = without_padding(plane, padded, [pydicom.Dataset()])

    assert (found[0, :3, :3] == 100).all()
    assert found[0, 6, 6] == 4095 and (found[0, 8, 7:9] == 4095).all()


def test_zeros_of_padding_are_as_dark_as_they_are_although_something_rings_below():
    plane = np.full((1, 12, 12), 600, np.float32)
    plane[0, :2] = 0
    plane[0, 2, 5] = -100

    found = without_padding(plane, plane == 0, [pydicom.Dataset()])

    assert np.array_equal(found, plane)
