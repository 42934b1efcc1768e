"""Assembly: when is a series complete, what is missing, and what becomes of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from dicom_node import telemetry
from dicom_node.assembly import rejections
from dicom_node.assembly.geometry import Geometry, InstanceHeader, examine, measure
from dicom_node.assembly.parts import opinion_of, parts_of
from dicom_node.assembly.summary import summarise
from dicom_node.edges import failure_of
from dicom_node.errors import StoreUnavailable
from dicom_node.rules import RETURN_TO_SENDER, Decision, SeriesSummary
from dicom_node.settings import Settings
from dicom_node.states import HeldBy
from dicom_node.store import Announcement, Store

__all__ = [
    "Geometry",
    "InstanceHeader",
    "Verdict",
    "examine",
    "judge",
    "summarise",
    "tick",
    "volumes_of",
]

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a series that seems to have arrived: an event, with all its reasons."""

    event: str  # "enqueue", "forward", "hold" or "skip" of states.TRANSITIONS
    reason: str
    held_by: HeldBy | None
    decision: Decision
    geometry: Geometry
    summary: SeriesSummary
    destinations: tuple[str, ...]

    @property
    def columns(self) -> dict[str, Any]:
        """Return what the job's row keeps; a held job keeps where its release leads."""
        return {
            "rule": self.decision.rule,
            "priority": self.decision.priority,
            "windows": list(self.decision.windows),
            "destinations": list(self.destinations),
            "held_by": None if self.held_by is None else self.held_by.value,
        }


def judge(
    instances: Sequence[InstanceHeader],
    settings: Settings,
    callers: Collection[str] | None = None,
) -> Verdict:
    """Return what becomes of the series; `explain` and the live node both ask here.

    A rule that skips wins over a hole: what is not ours need not be complete. What lies beside the
    volume in one series (`sr_engine.dicom.sorting`) needs no rule, and is not computed from.

    Parameters
    ----------
    callers
        The titles under which the series came; None where nobody has sent it.
    """
    opinion = opinion_of(instances, settings)
    summary, decision, geometry = opinion.summary, opinion.decision, opinion.geometry
    destinations = settings.destinations(decision.to, callers)
    event, held_by, reason = "skip", None, decision.reason
    unreturned = nobody_to_return_to(decision, settings, callers)
    if decision.action == "forward" and destinations:
        event, reason = "forward", f"{decision.reason}{unreturned}"
    elif decision.action == "forward":
        reason = "Skipped: a rule says forward, and no destination is configured."
        reason = f"Skipped: a rule says forward.{unreturned}" if unreturned else reason
    elif decision.action == "enhance" and decision.to and not destinations:
        event, held_by = "hold", HeldBy.RULE
        reason = f"Held:{unreturned} A release computes the result and keeps it here."
    elif decision.action == "hold":
        event, held_by = "hold", HeldBy.RULE
    elif decision.action == "enhance" and not geometry.complete:
        event, held_by = "hold", HeldBy.COMPLETENESS
        reason = f"Held: {geometry.reason}."
    elif decision.action == "enhance":
        event = "enqueue"
        besides = f" Left out: {summary.left_out}." if summary.left_out else ""
        volumes = f" in {len(opinion.volumes)} volumes ({'; '.join(opinion.volumes)})"
        counted = f"{summary.slices} slices{volumes if opinion.volumes else ''}"
        ready = f"Complete with {counted}; waiting for a worker."
        reason = f"{ready}{besides}{unreturned}"
    return Verdict(
        event=event,
        reason=reason,
        held_by=held_by,
        decision=decision,
        geometry=geometry,
        summary=summary,
        destinations=() if event == "skip" else destinations,
    )


def nobody_to_return_to(
    decision: Decision, settings: Settings, callers: Collection[str] | None
) -> str:
    """Return a sentence where a rule returns to senders and none of them is a destination."""
    if not callers or RETURN_TO_SENDER not in decision.to:
        return ""
    if settings.destinations((RETURN_TO_SENDER,), callers):
        return ""
    who = " and ".join(sorted(callers))
    return f" Nothing goes back to {who}, which is no peer with the role destination."


