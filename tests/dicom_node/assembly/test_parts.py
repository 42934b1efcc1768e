"""Series that hold several volumes: each is judged for itself, and all are made or none."""

import random

import pytest

from dicom_node.assembly import InstanceHeader, judge, volumes_of
from dicom_node.settings import Settings, make_settings
from dicom_node.states import HeldBy
from tests.dicom_node.slices import AXIAL, ENHANCED, SAGITTAL, slice_at, stack

ANY = make_settings({"rules": [{"name": "any", "action": "enhance"}]})
CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
TILTED = [1.0, 0.0, 0.0, 0.0, 0.94, 0.3412]  # axial, by twenty degrees
FIRST = range(20)


def turned(orientation, number=101, places=FIRST, **changes) -> list[InstanceHeader]:
    """Return a stack in another orientation, its slices along its own normal."""
    a, b, c, d, e, f = orientation
    normal = [b * f - c * e, c * d - a * f, a * e - b * d]
    return [
        slice_at(
            0.0,
            number + index,
            ImageOrientationPatient=orientation,
            ImagePositionPatient=[place * part for part in normal],
            **changes,
        )
        for index, place in enumerate(places)
    ]


def echo(te_ms, number=101, places=FIRST, **changes) -> list[InstanceHeader]:
    return turned(AXIAL, number, places, EchoTime=te_ms, **changes)


def uids(images) -> set[str]:
    return {one.sop_uid for one in images}


TWO_PLANES = {"axial": turned(AXIAL, 1), "sagittal": turned(SAGITTAL)}
TWO_ECHOES = {"TE 2.97 ms": turned(AXIAL, 1), "TE 9 ms": echo(9.0)}
SERIES = {
    "two planes": TWO_PLANES,
    "two echoes": TWO_ECHOES,
    "three planes": {
        "sagittal": turned(SAGITTAL, 1),
        "coronal": turned(CORONAL, 101),
        "axial": turned(AXIAL, 201),
    },
    "two planes of one name": {"axial 1": turned(AXIAL, 1), "axial 2": turned(TILTED)},
    "two planes with two echoes": {
        "axial, TE 2.97 ms": turned(AXIAL, 1),
        "axial, TE 9 ms": echo(9.0),
        "sagittal, TE 2.97 ms": turned(SAGITTAL, 201),
        "sagittal, TE 9 ms": turned(SAGITTAL, 301, EchoTime=9.0),
    },
    "two planes with an echo time each": {
        "axial": turned(AXIAL, 1),
        "sagittal": turned(SAGITTAL, EchoTime=9.0),
    },
}


@pytest.mark.parametrize("name", SERIES)
def test_volumes_are_told_apart_by_orientation_and_echo_time(name):
    parts = SERIES[name]
    images = [one for part in parts.values() for one in part]

    verdict = judge(images, ANY)

    assert verdict.event == "enqueue"
    told = f"{len(images)} slices in {len(parts)} volumes ({'; '.join(parts)}); waiting"
    assert verdict.reason == f"Complete with {told} for a worker."
    assert volumes_of(images) == {key: uids(part) for key, part in parts.items()}


@pytest.mark.parametrize("name", SERIES)
def test_names_and_their_order_do_not_depend_on_the_order_of_arrival(name):
    images = [one for part in SERIES[name].values() for one in part]
    shuffled = random.Random(5).sample(images, len(images))

    assert list(volumes_of(shuffled).items()) == list(volumes_of(images).items())


def test_what_lies_beside_the_volumes_is_left_out_and_named():
    phase = echo(2.97, 300, ImageType=["ORIGINAL", "PRIMARY", "P"])

    verdict = judge([*TWO_ECHOES["TE 2.97 ms"], *TWO_ECHOES["TE 9 ms"], *phase], ANY)

    assert verdict.event == "enqueue"
    assert "Left out: 20 (phase, real or imaginary)." in verdict.reason


