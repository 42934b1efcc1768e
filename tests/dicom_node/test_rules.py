"""Refusals, rules as data, and reasons that an administrator understands."""

from dataclasses import replace

import pytest

from dicom_node.rules import (
    CONDITIONS,
    Decision,
    SeriesSummary,
    decide,
    parse_conditions,
    parse_contrast,
)
from dicom_node.settings import RuleSettings, Settings

BRAIN = SeriesSummary(
    modality="MR",
    storage="MR",
    body_part="head",
    contrast="T1",
    acquisition="3D",
    field_strength_t=1.5,
    slices=120,
)
DEFAULT = Settings().rules


def rule(**values) -> RuleSettings:
    return RuleSettings(**{"name": "mine", "action": "enhance"} | values)


def test_a_t1_brain_of_1_5_t_is_enhanced_by_default():
    decision = decide(BRAIN, DEFAULT)

    assert (decision.action, decision.rule) == ("enhance", "1.5 T T1 brain")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"own_output": "ImageType AI_SR"}, "this is our own output (ImageType AI_SR)"),
        ({"modality": "CT"}, "the modality is CT, not MR"),
        ({"storage": "Secondary Capture Image Storage"}, "are Secondary Capture Image Storage"),
        ({"mixed": "MR as MR and MR as Raw"}, "the series mixes MR as MR and MR as Raw"),
        ({"localizer": "ImageType LOCALIZER"}, "this is a localizer (ImageType LOCALIZER)"),
        ({"mosaic": "ImageType MOSAIC"}, "this is a mosaic (ImageType MOSAIC)"),
        ({"derived": "ImageType DERIVED/PRIMARY"}, "derived, not acquired (ImageType DERIVED"),
        ({"phase": "ImageType P"}, "phase or other images without magnitude (ImageType P)"),
        ({"colour": "RGB"}, "in colour (RGB)"),
        ({"diffusion": "b value 1000"}, "a diffusion series (b value 1000)"),
        ({"echoes": 3}, "a multi-echo series (3 echo times)"),
        ({"volumes": 4}, "a multi-volume series (4 images at every position)"),
        ({"slices": 15}, "only 15 slices, and assembly.min_slices asks for 16"),
        ({"slices": 1}, "only 1 slice, and"),
        ({"slices": 4, "orientations": 2}, "only 4 slices in 2 orientations"),
    ],
)
def test_a_refusal_names_what_it_saw_and_no_rule_lifts_it(change, reason):
    decision = decide(replace(BRAIN, **change), [rule()])

    assert (decision.action, decision.rule) == ("skip", None)
    assert decision.reason.startswith("Skipped: ") and decision.reason.endswith(".")
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (
            {"field_strength_t": None},
            "field strength not stated",
            "Skipped: MagneticFieldStrength is absent, so nothing shows that this is a 1.5 T "
            "series.",
        ),
        (
            {"field_strength_t": 3.0},
            "another field strength",
            "Skipped: the field strength is 3 T; the default rules enhance 1.5 T (1.4 to 1.6).",
        ),
        (
            {"contrast": "PD"},
            "another contrast",
            "Skipped: contrast PD is not enhanced by the default rules.",
        ),
        (
            {"contrast": "FLAIR"},
            "another contrast",
            "Skipped: contrast FLAIR is not enhanced by the default rules.",
        ),
        (
            {"contrast": "unknown"},
            None,
            "Skipped: no rule matches; the nearest is '1.5 T T1 brain', but contrast is unknown, "
            "not T1.",
        ),
        (
            {"body_part": "knee"},
            None,
            "Skipped: no rule matches; the nearest is '1.5 T T1 brain', but body_part is knee, "
            "not head or unknown.",
        ),
    ],
)
def test_the_default_rules_skip_the_rest_with_the_reason(change, name, reason):
    decision = decide(replace(BRAIN, **change), DEFAULT)

    assert decision == Decision(action="skip", rule=name, reason=reason)


@pytest.mark.parametrize(
    ("field_strength_t", "action"),
    [(1.4, "enhance"), (1.494, "enhance"), (1.6, "enhance"), (1.39, "skip"), (1.61, "skip")],
)
def test_a_range_includes_its_ends(field_strength_t, action):
    assert decide(replace(BRAIN, field_strength_t=field_strength_t), DEFAULT).action == action


