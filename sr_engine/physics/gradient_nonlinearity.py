"""Where the gradients put a point instead of where it is: spherical harmonics of the coil.

A coefficient file per scanner model (TOML, see config/gradient_nonlinearity/README.md) holds what
the vendor states. Displacements are warped minus true position, in mm about the isocentre, LPS.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from highdicom import Volume
from scipy.special import lpmv

from sr_engine.errors import UnsupportedInput
from sr_engine.physics.bspline import interpolation_matrix

SCHEMA = 1
HIGHEST_DEGREE = 20
CORRECTED = ("DIS2D", "DIS3D", "GDC", "GDC2D", "GDC3D")  # of ImageType: the scanner did it
COARSE_MM = 8.0  # the map is a polynomial of low degree: this fine a grid holds it
BEYOND = 4  # points of that grid beyond the volume on each side
WITHIN = 0.95  # share of the volume that must lie within the radius the coefficients hold for
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
KEYS = {
    "schema",
    "manufacturer",
    "models",
    "convention",
    "axes",
    "r0_mm",
    "valid_radius_mm",
    "source",
    "terms",
}

Convention = Literal["siemens", "unnormalised"]
Status = Literal["applied-by-scanner", "no-coefficients", "modelled"]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One spherical harmonic of the displacement along one axis of the coil.

    Adds ``r0 (r / r0)^l P_lm(cos theta) (alpha cos(m phi) + beta sin(m phi))``.
    """

    axis: Literal["x", "y", "z"]
    l: int  # noqa: E741  the degree is l in every paper
    m: int
    alpha: float
    beta: float


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The gradient coil of some scanner models.

    Attributes
    ----------
    convention
        Normalisation of the Legendre functions.
    axes
        Patient directions of the coil's x, y and z, e.g. ``LPS`` or ``LAI``, head first supine.
    """

    manufacturer: str
    models: tuple[str, ...]
    convention: Convention
    axes: str
    r0_mm: float
    valid_radius_mm: float
    terms: tuple[Term, ...]


@dataclass(frozen=True, kw_only=True)
class GradientMap:
    """The displacement (3, k, i, j) in mm, LPS, float32; zeros unless `status` is modelled.

    `valid` says whether the map is known: zeros are the truth after a correction by the scanner,
    and mere absence of knowledge without coefficients.
    """

    displacement_mm: np.ndarray
    valid: bool
    status: Status
    reason: str


def load_coefficients(path: Path) -> Coefficients:
    """Return the coefficients of a file.

    Raises
    ------
    UnsupportedInput
        If the file is no TOML, a key is unknown or missing, or a value impossible.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnsupportedInput(f"{path.name}: not a TOML file: {error}") from error
    try:
        return _coefficients(table)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UnsupportedInput(f"{path.name}: {problem}") from error


def _coefficients(table: dict[str, Any]) -> Coefficients:
    _only(table, KEYS, "the file")
    if table["schema"] != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}, not {table['schema']!r}")
    if table["convention"] not in ("siemens", "unnormalised"):
        raise ValueError(
            f"convention must be 'siemens' or 'unnormalised', not {table['convention']!r}"
        )
    _signs(table["axes"])
    r0_mm, radius_mm = float(table["r0_mm"]), float(table["valid_radius_mm"])
    for name, value in (("r0_mm", r0_mm), ("valid_radius_mm", radius_mm)):
        if not 0 < value < 1000:
            raise ValueError(f"{name} must be between 0 and 1000 mm, not {value}")
    if not isinstance(table["models"], list) or not table["models"]:
        raise ValueError("models must be a list with at least one ManufacturerModelName")
    return Coefficients(
        manufacturer=str(table["manufacturer"]),
        models=tuple(str(model) for model in table["models"]),
        convention=table["convention"],
        axes=table["axes"],
        r0_mm=r0_mm,
        valid_radius_mm=radius_mm,
        terms=tuple(_term(entry) for entry in table.get("terms", [])),
    )


def _term(entry: dict[str, Any]) -> Term:
    _only(entry, {"axis", "l", "m", "alpha", "beta"}, "a term")
    degree, order = entry["l"], entry["m"]
    if entry["axis"] not in ("x", "y", "z"):
        raise ValueError(f"axis must be x, y or z, not {entry['axis']!r}")
    if not (isinstance(degree, int) and isinstance(order, int)):
        raise ValueError(f"l and m must be whole numbers, not {degree!r} and {order!r}")
    if not 0 <= order <= degree <= HIGHEST_DEGREE:
        raise ValueError(f"0 <= m <= l <= {HIGHEST_DEGREE} does not hold for l={degree} m={order}")
    alpha, beta = float(entry.get("alpha", 0.0)), float(entry.get("beta", 0.0))
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise ValueError(f"alpha and beta must be finite, not {alpha} and {beta}")
    return Term(axis=entry["axis"], l=degree, m=order, alpha=alpha, beta=beta)


