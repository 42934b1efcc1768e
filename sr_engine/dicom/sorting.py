"""Which images of a series are the volume that was meant, and what the others are.

Scanners keep more than one thing under one Series Instance UID: a phase image beside every
magnitude, a scout before the stack, a Raw Data object behind it. The service asks here before it
decides about a series, and the reader before it makes a volume of one: they must not disagree.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from sr_engine.dicom.headers import DAMAGED
from sr_engine.dicom.kinds import MOST_PARTS

# ImageType values (from the third on) and components of images that are no magnitude.
NOT_MAGNITUDE = frozenset(
    {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "VELOCITY MAP", "MIXED"}
)
SMALLEST_STACK = 4  # fewer images in one orientation are a scout, no volume
FEW = 0.25  # scouts are at most so many, as a part of the stack beside them
UNIT = 0.1  # how far direction cosines may be from unit vectors to be any
SAME_PLANE = 0.05  # difference of what `_plane` returns: about three degrees
ECHO_DECIMALS = 2  # of a millisecond: more is rounding
PLACE_DECIMALS = 1  # of a millimetre, to see whether two echoes were measured in one place
PLANES = ("sagittal", "coronal", "axial")  # by the patient axis that the normal is nearest to

Header = Dataset | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """The volume of a series, by the places of its images in what was sorted."""

    chosen: tuple[int, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # what the others are -> how many

    @property
    def words(self) -> str:
        """Return what was left out as people read it, nothing if that is nothing."""
        return ", ".join(f"{count} ({what})" for what, count in self.left_out.items())


def sort(headers: Sequence[Header]) -> Sorted:
    """Return the images that make one volume; all of them, where nothing says which are meant.

    Parameters
    ----------
    headers
        One per image: a frame of an Enhanced object is one.
    """
    chosen, left_out = list(range(len(headers))), Counter[str]()
    for what, is_one in COMPANIONS:
        others = [index for index in chosen if not is_one(headers[index])]
        if others:
            left_out[what] += len(chosen) - len(others)
            chosen = others
    scouts = _scouts([headers[index] for index in chosen])
    left_out["in another orientation"] = len(scouts)
    chosen = [index for place, index in enumerate(chosen) if place not in scouts]
    return Sorted(chosen=tuple(chosen), left_out={k: n for k, n in left_out.items() if n})


def split(headers: Sequence[Header]) -> dict[str, tuple[int, ...]]:
    """Return the volumes of a series that holds several, by their names; {} for any other series.

    Only classic images are told apart, by orientation and echo time. Names and order are the same
    in whatever order the images are given. Whether each volume is whole is another question.

    Parameters
    ----------
    headers
        Of the images that `sort` has chosen.
    """
    if any(_values(header, "SOPClassUID") != [MRImageStorage] for header in headers):
        return {}
    order = sorted(range(len(headers)), key=lambda index: _counted(headers[index]))
    turned = _planes([headers[index] for index in order], MOST_PARTS)
    if sum(map(len, turned)) < len(headers):  # an image without orientation belongs nowhere
        return {}
    groups = [[order[place] for place in group] for group in turned]
    found: dict[str, tuple[int, ...]] = {}
    for name, group in zip(_plane_names(headers, groups), groups, strict=True):
        echoes = _echoes(headers, group)
        if len(echoes) > 1 and not _are_echoes(headers, echoes):
            return {}
        for te_ms, members in sorted(echoes.items(), key=lambda echo: echo[0] or 0.0):
            told = [name] if len(groups) > 1 else []
            told += [f"TE {te_ms:g} ms"] if len(echoes) > 1 else []
            found[", ".join(told)] = tuple(members)
    whole = sum(map(len, found.values())) == len(headers)  # no two are called the same
    return found if whole and 1 < len(found) <= MOST_PARTS else {}


def orientations(headers: Iterable[Header]) -> list[int]:
    """Return how many images lie in each orientation of planes, those that state none left out."""
    return [len(group) for group in _planes(list(headers))]


def _values(header: Header, keyword: str) -> list[str]:
    """Return the values of an attribute as upper-case texts."""
    try:
        value = header.get(keyword)
    except DAMAGED:  # whoever needs the value will say so
        return []
    if value is None or value == "":
        return []
    parts = [value] if isinstance(value, str | int | float) else value
    return [str(part).strip().upper() for part in parts]


def _is_no_image(header: Header) -> bool:
    return _values(header, "SOPClassUID") not in ([MRImageStorage], [EnhancedMRImageStorage])


def _is_derived(header: Header) -> bool:
    return _values(header, "ImageType")[:1] == ["DERIVED"]


def _is_localizer(header: Header) -> bool:
    return "LOCALIZER" in _values(header, "ImageType")


def _is_no_magnitude(header: Header) -> bool:
    said = {*_values(header, "ImageType")[2:], *_values(header, "ComplexImageComponent")}
    return not NOT_MAGNITUDE.isdisjoint(said)


# What may lie beside a volume, each left out where anything else is there.
COMPANIONS = (
    ("no MR image", _is_no_image),
    ("derived", _is_derived),
    ("localizer", _is_localizer),
    ("phase, real or imaginary", _is_no_magnitude),
)


def _scouts(headers: Sequence[Header]) -> set[int]:
    """Return the few images beside the only orientation that has enough of them for a stack."""
    groups = sorted(_planes(headers), key=len, reverse=True)
    if len(groups) < 2 or len(groups[1]) >= SMALLEST_STACK:
        return set()
    scouts = {index for group in groups[1:] for index in group}
    return scouts if len(scouts) <= FEW * len(groups[0]) else set()


def _planes(headers: Sequence[Header], most: int | None = None) -> list[list[int]]:
    """Return the images of each orientation; one that states none belongs to none.

    Where there are more than `most` orientations, it returns none of them, and soon.
    """
    found: list[tuple[np.ndarray, list[int]]] = []
    for index, header in enumerate(headers):
        plane = _plane(header)
        if plane is None:
            continue
        for other, members in found:
            if np.abs(plane - other).max() <= SAME_PLANE:
                members.append(index)
                break
        else:
            if len(found) == most:
                return []
            found.append((plane, [index]))
    return [members for _, members in found]


def _plane(header: Header) -> np.ndarray | None:
    """Return the direction of the normal as its outer product, (3, 3), which has no sign.

    A slice that was turned or flipped in its own plane lies in the stack all the same: it must be
    refused there, by name, and not be left out as a scout.
    """
    cosines = _cosines(header)
    if cosines is None:
        return None
    a, b, c, d, e, f = cosines.tolist()
    normal = np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # np.cross is slow for one
    length = float(np.linalg.norm(normal))
    return np.outer(normal, normal) / length**2 if length > UNIT else None


def _counted(header: Header) -> tuple[float, str]:
    """Return where an image stands in the scanner's own count, by its UID where it has none."""
    uid = "".join(_values(header, "SOPInstanceUID"))
    return _number(header, "InstanceNumber") or 0.0, uid


