"""One even stack, or the sentence that says what is wrong with it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.assembly import examine, summarise
from dicom_node.settings import Settings
from tests.dicom_node.slices import AXIAL, SAGITTAL, enhanced, slice_at, stack

TOLERANCE = Settings().assembly.tolerance


@pytest.mark.parametrize("step_mm", [0.9, 1.5, 6.972])
def test_an_even_stack_is_complete(step_mm):
    assert examine(stack(np.arange(20) * step_mm), TOLERANCE).complete


def test_the_order_of_arrival_does_not_matter():
    shuffled = stack([3, 0, 2, 1, 5, 4])

    assert examine(shuffled, TOLERANCE).complete


def test_a_hole_is_named_by_its_place_and_its_neighbours():
    geometry = examine(stack([-33, -18, -3, 27, 42]), TOLERANCE)

    assert geometry.missing_mm == (12.0,)
    assert geometry.reason == "slice missing at 12.0 mm along the normal (between -3.0 and 27.0)"


def test_every_missing_position_is_named():
    geometry = examine(stack([0, 3, 12, 15, 21]), TOLERANCE)

    assert geometry.missing_mm == (6.0, 9.0, 18.0)
    assert geometry.reason == (
        "slices missing at 6.0, 9.0 mm along the normal (between 3.0 and 12.0); "
        "slice missing at 18.0 mm along the normal (between 15.0 and 21.0)"
    )


@given(
    count=st.integers(8, 40),
    step_mm=st.floats(0.5, 10),
    start_mm=st.floats(-200, 200),
    hole=st.integers(1, 38),
    angle=st.floats(-1.0, 1.0),
    jitter=st.floats(0, 0.001),
)
def test_one_slice_left_out_is_found_at_its_place(count, step_mm, start_mm, hole, angle, jitter):
    hole = min(hole, count - 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = [1.0, 0.0, 0.0, 0.0, cosine, sine]
    normal = np.cross(turned[:3], turned[3:])
    wobble = np.random.default_rng(count).uniform(-jitter, jitter, count) * step_mm
    places = start_mm + np.arange(count) * step_mm + wobble
    slices = [
        slice_at(0.0, i, ImageOrientationPatient=turned, ImagePositionPatient=list(normal * place))
        for i, place in enumerate(places)
    ]

    assert examine(slices, TOLERANCE).complete
    (missing,) = examine(slices[:hole] + slices[hole + 1 :], TOLERANCE).missing_mm
    assert missing == pytest.approx(places[hole], abs=0.01 * step_mm)


@pytest.mark.parametrize("jitter", [1e-8, 1e-4])
def test_orientations_that_jitter_in_the_last_digits_are_one(jitter):
    rng = np.random.default_rng(0)
    slices = [
        slice_at(i, i, ImageOrientationPatient=list(AXIAL + rng.uniform(-jitter, jitter, 6)))
        for i in range(20)
    ]

    assert examine(slices, TOLERANCE).complete
    assert summarise(slices).orientations == 1


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        (
            [*stack([0, 1, 2]), slice_at(3, 9, ImageOrientationPatient=SAGITTAL)],
            "the slices have 2 orientations, so they are no single stack",
        ),
        (
            stack([0, 1, 1, 2]),
            "several images share a position: 2 images at 1.0 mm along the normal",
        ),
        (
            stack([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
            "several images share a position: 2 images at 0.0, 2 images at 1.0, 2 images at 2.0 "
            "mm along the normal and 2 more",
        ),
        (stack([0, 1, 2, 3.4, 4.4, 5.4]), "not evenly spaced: the distances run from 1.00 to 1.40"),
        (stack([0, 3, 6, 6.05, 9]), "not evenly spaced: the distances run from 0.05 to 3.00"),
        (stack([0, 1, 1e9]), "not evenly spaced"),
        (stack([5]), "one slice is no stack"),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, Rows=128)],
            "the slices differ in Rows: 128 and 256",
        ),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, FrameOfReferenceUID="1.2.10")],
            "the slices differ in FrameOfReferenceUID: 2 values",
        ),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, PixelSpacing=[0.5, 0.5])],
            "the slices differ in PixelSpacing",
        ),
        (
            [*stack([0, 1, 2]), slice_at(0, 9, ImagePositionPatient=[-90.0, -120.0, 3.0])],
            "the slices are shifted against each other by up to 10.0 mm",
        ),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, ImagePositionPatient=None)],
            "ImagePositionPatient is missing or no 3 numbers in instance 1.2.3.9",
        ),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, PixelSpacing=[1.0])],
            "PixelSpacing is missing or no 2 numbers in instance 1.2.3.9",
        ),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, ImagePositionPatient=[0, 0, "nan"])],
            "ImagePositionPatient is missing or no 3 numbers in instance 1.2.3.9",
        ),
        (
            [*stack([0, 1, 2]), slice_at(3, 9, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])],
            "ImageOrientationPatient is no pair of axes in instance 1.2.3.9",
        ),
    ],
)
def test_what_is_no_stack_is_said(slices, reason):
    geometry = examine(slices, TOLERANCE)

    assert not geometry.complete
    assert geometry.missing_mm == ()
    assert reason in geometry.reason


def test_announced_slices_that_are_not_there_are_counted():
    geometry = examine(stack(range(18), ImagesInAcquisition=20), TOLERANCE)

    assert geometry.reason == "18 of 20 announced slices are there"


@pytest.mark.parametrize(
    "slices",
    [
        stack(range(20), ImagesInAcquisition=20),
        stack(range(20), ImagesInAcquisition=1),  # an acquisition of one slice each
        stack(range(20), ImagesInAcquisition=40),  # magnitude and phase share an acquisition
        stack(range(20), ImagesInAcquisition="many"),
        [slice_at(i, i + 1, ImagesInAcquisition=99, AcquisitionNumber=i) for i in range(20)],
    ],
)
def test_an_announcement_that_cannot_be_this_series_is_not_believed(slices):
    assert examine(slices, TOLERANCE).complete


def test_an_enhanced_object_is_a_stack_of_its_frames():
    geometry = examine(enhanced(range(20)), TOLERANCE)

    assert geometry.complete
    assert summarise(enhanced(range(20))).slices == 20


def test_an_enhanced_object_with_too_few_frames_is_incomplete():
    geometry = examine(enhanced(range(20), NumberOfFrames=24), TOLERANCE)

    assert geometry.reason == "20 of 24 announced slices are there"
