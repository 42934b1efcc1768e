"""`dicom-node jobs` for people: what needs one stands last, above a line that sums it up."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.cli.listing import lines_for_people, summary
from dicom_node.order import Place
from dicom_node.states import JobState
from dicom_node.store.overview import Turnaround

NOW = datetime(2026, 3, 4, 3, 0, tzinfo=UTC)
SENT = {"destination": "pacs", "state": "SENT", "sent": 176, "failed": 0}


def line(job_id: int, state: str, **changes) -> dict:
    values = {
        "job_id": job_id, "state": state, "instances": 176, "description": "t1 mprage",
        "reason": "So it is.", "priority": "normal", "deliveries": [],
        "created_at": NOW - timedelta(minutes=12),
    }  # fmt: skip
    return values | changes


@pytest.fixture
def lines():
    return [
        line(1, "DEAD", reason="The archive\nrefused it."),
        line(2, "DELIVERED", deliveries=[SENT]),
        line(3, "QUEUED", priority="low"),
        line(4, "QUEUED"),
        line(5, "QUEUED", priority="urgent"),
        line(6, "RUNNING", created_at=NOW + timedelta(seconds=9)),
        line(7, "CANCELLED", deliveries=[SENT, SENT | {"content": "rejection note", "sent": 1}]),
    ]


QUEUE = [
    Place(job_id=5, position=1),
    Place(job_id=4, position=2),
    Place(job_id=3, position=None, waits_for="its time window, 22:00-06:00"),
]


def test_what_needs_a_person_stands_last_and_the_head_of_the_queue_below_its_tail(lines):
    head, *rows = lines_for_people(lines, QUEUE, NOW).splitlines()

    assert head.split()[0] == "JOB"
    assert [row.split()[0] for row in rows] == ["2", "7", "3", "4", "5", "6", "1"]
    shown = {row.split()[0]: " ".join(row.split()) for row in rows}
    assert shown["1"] == "1 DEAD 12 min - - 176 - t1 mprage The archive refused it."
    assert "pacs sent 176, note pacs sent 1" in shown["7"]
    assert shown["5"].startswith("5 QUEUED 12 min urgent 1 176")
    assert "low waits" in shown["3"]
    assert "Waits for its time window, 22:00-06:00. So it is." in shown["3"]
    assert shown["6"].startswith("6 RUNNING 0 s")


def test_the_last_line_says_how_things_are(lines):
    counts = Counter({state.value: 0 for state in JobState})
    counts.update(line["state"] for line in lines)
    late = Turnaround(overdue=2, late=0, slowest_s=None)

    said = summary(counts, QUEUE, "OFF", late)

    assert said == (
        "7 series; 1 wait for a person; 1 running; 2 queued and 1 held back; 0 being sent; "
        "sending OFF; 2 late"
    )