def _echoes(headers: Sequence[Header], group: Sequence[int]) -> dict[float | None, list[int]]:
    """Return the images of each echo time; None is the time of those that state none."""
    found: dict[float | None, list[int]] = {}
    for index in group:
        te_ms = _number(headers[index], "EchoTime")
        key = None if te_ms is None else round(te_ms, ECHO_DECIMALS)
        found.setdefault(key, []).append(index)
    return found


def _are_echoes(headers: Sequence[Header], echoes: Mapping[float | None, Sequence[int]]) -> bool:
    """Return whether different echo times were measured at the same places.

    Slices of one stack may state different times: each slice has its own place then.
    """
    places = [{_place(headers[index]) for index in group} for group in echoes.values()]
    alike = all(2 * len(here & places[0]) >= len(here | places[0]) for here in places[1:])
    return None not in echoes and alike


def _place(header: Header) -> tuple[float, ...]:
    """Return ImagePositionPatient, rounded; nothing where it is no numbers."""
    try:
        found = [float(value) for value in _values(header, "ImagePositionPatient")]
    except ValueError:
        return ()
    return tuple(round(value, PLACE_DECIMALS) + 0.0 for value in found)


def _plane_names(headers: Sequence[Header], groups: Sequence[Sequence[int]]) -> list[str]:
    """Return what the planes of each group are called, with a number where two are alike."""
    planes = [_plane(headers[group[0]]) for group in groups]
    words = [PLANES[int(np.argmax(np.diag(plane)))] for plane in planes if plane is not None]
    return [
        f"{word} {words[: place + 1].count(word)}" if words.count(word) > 1 else word
        for place, word in enumerate(words)
    ]


def _number(header: Header, keyword: str) -> float | None:
    """Return an attribute that is one finite number, else None."""
    try:
        (value,) = map(float, _values(header, keyword))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _cosines(header: Header) -> np.ndarray | None:
    """Return ImageOrientationPatient, None unless it is two unit vectors."""
    try:
        cosines = np.array([float(value) for value in _values(header, "ImageOrientationPatient")])
    except ValueError:
        return None
    if len(cosines) != 6:
        return None
    lengths = np.linalg.norm(cosines.reshape(2, 3), axis=1)
    return cosines if bool(np.all(np.abs(lengths - 1) <= UNIT)) else None