def tick(store: Store, settings: Settings, now: datetime) -> list[int]:
    """Return the jobs that were decided: every series whose idle time has passed, or that is whole.

    Whole is a series of which an MPPS or an IAN names the instances, when all of them are here.
    """
    decided: list[int] = []

    def one(job_id: int, series_id: int) -> None:
        if settle(store, settings, job_id, series_id, now):
            decided.append(job_id)

    silent_since = now - timedelta(seconds=settings.assembly.idle_s)
    ready = dict.fromkeys([*store.hints.whole(), *store.series.receiving(silent_since, now)])
    for job_id, series_id in ready:
        error = failure_of(partial(one, job_id, series_id))
        if isinstance(error, StoreUnavailable):  # for the next series as well
            raise error
        if error:  # the others must not wait for this one
            log.error("series.undecided", job=job_id, exc_info=error)
            put_aside(store, job_id, error, now)
    return decided


def settle(store: Store, settings: Settings, job_id: int, series_id: int, now: datetime) -> bool:
    """Return whether the series was decided; a slice that came meanwhile makes that void."""
    rows = store.series.instances(series_id)
    headers = [InstanceHeader(sop_uid=row.sop_uid, header=row.header) for row in rows]
    gone = sum(row.removal_id is not None for row in rows)
    callers = {row.calling_ae for row in rows}
    heeded = rejections.heed(store, rows, now)
    verdict = with_what_is_here(judge(headers, settings, callers), gone, len(rows))
    verdict = with_what_was_announced(verdict, store.hints.about(series_id), headers)
    verdict = unless_rejected(verdict, rejections.rejected(store, series_id))
    reason, columns = " ".join(filter(None, [verdict.reason, heeded])), verdict.columns
    columns |= {"source": rows[-1].calling_ae}
    return store.jobs.decide(
        job_id, verdict.event, now, len(rows), gone=gone, reason=reason, **columns
    )


def put_aside(store: Store, job_id: int, error: Exception, now: datetime) -> None:
    """Hold a series that cannot be judged; where not even that can be done, it is tried again."""

    def hold() -> None:
        reason = (
            f"Held: series {store.jobs.get(job_id).series_uid} could not be judged "
            f"({type(error).__name__}, see the log lines with job {job_id}). Cancel it, or release "
            "it: the result is computed and stays here. A rejection note may not have been obeyed."
        )
        store.jobs.transition(job_id, "hold", now, reason=reason, held_by=HeldBy.COMPLETENESS)

    if failure := failure_of(hold):
        log.error("series.not_held", job=job_id, exc_info=failure)


def volumes_of(instances: Sequence[InstanceHeader]) -> dict[str, frozenset[str]]:
    """Return the SOP instances that hold each volume of a series, "" being that of only one."""
    stack = measure(instances)
    parts = parts_of(stack) or {"": stack}
    return {name: frozenset(one.sop_uid for one in part.images) for name, part in parts.items()}


def unless_rejected(verdict: Verdict, why: str) -> Verdict:
    """Return the verdict on a series of which images may have been rejected: it is not used."""
    if not why or verdict.event == "skip":
        return verdict
    return replace(verdict, event="skip", held_by=None, reason=f"Skipped: {why}.", destinations=())


def with_what_was_announced(
    verdict: Verdict, said: Sequence[Announcement], headers: Sequence[InstanceHeader]
) -> Verdict:
    """Return the verdict on a series of which somebody has named the instances.

    The geometry cannot show that a slice at an end is missing; a scanner's own list can.
    """
    here = {one.sop_uid for one in headers}
    lacking = [one for one in said if one.instances - here]
    if verdict.event != "enqueue" or not lacking:
        return verdict
    first = lacking[0]
    count = len(first.instances - here)
    reason = (
        f"Held: {count} of the {len(first.instances)} instances that the {first.source} of "
        f"{first.peer} names are not here."
    )
    return replace(verdict, event="hold", held_by=HeldBy.COMPLETENESS, reason=reason)


def with_what_is_here(verdict: Verdict, gone: int, received: int) -> Verdict:
    """Return the verdict on a series of which retention has deleted `gone` images.

    A late slice of an old series can be forwarded by itself, but nothing is computed from it.
    """
    deleted = f"{gone} of its {received} images were deleted by retention"
    if gone and verdict.event == "enqueue":
        reason = f"Held: {deleted}; send the whole series to this node again, or cancel."
        return replace(verdict, event="hold", held_by=HeldBy.COMPLETENESS, reason=reason)
    if gone and verdict.event == "hold":
        return replace(verdict, reason=f"{verdict.reason} {deleted}.")
    if gone and verdict.event == "forward":
        return replace(verdict, reason=f"{verdict.reason} {deleted} and are not sent again.")
    return verdict