def test_a_site_may_admit_pd():
    pd = rule(when={"modality": ["MR"], "contrast": ["PD"], "field_strength_t": [1.4, 1.6]})

    assert decide(replace(BRAIN, contrast="PD"), [pd]).action == "enhance"
    assert "contrast is T1, not PD" in decide(BRAIN, [pd]).reason


def test_the_first_rule_that_matches_decides():
    rules = [rule(name="a", action="hold"), rule(name="b", to=("pacs",), priority="urgent")]

    assert decide(BRAIN, rules).rule == "a"
    assert decide(BRAIN, rules[::-1]).to == ("pacs",)
    assert decide(BRAIN, rules[::-1]).priority == "urgent"


def test_not_excludes():
    excluding = rule(**{"not": {"manufacturer": ["acme"]}})

    assert decide(replace(BRAIN, manufacturer="Siemens"), [excluding]).action == "enhance"
    decision = decide(replace(BRAIN, manufacturer="ACME"), [excluding])
    assert decision.reason.endswith("but manufacturer is ACME, which the rule excludes.")


def test_a_number_that_is_absent_is_in_no_range():
    thick = rule(when={"slice_thickness_mm": [3, 10]})

    assert "slice_thickness_mm is absent, not 3 to 10" in decide(BRAIN, [thick]).reason


def test_announced_slices_count_as_slices():
    assert decide(replace(BRAIN, slices=10, expected_slices=120), [rule()]).action == "enhance"


def test_without_a_rule_every_series_is_skipped():
    assert decide(BRAIN, []).reason == "Skipped: no rule matches, and none would take any series."


REFUSED = replace(BRAIN, localizer="ImageType LOCALIZER", slices=3)


def test_what_the_engine_refuses_can_still_be_forwarded():
    rules = [rule(), rule(name="on", action="forward", to=("pacs",))]

    assert decide(BRAIN, rules).action == "enhance"
    decision = decide(REFUSED, rules)
    assert (decision.action, decision.rule, decision.to) == ("forward", "on", ("pacs",))
    assert decision.reason == "Forwarded: the rule 'on' says so."


def test_a_rule_that_skips_before_wins_over_forward():
    rules = [rule(action="skip"), rule(name="on", action="forward")]

    assert decide(REFUSED, rules).reason == "Skipped: this is a localizer (ImageType LOCALIZER)."


def test_our_own_results_are_never_forwarded():
    own = replace(BRAIN, own_output="ImageType AI_SR")

    assert decide(own, [rule(action="forward")]).action == "skip"


@pytest.mark.parametrize("action", ["enhance", "forward", "hold", "skip"])
def test_a_rule_without_words_still_gives_a_sentence(action):
    reason = decide(BRAIN, [rule(action=action)]).reason

    assert reason.endswith(": the rule 'mine' says so.")


def test_a_reason_may_name_values():
    holding = rule(action="hold", reason="{slices} slices of {slice_thickness_mm} mm")

    assert decide(BRAIN, [holding]).reason == "Held: 120 slices of absent mm."


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"patient_name": ["x"]}, "unknown condition"),
        ({"own_output": ["x"]}, "unknown condition"),
        ({"modality": []}, "list of texts"),
        ({"modality": [1]}, "list of texts"),
        ({"slices": [1]}, "[low, high]"),
        ({"slices": ["a", "b"]}, "[low, high]"),
        ({"slices": [True, False]}, "[low, high]"),
        ({"slices": "many"}, "[low, high]"),
        ({"field_strength_t": [2, 1]}, "2 is above 1"),
        ({"contrast": ["T5"]}, "one of T1, T2"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(conditions, words):
    with pytest.raises(ValueError) as refused:
        parse_conditions(conditions)

    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "contrast"),
    [("T1w", "T1"), ("t1-weighted", "T1"), ("PDW", "PD"), ("flair", "FLAIR"), ("T2*w", "T2*")],
)
def test_contrasts_are_understood_as_people_write_them(text, contrast):
    assert parse_contrast(text) == contrast


def test_every_condition_is_part_of_the_summary():
    assert set(CONDITIONS) < set(vars(BRAIN))
