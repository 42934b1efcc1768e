"""A short campaign of hostile input; `python -m tests.faults.fuzz` is the long one."""

import json
import random

from tests.faults.fuzz import run
from tests.faults.fuzz_report import report
from tests.faults.fuzz_script import LAYERS, Script
from tests.faults.fuzz_target import alarming


def test_hostile_input_harms_nobody(tmp_path):
    tally = run(tmp_path, exchanges=100, seed=7)

    assert not tally.failures, tally.failures
    assert tally.total >= 100 and tally.probes > 0
    assert {"0000", "C000"} <= tally.statuses.keys()  # it reaches intake, and is not all junk
    told = report(tally, "the command")
    assert [row["violations"] for row in told["rows"]] == [0] * len(told["rows"])
    assert json.loads(json.dumps(told))["details"]["seed"] == 7


def test_a_conversation_follows_from_seed_and_number():
    one, other = Script(11), Script(11)

    numbers = random.Random(5).sample(range(10**6), 24)
    said = [one.conversation(at) for at in numbers]

    assert said == [other.conversation(at) for at in numbers]
    assert {each.layer for each in said} == {layer.__name__ for layer in LAYERS}
    assert said != [Script(12).conversation(at) for at in numbers]


def test_our_own_code_in_a_trace_is_an_alarm():
    def line(*frames, **fields):
        trace = {"type": "KeyError", "message": "", "frames": frames}
        return json.dumps(
            {"event": "library.message", "level": "error", "exception": trace} | fields
        )

    theirs, ours = "/lib/pynetdicom/dul.py:1 run", "/src/dicom_node/intake.py:1 take_in"

    assert alarming(line(theirs, ours))
    assert not alarming(line(theirs))
    assert alarming(json.dumps({"event": "sender.failed", "level": "error"}))
