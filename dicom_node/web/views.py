"""What the pages show, made from what the store answers (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dicom_node.order import Place
from dicom_node.states import TRANSITIONS, HeldBy, JobState
from dicom_node.store import AuditRow, JobRow, Removal
from dicom_node.store.overview import Turnaround

LOOKS = {  # state -> colour class; the state itself always stands there as text
    JobState.RECEIVING: "busy",
    JobState.QUEUED: "busy",
    JobState.RUNNING: "busy",
    JobState.DERIVED: "busy",
    JobState.DELIVERED: "good",
    JobState.HELD: "look",
    JobState.DEAD: "bad",
    JobState.SKIPPED: "idle",
    JobState.CANCELLED: "idle",
    JobState.SUPERSEDED: "idle",
}
DELIVERY_LOOKS = {
    "PENDING": "busy",
    "SENT": "good",
    "COMMITTED": "good",
    "DEAD": "bad",
    "STOPPED": "idle",
}
MEANING = {  # what a state says where the job gives no reason
    JobState.RECEIVING: "Images are still arriving.",
    JobState.QUEUED: "Complete; waits for a worker.",
    JobState.RUNNING: "A worker computes the derived series.",
    JobState.DERIVED: "The derived series is ready and on its way.",
    JobState.DELIVERED: "Every destination has the derived series.",
    JobState.SUPERSEDED: "A late image has started a new job for this series.",
    JobState.CANCELLED: "Cancelled by a person.",
}
TOLD = {  # field of an audit row -> how the timeline says it
    "name": "by",
    "destination": "destination",
    "outcome": "outcome",
    "worker": "worker",
    "attempt": "attempt",
}
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


@dataclass(frozen=True, kw_only=True)
class Light:
    """One fact of the status strip."""

    name: str
    value: str
    look: str = "idle"


@dataclass(frozen=True, kw_only=True)
class DeliveryLine:
    """One destination of one derived series."""

    text: str
    look: str


@dataclass(frozen=True, kw_only=True)
class SeriesLine:
    """One row of the series table."""

    job_id: int
    series_uid: str
    modality: str
    description: str
    instances: int
    state: str
    look: str
    reason: str
    created_at: str
    age: str
    percent: int | None
    deliveries: tuple[DeliveryLine, ...]
    priority: str = "normal"
    queue: str = ""


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many series are in one state."""

    state: str
    series: int
    look: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One stage of the engine and its share of the whole."""

    name: str
    text: str
    percent: int


@dataclass(frozen=True, kw_only=True)
class TimelineEvent:
    """One audit row."""

    at: str
    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a person can do about a job, and the command for it."""

    text: str
    commands: tuple[str, ...]


def age_text(seconds: float) -> str:
    """Return a duration as a person says it: ``5 s``, ``12 min``, ``3 h``, ``2 d``."""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def bytes_text(count: float) -> str:
    """Return a size in decimal units: ``12.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def disk_text(health: Mapping[str, Any]) -> str:
    """Return the free space, and what is not done for want of it."""
    size = bytes_text(health["free_bytes"])
    if not health["free_enough_for_results"]:
        return f"{size}: images are refused, results wait"
    return size if health["free_enough"] else f"{size}: images are refused"


def clock_text(at: datetime) -> str:
    """Return date and time in UTC to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def percent_of(fraction: float | None) -> int | None:
    """Return a fraction as whole percent between 0 and 100; None stays None."""
    return None if fraction is None else round(100 * min(1.0, max(0.0, fraction)))


def delivery_line(row: Mapping[str, Any]) -> DeliveryLine:
    """Return the text of one element of ``deliveries`` of the listing."""
    state = str(row["state"])
    sent = f", {row['sent']} sent" if state in ("PENDING", "DEAD") and row.get("sent") else ""
    warned = f", {row['warned']} with a warning" if row["warned"] else ""
    failed = f", {row['failed']} failed" if row["failed"] else ""
    some = row.get("committed") and state != "COMMITTED"
    kept = f", {row['committed']} committed" if some else ""
    reason = f" ({row['reason']})" if row.get("reason") else ""
    what = f"{row['content']} to " if row.get("content") else ""
    text = f"{what}{row['destination']}: {state.lower()}{sent}{warned}{failed}{kept}{reason}"
    return DeliveryLine(text=text, look=DELIVERY_LOOKS.get(state, "idle"))


def queue_text(place: Place | None) -> str:
    """Return where a job stands in the queue, and what it waits for; "" for any other job."""
    if place is None:
        return ""
    if place.position is None:
        return f"waits for {place.waits_for}"
    return f"number {place.position} in the queue{', by its age' if place.aged else ''}"


def turnaround_text(late: Turnaround, limit_s: float) -> str:
    """Return how long results take."""
    limit = f" (limit {age_text(limit_s)})" if limit_s else ""
    if late.overdue:
        return f"{late.overdue} series late{limit}"
    if late.slowest_s is None:
        return f"no result within the hour{limit}"
    return f"slowest {age_text(late.slowest_s)} within the hour{limit}"


