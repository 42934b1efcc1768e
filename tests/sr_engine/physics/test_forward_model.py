"""The acquisition operators, held to their definition and to the evaluation protocol."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from sr_engine.errors import GeometryError
from sr_engine.physics.forward_model import (
    AcquisitionModel,
    AxisModel,
    Profile,
    add_rician_noise,
    choose_profiles,
    expected_magnitude,
    shared_field,
    simulate,
    wiener_shrink,
)


def axis_of(n_high: int, n_low: int, profile: str, **changed) -> AxisModel:
    """Return an axis whose grids share one field of view; the fine voxel is 1 mm."""
    low_mm = n_high / n_low
    values = {
        "n_high": n_high,
        "n_low": n_low,
        "high_mm": 1.0,
        "low_mm": low_mm,
        "offset_mm": (low_mm - 1) / 2,
        "profile": profile,
        "thickness_mm": low_mm,
    }
    return AxisModel(**(values | changed))


def half_voxel_crop(x: np.ndarray, n2: int) -> np.ndarray:
    """Return the protocol's k-space crop along axis 0, real part."""
    n = len(x)
    phase = np.exp(2j * np.pi * np.fft.fftfreq(n) * (0.5 * n / n2 - 0.5))
    f = np.fft.fft(x, axis=0) * phase[:, None]
    h = n2 // 2
    return (np.fft.ifft(f[np.r_[0 : n2 - h, n - h : n]], axis=0) * n2 / n).real


def model_of(shape, factors, profiles) -> AcquisitionModel:
    low_shape, affine = shared_field(shape, np.eye(4), factors)
    chosen = [Profile(name=p, width_mm=float(f)) for p, f in zip(profiles, factors, strict=True)]
    return AcquisitionModel.from_grids(shape, np.eye(4), low_shape, affine, profiles=chosen)


@pytest.fixture(scope="module")
def scene():
    """Return a smooth-edged phantom (48, 64, 64), a network-like guess of it, and its mask."""
    rng = np.random.default_rng(3)
    k, i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 64, 64)), indexing="ij")
    r = np.sqrt(k**2 + i**2 + j**2)
    texture = ndimage.gaussian_filter(rng.standard_normal(r.shape), 1.2) > 0.06
    x = ndimage.gaussian_filter((r < 0.85) * (0.5 + 0.4 * texture), 0.6).astype(np.float32)
    wrong = ndimage.gaussian_filter(rng.standard_normal(r.shape), 2.0) * 0.25 * (r < 0.85)
    return x, (x + wrong).astype(np.float32), r < 0.85


@pytest.mark.parametrize(("n", "n2"), [(64, 32), (66, 33), (64, 16), (60, 24), (63, 21), (61, 40)])
def test_kspace_is_the_protocols_centre_crop(n, n2):
    x = np.random.default_rng(0).standard_normal((n, 5))

    got = axis_of(n, n2, "kspace").matrix() @ x

    assert np.abs(got - half_voxel_crop(x, n2)).max() < 1e-9


def test_box_is_the_mean_of_four_for_a_factor_of_four():
    x = np.random.default_rng(0).standard_normal((64, 5))

    got = axis_of(64, 16, "box").matrix() @ x

    assert np.allclose(got, x.reshape(16, 4, 5).mean(axis=1), atol=1e-12)


@pytest.mark.parametrize("profile", ["kspace", "box", "gaussian"])
@pytest.mark.parametrize("n_low", [16, 23, 37])
def test_a_constant_stays_a_constant(profile, n_low):
    grown = axis_of(65, n_low, profile, high_mm=0.99)  # the fine grid is not quite as long

    assert np.allclose(grown.matrix().sum(axis=1), 1)


@pytest.mark.parametrize("profile", ["kspace", "box", "gaussian"])
def test_a_wave_is_measured_where_it_is_when_the_fields_of_view_differ(profile):
    # 70 fine voxels of 0.7 mm over 16 slices of 3 mm: 49 mm over 48 mm.
    axis = axis_of(70, 16, profile, high_mm=0.7, low_mm=3.0, offset_mm=1.15, thickness_mm=3.0)
    fine_mm, low_mm = 0.7 * np.arange(70), 1.15 + 3.0 * np.arange(16)

    got = axis.matrix() @ np.cos(2 * np.pi * (fine_mm - 20) / 49)
    expected = np.cos(2 * np.pi * (low_mm - 20) / 49)

    assert np.abs(got - expected)[1:-1].max() < 0.02