# What is no complete volume beside another one stays with the reason that it always had.
NO_PARTS = {
    "a few slices in each of three orientations": (
        [*turned(AXIAL, 1, range(7)), *turned(SAGITTAL, 101, range(7))],
        "no single stack: they lie in 2 orientations with 7, 7 images",
    ),
    "one orientation of too few slices": (
        [*turned(AXIAL, 1), *turned(SAGITTAL, 101, range(12))],
        "2 orientations with 20, 12 images",
    ),
    "an echo twice": ([*turned(AXIAL, 1), *echo(9.0), *echo(9.0, 201)], "2 echo times"),
    "an image without echo time": (
        [*turned(AXIAL, 1), *echo(9.0), *echo(None, 201)],
        "2 echo times",
    ),
    "nine echoes": (
        [one for n in range(9) for one in echo(2.0 + n, 1 + 20 * n)],
        "9 echo times",
    ),
    "one stack whose slices state two echo times": (
        [*turned(AXIAL, 1), *echo(2.99, 101, range(20, 40))],
        "2 echo times",
    ),
    "one stack of odd and even slices": (
        [*turned(AXIAL, 1, range(0, 40, 2)), *echo(9.0, 101, range(1, 40, 2))],
        "2 echo times",
    ),
    "several time points": (
        [*turned(AXIAL, 1), *turned(AXIAL, 101, TemporalPositionIdentifier=2)],
        "2 images at every position",
    ),
    "Enhanced objects": (
        [*turned(AXIAL, 1, frames=[{}], **ENHANCED), *echo(9.0, frames=[{}], **ENHANCED)],
        "2 echo times",
    ),
    "time points of two orientations": (
        [
            *turned(AXIAL, 1, NumberOfTemporalPositions=5),
            *turned(SAGITTAL, NumberOfTemporalPositions=5),
        ],
        "5 images at every position",
    ),
}


@pytest.mark.parametrize("name", NO_PARTS)
def test_what_is_not_several_whole_volumes_stays_skipped(name):
    images, reason = NO_PARTS[name]

    verdict = judge(images, ANY)

    assert verdict.event == "skip"
    assert reason in verdict.reason


@pytest.mark.parametrize("parts", [TWO_PLANES, TWO_ECHOES], ids=["planes", "echoes"])
def test_a_hole_in_one_volume_holds_the_series_and_names_the_volume(parts):
    (_, whole), (name, other) = parts.items()

    verdict = judge([*whole, *other[:10], *other[11:]], ANY)

    assert (verdict.event, verdict.held_by) == ("hold", HeldBy.COMPLETENESS)
    assert verdict.reason == (
        f"Held: {name}: slice missing at 10.0 mm along the normal (between 9.0 and 11.0)."
    )


def test_one_doubled_slice_in_a_volume_is_held_and_named():
    verdict = judge([*turned(AXIAL, 1), *echo(9.0), *echo(9.0, 300, [7])], ANY)

    assert verdict.event == "hold"
    assert "Held: TE 9 ms: several images share a position: 2 images at 7.0 mm" in verdict.reason


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ([0], "slice missing at 0.0 mm along the normal, where TE 2.97 ms has it"),
        ([18, 19], "slices missing at 18.0, 19.0 mm along the normal, where TE 2.97 ms has them"),
    ],
)
def test_one_echo_shows_which_end_slices_the_other_lacks(lost, words):
    places = [place for place in FIRST if place not in lost]

    verdict = judge([*turned(AXIAL, 1), *echo(9.0, 101, places)], ANY)

    assert (verdict.event, verdict.held_by) == ("hold", HeldBy.COMPLETENESS)
    assert verdict.reason == f"Held: TE 9 ms: {words}."
    assert verdict.geometry.missing_mm == tuple(map(float, lost))


def test_a_volume_that_only_announces_enough_slices_is_held_not_skipped():
    few = {"ImagesInAcquisition": 16, "AcquisitionNumber": 2}

    verdict = judge([*turned(AXIAL, 1), *turned(SAGITTAL, 101, range(15), **few)], ANY)

    assert verdict.event == "hold"
    assert "Held: sagittal: 15 of 16 announced slices are there." in verdict.reason


def test_a_gap_in_the_numbers_of_all_volumes_hints_at_a_lost_end_slice():
    images = [*turned(AXIAL, 1), *turned(SAGITTAL, 21)]
    lost = [one for one in images if one.header["InstanceNumber"] != 20]

    assert judge(images, ANY).event == "enqueue"
    verdict = judge(lost, ANY)
    assert verdict.event == "hold"
    assert "Held: axial and sagittal: the numbers of the images run from 1 to 40" in verdict.reason


def test_volumes_that_count_for_themselves_have_their_own_gaps():
    first, second = turned(AXIAL, 1), turned(SAGITTAL, 1)
    second = [InstanceHeader(sop_uid=f"{one.sop_uid}.9", header=one.header) for one in second]

    assert judge([*first, *second], ANY).event == "enqueue"
    assert "Held: sagittal: the numbers" in judge([*first, *second[1:]], ANY).reason


