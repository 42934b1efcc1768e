"""What the page says of a delivery, and which buttons a job has."""

import pytest

from dicom_node.states import HeldBy, JobState
from dicom_node.web.views import delivery_line, possible_decisions


@pytest.mark.parametrize(
    ("state", "sent", "committed", "text"),
    [
        ("PENDING", 0, 0, "pacs: pending"),
        ("PENDING", 3, 2, "pacs: pending, 3 sent, 2 committed"),
        ("SENT", 4, 0, "pacs: sent"),
        ("SENT", 4, 1, "pacs: sent, 1 committed"),
        ("COMMITTED", 4, 4, "pacs: committed"),
    ],
)
def test_counts_of_a_delivery_are_shown(state, sent, committed, text):
    row = {"destination": "pacs", "state": state, "sent": sent, "committed": committed}

    assert delivery_line(row).text == text


@pytest.mark.parametrize(
    ("state", "held_by", "decisions"),
    [
        (JobState.HELD, HeldBy.QUALITY, ("release", "cancel")),
        (JobState.HELD, HeldBy.GATE, ("cancel",)),
        (JobState.QUEUED, None, ("cancel",)),
        (JobState.DEAD, None, ("requeue",)),
        (JobState.DELIVERED, None, ()),
    ],
)
def test_a_button_is_what_the_states_allow(state, held_by, decisions):
    assert possible_decisions(state, held_by) == decisions
