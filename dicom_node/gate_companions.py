"""The gate's rules for what goes out beside an image: maps, pairs, presentations, reports.

They refer to images, so the worst mistake is a reference to another patient's.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_geometry as geometry
from dicom_node.gate_case import IDENTITY, SPREAD, TOLERANCE_MM, Beside, Registry, Slice, uid_of
from dicom_node.gate_geometry import text, values
from sr_engine.dicom import provenance as engine_provenance
from sr_engine.errors import InputRefused

KEY_OBJECTS, PRESENTATION = "key_objects", "presentation"
# Copied from the source: they name studies, patients and orders, no image.
OF_THE_STUDY = (
    "ReferencedStudySequence",
    "ReferencedPatientSequence",
    "RequestAttributesSequence",
    "ContributingEquipmentSequence",
)
SOP_CLASSES = {
    SPREAD: ("1.2.840.10008.5.1.4.1.1.30", "OT"),
    KEY_OBJECTS: ("1.2.840.10008.5.1.4.1.1.88.59", "KO"),
    PRESENTATION: ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
    "report": ("1.2.840.10008.5.1.4.1.1.88.22", "SR"),
}
LABEL = re.compile(r"level of \S+ image (\d+), (\d+\.\d\d) mm away")
PRINTED_MM = 0.005  # what two decimals keep
LISTS = ("ReferencedInstanceSequence", "ReferencedSOPSequence", "ReferencedImageSequence")
RULES: Registry[Beside] = Registry()


@RULES.rule
def companion_class(case: Beside) -> Iterator[str]:
    expected = SOP_CLASSES[case.companion]
    for dataset in case.made:
        if (text(dataset, "SOPClassUID"), text(dataset, "Modality")) != expected:
            yield f"{uid_of(dataset)} is no {case.companion.replace('_', ' ')}"


@RULES.rule
def companion_identity(case: Beside) -> Iterator[str]:
    for keyword in IDENTITY:
        expected = text(case.source[0].instance, keyword)
        for dataset in case.made:
            if text(dataset, keyword) != expected:
                yield f"{keyword} of {uid_of(dataset)} is not the source's"


@RULES.rule
def companion_series(case: Beside) -> Iterator[str]:
    instances = [one.instance for one in (*case.image, *case.source)]
    others = {text(one, "SeriesInstanceUID") for one in instances}
    taken = {text(one, "SOPInstanceUID") for one in instances}
    for dataset in case.made:
        if text(dataset, "SeriesInstanceUID") in others:
            yield f"SeriesInstanceUID of {uid_of(dataset)} is that of an image"
        if uid_of(dataset) in taken:
            yield f"SOPInstanceUID {uid_of(dataset)} occurs twice"
        taken.add(uid_of(dataset))


@RULES.rule
def companion_provenance(case: Beside) -> Iterator[str]:
    try:
        expected = engine_provenance.from_dataset(case.image[0].instance)
        carried = [engine_provenance.from_dataset(dataset) for dataset in case.made]
    except InputRefused as error:
        yield str(error)
        return
    for dataset, one in zip(case.made, carried, strict=True):
        if one != expected:
            yield f"the provenance of {uid_of(dataset)} is not that of the image"
        if one.series.get(case.kind) != text(dataset, "SeriesInstanceUID"):
            yield f"the provenance of {uid_of(dataset)} is another series'"


@dataclass(frozen=True, kw_only=True)
class Known:
    """An instance that may be referred to."""

    sop_class: str
    series_uid: str
    frames: frozenset[int]


def known_instances(slices: Iterable[Slice]) -> dict[str, Known]:
    """Return the instances of `slices` by their UIDs."""
    frames: dict[str, set[int]] = {}
    instances: dict[str, Dataset] = {}
    for one in slices:
        uid = text(one.instance, "SOPInstanceUID")
        instances[uid] = one.instance
        frames.setdefault(uid, set()).add(one.frame)
    return {
        uid: Known(
            sop_class=text(instance, "SOPClassUID"),
            series_uid=text(instance, "SeriesInstanceUID"),
            frames=frozenset(frames[uid]),
        )
        for uid, instance in instances.items()
    }


@RULES.rule
def companion_references(case: Beside) -> Iterator[str]:
    known = known_instances((*case.image, *case.source))
    study = text(case.source[0].instance, "StudyInstanceUID")
    for dataset in case.made:
        items = list(_items(dataset))
        if not any("ReferencedSOPInstanceUID" in item for item in items):
            yield f"{uid_of(dataset)} refers to no image"
        faults = {fault for item in items for fault in _reference_faults(item, known, study)}
        for fault in sorted(faults):
            yield f"{uid_of(dataset)} refers to {fault}"


@RULES.rule
def companion_coverage(case: Beside) -> Iterator[str]:
    """Whoever opens it must find all slices: a map or a state of some would hide the others."""
    derived = {uid_of(one.instance) for one in case.image}
    original = {uid_of(one.instance) for one in case.source}
    states = case.companion == PRESENTATION  # one for each of the two series
    found = [set(_named(dataset)) for dataset in case.made]
    for dataset, named in zip(case.made, found, strict=True):
        if case.companion == KEY_OBJECTS:
            whole = original <= named
        else:
            whole = named == derived or (states and named == original)
        if not whole:
            yield f"{uid_of(dataset)} does not refer to every slice of one series"
        evidence = dataset.get("CurrentRequestedProcedureEvidenceSequence")
        if evidence and not named <= {uid for item in evidence for uid in _named(item)}:
            yield f"{uid_of(dataset)} refers to an instance that its evidence does not list"
    if states and derived not in found:
        yield "no presentation state shows the derived series"


def _named(dataset: Dataset) -> Iterator[str]:
    """Yield the UIDs of all images that are referred to."""
    for item in _items(dataset):
        if "ReferencedSOPInstanceUID" in item:
            yield text(item, "ReferencedSOPInstanceUID")


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """Yield every item, at whatever depth, that may be about images."""
    for element in dataset:
        if element.VR == "SQ" and element.keyword not in OF_THE_STUDY:
            for item in element.value:
                yield item
                yield from _items(item)


def _reference_faults(item: Dataset, known: dict[str, Known], study: str) -> Iterator[str]:
    """Yield what is wrong with the reference in one item."""
    if "StudyInstanceUID" in item and text(item, "StudyInstanceUID") != study:
        yield "another study"
    if "SeriesInstanceUID" in item:
        series = text(item, "SeriesInstanceUID")
        if series not in {one.series_uid for one in known.values()}:
            yield "a series that is neither derived nor the source's"
        for named in (one for keyword in LISTS for one in item.get(keyword) or ()):
            found = known.get(text(named, "ReferencedSOPInstanceUID"))
            if found is not None and found.series_uid != series:
                yield "an instance in the series of another"
    if "ReferencedSOPInstanceUID" in item:
        found = known.get(text(item, "ReferencedSOPInstanceUID"))
        if found is None:
            yield "instances that are neither derived nor the source's"
            return
        if text(item, "ReferencedSOPClassUID") != found.sop_class:
            yield "an instance as another SOP class"
        if not found.frames.issuperset(map(int, values(item, "ReferencedFrameNumber"))):
            yield "a frame that is no slice of the volume"


Address = tuple[str, int]  # SOP instance UID, frame number (1 in a classic image)


@RULES.rule
def key_object_pairs(case: Beside) -> Iterator[str]:
    if case.companion != KEY_OBJECTS:
        return
    normal = _normal(case)
    originals, derived = _along(case.source, normal), _along(case.image, normal)
    half_mm = _step_mm(derived) / 2 + _rounding_mm(originals)
    for dataset in case.made:
        listed = list(_listed(dataset))
        if len(listed) != 2 * len(originals) or set(listed[::2]) != set(originals):
            yield f"{uid_of(dataset)} does not pair every original slice"
        for first, second in zip(listed[::2], listed[1::2], strict=False):
            if first not in originals or second not in derived:
                yield f"{uid_of(dataset)} pairs what is no original and its derived slice"
                continue
            apart_mm = abs(originals[first] - derived[second])
            if apart_mm > half_mm:
                yield f"{uid_of(dataset)} pairs slices that are {apart_mm:.2f} mm apart"


def _listed(dataset: Dataset) -> Iterator[Address]:
    """Yield the images of a Key Object Selection in their order."""
    for item in dataset.get("ContentSequence") or ():
        for named in item.get("ReferencedSOPSequence") or ():
            yield _address(named)


def _address(named: Dataset) -> Address:
    """Return the slice that an item refers to."""
    number = (values(named, "ReferencedFrameNumber") or [1.0])[0]
    return text(named, "ReferencedSOPInstanceUID"), int(number)


@RULES.rule
def presentation_levels(case: Beside) -> Iterator[str]:
    """People read these labels beside the image: each names the slice that lies nearest."""
    if case.companion != PRESENTATION:
        return
    normal = _normal(case)
    both = ((case.image, case.source), (case.source, case.image))
    rounding_mm = _rounding_mm(_along(case.source, normal)) + PRINTED_MM
    for dataset in case.made:
        labels = dict(_labels(dataset))
        for slices, others in both:
            places = _along(slices, normal)
            if set(labels) == set(places):
                far = _numbered(others, normal)
                wrong = [a for a in labels if _mislabelled(labels[a], places[a], far, rounding_mm)]
                if wrong:
                    yield f"{len(wrong)} labels of {uid_of(dataset)} name no slice at their level"
                break
        else:
            yield f"{uid_of(dataset)} does not label every slice of one series"


def _labels(dataset: Dataset) -> Iterator[tuple[Address, str]]:
    """Yield the slices that a presentation state writes on, and what."""
    for item in dataset.get("GraphicAnnotationSequence") or ():
        words = [text(one, "UnformattedTextValue") for one in item.get("TextObjectSequence") or ()]
        for named in item.get("ReferencedImageSequence") or ():
            yield _address(named), "".join(words)


def _numbered(slices: Sequence[Slice], normal: np.ndarray) -> list[tuple[int, float]]:
    """Return the slices' places by what people read on the screen: InstanceNumber, or the frame."""
    ordered = sorted(
        zip(_along(slices, normal).values(), slices, strict=True), key=lambda one: one[0]
    )
    found = []
    for count, (place_mm, one) in enumerate(ordered, 1):
        framed = one.header is not one.instance
        stated = int((values(one.header, "InstanceNumber") or [0.0])[0]) or count
        found.append((one.frame if framed else stated, place_mm))
    return found


