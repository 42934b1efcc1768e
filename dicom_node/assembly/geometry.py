"""Where the slices of a series lie: one uniform stack, or what is wrong with it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.rules import FRAMES, LOCATIONS
from sr_engine.dicom.sorting import sort

SAME_PLACE_MM = 0.01  # two images this near are two images of one slice
ALONG_NORMAL_MM = 0.1  # how far a slice may lie beside the line through the first one, and
ALONG_NORMAL = 0.04  # the same as a part of the slice distance: old scanners round to 0.1 mm
SAME_DIRECTION = 1e-3  # difference of direction cosines; real headers jitter by up to 1e-4
UNIT = 1e-2  # how far ImageOrientationPatient may be from two orthogonal unit vectors
NEEDED = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
NAMED = 3  # positions that a sentence about doubled ones names
SPREAD = 4.0  # a smallest distance so far below the usual one is no slice distance
EVEN = 0.02  # of a distance: what rounding makes of it
ORDINALS = {2: "second", 3: "third"}
FEW = 0.05  # of the instance numbers: so many gaps in them are lost images
HOLE = 1000  # more missing slices in one place than that are no hole
EQUAL = ("Rows", "Columns", "FrameOfReferenceUID")

Header = Mapping[str, Any]
Place = tuple[NDArray[np.float64], NDArray[np.float64]]  # position (3,); row, column, normal (3, 3)


@dataclass(frozen=True, kw_only=True)
class InstanceHeader:
    """One received object: its UID and what `rules.HEADER_KEYS` asks of it."""

    sop_uid: str
    header: Header


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Whether the slices form one complete, uniform stack, and if not, why."""

    complete: bool
    reason: str
    missing_mm: tuple[float, ...] = ()  # along the normal


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The images of one series and their distinct places along the normal."""

    images: tuple[InstanceHeader, ...]  # one for each frame, of the volume that was meant
    orientations: int
    positions_mm: NDArray[np.float64]  # (slices,), increasing, along the first image's normal
    images_at: tuple[int, ...]  # (slices,), images at each position
    sideways_mm: float  # the farthest from the line along the normal
    left_out: Mapping[str, int] = field(default_factory=dict)  # what is no part of the volume
    left_out_words: str = ""
    beside: tuple[InstanceHeader, ...] = ()  # the images of the series' other volumes

    @property
    def volumes(self) -> int:
        """Return how many images the usual position has, 1 where only a few are doubled."""
        return round(float(np.median(self.images_at))) if self.images_at else 1


def examine(
    instances: Sequence[InstanceHeader], tolerance: float, stack: Stack | None = None
) -> Geometry:
    """Return whether the instances are one complete, uniform stack.

    Parameters
    ----------
    instances
        All of the series; their numbers are looked at.
    tolerance
        How far a slice may lie from its place, as a fraction of the slice distance.
    stack
        Of these instances, where somebody has measured it.
    """
    stack = stack or measure(instances)
    trouble = lacking(stack) or misplaced(stack) or unlike(stack) or uneven(stack, tolerance)
    if trouble:
        return Geometry(complete=False, reason=trouble)
    missing, reason = holes(stack.positions_mm)
    reason = reason or unfinished(stack, instances)
    return Geometry(complete=not reason, reason=reason, missing_mm=missing)


def measure(instances: Sequence[InstanceHeader]) -> Stack:
    """Return the images of the volume with their places, as far as the headers tell."""
    everything = [frame for one in instances for frame in frames_of(one)]
    found = sort([one.header for one in everything])
    images = tuple(everything[index] for index in found.chosen)
    return stack_of(images, left_out=found.left_out, left_out_words=found.words)


def stack_of(images: tuple[InstanceHeader, ...], **fields: Any) -> Stack:
    """Return images with their places; `fields` are what else is known of the stack."""
    placed = located(images)
    positions, images_at, sideways = places(placed)
    return Stack(
        images=images,
        orientations=count_orientations(placed),
        positions_mm=positions,
        images_at=images_at,
        sideways_mm=sideways,
        **fields,
    )


def frames_of(instance: InstanceHeader) -> Iterator[InstanceHeader]:
    """Yield one header for each image of the object; a classic object is one image."""
    frames: Sequence[Header] = instance.header.get(FRAMES) or ({},)
    for frame in frames:
        yield InstanceHeader(sop_uid=instance.sop_uid, header={**instance.header, **frame})


def numbers(header: Header, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the `count` finite numbers of an attribute, None where there is anything else."""
    values = header.get(keyword)
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return None
    found = [number(value) for value in values]
    known = tuple(value for value in found if value is not None)
    return known if len(known) == count else None


