"""What the page says of a delivery, and which buttons a job has."""

import pytest

from dicom_node.states import HeldBy, JobState
from dicom_node.web.views import delivery_line, possible_decisions


@pytest.mark.parametrize(
    ("state", "counts", "text"),
    [
        ("PENDING", (0, 0, 0, 0), "pacs: pending"),
        ("PENDING", (3, 0, 0, 2), "pacs: pending, 3 sent, 2 committed"),
        ("PENDING", (3, 1, 2, 0), "pacs: pending, 3 sent, 1 with a warning, 2 failed"),
        ("DEAD", (3, 0, 1, 0), "pacs: dead, 3 sent, 1 failed"),
        ("SENT", (4, 0, 0, 0), "pacs: sent"),
        ("SENT", (4, 4, 0, 1), "pacs: sent, 4 with a warning, 1 committed"),
        ("COMMITTED", (4, 0, 0, 4), "pacs: committed"),
    ],
)
def test_counts_of_a_delivery_are_shown(state, counts, text):
    row = dict(zip(("sent", "warned", "failed", "committed"), counts, strict=True))

    assert delivery_line(row | {"destination": "pacs", "state": state}).text == text


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
