"""One scan, stored as two vendors or two IODs would: the same volume within one stored step."""

import numpy as np
import pydicom
import pytest

from sr_engine.dicom.headers import read_headers
from sr_engine.dicom.reader import read_series
from tests import phantoms, variants


def philips_slope(index: int) -> float:
    """Return a slope that differs from slice to slice, with more digits than anybody needs."""
    return 1.63858 + 0.013 * (index % 5)


def rescale_every_slice(paths, intercept: float) -> None:
    """Store the phantom with a slope and an intercept of each slice's own, as Philips does."""
    for index, path in enumerate(paths):

        def change(dataset, index=index):
            slope = philips_slope(index)
            plane = np.frombuffer(dataset.PixelData, "<u2").astype(float)
            dataset.RescaleSlope = f"{slope:.10g}"
            dataset.RescaleIntercept = f"{intercept:g}"
            stored = np.clip(np.rint((plane - intercept) / slope), 0, 4095)
            dataset.PixelData = stored.astype("<u2").tobytes()
            block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            block.add_new(0x0E, "FL", 0.0047 / (1 + dataset.InstanceNumber % 3))

        phantoms.edit(path, change)


@pytest.mark.parametrize("intercept", [0.0, -12.5])
def test_slopes_of_every_slice_give_the_scan_back_within_one_step(intercept, tmp_path):
    phantom = phantoms.corner_series(tmp_path, "coronal")
    rescale_every_slice(phantom.paths, intercept)

    array = read_series(phantom.paths).volume.array

    step = max(philips_slope(index) for index in range(5))
    assert np.abs(array - phantom.volume.array).max() <= step


@pytest.mark.parametrize("rescaled", [False, True], ids=["plain", "rescaled"])
@pytest.mark.parametrize("orientation", sorted(phantoms.ORIENTATIONS))
def test_classic_and_enhanced_of_one_scan_are_one_volume(orientation, rescaled, tmp_path):
    paths = phantoms.corner_series(tmp_path / "classic", orientation).paths
    if rescaled:
        rescale_every_slice(paths, -3.0)
    path = variants.write_enhanced(paths[::-1], tmp_path / "enhanced" / "1.dcm")

    classic, enhanced = read_series(paths), read_series([path])

    assert np.array_equal(enhanced.volume.array, classic.volume.array)
    assert np.allclose(enhanced.volume.affine, classic.volume.affine, atol=1e-6)
    assert enhanced.acquired_voxel_mm[0] == classic.acquired_voxel_mm[0]
    assert enhanced.slice_thickness_mm == classic.slice_thickness_mm


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_bits_and_sign_do_not_change_the_scan(bits, signed, tmp_path):
    phantom = phantoms.corner_series(tmp_path)
    high = (1 << (bits - signed)) - 1

    def store(dataset):
        plane = np.frombuffer(dataset.PixelData, "<u2").astype(float)
        dataset.RescaleSlope = slope = f"{4095 / high:.12g}"
        dataset.RescaleIntercept = 0
        dataset.BitsAllocated = 8 if bits == 8 else 16
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelRepresentation = int(signed)
        kind = {(8, False): "u1", (8, True): "i1"}.get((bits, signed), "<i2" if signed else "<u2")
        dataset.PixelData = np.rint(plane / float(slope)).astype(kind).tobytes()

    for path in phantom.paths:
        phantoms.edit(path, store)

    array = read_series(phantom.paths).volume.array

    assert np.abs(array - phantom.volume.array).max() <= 4095 / high


def test_the_classic_copy_of_a_real_enhanced_series_is_the_same_volume(shared_series, tmp_path):
    (header,) = read_headers([shared_series("p04")])
    (path,) = shared_series("p04").iterdir()
    whole = pydicom.dcmread(path)
    variants.write_classic(whole, tmp_path)

    classic, enhanced = read_series([tmp_path]), read_series([path])

    assert len(classic.headers) == header.NumberOfFrames
    assert np.array_equal(classic.volume.array, enhanced.volume.array)
    assert np.allclose(classic.volume.affine, enhanced.volume.affine, atol=1e-6)
    assert classic.acquired_voxel_mm == pytest.approx(enhanced.acquired_voxel_mm)
    assert classic.acquisition == enhanced.acquisition
