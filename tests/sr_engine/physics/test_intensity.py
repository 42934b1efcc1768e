"""Head mask, normalisation and noise on phantoms whose noise is known."""

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.errors import UnsupportedInput
from sr_engine.physics.forward_model import add_rician_noise
from sr_engine.physics.intensity import (
    Scale,
    estimate_noise_sigma,
    head_mask,
    normalise,
    refuse_negative,
    rician_sigma,
)


def head(shape=(48, 80, 80), seed=0):
    """Return a head-like phantom, 1 at its brightest, and where it is."""
    rng = np.random.default_rng(seed)
    k, i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    r = np.sqrt((0.8 * k) ** 2 + i**2 + j**2)
    folds = ndimage.gaussian_filter(rng.standard_normal(shape), 3.0) > 0
    x = (r < 0.8) * (0.5 + 0.3 * folds) + 0.2 * ((r > 0.75) & (r < 0.8))
    return ndimage.gaussian_filter(x, 0.8).astype(np.float32), r < 0.8


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize("thickness", [1, 6, 12])
def test_mask_is_the_head(thickness, stripped):
    x, truth = head((48, 96, 96))
    x = x.reshape(-1, thickness, 96, 96).mean(axis=1)
    truth = truth.reshape(-1, thickness, 96, 96).mean(axis=1) > 0.5
    noisy = add_rician_noise(x, 0.03, seed=1) * 700
    noisy = np.where(truth, noisy, 0) if stripped else noisy

    assert dice(head_mask(noisy), truth) > 0.96


def test_mask_reaches_the_rim_of_a_slab():
    x, truth = head((48, 80, 80))

    mask = head_mask(x[20:26])

    assert dice(mask[0], truth[20]) > 0.96


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_volume_is_refused(value):
    with pytest.raises(UnsupportedInput, match="empty"):
        head_mask(np.full((8, 8, 8), value))


def test_nan_is_refused():
    x, _ = head()
    x[3, 3, 3] = np.nan
    with pytest.raises(UnsupportedInput, match="finite"):
        head_mask(x)


def test_normalise_divides_by_the_percentile_and_back():
    x, mask = head()

    normal, scale = normalise(x * 1234, mask)

    assert np.percentile(normal[mask], 99.9) == pytest.approx(1, rel=1e-5)
    assert np.allclose(scale.back(normal), x * 1234, rtol=1e-5)
    assert Scale(divisor=2.0).back(np.ones(1)) == 2


def test_a_head_without_signal_is_refused():
    with pytest.raises(UnsupportedInput, match="no signal"):
        normalise(np.zeros((4, 4, 4)), np.ones((4, 4, 4), bool))


@pytest.mark.parametrize("snr", [10, 25, 60])
@pytest.mark.parametrize("air", ["noise", "zero", "stripped", "offset"])
def test_noise_is_right_within_15_percent(snr, air):
    x, truth = head()
    sigma = float(x[truth].mean()) / snr
    x = x + (2 * sigma if air == "offset" else 0)  # the air of a magnitude image, averaged
    noisy = add_rician_noise(x, sigma, seed=2)
    if air == "stripped":
        noisy = np.where(truth, noisy, 0)
    if air == "zero":
        noisy = np.where(ndimage.binary_dilation(truth, iterations=5), noisy, 0)

    estimate = estimate_noise_sigma(noisy * 900, head_mask(noisy))

    assert estimate.sigma / 900 == pytest.approx(sigma, rel=0.15)
    expected = "high-pass" if air in ("zero", "stripped") else "rician-background"
    assert estimate.method == expected


def test_ghosts_in_a_third_of_the_air_do_not_matter():
    x, _ = head()
    ghost = np.roll(x, 40, axis=1) * 0.15
    ghost[:, :, 30:] = 0
    noisy = add_rician_noise(x + ghost, 0.02, seed=3)

    assert estimate_noise_sigma(noisy, head_mask(noisy)).sigma == pytest.approx(0.02, rel=0.15)


def test_zero_filled_noise_is_found_when_the_oversampling_is_told():
    x, truth = head((48, 40, 40))
    noise = np.random.default_rng(0).standard_normal((48, 80, 80))
    spectrum = np.fft.fftn(noise, axes=(1, 2))
    keep = np.abs(np.fft.fftfreq(80)) < 0.25
    noise = np.fft.ifftn(spectrum * keep[:, None] * keep, axes=(1, 2)).real
    x = ndimage.zoom(x, (1, 2, 2), order=1)
    truth = ndimage.zoom(truth, (1, 2, 2), order=0)
    noisy = np.where(truth, x + 0.03 * noise / noise.std(), 0).astype(np.float32)

    blind = estimate_noise_sigma(noisy, truth).sigma
    told = estimate_noise_sigma(noisy, truth, oversampling=(1, 2, 2)).sigma

    assert blind < 0.015
    assert told == pytest.approx(0.03, rel=0.15)


def test_air_and_tissue_give_the_same_sigma():
    rng = np.random.default_rng(0)
    for signal in (0.0, 1.0, 3.0, 15.0):
        samples = np.hypot(signal + rng.standard_normal(200_000), rng.standard_normal(200_000))
        assert rician_sigma(samples.mean(), samples.std()) == pytest.approx(1, rel=0.02)
    assert rician_sigma(1.0, 0.0) == 0.0


def test_thick_slices_that_miss_the_head_when_thinned_are_measured_whole():
    x, truth = head((21, 40, 40))
    x, truth = x[1:], truth[1:].copy()  # the first and the only other slice of every 20th ...
    truth[0] = False  # ... hold no head

    told = estimate_noise_sigma(np.where(truth, x, 0), truth, oversampling=(20, 1, 1))

    assert told == estimate_noise_sigma(np.where(truth, x, 0), truth)


@pytest.mark.parametrize("offset", [-100, -1100])
def test_an_image_with_an_offset_is_no_magnitude(offset):
    x, _ = head()

    with pytest.raises(UnsupportedInput, match=r"series 1\.2 is no magnitude image: .* -"):
        refuse_negative(1000 * x + offset - 1, "series 1.2")


@pytest.mark.parametrize("sign", [1, -1])
def test_tissue_below_zero_is_no_magnitude(sign):
    x, truth = head()

    with pytest.raises(UnsupportedInput, match="no magnitude"):
        refuse_negative(np.where(truth, -100.0, 40 * sign), "the volume")


@pytest.mark.parametrize("stripped", [False, True])
def test_the_ringing_of_an_interpolation_is_taken(stripped):
    x, truth = head((24, 96, 96))
    x = np.where(truth, 0.7, 0) if stripped else x

    rung = ndimage.rotate(x, 7, axes=(1, 2), order=3, reshape=False)

    assert rung.min() < 0
    refuse_negative(rung, "the volume")
