"""The one interpolation leaves every point of the patient where it was."""

import numpy as np
import pytest
from highdicom import Volume
from scipy import ndimage

from sr_engine.errors import GeometryError, UnsupportedInput
from sr_engine.physics.resample import grid_like, interpolate, target_grid


def oblique(spacing_mm, origin_mm=(-40.0, -50.0, -30.0), angle=0.3) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, s], [0, -s, c]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = origin_mm
    return affine


def volume_of(array, affine) -> Volume:
    return Volume(array.astype(np.float32), affine, coordinate_system="PATIENT")


def positions_lps(shape, affine) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def blob(shape, affine, centre_mm, width_mm) -> np.ndarray:
    apart = positions_lps(shape, affine) - centre_mm
    return np.exp(-0.5 * (apart**2).sum(axis=-1) / width_mm**2)


def centroid_mm(array, affine) -> np.ndarray:
    weights = np.asarray(array, float)
    return (positions_lps(array.shape, affine) * weights[..., None]).sum((0, 1, 2)) / weights.sum()


@pytest.mark.parametrize("spacing_mm", [(3.0, 0.9, 0.8), (1.0, 1.0, 1.0), (5.0, 0.45, 0.45)])
def test_a_point_of_the_patient_stays_in_place(spacing_mm):
    shape = tuple(round(60 / mm) for mm in spacing_mm)
    affine = oblique(spacing_mm)
    centre = affine[:3, :3] @ (np.array(shape) / 2 + [0.3, 0.2, 0.1]) + affine[:3, 3]
    source = volume_of(blob(shape, affine, centre, 1.3 * max(spacing_mm)), affine)

    grid = target_grid(source, spacing_mm=0.7, acquired_voxel_mm=spacing_mm)
    result = interpolate(source, grid)

    assert np.linalg.norm(centroid_mm(result.array, result.affine) - centre) < 0.01


def test_a_point_stays_in_place_between_oblique_grids():
    shape, affine = (40, 40, 40), oblique((1.5, 1.5, 1.5))
    centre = affine[:3, :3] @ [20.3, 19.6, 20.1] + affine[:3, 3]
    source = volume_of(blob(shape, affine, centre, 3.0), affine)
    other = grid_like(oblique((1.0, 1.1, 1.2), centre - 28, angle=-0.2), (70, 70, 70))

    result = interpolate(source, other)

    expected = blob(other.shape, other.affine, centre, 3.0)
    assert np.abs(result.array - expected).max() < 0.01
    assert np.linalg.norm(centroid_mm(result.array, result.affine) - centre) < 0.02


def test_both_ways_are_scipys_cubic_spline():
    array = np.random.default_rng(0).random((9, 20, 24))
    source = volume_of(array, oblique((3.0, 0.9, 0.8)))
    grid = target_grid(source, spacing_mm=0.7, acquired_voxel_mm=(3.0, 0.9, 0.8))

    index = np.linalg.inv(source.affine) @ grid.affine
    grid_index = np.indices(grid.shape).reshape(3, -1)
    expected = ndimage.map_coordinates(
        array, index[:3, :3] @ grid_index + index[:3, 3:], order=3, mode="mirror"
    )

    assert np.abs(interpolate(source, grid).array.ravel() - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("spacing_mm", "acquired_mm", "expected_mm"),
    [
        ((3.0, 0.9, 0.8), (3.0, 0.9, 0.8), (0.7, 0.7, 0.7)),
        ((3.0, 0.45, 0.45), (3.0, 0.45, 0.45), (0.7, 0.45, 0.45)),
        ((1.0, 0.45, 0.45), (1.0, 0.9, 0.9), (0.7, 0.7, 0.7)),  # zero-filled by the scanner
        ((5.0, 1.0, 1.0), (4.0, 1.0, 1.0), (0.7, 0.7, 0.7)),  # with a gap
    ],
)
def test_target_grid_covers_the_field_of_view_and_loses_nothing(
    spacing_mm, acquired_mm, expected_mm
):
    source = volume_of(np.zeros((11, 30, 41)), oblique(spacing_mm))

    grid = target_grid(source, spacing_mm=0.7, acquired_voxel_mm=acquired_mm)

    assert np.allclose(grid.spacing_mm, expected_mm)
    corner = [-0.5, -0.5, -0.5, 1]
    assert np.allclose(grid.affine @ corner, source.affine @ corner)
    over_mm = np.array(grid.shape) * grid.spacing_mm - np.array(source.shape) * spacing_mm
    assert (over_mm > -1e-4).all() and (over_mm < grid.spacing_mm).all()


def test_a_grid_that_no_memory_holds_is_refused():
    micrometres = (1.5, 937.5, 937.5)
    source = volume_of(np.zeros((11, 30, 41)), oblique(micrometres))

    with pytest.raises(UnsupportedInput, match=r"937\.5 mm ask for .* x 40179 x 54911 voxels"):
        target_grid(source, spacing_mm=0.7, acquired_voxel_mm=micrometres)


def test_an_axis_that_is_fine_enough_is_copied():
    array = np.random.default_rng(0).random((5, 12, 12))
    source = volume_of(array, oblique((0.7, 0.5, 0.5)))

    grid = target_grid(source, spacing_mm=0.7, acquired_voxel_mm=(0.7, 0.5, 0.5))

    assert grid.shape == source.shape
    assert np.array_equal(interpolate(source, grid).array, source.array)


def test_nothing_is_invented_outside_the_field_of_view():
    source = volume_of(np.ones((10, 10, 10)), np.eye(4))
    affine = np.eye(4)
    affine[0, 3] = -5

    result = interpolate(source, grid_like(affine, (20, 10, 10)))

    assert not result.array[:4].any() and not result.array[16:].any()
    assert np.allclose(result.array[5:15], 1)


@pytest.mark.parametrize(
    ("affine", "shape"),
    [
        (np.zeros((4, 4)), (4, 4, 4)),
        (np.full((4, 4), np.nan), (4, 4, 4)),
        (np.eye(4), (4, 0, 4)),
        (np.eye(4), (4, 4)),
    ],
)
def test_an_impossible_grid_is_refused(affine, shape):
    with pytest.raises(GeometryError):
        grid_like(affine, shape)
