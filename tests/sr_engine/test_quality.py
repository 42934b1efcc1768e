"""An honest result passes; an invented structure, a hole or an empty volume is held."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.physics.forward_model import (
    AcquisitionModel,
    Profile,
    add_rician_noise,
    shared_field,
)
from sr_engine.quality import QualityLimits, QualityReport, judge, noise_gain

SHAPE = (64, 72, 72)
CENTRE = (32, 36, 30)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A head, its measurement, and an honest result."""

    model: AcquisitionModel
    low: np.ndarray
    low_mm: tuple[float, ...]
    sigma: float
    output: np.ndarray
    upsampled: np.ndarray
    mask: np.ndarray

    def judged(self, output: np.ndarray, spread: float = 0.02) -> QualityReport:
        return judge(
            measured=self.low,
            predicted_low=self.model.forward(output),
            measured_mask=self.model.forward(self.mask.astype(np.float32)) > 0.5,
            measured_spacing_mm=self.low_mm,
            noise_sigma=self.sigma,
            output=output,
            upsampled=self.upsampled,
            spread=np.full(SHAPE, spread, np.float32),
            mask=self.mask,
        )


@pytest.fixture(scope="module", params=["iso2", "thick4"])
def scene(request) -> Scene:
    rng = np.random.default_rng(1)
    k, i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = np.sqrt(k**2 + i**2 + j**2) < 0.85
    folds = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.0) > 0
    truth = ndimage.gaussian_filter(mask * (0.5 + 0.35 * folds), 0.6).astype(np.float32)
    low_mm = (2.0, 2.0, 2.0) if request.param == "iso2" else (4.0, 1.0, 1.0)
    names = ("kspace",) * 3 if request.param == "iso2" else ("box", "kspace", "kspace")
    profiles = [Profile(name=n, width_mm=w) for n, w in zip(names, low_mm, strict=True)]
    low_shape, affine = shared_field(SHAPE, np.eye(4), low_mm)
    model = AcquisitionModel.from_grids(SHAPE, np.eye(4), low_shape, affine, profiles=profiles)
    sigma = 0.02
    low = add_rician_noise(model.forward(truth), sigma, seed=2)
    position = [(np.arange(n) + 0.5) / mm - 0.5 for n, mm in zip(SHAPE, low_mm, strict=True)]
    upsampled = ndimage.map_coordinates(
        low, np.meshgrid(*position, indexing="ij"), order=3, mode="mirror", output=np.float32
    )
    # What a fair network gives: most of the detail, a little blur, then the data's word.
    guess = 0.7 * truth + 0.3 * ndimage.gaussian_filter(upsampled, 0.6)
    return Scene(
        model=model,
        low=low,
        low_mm=low_mm,
        sigma=sigma,
        output=model.consistent(guess, low, sigma),
        upsampled=upsampled,
        mask=mask,
    )


def blob(size_mm: float) -> np.ndarray:
    apart = np.indices(SHAPE).transpose(1, 2, 3, 0) - np.array(CENTRE)
    return (np.linalg.norm(apart, axis=-1) <= size_mm / 2).astype(np.float32)


def test_an_honest_result_passes(scene):
    report = scene.judged(scene.output)

    assert report.passed and report.findings == ()
    assert 0.6 < report.figures["residual_over_noise"] < 1.1


@pytest.mark.parametrize(("contrast", "word"), [(0.15, "shows"), (-0.15, "lacks")])
def test_a_lesion_of_5_mm_that_was_not_measured_is_held(scene, contrast, word):
    report = scene.judged(scene.output + np.float32(contrast) * blob(5))

    assert not report.passed
    assert word in report.findings[0] and "5 mm" in report.findings[0]
    found = [report.figures[f"blob_{name}"] - 1 for name in ("slice", "row", "column")]
    assert np.abs((np.array(found) + 0.5) * scene.low_mm - CENTRE).max() < 4


def test_a_result_that_is_not_the_measured_head_is_held(scene):
    report = scene.judged(np.roll(scene.output, 3, axis=1))

    assert "does not explain the measured series" in report.findings[0]


def test_what_wraps_at_the_rim_of_the_field_of_view_is_no_lesion(scene):
    predicted = scene.model.forward(scene.output)
    neck = np.zeros(predicted.shape, bool)
    neck[:, :2, 8:-8] = True
    wrapped = predicted.copy()
    wrapped[:, 0, 8:-8] += np.float32(0.1)

    report = judge(
        measured=scene.low,
        predicted_low=wrapped,
        measured_mask=neck | (scene.model.forward(scene.mask.astype(np.float32)) > 0.5),
        measured_spacing_mm=scene.low_mm,
        noise_sigma=scene.sigma,
        output=scene.output,
        upsampled=scene.upsampled,
        spread=np.zeros(SHAPE, np.float32),
        mask=scene.mask,
    )

    assert not any("5 mm" in finding for finding in report.findings)


def padded(scene, value: np.ndarray | float, corners: tuple[int, ...]) -> QualityReport:
    """Return the verdict on an honest result of a source with `value` in some of its corners."""
    low = scene.low.copy()
    for number in corners:
        i, j = divmod(number, 2)
        low[:, -i, -j] = value  # 0 or -1: first or last
    return replace(scene, low=low).judged(scene.output)


@pytest.mark.parametrize("corners", [(0, 3), (1, 2), (0, 1, 2, 3)])
def test_padding_that_nobody_declared_is_held(scene, corners):
    report = padded(scene, 1.0, corners)

    assert len(report.findings) == 1
    assert f"{len(corners)} of the four corners" in report.findings[0]


def test_a_tight_crop_of_tissue_is_not_held(scene):
    noise = np.random.default_rng(3).standard_normal(len(scene.low))

    assert padded(scene, 1 + scene.sigma * noise, (0, 1, 2, 3)).passed


def test_air_that_was_set_to_zero_is_not_held(scene):
    assert padded(scene, 0.0, (0, 1, 2, 3)).passed


def test_axes_that_disagree_are_held(scene):
    report = scene.judged(scene.output, spread=0.3)

    assert len(report.findings) == 1 and "axes disagree" in report.findings[0]


def test_a_hole_in_the_head_is_held(scene):
    report = scene.judged(scene.output * (1 - blob(25)))

    assert any("cut off at black" in finding for finding in report.findings)
    assert any("of the head shows" in finding for finding in report.findings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_held(scene, value):
    output = scene.output.copy()
    output[CENTRE] = value

    report = scene.judged(output)

    assert not report.passed and "not numbers" in report.findings[0]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_empty_result_is_held(scene, value):
    report = scene.judged(np.full(SHAPE, value, np.float32))

    assert not report.passed and "empty" in report.findings[0]


def test_a_series_without_a_head_is_held(scene):
    ones = np.ones(SHAPE, np.float32)
    low = scene.model.forward(ones)

    report = judge(
        measured=low,
        predicted_low=low,
        measured_mask=np.zeros(low.shape, bool),
        measured_spacing_mm=scene.low_mm,
        noise_sigma=0.0,
        output=ones,
        upsampled=ones,
        spread=ones,
        mask=np.zeros(SHAPE, bool),
        limits=QualityLimits(),
    )

    assert not report.passed and "No head" in report.findings[0]


def test_the_noise_of_a_smoothed_volume_is_known():
    noise = np.random.default_rng(0).standard_normal((64, 64, 64))
    kernel = (0.5, 1.0, 2.0)

    assert noise_gain(kernel) == pytest.approx(
        ndimage.gaussian_filter(noise, kernel).std(), rel=0.1
    )