def _mislabelled(
    words: str, place_mm: float, others: Sequence[tuple[int, float]], rounding_mm: float
) -> bool:
    """Return whether a label names another slice than a nearest one, or another distance."""
    told = LABEL.fullmatch(words)
    if told is None:
        return True
    named = [abs(other - place_mm) for number, other in others if number == int(told[1])]
    nearest = min(abs(other - place_mm) for _, other in others)
    apart_mm = min(named, default=np.inf)
    return apart_mm - nearest > rounding_mm or abs(apart_mm - float(told[2])) > rounding_mm


def _normal(case: Beside) -> np.ndarray:
    planes = [values(one.header, "ImageOrientationPatient") for one in case.source]
    return geometry.directions(np.array(planes))[2]


def _rounding_mm(originals: dict[Address, float]) -> float:
    """Return how far from an even stack the source's slices may lie."""
    return max(TOLERANCE_MM, geometry.ROUNDING * _step_mm(originals))


def _along(slices: Iterable[Slice], normal: np.ndarray) -> dict[Address, float]:
    """Return the place of every slice along `normal`, in mm."""
    return {
        (uid_of(one.instance), one.frame): float(
            np.array(values(one.header, "ImagePositionPatient")) @ normal
        )
        for one in slices
    }


def _step_mm(along: dict[Address, float]) -> float:
    return float(np.diff(np.sort(list(along.values()))).max(initial=0.0))
