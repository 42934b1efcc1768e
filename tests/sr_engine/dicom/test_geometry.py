"""The acquired resolution behind zero-filled pixels."""

import pydicom
import pytest

from sr_engine.dicom.geometry import acquired_voxel_mm

SQUARE = (1.5, 0.5, 0.5)  # 512 x 512 pixels of 0.5 mm: 256 mm


def header(rows=512, columns=512, **values):
    dataset = pydicom.Dataset()
    dataset.Rows, dataset.Columns = rows, columns
    dataset.MRAcquisitionType = "3D"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("values", "row_mm", "column_mm"),
    [
        # frequency along the columns (down), phase along the rows
        ({"AcquisitionMatrix": [0, 256, 256, 0]}, 1.0, 1.0),
        ({"AcquisitionMatrix": [0, 256, 200, 0]}, 1.0, 1.28),
        ({"AcquisitionMatrix": [256, 0, 0, 200]}, 1.28, 1.0),
        # the stated direction wins over the place of the zeros
        (
            {"AcquisitionMatrix": [0, 256, 200, 0], "InPlanePhaseEncodingDirection": "COL"},
            1.28,
            1.0,
        ),
        # 80 % phase field of view, padded to a square image
        ({"AcquisitionMatrix": [0, 256, 160, 0], "PercentPhaseFieldOfView": 80}, 1.0, 1.28),
        # nothing was zero-filled
        ({"AcquisitionMatrix": [0, 512, 512, 0]}, 0.5, 0.5),
        # not credible: no zeros, four zeros, finer than the pixels, far coarser
        ({"AcquisitionMatrix": [256, 256, 256, 256]}, 0.5, 0.5),
        ({"AcquisitionMatrix": [0, 0, 0, 0]}, 0.5, 0.5),
        ({"AcquisitionMatrix": [256, 256, 0, 0]}, 0.5, 0.5),
        ({"AcquisitionMatrix": [0, 1024, 1024, 0]}, 0.5, 0.5),
        ({"AcquisitionMatrix": [0, 64, 64, 0]}, 0.5, 0.5),
        ({}, 0.5, 0.5),
    ],
)
def test_in_plane_resolution_is_field_of_view_over_matrix(values, row_mm, column_mm):
    _, acquired_row, acquired_column = acquired_voxel_mm(header(**values), SQUARE)

    assert (acquired_row, acquired_column) == pytest.approx((row_mm, column_mm))


def test_a_rectangular_image_has_a_narrow_phase_field_of_view():
    narrow = header(columns=384, AcquisitionMatrix=[0, 256, 192, 0], PercentPhaseFieldOfView=75)

    assert acquired_voxel_mm(narrow, SQUARE)[1:] == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("rows", "columns", "direction", "matrix"),
    [
        (256, 208, "ROW", [256, 0, 0, 208]),
        (256, 208, "", [0, 256, 208, 0]),
        (208, 256, "COL", [256, 0, 0, 208]),
    ],
)
def test_a_rectangular_image_without_a_stated_fraction_shows_its_field_of_view(
    rows, columns, direction, matrix
):
    plain = header(rows, columns, AcquisitionMatrix=matrix, InPlanePhaseEncodingDirection=direction)

    assert acquired_voxel_mm(plain, (1.0, 1.0, 1.0))[1:] == (1.0, 1.0)


def test_a_rectangular_image_may_be_zero_filled():
    filled = header(512, 416, AcquisitionMatrix=[0, 256, 160, 0])

    assert acquired_voxel_mm(filled, SQUARE)[1:] == pytest.approx((1.0, 1.3))


@pytest.mark.parametrize(
    ("values", "slice_mm"),
    [
        ({"SliceThickness": 4, "MRAcquisitionType": "2D"}, 4.0),  # a gap, or an overlap
        ({"SliceThickness": 3}, 1.5),  # 3-D slices that overlap
        ({"SliceThickness": 1.2}, 1.2),
        ({"SliceThickness": None}, 1.5),
        ({}, 1.5),
    ],
)
def test_slice_resolution_is_the_thickness_or_the_distance(values, slice_mm):
    assert acquired_voxel_mm(header(**values), SQUARE)[0] == slice_mm
