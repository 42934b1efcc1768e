"""When a series is complete, and what becomes of it; real series among them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicom_node.assembly import InstanceHeader, judge, summarise, tick
from dicom_node.headers import header_of
from dicom_node.settings import Settings, make_settings
from dicom_node.states import HeldBy, JobState
from dicom_node.store import NewInstance, open_store
from tests.dicom_node.slices import slice_at, stack

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
IDLE = timedelta(seconds=60)


# --- verdicts -----------------------------------------------------------------------------------


def test_a_complete_series_is_queued():
    verdict = judge(stack(range(20)), Settings())

    assert (verdict.event, verdict.held_by) == ("enqueue", None)
    assert verdict.reason == "Complete with 20 slices; waiting for a worker."


def test_a_hole_in_an_eligible_series_is_held_for_completeness():
    verdict = judge(stack([*range(10), *range(11, 21)]), Settings())

    assert (verdict.event, verdict.held_by) == ("hold", HeldBy.COMPLETENESS)
    assert verdict.reason == (
        "Held: slice missing at 10.0 mm along the normal (between 9.0 and 11.0)."
    )


def test_a_rule_that_skips_wins_over_a_hole():
    verdict = judge(stack([*range(10), *range(11, 21)], Modality="CT"), Settings())

    assert verdict.event == "skip"


@pytest.mark.parametrize(
    "slices",
    [
        [*stack(range(20)), slice_at(3, 99)],
        [*stack(range(20)), slice_at(3, 99, PixelSpacing=None)],
        stack(range(20), FrameOfReferenceUID=None),
    ],
)
def test_an_eligible_series_that_is_no_stack_is_held_not_lost(slices):
    assert judge(slices, Settings()).held_by == HeldBy.COMPLETENESS


def test_a_rule_may_hold_for_a_person():
    settings = make_settings({"rules": [{"name": "look", "action": "hold", "reason": "look"}]})

    verdict = judge(stack(range(20)), settings)

    assert (verdict.event, verdict.held_by, verdict.reason) == ("hold", HeldBy.RULE, "Held: look.")


RETURNING = {
    "peers": [
        {"name": "mr1", "ae_title": "MR1", "host": "h", "roles": ["source", "destination"]},
        {"name": "mr2", "ae_title": "MR2", "host": "h"},
        {"name": "pacs", "ae_title": "PACS", "host": "h", "roles": ["destination"]},
    ]
}
RULE = {"name": "any", "when": {"modality": ["MR"]}, "action": "enhance"}


@pytest.mark.parametrize(
    ("to", "callers", "event", "destinations", "words"),
    [
        (["@sender"], {"MR1"}, "enqueue", ("mr1",), "Complete"),
        (["@sender"], {"mr1"}, "enqueue", ("mr1",), "Complete"),  # a token's name
        (["@sender", "pacs"], {"MR1"}, "enqueue", ("pacs", "mr1"), "Complete"),
        (["@sender"], {"MR2"}, "hold", (), "Nothing goes back to MR2"),
        (["@sender"], {"SUBMIT"}, "hold", (), "Nothing goes back to SUBMIT"),
        (["@sender", "pacs"], {"MR2"}, "enqueue", ("pacs",), "Nothing goes back to MR2"),
        (["@sender"], None, "enqueue", ("@sender",), "Complete"),  # `explain`: nobody has sent it
        ([], {"MR2"}, "enqueue", ("mr1", "pacs"), "Complete"),
    ],
)
def test_a_rule_may_return_the_result_to_the_sender(to, callers, event, destinations, words):
    settings = make_settings(RETURNING | {"rules": [RULE | {"to": to}]})

    verdict = judge(stack(range(20)), settings, callers)

    assert (verdict.event, verdict.destinations) == (event, destinations)
    assert words in verdict.reason


def test_what_cannot_be_forwarded_back_is_skipped():
    settings = make_settings(
        RETURNING | {"rules": [RULE | {"action": "forward", "to": ["@sender"]}]}
    )

    assert judge(stack(range(20)), settings, {"MR1"}).event == "forward"
    verdict = judge(stack(range(20)), settings, {"MR2"})
    assert verdict.event == "skip" and "Nothing goes back to MR2" in verdict.reason


# --- real series --------------------------------------------------------------------------------

PD_RULE = {
    "name": "PD",
    "when": {"modality": ["MR"], "contrast": ["PD"], "field_strength_t": [1.4, 1.6]},
    "action": "enhance",
}
T1_3T_RULE = {
    "name": "3 T",
    "when": {"modality": ["MR"], "contrast": ["T1"], "field_strength_t": [2.9, 3.1]},
    "action": "enhance",
}
RULES = {
    "default": Settings(),
    "PD": make_settings({"rules": [PD_RULE]}),
    "3 T": make_settings({"rules": [T1_3T_RULE], "assembly": {"min_slices": 8}}),
    "any": make_settings(
        {"rules": [{"name": "any", "action": "enhance"}], "assembly": {"min_slices": 4}}
    ),
}
REAL = [
    ("p01", "default", "enqueue", "Complete with 27 slices"),
    ("p02", "default", "skip", "contrast PD is not enhanced by the default rules"),
    ("p02", "PD", "enqueue", "Complete with 20 slices"),
    ("p03", "default", "skip", "the field strength is 3 T"),
    ("p03", "3 T", "enqueue", "Complete with 35 slices"),
    ("p04", "default", "skip", "the field strength is 3 T"),
    ("p04", "3 T", "enqueue", "Complete with 96 slices"),
    ("p05", "default", "skip", "the field strength is 3 T"),
    ("p05", "3 T", "hold", "slice missing at 29.5 mm along the normal (between 28.5 and 30.5)"),
    ("p06", "default", "skip", "the field strength is 3 T"),
    ("p06", "3 T", "enqueue", "Complete with 20 slices"),
    ("p20", "any", "skip", "mosaic (ImageType MOSAIC)"),
    ("p21", "any", "skip", "multi-volume series (5 images at every position)"),
    ("p22", "any", "skip", "mosaic (ImageType MOSAIC)"),
    ("p23", "any", "skip", "diffusion series (b value 1500)"),
    ("p24", "any", "skip", "phase or other images without magnitude (ImageType P)"),
    ("p25", "any", "skip", "multi-echo series (3 echo times)"),
    ("p26", "any", "skip", "localizer (the description says 'survey')"),
    ("p27", "any", "skip", "localizer (the description says '3-plane')"),
    ("p28", "any", "skip", "Secondary Capture Image Storage"),
    ("p29", "any", "skip", "the modality is CT, not MR"),
    ("p30", "any", "skip", "the modality is SR, not MR"),
    ("p31", "any", "skip", "4 images at every position, which differ in TemporalPosition"),
    ("p32", "default", "skip", "only 8 slices"),
    ("p32", "any", "hold", "FrameOfReferenceUID is missing"),
    ("p33", "default", "skip", "only 4 slices"),
    ("p33", "any", "hold", "FrameOfReferenceUID is missing"),
    ("p34", "default", "skip", "no single stack: they lie in 2 orientations"),
    ("p34", "any", "skip", "no single stack: they lie in 2 orientations"),
    ("p35", "default", "skip", "the field strength is 3 T"),
    ("p35", "3 T", "hold", "14 of 130 announced slices are there"),
    ("p36", "any", "skip", "derived, not acquired (ImageType DERIVED/SECONDARY/OTHER)"),
    ("p37", "any", "skip", "localizer (the description says 'localizer')"),
    ("p38", "any", "skip", "localizer (the description says 'scout')"),
    ("p39", "any", "skip", "only 1 slice"),
]


def headers_of(folder: Path) -> list[InstanceHeader]:
    """Return the headers of the DICOM files in `folder`, as the live node keeps them."""
    found = {}
    for path in sorted(folder.iterdir()):
        try:
            dataset = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if "SOPInstanceUID" in dataset:
            header = header_of(dataset)
            found[path.name] = InstanceHeader(sop_uid=str(dataset.SOPInstanceUID), header=header)
    return list(found.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "rules", "event", "reason"), REAL)
def test_real_series_get_the_right_verdict(shared_series, name, rules, event, reason):
    verdict = judge(headers_of(shared_series(name)), RULES[rules])

    assert verdict.event == event, verdict.reason
    assert reason in verdict.reason


@pytest.mark.filterwarnings("ignore")
def test_jittering_orientations_of_a_real_series_are_one(shared_series):
    assert summarise(headers_of(shared_series("p35"))).orientations == 1


@pytest.mark.filterwarnings("ignore")
def test_gauss_of_a_real_scanner_are_tesla(shared_series):
    assert summarise(headers_of(shared_series("p27"))).field_strength_t == pytest.approx(1.5)


# --- the clock ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"sqlite:///{tmp_path / 'node.db'}")
    yield opened
    opened.close()


def receive(store, slices, now=NOW, series_uid="1.2.3"):
    for one in slices:
        recorded = store.series.record_instance(
            NewInstance(
                sop_uid=f"{series_uid}{one.sop_uid}",
                sop_class=one.header["SOPClassUID"],
                series_uid=series_uid,
                study_uid="1.2",
                modality="MR",
                description="",
                path=Path("in/one.dcm"),
                bytes=1,
                sha256="a",
                attributes_sha256=one.sop_uid,
                transfer_syntax="1.2.840.10008.1.2.1",
                calling_ae="SCANNER",
                header=one.header,
            ),
            now,
        )
    return store.jobs.get(recorded.job_id)


def test_a_series_waits_until_its_idle_time_has_passed(store):
    job = receive(store, stack(range(20)))

    assert tick(store, Settings(), NOW + IDLE - timedelta(seconds=1)) == []
    assert tick(store, Settings(), NOW + IDLE) == [job.id]
    assert tick(store, Settings(), NOW + 2 * IDLE) == []


def test_a_complete_series_goes_to_the_queue_with_its_destinations(store):
    peers = [{"name": "pacs", "ae_title": "PACS", "host": "h", "roles": ["destination"]}]
    rules = [{"name": "r", "action": "enhance", "to": ["pacs"], "priority": "urgent"}]
    job = receive(store, stack(range(20)))

    tick(store, make_settings({"peers": peers, "rules": rules}), NOW + IDLE)

    job = store.jobs.get(job.id)
    assert (job.state, job.rule, job.priority) == (JobState.QUEUED, "r", "urgent")
    assert job.destinations == ("pacs",)


def test_an_incomplete_series_is_held_until_the_late_slice_comes(store):
    job = receive(store, stack([*range(10), *range(11, 21)]))
    tick(store, Settings(), NOW + IDLE)
    held = store.jobs.get(job.id)
    assert (held.state, held.held_by) == (JobState.HELD, HeldBy.COMPLETENESS)
    assert "10.0 mm" in held.reason

    receive(store, [slice_at(10, 99)], NOW + 2 * IDLE)
    tick(store, Settings(), NOW + 3 * IDLE)

    assert store.jobs.get(job.id).state == JobState.QUEUED
    assert len(store.jobs.of_series("1.2.3")) == 1


def test_a_late_slice_after_the_claim_gives_a_second_judgement(store):
    job = receive(store, stack(range(20)))
    tick(store, Settings(), NOW + IDLE)
    store.jobs.claim("w", NOW + IDLE, IDLE)

    late = receive(store, [slice_at(20, 99)], NOW + IDLE)
    tick(store, Settings(), NOW + 2 * IDLE)

    assert store.jobs.get(job.id).state == JobState.SUPERSEDED
    assert store.jobs.get(late.id).state == JobState.QUEUED


def test_a_foreign_series_is_skipped_with_the_reason(store):
    job = receive(store, stack(range(20), Modality="CT"))

    tick(store, Settings(), NOW + IDLE)

    job = store.jobs.get(job.id)
    assert (job.state, job.reason) == (JobState.SKIPPED, "Skipped: the modality is CT, not MR.")


def test_each_series_has_its_own_clock(store):
    first = receive(store, stack(range(20)))
    receive(store, stack(range(20)), NOW + IDLE, series_uid="1.2.4")

    assert tick(store, Settings(), NOW + IDLE) == [first.id]


def test_a_slice_that_arrives_during_the_look_makes_the_decision_void(store, monkeypatch):
    job = receive(store, stack(range(20)))

    def judge_while_receiving(headers, settings, callers):
        verdict = judge(headers, settings, callers)
        receive(store, [slice_at(20, 99)], NOW + IDLE)
        return verdict

    monkeypatch.setattr("dicom_node.assembly.judge", judge_while_receiving)

    assert tick(store, Settings(), NOW + IDLE) == []
    assert store.jobs.get(job.id).state == JobState.RECEIVING


def test_a_series_that_cannot_be_judged_is_held_and_keeps_no_other_waiting(store):
    """Whatever is wrong with it: here the row of a header is no header."""
    bad = receive(store, stack(range(20)))
    good = receive(store, stack(range(20)), series_uid="1.2.4")
    with store.database.transaction() as work:
        work.connection.exec_driver_sql("UPDATE instance SET header = '7' WHERE id = 1")

    assert tick(store, Settings(), NOW + IDLE) == [good.id]

    held = store.jobs.get(bad.id)
    assert (held.state, held.held_by) == (JobState.HELD, HeldBy.COMPLETENESS)
    assert "series 1.2.3 could not be judged (AttributeError" in held.reason
    assert store.jobs.get(good.id).state == JobState.QUEUED


def test_a_series_that_cannot_even_be_held_keeps_no_other_waiting(store):
    bad = receive(store, stack(range(20)))
    good = receive(store, stack(range(20)), series_uid="1.2.4")
    with store.database.transaction() as work:
        work.connection.exec_driver_sql("UPDATE instance SET header = '7' WHERE id = 1")
        work.connection.exec_driver_sql(
            "CREATE TRIGGER nobody BEFORE UPDATE ON job WHEN new.state = 'HELD' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )

    assert tick(store, Settings(), NOW + IDLE) == [good.id]
    assert store.jobs.get(bad.id).state == JobState.RECEIVING
