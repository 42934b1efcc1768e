"""Series with more than one thing inside: the volume that was meant, or why there is none."""

import pytest

from dicom_node.assembly import judge, volumes_of
from dicom_node.settings import make_settings
from tests.dicom_node.slices import AXIAL, ENHANCED, SAGITTAL, enhanced, slice_at, stack

ANY = make_settings({"rules": [{"name": "any", "action": "enhance"}]})
PLACES = range(20)


def copies(number: int = 100, places=PLACES, **changes):
    return [slice_at(float(place), number + i, **changes) for i, place in enumerate(places)]


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (copies(ImageType=["ORIGINAL", "PRIMARY", "P"]), "20 (phase, real or imaginary)"),
        (copies(ImageType=["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"]), "20 (phase, real or"),
        (copies(ComplexImageComponent="IMAGINARY"), "20 (phase, real or imaginary)"),
        (copies(places=[0, 5, 9], ImageOrientationPatient=SAGITTAL), "3 (in another orientation)"),
        (copies(ImageType=["DERIVED", "SECONDARY", "MPR"]), "20 (derived)"),
        (copies(places=[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "1 (localizer)"),
        (copies(places=[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.66"), "1 (no MR image)"),
    ],
)
def test_a_volume_is_taken_out_of_a_mixed_series(others, words):
    volume = stack(PLACES)

    verdict = judge([*others, *volume], ANY)

    assert verdict.event == "enqueue"
    assert f"Left out: {words}" in verdict.reason
    assert volumes_of([*others, *volume]) == {"": {one.sop_uid for one in volume}}


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        (
            [*stack(PLACES), *copies(places=range(12), ImageOrientationPatient=SAGITTAL)],
            "no single stack: they lie in 2 orientations with 20, 12 images",
        ),
        (  # the second echo is no volume of its own
            [*stack(PLACES), *copies(places=range(12), EchoTime=90.0)],
            "a multi-echo series (2 echo times)",
        ),
        (
            [*stack(PLACES), *copies(FlipAngle=30.0)],
            "2 images at every position, which differ in FlipAngle",
        ),
        (
            [*stack(PLACES, AcquisitionNumber=1), *copies(AcquisitionNumber=2)],
            "2 images at every position, which differ in AcquisitionNumber",
        ),
        (  # the second time point was cut off
            [*stack(PLACES), *copies(places=range(15), TemporalPositionIdentifier=2)],
            "2 images at every position",
        ),
        (stack(PLACES, tiles=36.0), "a mosaic (36 tiles in an image)"),
        (stack(PLACES, ImageType=["ORIGINAL", "PRIMARY", "VFRAME"]), "ImageType VFRAME"),
        (
            enhanced(PLACES, ComplexImageComponent="MIXED"),
            "without magnitude (ComplexImageComponent MIXED)",
        ),
    ],
)
def test_where_no_one_volume_is_meant_the_reason_says_what_there_is(slices, reason):
    verdict = judge(slices, ANY)

    assert verdict.event == "skip"
    assert reason in verdict.reason


def test_phase_frames_of_an_enhanced_object_do_not_count_as_announced_slices():
    (one,) = enhanced([*PLACES, *PLACES])
    for index, frame in enumerate(one.header["frames"]):
        frame["ComplexImageComponent"] = "MAGNITUDE" if index < len(PLACES) else "PHASE"

    verdict = judge([one], ANY)

    assert verdict.event == "enqueue"
    assert "Left out: 20 (phase, real or imaginary)." in verdict.reason


def test_several_enhanced_objects_make_one_stack():
    objects = [slice_at(float(p), i + 1, **ENHANCED, frames=[{}]) for i, p in enumerate(PLACES)]

    assert judge(objects, ANY).event == "enqueue"


def test_one_doubled_slice_is_held_and_named():
    verdict = judge([*stack(PLACES), slice_at(7.0, 99, ImageOrientationPatient=AXIAL)], ANY)

    assert verdict.event == "hold"
    assert "2 images at 7.0 mm" in verdict.reason


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (range(2, 22), "run from 1 to 21 and 1 is missing"),
        ([1, 3, *range(4, 22)], "run from 1 to 21 and 2 is missing"),
        (range(75, 95), ""),  # a part of an examination: nothing is known of its ends
        (range(1, 40, 2), ""),  # a scanner that counts in steps
        (range(0, 20), ""),
        ([*range(1, 20), 2**31 - 1], ""),  # nonsense, and no reason to count that far
    ],
)
def test_a_gap_in_the_instance_numbers_hints_at_a_lost_end_slice(numbers, words):
    slices = [slice_at(float(place), number) for place, number in zip(PLACES, numbers, strict=True)]

    verdict = judge(slices, ANY)

    assert verdict.event == ("hold" if words else "enqueue")
    assert words in verdict.reason


def test_private_counts_of_slices_announce_them():
    verdict = judge(stack(PLACES, locations=24.0), ANY)

    assert "20 of 24 announced slices are there" in verdict.reason


@pytest.mark.parametrize(
    ("step", "spacing", "event"),
    [(2, 1.0, "hold"), (1, 1.0, "enqueue"), (2, 2.0, "enqueue"), (3, 2.0 / 3, "hold")],
)
def test_every_second_slice_is_missed_although_the_places_are_even(step, spacing, event):
    slices = [
        slice_at(2.0 * index, 1 + step * index, SpacingBetweenSlices=spacing) for index in PLACES
    ]

    verdict = judge(slices, ANY)

    assert verdict.event == event
    assert event == "enqueue" or "slice is there: they are 2.00 mm apart" in verdict.reason