def series_line(row: Mapping[str, Any], now: datetime, place: Place | None = None) -> SeriesLine:
    """Return one row of the table."""
    state = JobState(row["state"])
    created: datetime = row["created_at"]
    running = state is JobState.RUNNING
    return SeriesLine(
        job_id=row["job_id"],
        series_uid=row["series_uid"],
        modality=row["modality"] or "?",
        description=row["description"] or "",
        instances=row["instances"],
        state=state.value,
        look=LOOKS[state],
        reason=row["reason"] or MEANING.get(state, ""),
        created_at=f"{clock_text(created)} UTC",
        age=age_text((now - created).total_seconds()),
        percent=percent_of(row.get("progress")) if running else None,
        deliveries=tuple(delivery_line(delivery) for delivery in row["deliveries"]),
        priority=row["priority"],
        queue=queue_text(place),
    )


def counts(states: Mapping[str, int]) -> list[Count]:
    """Return how many series each state holds, without the empty ones."""
    return [
        Count(state=state, series=series, look=LOOKS[JobState(state)])
        for state, series in states.items()
        if series
    ]


def timing_lines(timings_s: Mapping[str, float]) -> list[Timing]:
    """Return the stages in their order; the bar is each one's share of the sum."""
    whole = sum(timings_s.values()) or 1.0
    return [
        Timing(name=name, text=f"{seconds:.1f} s", percent=round(100 * seconds / whole))
        for name, seconds in timings_s.items()
    ]


def figure_lines(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers of the quality report, readable."""
    return [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
        if isinstance(value, int | float | str)
    ]


def advice(state: JobState, held_by: str | None, job_id: int, gone: int = 0) -> Advice | None:
    """Return what a person can do about a job that waits for one; None for the others.

    Of its images `gone` were deleted by retention.
    """
    cancel = f"dicom-node cancel {job_id}"
    release = f"dicom-node release {job_id}"
    if state is JobState.DEAD:
        again = f"dicom-node requeue {job_id}"
        text = "The received files are kept. To try again:"
        if gone:
            text = f"{gone} of its images were deleted. Send the series to this node again, then:"
        return Advice(text=text, commands=(again,))
    if state is not JobState.HELD:
        return None
    if held_by == HeldBy.GATE:
        text = "The release gate refused the result; it cannot be released. To put it aside:"
        return Advice(text=text, commands=(cancel,))
    text = {
        HeldBy.COMPLETENESS: "A late image reopens the series by itself. To compute without it:",
        HeldBy.QUALITY: "The result is kept and nothing was sent. To accept it, or put it aside:",
    }.get(HeldBy(held_by) if held_by else HeldBy.RULE, "To compute it, or put it aside:")
    return Advice(text=text, commands=(release, cancel))


def possible_decisions(state: JobState, held_by: str | None) -> tuple[str, ...]:
    """Return what a person can decide about a job at a button, in the order of the buttons.

    Processing a delivered series again is no button: that is deliberate work for the command line.
    """
    return tuple(
        event
        for event in ("release", "requeue", "cancel")
        if (state, event) in TRANSITIONS and not (event == "release" and held_by == HeldBy.GATE)
    )


def generation_text(job: JobRow) -> str:
    """Return which generation of its series a job is, or which one it is a note about."""
    if job.is_note:
        return f"rejection note about generation {-job.generation}"
    return f"generation {job.generation}"


def job_facts(job: JobRow, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a job, named, without what is not known."""
    facts = {
        "Job": f"{job.id}, {generation_text(job)}, attempts {job.attempts}",
        "Series": job.series_uid,
        "Study": row["study_uid"],
        "Images": f"{row['instances']} ({row['modality']})",
        "Received since": f"{clock_text(job.created_at)} UTC",
        "Last change": f"{clock_text(job.updated_at)} UTC",
        "Rule": job.rule,
        "Priority": job.priority,
        "Time windows": ", ".join(job.windows),
        "Queued since": f"{clock_text(job.queued_at)} UTC" if job.queued_at else None,
        "Withdrawn": f"{clock_text(job.withdrawn_at)} UTC" if job.withdrawn_at else None,
        "Destinations": ", ".join(job.destinations),
        "Held by": job.held_by.value if job.held_by else None,
        "Released incomplete": "yes" if job.incomplete_release else None,
        "Worker": job.worker,
        "At": job.stage if job.state is JobState.RUNNING else None,
        "Derived series": ", ".join(row.get("derived_series_uids", [])) or job.derived_series_uid,
        "Recipe": job.recipe_digest,
        "Weights": job.weights_sha256,
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def removal_facts(removals: Sequence[Removal]) -> list[tuple[str, str]]:
    """Return what retention has done to the files of a job."""
    names = {"originals": "Received files", "derived": "Result files"}
    facts = []
    for one in removals:
        done = f"deleted {clock_text(one.ended_at)} UTC" if one.ended_at else "being deleted"
        facts.append((names[one.kind], f"{done}: {one.reason}"))
    return facts


def timeline(rows: Sequence[AuditRow]) -> list[TimelineEvent]:
    """Return the audit trail of a job, oldest first."""
    return [
        TimelineEvent(
            at=clock_text(row.at),
            name=row.event.removeprefix("job."),
            text=timeline_text(row.fields),
        )
        for row in rows
    ]


def timeline_text(fields: Mapping[str, Any]) -> str:
    """Return the fields of an audit row in words."""
    named = [
        f"{label} {fields[name]}" for name, label in TOLD.items() if fields.get(name) is not None
    ]
    return " ".join(filter(None, [str(fields.get("reason") or ""), ", ".join(named)]))