def test_gaussian_profile_has_the_full_width_at_half_maximum():
    row = axis_of(400, 400, "gaussian", thickness_mm=20.0).matrix()[200]

    assert np.count_nonzero(row >= row.max() / 2) == pytest.approx(20, abs=1)


def test_measured_voxels_off_the_fine_grid_are_not_predicted():
    axis = axis_of(16, 12, "box", low_mm=2.0, offset_mm=0.5, thickness_mm=2.0)

    assert axis.covered().sum() == 8
    assert np.array_equal(axis.matrix().sum(axis=1) > 0.5, axis.covered())


def test_adjoint_is_the_transpose():
    rng = np.random.default_rng(1)
    model = model_of((24, 20, 28), (4, 2, 1.5), ("box", "kspace", "gaussian"))
    x = rng.standard_normal(model.high_shape).astype(np.float32)
    y = rng.standard_normal(model.low_shape).astype(np.float32)

    assert np.vdot(model.forward(x), y) == pytest.approx(np.vdot(x, model.adjoint(y)), rel=1e-4)


@pytest.mark.parametrize("profiles", [("kspace",) * 3, ("box", "kspace", "kspace")])
def test_without_noise_the_data_are_imposed(profiles, scene):
    truth, guess, _ = scene
    model = model_of(truth.shape, (4, 2, 2), profiles)
    low = model.forward(truth)

    result = model.consistent(guess, low, noise_sigma=0.0)

    assert np.abs(model.forward(result) - low).max() < 1e-4
    assert np.mean((result - truth) ** 2) < 0.5 * np.mean((guess - truth) ** 2)


@pytest.mark.parametrize("snr", [10, 25, 60])
@pytest.mark.parametrize(
    ("factors", "profiles"), [((2, 2, 2), ("kspace",) * 3), ((4, 1, 1), ("box",) + ("kspace",) * 2)]
)
def test_consistency_lowers_the_error_and_leaves_the_noise(snr, factors, profiles, scene):
    truth, guess, mask = scene
    model = model_of(truth.shape, factors, profiles)
    clean = model.forward(truth)
    inside = model.forward(mask.astype(np.float32)) > 0.5
    sigma = float(clean[inside].mean()) / snr
    low = add_rician_noise(clean, sigma, seed=4)

    result = model.consistent(guess, low, sigma, mask=ndimage.binary_dilation(inside, iterations=2))

    assert np.mean((result - truth)[mask] ** 2) < np.mean((guess - truth)[mask] ** 2)
    residual = model.residual(result, low, sigma)[inside]
    assert 0.6 < np.sqrt(np.mean(residual**2)) / sigma < 1.15


def test_a_perfect_guess_is_hardly_touched(scene):
    truth, _, mask = scene
    model = model_of(truth.shape, (2, 2, 2), ("kspace",) * 3)
    clean = model.forward(truth)
    sigma = float(clean.mean()) / 10
    low = add_rician_noise(clean, sigma, seed=5)

    careful = model.consistent(truth, low, sigma) - truth
    imposed = model.consistent(truth, low, 0.0) - truth

    assert np.sqrt(np.mean(careful[mask] ** 2)) < 0.25 * np.sqrt(np.mean(imposed[mask] ** 2))


def test_pure_noise_is_shrunk_away():
    noise = np.random.default_rng(0).standard_normal((64, 64, 64)).astype(np.float32)

    assert wiener_shrink(noise, 1.0).std() < 0.15


def test_expected_magnitude_is_the_mean_of_rician_samples():
    for signal in (0.0, 0.5, 1.0, 2.0, 5.0, 20.0):
        low = np.full((60, 60, 60), signal, np.float32)
        mean = add_rician_noise(low, 1.0, seed=2).mean()
        assert expected_magnitude(low, low + 1, 1.0).flat[0] == pytest.approx(mean, abs=0.07)
    blanked = expected_magnitude(np.zeros(3), np.zeros(3), 1.0)
    assert not blanked.any()


