"""Displacements of low order are known in closed form; files are checked when read."""

from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume

from sr_engine.errors import UnsupportedInput
from sr_engine.physics.gradient_nonlinearity import (
    Coefficients,
    Term,
    displacement_map,
    displacement_mm,
    load_coefficients,
)

EXAMPLES = Path(__file__).parents[3] / "config" / "gradient_nonlinearity"
POINTS = np.random.default_rng(0).uniform(-120, 120, (50, 3))
X, Y, Z = POINTS.T
R0 = 200.0


def coil(*terms: Term, convention="unnormalised", axes="LPS", valid_radius_mm=250.0):
    return Coefficients(
        manufacturer="EXAMPLE",
        models=("PHANTOM SCANNER",),
        convention=convention,
        axes=axes,
        r0_mm=R0,
        valid_radius_mm=valid_radius_mm,
        terms=terms,
    )


def term(axis, degree, order, alpha=0.0, beta=0.0):
    return Term(axis=axis, l=degree, m=order, alpha=alpha, beta=beta)


CLOSED_FORMS = {
    "A10 scales z": (term("z", 1, 0, 0.01), "unnormalised", 0.01 * Z),
    "A11 scales x": (term("x", 1, 1, 0.01), "unnormalised", 0.01 * X),
    "B11 scales y": (term("y", 1, 1, 0.0, 0.01), "unnormalised", 0.01 * Y),
    "A11 of Siemens": (term("x", 1, 1, 0.01), "siemens", 0.01 * X),
    "A30 is cubic": (
        term("z", 3, 0, 0.1),
        "siemens",
        0.1 * (Z**3 - 1.5 * Z * (X**2 + Y**2)) / R0**2,
    ),
    "A31 is cubic": (
        term("x", 3, 1, 0.1),
        "unnormalised",
        0.1 * X * (6 * Z**2 - 1.5 * (X**2 + Y**2)) / R0**2,
    ),
    "A31 of Siemens": (
        term("x", 3, 1, 0.1),
        "siemens",
        0.1 / np.sqrt(6) * X * (6 * Z**2 - 1.5 * (X**2 + Y**2)) / R0**2,
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_low_orders_are_known_polynomials(name):
    one, convention, expected_mm = CLOSED_FORMS[name]

    got = displacement_mm(coil(one, convention=convention), POINTS)

    axis = "xyz".index(one.axis)
    assert np.allclose(got[:, axis], expected_mm, atol=1e-9)
    assert not np.delete(got, axis, axis=1).any()


def test_no_terms_move_nothing():
    assert not displacement_mm(coil(), POINTS).any()


def test_the_isocentre_stays():
    terms = [term(a, n, m, 0.1, 0.1) for a in "xyz" for n in (1, 3, 5) for m in range(n + 1)]

    assert np.allclose(displacement_mm(coil(*terms), np.zeros((1, 3))), 0)


def test_axes_of_the_coil_may_point_the_other_way():
    terms = (term("z", 2, 0, 0.1), term("x", 3, 1, 0.1))
    flipped = POINTS * [1, -1, -1]

    got = displacement_mm(coil(*terms, axes="LAI"), POINTS)

    assert np.allclose(got, displacement_mm(coil(*terms), flipped) * [1, -1, -1])


def test_beyond_the_radius_the_value_of_the_sphere_is_kept():
    known = coil(term("z", 5, 0, 0.1), valid_radius_mm=150.0)
    rim = np.array([[90.0, 0.0, 120.0]])

    assert np.allclose(displacement_mm(known, 3 * rim), displacement_mm(known, rim))


def volume_at(origin_mm=(-80.0, -90.0, -100.0), shape=(40, 60, 60)) -> Volume:
    affine = np.diag([4.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = origin_mm
    return Volume(np.zeros(shape, np.float32), affine, coordinate_system="PATIENT")


def map_of(volume, **changed):
    values = {
        "manufacturer": "EXAMPLE Imaging",
        "model": "Phantom Scanner",
        "image_types": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "coefficient_dir": EXAMPLES,
    }
    return displacement_map(volume, **(values | changed))


def test_the_map_is_the_displacement_at_every_voxel():
    volume = volume_at()
    coefficients = load_coefficients(EXAMPLES / "example-phantom-scanner.toml")
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    expected = displacement_mm(coefficients, index @ volume.affine[:3, :3].T + volume.affine[:3, 3])

    result = map_of(volume)

    assert result.status == "modelled" and result.valid
    assert result.displacement_mm.shape == (3, *volume.shape)
    assert result.displacement_mm.dtype == np.float32
    assert np.abs(np.moveaxis(result.displacement_mm, 0, -1) - expected).max() < 0.01
    assert 0.5 < np.abs(expected).max() < 20


def test_a_volume_far_from_the_isocentre_is_not_known():
    assert not map_of(volume_at((-80, -90, 150))).valid


@pytest.mark.parametrize("value", ["DIS2D", "DIS3D"])
def test_a_correction_by_the_scanner_is_believed(value):
    result = map_of(volume_at(), image_types=["ORIGINAL", "PRIMARY", "M", "NORM", value])

    assert (result.status, result.valid) == ("applied-by-scanner", True)
    assert value in result.reason and not result.displacement_mm.any()


@pytest.mark.parametrize(
    "changed", [{"model": "Other"}, {"manufacturer": ""}, {"coefficient_dir": None}]
)
def test_an_unknown_scanner_is_said_to_be_unknown(changed):
    result = map_of(volume_at(), **changed)

    assert (result.status, result.valid) == ("no-coefficients", False)
    assert not result.displacement_mm.any()


WRONG_LINES = {
    "unknown key": ('source = "', 'origin = "', "unknown key 'origin'"),
    "no radius": ("r0_mm = 250.0", "", "r0_mm"),
    "convention": ('"siemens"', '"ge"', "convention"),
    "axes": ('"LPS"', '"XYZ"', "axes"),
    "order above degree": ("m = 1", "m = 4", "l=3 m=4"),
    "negative radius": ("r0_mm = 250.0", "r0_mm = -1.0", "r0_mm"),
    "schema": ("schema = 1", "schema = 2", "schema"),
    "not a number": ("alpha = -0.045", "alpha = nan", "finite"),
    "text for a number": ("alpha = -0.045", 'alpha = "big"', "big"),
    "no TOML": ("schema = 1", "schema", "TOML"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_a_wrong_file_is_refused_with_its_name(name, tmp_path):
    good, bad, message = WRONG_LINES[name]
    text = (EXAMPLES / "example-phantom-scanner.toml").read_text()
    assert good in text
    path = tmp_path / "coil.toml"
    path.write_text(text.replace(good, bad))

    with pytest.raises(UnsupportedInput, match=message) as caught:
        load_coefficients(path)

    assert "coil.toml" in str(caught.value)
