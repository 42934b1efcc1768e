"""Which images of a mixed series are its volume."""

import numpy as np
import pydicom
import pytest

from sr_engine.dicom.reader import read_series
from sr_engine.dicom.sorting import sort
from sr_engine.errors import GeometryError, UnsupportedInput
from tests import phantoms, variants
from tests.variants import setting

PHASE = setting(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
DERIVED = setting(ImageType=["DERIVED", "PRIMARY", "MPR"])

# What lies beside the volume -> how it is put there, and what is said of it.
BESIDE = {
    "phase images": (lambda p: variants.add_copies(p, "phase", PHASE), "12 (phase, real or"),
    "real images": (
        lambda p: variants.add_copies(p, "real", setting(ComplexImageComponent="REAL")),
        "12 (phase, real or imaginary)",
    ),
    "a scout in another plane": (
        lambda p: [variants.add_copy(p[5], "scout", variants.turned)],
        "1 (in another orientation)",
    ),
    "a named localizer": (
        lambda p: variants.add_copies(
            p[:3], "loc", setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        ),
        "3 (localizer)",
    ),
    "a Raw Data object": (
        lambda p: [variants.add_copy(p[0], "raw", variants.raw_data)],
        "1 (no MR image)",
    ),
    "a derived reformat": (
        lambda p: variants.add_copies(p[:5], "mpr", lambda d: (DERIVED(d), variants.turned(d))),
        "5 (derived)",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_volume_is_left_out_and_named(name, tmp_path):
    phantom = phantoms.corner_series(tmp_path, "double-oblique")
    alone = read_series(phantom.paths)
    put, words = BESIDE[name]
    beside = put(phantom.paths)

    series = read_series([tmp_path])

    assert np.array_equal(series.volume.array, alone.volume.array)
    assert np.allclose(series.volume.affine, alone.volume.affine)
    assert series.sop_uids == alone.sop_uids
    headers = [pydicom.dcmread(path) for path in [*beside, *phantom.paths]]
    found = sort(headers)
    assert found.chosen == tuple(range(len(beside), len(headers)))
    assert words in found.words


def test_magnitude_and_phase_in_one_enhanced_object_give_the_magnitude(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "classic", "sagittal")
    phase = setting(ComplexImageComponent="PHASE")
    both = [*variants.add_copies(phantom.paths, "phase", phase), *phantom.paths]
    path = variants.write_enhanced(both, tmp_path / "enhanced" / "1.dcm")

    series = read_series([path])

    assert np.array_equal(series.volume.array, read_series(phantom.paths).volume.array)


def test_a_mixed_object_beside_another_is_sorted_by_its_frames(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "classic", "sagittal")
    phase = setting(ComplexImageComponent="PHASE")
    both = [*variants.add_copies(phantom.paths[6:], "phase", phase), *phantom.paths[6:]]
    folder = tmp_path / "enhanced"
    variants.write_enhanced(phantom.paths[:6], folder / "1.dcm")
    variants.write_enhanced(both, folder / "2.dcm", ImageType=["ORIGINAL", "PRIMARY", "MIXED"])

    series = read_series([folder])

    assert np.array_equal(series.volume.array, read_series(phantom.paths).volume.array)


@pytest.mark.parametrize("change", ["turned in its plane", "flipped"])
def test_a_slice_that_lies_in_the_stack_is_no_scout(change, tmp_path):
    """The last one, whose loss no gap would show."""
    paths = phantoms.corner_series(tmp_path, "double-oblique").paths
    row, column = np.array(pydicom.dcmread(paths[-1]).ImageOrientationPatient).reshape(2, 3)
    cosines = [*column, *-row] if change == "turned in its plane" else [*-row, *column]
    phantoms.edit(paths[-1], setting(ImageOrientationPatient=cosines))

    assert sort([pydicom.dcmread(path) for path in paths]).left_out == {}
    with pytest.raises(GeometryError, match="more than one orientation"):
        read_series([tmp_path])


def test_single_frame_enhanced_objects_are_one_volume(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "classic", "coronal")
    for number, path in enumerate(phantom.paths):
        variants.write_enhanced([path], tmp_path / "enhanced" / f"{number}.dcm")

    series = read_series([tmp_path / "enhanced"])

    assert np.array_equal(series.volume.array, read_series(phantom.paths).volume.array)
    assert len(series.sop_uids) == len(phantom.paths)


def test_two_stacks_are_no_volume(tmp_path):
    phantom = phantoms.corner_series(tmp_path)
    variants.add_copies(phantom.paths[:8], "second", variants.turned)

    with pytest.raises(GeometryError, match="more than one orientation"):
        read_series([tmp_path])


def test_nothing_but_phase_images_is_still_refused_as_such(tmp_path):
    paths = phantoms.corner_series(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "P"]).paths
    variants.add_copy(paths[0], "raw", variants.raw_data)

    with pytest.raises(UnsupportedInput, match="image type 'P'"):
        read_series([tmp_path])
