"""The table of states is closed, and knows the ways that people and workers need."""

import pytest

from dicom_node.errors import IllegalTransition
from dicom_node.states import FINAL, TRANSITIONS, JobState, next_state


@pytest.mark.parametrize(("state", "event"), TRANSITIONS)
def test_every_row_of_the_table_is_a_way(state, event):
    assert next_state(state, event) is TRANSITIONS[state, event]


def test_a_way_that_is_not_in_the_table_is_refused_by_name():
    with pytest.raises(IllegalTransition, match="'claim' is not allowed in state DELIVERED"):
        next_state(JobState.DELIVERED, "claim")


def test_every_state_can_be_reached():
    assert set(TRANSITIONS.values()) == set(JobState)


def test_nothing_leads_out_of_superseded():
    ways = {after for (state, _), after in TRANSITIONS.items() if state == JobState.SUPERSEDED}

    assert ways <= {JobState.SUPERSEDED}


def test_what_is_under_way_can_be_cancelled():
    under_way = set(JobState) - FINAL

    assert {state for state, event in TRANSITIONS if event == "cancel"} == under_way


def test_a_final_state_is_left_only_by_a_late_slice_a_person_or_a_withdrawal():
    leaving = {event for state, event in TRANSITIONS if state in FINAL}

    assert leaving == {"receive", "requeue", "resend", "supersede", "withdraw", "readdress"}


@pytest.mark.parametrize("state", JobState)
def test_every_state_can_be_withdrawn_and_none_is_delivered_after_it(state):
    after = next_state(state, "withdraw")

    assert after in (JobState.CANCELLED, JobState.SUPERSEDED)
    assert not {(after, "deliver"), (after, "derive"), (after, "release")} & TRANSITIONS.keys()


@pytest.mark.parametrize("state", [s for s in JobState if s != JobState.SUPERSEDED])
def test_every_state_takes_a_late_slice_somehow(state):
    if state != JobState.RECEIVING:
        assert {(state, "receive"), (state, "supersede")} & TRANSITIONS.keys()
