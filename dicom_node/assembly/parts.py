"""The volumes of a series that holds several: two echoes, two orientations.

Each is judged as the series it might have been. The job stands or falls with all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dicom_node.assembly.geometry import (
    Geometry,
    InstanceHeader,
    Stack,
    examine,
    measure,
    stack_of,
)
from dicom_node.assembly.summary import summarise
from dicom_node.rules import Decision, SeriesSummary, decide
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
    fewest = settings.assembly.min_slices
    summary = summarise(instances, stack)
    decision = decide(summary, settings.rules, min_slices=fewest)
    parts = parts_of(stack)
    if not parts or any(len(part.positions_mm) < fewest for part in parts.values()):
        geometry = examine(instances, settings.assembly.tolerance, stack)
        return Opinion(summary=summary, decision=decision, geometry=geometry)
    summaries = {name: summarise(part.images, part) for name, part in parts.items()}
    decisions = {
        name: decide(one, settings.rules, min_slices=fewest) for name, one in summaries.items()
    }
    tolerance = settings.assembly.tolerance
    found = {name: examine((), tolerance, part) for name, part in parts.items()}
    if all(one.complete for one in found.values()):  # a hole explains a lost number
        found = {
            name: examine(counted(instances, part), tolerance, part) for name, part in parts.items()
        }
    slices = sum(one.slices for one in summaries.values())
    return Opinion(
        summary=replace(next(iter(summaries.values())), slices=slices),
        decision=joint_decision(decisions, decision),
        geometry=joint_geometry(found),
        volumes=tuple(parts),
    )


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


def joint_decision(decisions: dict[str, Decision], whole: Decision) -> Decision:
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


def joint_geometry(found: dict[str, Geometry]) -> Geometry:
    """Return whether every volume is one complete stack; what is wrong names the volumes."""
    wrong: dict[str, list[str]] = {}
    for name, one in found.items():
        if not one.complete:
            wrong.setdefault(one.reason, []).append(name)
    reason = "; ".join(f"{' and '.join(names)}: {words}" for words, names in wrong.items())
    missing = tuple(place for one in found.values() for place in one.missing_mm)
    return Geometry(complete=not wrong, reason=reason, missing_mm=missing)