def number(value: Any) -> float | None:
    """Return `value` as a finite number, None if it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def position(header: Header) -> tuple[float, ...] | None:
    """Return ImagePositionPatient in LPS mm, None where it is not there."""
    return numbers(header, "ImagePositionPatient", 3)


def axes(header: Header) -> NDArray[np.float64] | None:
    """Return row, column and normal direction, (3, 3), None unless they are a right angle."""
    cosines = numbers(header, "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = abs(np.linalg.norm([row, column], axis=1) - 1)
    if lengths.max() > UNIT or abs(row @ column) > UNIT:
        return None
    normal = np.cross(row, column)
    return np.array([row, column, normal / np.linalg.norm(normal)])


def located(images: Sequence[InstanceHeader]) -> list[Place]:
    """Return position and axes of every image that states both."""
    found = []
    for one in images:
        point, directions = position(one.header), axes(one.header)
        if point is not None and directions is not None:
            found.append((np.array(point), directions))
    return found


def count_orientations(placed: Sequence[Place]) -> int:
    """Return the number of different orientations among the images."""
    found: list[NDArray[np.float64]] = []
    for _, here in placed:
        if not any(np.abs(here - other).max() <= SAME_DIRECTION for other in found):
            found.append(here)
    return len(found)


def places(placed: Sequence[Place]) -> tuple[NDArray[np.float64], tuple[int, ...], float]:
    """Return distinct positions along the first normal, images at each, farthest sideways (mm)."""
    if not placed:
        return np.empty(0), (), 0.0
    points = np.array([point for point, _ in placed])  # (images, 3)
    normal = placed[0][1][2]
    along = points @ normal
    beside = points - along[:, None] * normal
    order = np.sort(along)
    starts = np.flatnonzero(np.diff(order, prepend=-np.inf) > SAME_PLACE_MM)
    counts = np.diff(starts, append=len(order))
    sideways = float(np.abs(beside - beside[0]).max())
    return order[starts], tuple(int(count) for count in counts), sideways


def lacking(stack: Stack) -> str:
    """Return which attribute is missing or impossible, and in which instance."""
    for one in stack.images:
        for keyword, count in NEEDED.items():
            if numbers(one.header, keyword, count) is None:
                return f"{keyword} is missing or no {count} numbers in instance {one.sop_uid}"
        if not one.header.get("FrameOfReferenceUID"):
            return f"FrameOfReferenceUID is missing in instance {one.sop_uid}"
        if axes(one.header) is None:
            return f"ImageOrientationPatient is no pair of axes in instance {one.sop_uid}"
    return ""


def unlike(stack: Stack) -> str:
    """Return in what the images differ that one stack must share."""
    for keyword in EQUAL:
        found = {str(one.header.get(keyword, "absent")) for one in stack.images}
        if len(found) > 1:
            values = (
                f"{len(found)} values" if keyword.endswith("UID") else " and ".join(sorted(found))
            )
            return f"the slices differ in {keyword}: {values}"
    spacings = np.array([numbers(one.header, "PixelSpacing", 2) for one in stack.images])
    if np.ptp(spacings, axis=0).max() > 1e-3 * spacings.min():
        return "the slices differ in PixelSpacing"
    return ""


def misplaced(stack: Stack) -> str:
    """Return why the images are not one slice for each position along one line."""
    if stack.orientations > 1:
        return f"the slices have {stack.orientations} orientations, so they are no single stack"
    doubled = [
        f"{count} images at {place}"
        for count, place in zip(stack.images_at, shown(stack.positions_mm), strict=True)
        if count > 1
    ]
    if doubled:
        first = ", ".join(doubled[:NAMED])
        others = f" and {len(doubled) - NAMED} more" if len(doubled) > NAMED else ""
        return f"several images share a position: {first} mm along the normal{others}"
    if stack.sideways_mm > max(ALONG_NORMAL_MM, ALONG_NORMAL * usual_distance_mm(stack)):
        return f"the slices are shifted against each other by up to {stack.sideways_mm:.1f} mm"
    return ""


def usual_distance_mm(stack: Stack) -> float:
    """Return the median distance of neighbours, 0 for a single one."""
    gaps = np.diff(stack.positions_mm)
    return float(np.median(gaps)) if len(gaps) else 0.0


def steps(positions_mm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many slice distances lie between neighbours, (slices - 1,).

    The smallest distance is taken for the slice distance: a hole only makes others larger.
    """
    gaps = np.diff(positions_mm)
    return np.rint(gaps / gaps.min()).astype(np.int64)


