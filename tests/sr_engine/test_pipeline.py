"""What the pipeline refuses, and what it does with the bias field: guide, correct, or neither."""

import numpy as np
import pydicom
import pytest
from highdicom import Volume
from scipy import ndimage

from sr_engine.dicom.provenance import from_dataset
from sr_engine.errors import RecipeError, UnsupportedInput
from sr_engine.pipeline import acquired_of_volume, enhance, enhance_volume
from sr_engine.recipe import Recipe
from tests import phantoms
from tests.sr_engine.test_inference import network

SHAPE = (40, 48, 48)
SHARES = (0.9, 1.0, 1.1)  # of the input that the three axes give back


@pytest.fixture(scope="module")
def shaded():
    """Return a shaded head of two tissues, the log field that shades it, and where the head is."""
    rng = np.random.default_rng(0)
    k, i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    head = np.sqrt((k / 0.9) ** 2 + (i / 0.8) ** 2 + (j / 0.7) ** 2) < 1
    white = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3) > 0
    field = 0.3 * k - 0.2 * i + 0.3 * j**2
    image = 400 * head * (1 + white) * np.exp(field) + 10 * np.abs(rng.standard_normal(SHAPE))
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    volume = Volume(image.astype(np.float32), affine, coordinate_system="PATIENT")
    return volume, field, head


class Given:
    """Gives the input back, a little different along each axis, and keeps what it was given."""

    def __call__(self, given, bundle, *, axes, **options):
        self.input = given
        return [given.volume * np.float32(SHARES[axis]) for axis in axes]


def enhanced(volume, **options):
    """Return the result on the grid of `volume`, and what the network was given."""
    predict = Given()
    result = enhance_volume(
        volume,
        acquired_of_volume(volume),
        Recipe(spacing_mm=3.0, data_consistency=False, reduce_noise=False, **options),
        None,
        predict=predict,
    )
    assert result.volume.array.shape == SHAPE
    return result, predict.input


def test_correct_bias_divides_result_and_spread_by_the_field(shaded):
    volume, truth, head = shaded
    plain, given = enhanced(volume)
    corrected, _ = enhanced(volume, correct_bias=True)

    divisor = np.exp(given.bias_log)
    assert np.allclose(corrected.volume.array, plain.volume.array / divisor, rtol=1e-4)
    assert np.allclose(corrected.spread, plain.spread / divisor, rtol=1e-4)
    left = np.log(corrected.volume.array[head]), np.log(plain.volume.array[head])
    seen = [abs(np.corrcoef(one, truth[head])[0, 1]) for one in left]
    assert seen[0] < seen[1] / 3


def test_the_verdict_is_on_what_explains_the_measured_data(shaded):
    volume, _, _ = shaded

    figures = [enhanced(volume, correct_bias=on)[0].report.figures for on in (False, True)]

    assert figures[0] == figures[1]


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("use", [False, True])
def test_the_network_is_guided_by_the_field_only_where_it_is_wanted(use, correct, shaded):
    _, given = enhanced(shaded[0], use_bias_field=use, correct_bias=correct)

    assert (given.bias_log is not None) == use


@pytest.mark.parametrize(
    ("options", "use"),
    [
        ({}, "guidance"),
        ({"correct_bias": True}, "guidance and applied"),
        ({"correct_bias": True, "use_bias_field": False}, "applied"),
        ({"use_bias_field": False}, "switched off"),
    ],
)
def test_a_derived_series_says_what_was_done_with_the_field(options, use, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    recipe = Recipe(spacing_mm=3.0, **options)

    made = enhance(
        phantom.paths, tmp_path / "out", recipe=recipe, job=phantoms.JOB, bundle=network(0.0)
    )

    image = pydicom.dcmread(made.written.paths[0])
    assert from_dataset(image).bias_field == use
    told = "divided by the estimated bias field" in image.DerivationDescription
    assert told == recipe.correct_bias


def test_a_correction_that_is_not_built_is_refused():
    with pytest.raises(RecipeError, match="correct_distortion is not built"):
        Recipe(correct_distortion=True)


def test_a_series_of_negative_tissue_is_refused_by_name(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", RescaleIntercept=-1000)
    uid = pydicom.dcmread(phantom.paths[0]).SeriesInstanceUID

    with pytest.raises(UnsupportedInput, match=f"series {uid} is no magnitude image: .*-9"):
        enhance(phantom.paths, tmp_path / "out", recipe=Recipe(), job=phantoms.JOB, bundle=None)


def test_a_volume_of_negative_tissue_is_refused():
    volume, _ = phantoms.corner_volume()
    negative = volume.with_array(volume.array - 1000)

    with pytest.raises(UnsupportedInput, match="the volume is no magnitude image"):
        enhance_volume(negative, acquired_of_volume(negative), Recipe(), bundle=None)
