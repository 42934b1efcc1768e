"""The volumes of a series that holds several: two echoes, two orientations.

Each is judged as the series it might have been. The job stands or falls with all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dicom_node.assembly.geometry import (
    SAME_DIRECTION,
    Geometry,
    InstanceHeader,
    Stack,
    axes,
    examine,
    measure,
    shown,
    stack_of,
    usual_distance_mm,
)
from dicom_node.assembly.summary import summarise
from dicom_node.rules import Decision, SeriesSummary, decide, too_few_slices
from dicom_node.settings import Settings
from sr_engine.dicom.sorting import SMALLEST_STACK, split


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What rules and geometry say of a series, of all its volumes together."""

    summary: SeriesSummary
    decision: Decision
    geometry: Geometry
    volumes: tuple[str, ...] = ()  # their names, none where the series is one


def opinion_of(instances: Sequence[InstanceHeader], settings: Settings) -> Opinion:
    """Return what rules and geometry say of a series."""
    stack = measure(instances)
    fewest, tolerance = settings.assembly.min_slices, settings.assembly.tolerance
    summary = summarise(instances, stack)
    decision = decide(summary, settings.rules, min_slices=fewest)
    parts = parts_of(stack)
    summaries = {name: summarise(part.images, part) for name, part in parts.items()}
    if not parts or any(too_few_slices(one, fewest) for one in summaries.values()):
        geometry = examine(instances, tolerance, stack)
        return Opinion(summary=summary, decision=decision, geometry=geometry)
    decisions = {
        name: decide(one, settings.rules, min_slices=fewest) for name, one in summaries.items()
    }
    slices = sum(one.slices for one in summaries.values())
    return Opinion(
        summary=replace(next(iter(summaries.values())), slices=slices),
        decision=joint_decision(decisions, decision),
        geometry=joint_geometry(examined(parts, instances, tolerance)),
        volumes=tuple(parts),
    )


def examined(
    parts: Mapping[str, Stack], instances: Sequence[InstanceHeader], tolerance: float
) -> dict[str, Geometry]:
    """Return for each volume whether it is one complete, uniform stack.

    What only the others can show, the places of another echo and a gap in the numbers, is looked
    at where each is whole by itself: a hole explains both.
    """
    found = {name: examine((), tolerance, part) for name, part in parts.items()}
    if all(one.complete for one in found.values()):
        found = {name: covering(name, parts) for name in parts}
    if all(one.complete for one in found.values()):
        found = {
            name: examine(counted(instances, part), tolerance, part) for name, part in parts.items()
        }
    return found


def covering(name: str, parts: Mapping[str, Stack]) -> Geometry:
    """Return whether a volume has a slice wherever another echo of its orientation has one."""
    part = parts[name]
    half_mm = usual_distance_mm(part) / 2
    for beside, other in parts.items():
        if not is_parallel(part, other):
            continue
        away_mm = np.abs(other.positions_mm[:, None] - part.positions_mm).min(axis=1)
        missing = other.positions_mm[away_mm > half_mm]
        if len(missing):
            what, them = ("slices", "them") if len(missing) > 1 else ("slice", "it")
            places = ", ".join(shown(missing))
            reason = f"{what} missing at {places} mm along the normal, where {beside} has {them}"
            return Geometry(complete=False, reason=reason, missing_mm=tuple(missing.tolist()))
    return Geometry(complete=True, reason="")


def is_parallel(one: Stack, other: Stack) -> bool:
    """Return whether two volumes have one orientation."""
    here, there = (axes(stack.images[0].header) for stack in (one, other))
    return here is not None and there is not None and np.abs(here - there).max() <= SAME_DIRECTION


def counted(instances: Sequence[InstanceHeader], part: Stack) -> Sequence[InstanceHeader]:
    """Return the images whose numbers show a lost one: of the whole series, unless each volume
    counts for itself.
    """
    numbers = [str(one.header.get("InstanceNumber")) for one in instances]
    return instances if len(set(numbers)) == len(numbers) else part.images


def parts_of(stack: Stack) -> dict[str, Stack]:
    """Return the volumes of a series by their names, {} where it is not several volumes.

    A hole in one does not make it less of a volume; an image at every position twice does.
    """
    found = split([one.header for one in stack.images])
    parts = {}
    for name, chosen in found.items():
        mine = set(chosen)
        part = stack_of(
            tuple(stack.images[index] for index in chosen),
            left_out=stack.left_out,
            left_out_words=stack.left_out_words,
            beside=tuple(one for index, one in enumerate(stack.images) if index not in mine),
        )
        if part.volumes > 1 or len(part.positions_mm) < SMALLEST_STACK:
            return {}
        parts[name] = part
    return parts


def joint_decision(decisions: Mapping[str, Decision], whole: Decision) -> Decision:
    """Return what becomes of a series by the decisions about its volumes.

    All of them are made, or none: the rules must treat them alike. What the rules would do with
    the series as one thing (`whole`) counts where that is to forward it.
    """
    first = next(iter(decisions.values()))
    actions = {one.action for one in decisions.values()}
    ways = {(one.action, one.to, one.priority, one.windows) for one in decisions.values()}
    rules = dict.fromkeys(one.rule for one in decisions.values() if one.rule)
    if whole.action == "forward" and not (len(ways) == 1 and actions <= {"enhance", "hold"}):
        return whole
    if len(ways) == 1 and actions != {"skip"}:
        return replace(first, rule=", ".join(rules))
    action = "hold" if "hold" in actions else "skip"
    head = {"hold": "Held", "skip": "Skipped"}[action]
    if len({one.reason for one in decisions.values()}) == 1:
        return first
    told = "; ".join(f"{name}: {in_brackets(one.reason)}" for name, one in decisions.items())
    unlike = "" if actions == {"skip"} else ", which the rules do not treat alike"
    reason = f"{head}: the series holds {len(decisions)} volumes{unlike} ({told})."
    return Decision(action=action, rule=", ".join(rules) or None, reason=reason)


def in_brackets(reason: str) -> str:
    """Return a sentence as a phrase."""
    return reason[:1].lower() + reason[1:].rstrip(".")


def joint_geometry(found: Mapping[str, Geometry]) -> Geometry:
    """Return whether every volume is one complete stack; what is wrong names the volumes."""
    wrong: dict[str, list[str]] = {}
    for name, one in found.items():
        if not one.complete:
            wrong.setdefault(one.reason, []).append(name)
    reason = "; ".join(f"{' and '.join(names)}: {words}" for words, names in wrong.items())
    missing = tuple(place for one in found.values() for place in one.missing_mm)
    return Geometry(complete=not wrong, reason=reason, missing_mm=missing)