def uneven(stack: Stack, tolerance: float) -> str:
    """Return why the positions do not fit a grid."""
    positions = stack.positions_mm
    if len(positions) < 2:
        return "one slice is no stack"
    index = np.concatenate([[0], np.cumsum(steps(positions))])
    distance, start = np.polyfit(index, positions, 1)
    off = np.abs(positions - start - index * distance).max()
    gaps = np.diff(positions)
    sane = np.median(gaps) <= SPREAD * gaps.min() and gaps.max() <= HOLE * gaps.min()
    if sane and off <= tolerance * distance:
        return ""
    return (
        f"the slices are not evenly spaced: the distances run from {gaps.min():.2f} to "
        f"{gaps.max():.2f} mm"
    )


def holes(positions: NDArray[np.float64]) -> tuple[tuple[float, ...], str]:
    """Return the empty places of the grid in mm along the normal, and the words for them."""
    missing: list[float] = []
    words: list[str] = []
    for i, count in enumerate(steps(positions)):
        if count < 2:
            continue
        empty = np.linspace(positions[i], positions[i + 1], count + 1)[1:-1]
        missing.extend(float(place) for place in empty)
        plural = "s" if len(empty) > 1 else ""
        low, high = shown(positions[i : i + 2])
        words.append(
            f"slice{plural} missing at {', '.join(shown(empty))} mm along the normal "
            f"(between {low} and {high})"
        )
    return tuple(missing), "; ".join(words)


def shown(places_mm: NDArray[np.float64]) -> list[str]:
    """Return positions as people read them."""
    return [f"{place:.1f}" for place in np.round(places_mm, 1) + 0.0]  # no -0.0


def announced(stack: Stack, instances: Sequence[InstanceHeader]) -> int | None:
    """Return how many slices the headers announce, None where that cannot be believed.

    NumberOfFrames counts the frames of one Enhanced object. ImagesInAcquisition counts an
    acquisition, which is this series only if it is one, and not if several series share it.
    """
    left_out = sum(stack.left_out.values())
    if len(instances) == 1 and FRAMES in instances[0].header:
        frames = number(instances[0].header.get("NumberOfFrames"))
        return None if frames is None else int(frames) - left_out
    acquisitions = {str(one.header.get("AcquisitionNumber")) for one in stack.images}
    hint = agreed(stack, "ImagesInAcquisition") or agreed(stack, LOCATIONS)
    slices = len(stack.positions_mm)
    if hint is None or hint < slices or len(acquisitions) > 1 or len(stack.images) != slices:
        return None
    if left_out or hint in jointly(stack):
        return None  # the acquisition may count what we do not, or the other volumes as well
    return None if shared_acquisition(stack, int(hint)) else int(hint)


