"""`dicom-node jobs`: every received series in a table; what needs a person stands last.

A terminal shows the end of what it prints: there are the series that wait for somebody, and one
line that says how things are.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dicom_node.cli.output import one_line, table
from dicom_node.order import NORMAL, Place
from dicom_node.states import JobState
from dicom_node.store.overview import Turnaround

HEAD = ("JOB", "STATE", "AGE", "PRIORITY", "QUEUE", "IMAGES", "DELIVERIES", "DESCRIPTION", "REASON")
NEEDS_PERSON = (JobState.HELD, JobState.DEAD)
UNDER_WAY = (JobState.RECEIVING, JobState.DERIVED, JobState.QUEUED, JobState.RUNNING)
GROUPS = {state: 1 for state in UNDER_WAY} | {state: 2 for state in NEEDS_PERSON}
DESCRIPTION_LENGTH = 24
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def lines_for_people(
    lines: Sequence[Mapping[str, Any]], queue: Sequence[Place], now: datetime
) -> str:
    """Return the table: what is over first, then what is under way, last what needs a person."""
    places = {place.job_id: place for place in queue}
    ordered = sorted(lines, key=lambda line: rank(line, places))
    rows = [to_cells(line, places.get(line["job_id"]), now) for line in ordered]
    return table([HEAD, *rows])


def rank(line: Mapping[str, Any], places: Mapping[int, Place]) -> tuple[int, int, int]:
    """Return by what lines are sorted: the queue's head stands below its tail."""
    state, place = JobState(line["state"]), places.get(line["job_id"])
    if place is None:
        steps = UNDER_WAY.index(state) if state in UNDER_WAY else 0
        return GROUPS.get(state, 0), steps, line["job_id"]
    behind = len(places) if place.position is None else place.position
    return GROUPS[state], UNDER_WAY.index(JobState.QUEUED), -behind


def to_cells(line: Mapping[str, Any], place: Place | None, now: datetime) -> tuple[str, ...]:
    """Return one series as the cells of the table."""
    reason = one_line(line["reason"])
    if place is not None and place.waits_for:
        reason = f"Waits for {place.waits_for}. {reason}"
    return (
        str(line["job_id"]),
        line["state"],
        age(now - line["created_at"]),
        line["priority"] if line["priority"] != NORMAL else "-",
        in_queue(place),
        str(line["instances"]),
        ", ".join(map(delivery, line["deliveries"])) or "-",
        (line["description"] or "-")[:DESCRIPTION_LENGTH],
        reason,
    )


def in_queue(place: Place | None) -> str:
    """Return where a job stands in the queue."""
    if place is None:
        return "-"
    return "waits" if place.position is None else str(place.position)


def delivery(row: Mapping[str, Any]) -> str:
    """Return how one delivery stands: ``pacs sent 176``, ``pacs pending 12``."""
    what = "note " if row.get("content") else ""
    failed = f" ({row['failed']} refused)" if row["failed"] else ""
    return f"{what}{row['destination']} {row['state'].lower()} {row['sent']}{failed}"


def age(passed: timedelta) -> str:
    """Return a duration as a person says it."""
    seconds = passed.total_seconds()
    for size, unit in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def summary(
    counts: Mapping[str, int],
    queue: Sequence[Place],
    sending: str,
    late: Turnaround,
) -> str:
    """Return how things are, in one line.

    Parameters
    ----------
    counts
        How many series stand in each state.
    """
    people = sum(counts[state] for state in NEEDS_PERSON)
    ready = sum(place.position is not None for place in queue)
    held_back = f" and {len(queue) - ready} held back" if len(queue) > ready else ""
    said = [
        f"{sum(counts.values())} series",
        f"{people} wait for a person" if people else "nothing waits for a person",
        f"{counts[JobState.RUNNING]} running",
        f"{ready} queued{held_back}",
        f"{counts[JobState.DERIVED]} being sent",
        f"sending {sending}",
    ]
    if late.overdue:
        said.append(f"{late.overdue} late")
    return "; ".join(said)