def test_interleaved_echoes_do_not_look_thinned_out():
    """The numbers count in steps, and what is stated is the gap between slices, half a step."""
    images = [
        slice_at(2.0 * place, 1 + 2 * place + n, EchoTime=te_ms, SpacingBetweenSlices=1.0)
        for n, te_ms in enumerate([3.0, 9.0])
        for place in FIRST
    ]

    assert judge(images, ANY).event == "enqueue"


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        (20, ""),  # of one echo
        (40, ""),  # of both
        (21, "Held: TE 2.97 ms and TE 9 ms: 20 of 21 announced slices are there."),
        (42, "Held: TE 2.97 ms and TE 9 ms: 40 of 42 announced slices are there."),
    ],
)
def test_an_acquisition_may_announce_one_volume_or_all_of_them(announced, words):
    images = [
        *turned(AXIAL, 1, ImagesInAcquisition=announced),
        *echo(9.0, 21, ImagesInAcquisition=announced),
    ]

    verdict = judge(images, ANY)

    assert verdict.event == ("hold" if words else "enqueue")
    assert words in verdict.reason


# --- rules --------------------------------------------------------------------------------------


def spin_echo(te_ms, number, tr_ms=2500.0) -> list[InstanceHeader]:
    changes = {"ScanningSequence": "SE", "InversionTime": None, "RepetitionTime": tr_ms}
    return echo(te_ms, number, **changes)


PD_AND_T2 = [*spin_echo(15.0, 1), *spin_echo(90.0, 101)]
BOTH = {"name": "both", "when": {"contrast": ["PD", "T2"]}, "action": "enhance"}
PD = {"name": "PD", "when": {"contrast": ["PD"]}, "action": "enhance"}
T2 = {"name": "T2", "when": {"contrast": ["T2"]}, "action": "enhance"}
REST = {"name": "rest", "action": "forward"}


@pytest.mark.parametrize(
    ("rules", "event", "rule", "reason"),
    [
        ([BOTH], "enqueue", "both", "Complete with 40 slices in 2 volumes"),
        ([PD, T2], "enqueue", "PD, T2", "Complete with 40 slices in 2 volumes"),
        ([PD | {"priority": "urgent"}, T2], "skip", "PD, T2", "do not treat alike"),
        (
            [PD],
            "skip",
            "PD",
            "Skipped: the series holds 2 volumes, which the rules do not treat alike (TE 15 ms: "
            "enhanced: the rule 'PD' says so; TE 90 ms: skipped: no rule matches; the nearest is "
            "'PD', but contrast is T2, not PD).",
        ),
        ([PD | {"action": "hold"}, T2], "hold", "PD, T2", "Held: the series holds 2 volumes"),
        ([BOTH | {"action": "hold", "reason": "look"}], "hold", "both", "Held: look."),
        (
            [],
            "skip",
            None,
            "Skipped: no rule matches, and none would take any series.",
        ),
    ],
)
def test_the_rules_must_treat_all_volumes_alike(rules, event, rule, reason):
    verdict = judge(PD_AND_T2, make_settings({"rules": rules}))

    assert verdict.event == event
    assert verdict.decision.rule == rule
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("rules", "event"), [([BOTH, REST], "enqueue"), ([PD, REST], "forward"), ([REST], "forward")]
)
def test_a_series_that_is_not_computed_is_forwarded_as_one(rules, event):
    peers = [{"name": "pacs", "ae_title": "PACS", "host": "h", "roles": ["destination"]}]

    assert judge(PD_AND_T2, make_settings({"peers": peers, "rules": rules})).event == event


def test_a_reason_that_holds_for_all_volumes_is_said_once():
    images = [*turned(AXIAL, 1, MagneticFieldStrength=3.0)]
    images += turned(SAGITTAL, MagneticFieldStrength=3.0)

    verdict = judge(images, Settings())

    assert verdict.event == "skip"
    assert verdict.reason.startswith("Skipped: the field strength is 3 T")


def test_the_least_number_of_slices_is_asked_of_each_volume():
    images = [*turned(AXIAL, 1), *turned(SAGITTAL, places=range(12))]
    few = make_settings(
        {"rules": [{"name": "any", "action": "enhance"}], "assembly": {"min_slices": 12}}
    )

    assert judge(images, few).event == "enqueue"
    assert judge(stack(range(20)), few).reason.startswith("Complete with 20 slices; waiting")