def test_grids_of_two_affines_give_offsets_in_mm():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    high, low = np.eye(4), np.eye(4)
    high[:3, :3] = rotation * [0.7, 0.9, 0.8]
    low[:3, :3] = rotation * [3.0, 0.9, 0.8]
    low[:3, 3] = rotation @ [1.15, 0, 0]
    profiles = choose_profiles("2D", (3, 0.9, 0.8), (3, 0.9, 0.8))

    model = AcquisitionModel.from_grids((70, 8, 9), high, (16, 8, 9), low, profiles=profiles)

    assert [axis.profile for axis in model.axes] == ["box", "identity", "identity"]
    assert model.axes[0].offset_mm == pytest.approx(1.15)


def test_zero_filled_axes_are_blurred_although_the_grids_coincide():
    profiles = choose_profiles("3D", (1, 0.5, 0.5), (1, 0.5, 1.0))

    model = AcquisitionModel.from_grids(
        (8, 16, 16), np.diag([1, 0.5, 0.5, 1]), (8, 16, 16), np.diag([1, 0.5, 0.5, 1]),
        profiles=profiles,
    )  # fmt: skip

    assert [axis.profile for axis in model.axes] == ["identity", "identity", "kspace"]


@pytest.mark.parametrize("low", [np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]])
def test_axes_that_are_not_parallel_are_refused(low):
    profiles = choose_profiles("3D", (1, 1, 1), (1, 1, 1))
    with pytest.raises(GeometryError, match="not parallel"):
        AcquisitionModel.from_grids((8, 8, 8), np.eye(4), (8, 8, 8), low, profiles=profiles)


def test_a_volume_of_another_shape_is_refused():
    model = model_of((8, 8, 8), (2, 2, 2), ("kspace",) * 3)
    with pytest.raises(GeometryError, match="takes"):
        model.forward(np.zeros((8, 8, 4)))


@pytest.mark.parametrize(
    ("acquisition", "spacing", "expected"),
    [
        ("3D", (3, 1, 1), ["kspace", "kspace", "kspace"]),
        ("2D", (1, 1, 1), ["box", "kspace", "kspace"]),
        (None, (0.7, 3.0, 0.7), ["kspace", "box", "kspace"]),
        (None, (1.2, 1.0, 1.0), ["kspace", "kspace", "kspace"]),
    ],
)
def test_profiles_follow_the_acquisition(acquisition, spacing, expected):
    assert [p.name for p in choose_profiles(acquisition, spacing, spacing)] == expected


@pytest.mark.parametrize(("kind", "snr"), [("iso2", 25), ("thick4", 25), ("thick4", 0)])
def test_simulation_makes_the_inputs_of_the_protocol(kind, snr, shared_dir, monkeypatch, scene):
    monkeypatch.syspath_prepend(str(shared_dir / "tools"))
    protocol = pytest.importorskip("sr_protocol")
    truth, _, mask = scene
    truth = ndimage.gaussian_filter(truth, 1.0)  # little at the Nyquist wave, as in a head
    expected, affine = protocol.degrade(truth, mask, np.eye(4), kind, snr, seed=7)
    factors = (2, 2, 2) if kind == "iso2" else (1, 1, 4)
    profiles = ("kspace",) * 3 if kind == "iso2" else ("kspace", "kspace", "box")

    got = simulate(truth, (1, 1, 1), factors, profiles=profiles, snr=snr, seed=7, mask=mask)

    # The protocol takes one magnitude of a chain of complex crops: alike to 0.1 % of the signal.
    assert np.sqrt(np.mean((got - expected) ** 2)) < 1e-3
    assert np.allclose(shared_field(truth.shape, np.eye(4), factors)[1], affine)


def test_the_operators_need_nothing_but_numpy():
    code = (
        "import sys, sr_engine.physics.forward_model;"
        "assert not {'scipy', 'torch', 'SimpleITK', 'highdicom', 'pydicom'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