def _only(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in {where}")


def _signs(axes: str) -> np.ndarray:
    """Return +1 or -1 an axis: patient LPS to the coil's axes and back."""
    pairs = zip(axes, "LPS", strict=False)
    if len(axes) != 3 or any(a not in (b, OPPOSITE[b]) for a, b in pairs):
        raise ValueError(f"axes must be three of L/R, P/A, S/I in this order, not {axes!r}")
    return np.array([1.0 if a == b else -1.0 for a, b in zip(axes, "LPS", strict=True)])


def legendre(degree: int, order: int, x: np.ndarray, convention: Convention) -> np.ndarray:
    """Return P_lm(x) without the Condon-Shortley phase, normalised as `convention` says.

    ``siemens``: times ``sqrt(2 (l - m)! / (l + m)!)`` for m > 0 (Schmidt); ``unnormalised``: as is.
    """
    value = (-1.0) ** order * lpmv(order, degree, x)  # scipy's has the phase
    if convention == "siemens" and order > 0:
        ratio = math.factorial(degree - order) / math.factorial(degree + order)
        value = value * math.sqrt(2 * ratio)
    return value


def displacement_mm(coefficients: Coefficients, points_lps_iso_mm: np.ndarray) -> np.ndarray:
    """Return warped minus true position of points (..., 3) about the isocentre, mm, LPS.

    Beyond the radius for which the coefficients hold, the value on its sphere is kept: the
    polynomials grow without bound there.

    Source: Janke 2004; Jovicich 2006, equation 2.
    """
    signs = _signs(coefficients.axes)
    points = np.asarray(points_lps_iso_mm, float) * signs
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    r = np.sqrt(x**2 + y**2 + z**2)
    cos_theta = np.divide(z, r, out=np.ones_like(r), where=r > 0)
    phi = np.arctan2(y, x)
    reach = np.minimum(r, coefficients.valid_radius_mm) / coefficients.r0_mm
    out = np.zeros(points.shape)
    for term in coefficients.terms:
        angle = term.alpha * np.cos(term.m * phi) + term.beta * np.sin(term.m * phi)
        harmonic = legendre(term.l, term.m, cos_theta, coefficients.convention) * angle
        out[..., "xyz".index(term.axis)] += coefficients.r0_mm * reach**term.l * harmonic
    return out * signs


def displacement_map(
    volume: Volume,
    *,
    manufacturer: str,
    model: str,
    image_types: Sequence[str],
    coefficient_dir: Path | None,
) -> GradientMap:
    """Return the displacement of every voxel, or why there is none.

    The isocentre is taken for the origin of the patient coordinates, as scanners set it.

    Parameters
    ----------
    image_types
        Values of ImageType of all instances.

    Raises
    ------
    UnsupportedInput
        If a coefficient file is damaged.
    """
    nothing = np.zeros((3, *volume.spatial_shape), np.float32)
    done = [value for value in image_types if value.upper() in CORRECTED]
    if done:
        return GradientMap(
            displacement_mm=nothing,
            valid=True,
            status="applied-by-scanner",
            reason=f"the scanner has corrected it: ImageType {done[0]}",
        )
    found = _find(coefficient_dir, manufacturer, model)
    if found is None:
        return GradientMap(
            displacement_mm=nothing,
            valid=False,
            status="no-coefficients",
            reason=f"no coefficient file for {manufacturer or 'unknown'} {model or 'scanner'}",
        )
    return _modelled(volume, *found)


def _modelled(volume: Volume, coefficients: Coefficients, name: str) -> GradientMap:
    coarse, matrices = _coarse_positions(volume)
    inner = slice(BEYOND, -BEYOND)
    distance = np.linalg.norm(coarse[inner, inner, inner], axis=-1)
    within = float((distance <= coefficients.valid_radius_mm).mean())
    field = displacement_mm(coefficients, coarse).astype(np.float32)
    for axis, matrix in enumerate(matrices):
        field = np.moveaxis(np.tensordot(matrix, field, (1, axis)), 0, axis)
    return GradientMap(
        displacement_mm=np.ascontiguousarray(np.moveaxis(field, -1, 0)),
        valid=within >= WITHIN,
        status="modelled",
        reason=f"{name}, {within:.0%} of the volume within {coefficients.valid_radius_mm:g} mm",
    )


def _coarse_positions(volume: Volume) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return points of a coarse grid (..., 3) in mm and the matrices from it to the volume.

    The grid reaches beyond the volume: the spline mirrors at its ends, which a polynomial does not.
    """
    index, matrices = [], []
    for n, mm in zip(volume.spatial_shape, volume.spacing, strict=True):
        step = COARSE_MM / mm
        count = math.ceil((n - 1) / step) + 1 + 2 * BEYOND
        index.append(step * (np.arange(count) - BEYOND))
        positions = np.arange(n) / step + BEYOND
        matrices.append(interpolation_matrix(count, positions).astype(np.float32))
    grid = np.stack(np.meshgrid(*index, indexing="ij"), axis=-1)
    return grid @ volume.affine[:3, :3].T + volume.affine[:3, 3], matrices


def _find(directory: Path | None, manufacturer: str, model: str) -> tuple[Coefficients, str] | None:
    """Return the coefficients of a scanner model and their file's name."""
    if directory is None:
        return None
    for path in sorted(directory.glob("*.toml")):
        candidate = load_coefficients(path)
        same_maker = candidate.manufacturer.casefold() in manufacturer.casefold()
        if same_maker and model.casefold() in (name.casefold() for name in candidate.models):
            return candidate, path.name
    return None