def jointly(stack: Stack) -> tuple[int, ...]:
    """Return how many images a volume is with the others of its acquisition, and with all."""
    if not stack.beside:
        return ()
    mine = {str(one.header.get("AcquisitionNumber")) for one in stack.images}
    others = [str(one.header.get("AcquisitionNumber")) for one in stack.beside]
    counts = sum(number in mine for number in others), len(others)
    return tuple(len(stack.images) + count for count in counts)


def agreed(stack: Stack, keyword: str) -> float | None:
    """Return the number that all images state, None where they do not agree."""
    stated = {number(one.header.get(keyword)) for one in stack.images}
    return stated.pop() if len(stated) == 1 else None


def shared_acquisition(stack: Stack, hint: int) -> bool:
    """Return True when the series looks whole and the acquisition a multiple of it."""
    slices = len(stack.positions_mm)
    found = {number(one.header.get("InstanceNumber")) for one in stack.images}
    return hint > slices and hint % slices == 0 and found == set(map(float, range(1, slices + 1)))


def unfinished(stack: Stack, instances: Sequence[InstanceHeader]) -> str:
    """Return how many of the announced slices are not there."""
    expected, slices = announced(stack, instances), len(stack.positions_mm)
    if expected is not None and slices < expected:
        there = max(jointly(stack), default=slices)
        return f"{there if there < expected else slices} of {expected} announced slices are there"
    return thinned(stack) or (unnumbered(stack, instances) if expected is None else "")


def thinned(stack: Stack) -> str:
    """Return that every second (third ...) slice is missing: the places alone look even then.

    SpacingBetweenSlices is the gap on some scanners, so it is believed where the instance numbers
    count in steps as well.
    """
    stated = agreed(stack, "SpacingBetweenSlices")
    counts = sorted(
        filter(None, (number(one.header.get("InstanceNumber")) for one in stack.images))
    )
    step = set(np.diff(counts))
    if not stated or stated <= 0 or len(step) != 1 or len(counts) < len(stack.positions_mm):
        return ""
    distance = usual_distance_mm(stack)
    every = int(step.pop())
    if every < 2 or abs(distance - every * stated) > EVEN * distance:
        return ""
    others = (number(one.header.get("InstanceNumber")) for one in stack.beside)
    if any(counts[0] < (other or 0.0) < counts[-1] for other in others):
        return ""  # the volumes are interleaved
    which = ORDINALS.get(every, f"{every}th")
    return (
        f"only every {which} slice is there: they are {distance:.2f} mm "
        f"apart, SpacingBetweenSlices is {stated:.2f} mm and the images count in steps of {every}"
    )


def unnumbered(stack: Stack, instances: Sequence[InstanceHeader]) -> str:
    """Return which instance numbers are not there, although the places have no hole.

    With nothing else announced they are the only trace of a lost end slice: the first one, or,
    where a scanner counts slices as it acquires them, any. Some scanners count in steps or begin
    with another number than 1, so only a few gaps, and a lost number 1, are believed.
    """
    stated = [number(one.header.get("InstanceNumber")) for one in instances]
    found = sorted({int(one) for one in stated if one is not None})
    if FRAMES in stack.images[0].header or len(found) < len(instances) or not found:
        return ""
    first, last = 1 if found[0] == 2 else found[0], found[-1]
    count = last - first + 1 - len(found)  # before they are listed: one number may be any number
    if not 0 < count <= max(1, len(found) * FEW):
        return ""
    lost = sorted(set(range(first, last + 1)) - set(found))
    few = ", ".join(map(str, lost[:NAMED]))
    return (
        f"the numbers of the images run from {first} to {last} and {few} "
        f"{'is' if len(lost) == 1 else 'are'} missing, so a slice at an end may be"
    )
