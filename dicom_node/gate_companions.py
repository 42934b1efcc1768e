"""The gate's rules for what goes out beside an image: maps, pairs, presentations, reports.

They refer to images, so the worst mistake is a reference to another patient's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_geometry as geometry
from dicom_node.gate_case import IDENTITY, TOLERANCE_MM, Beside, Registry, Slice, uid_of
from dicom_node.gate_geometry import text, values
from sr_engine.dicom import provenance as engine_provenance
from sr_engine.errors import InputRefused

SPREAD, KEY_OBJECTS, PRESENTATION = "spread", "key_objects", "presentation"
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
    normal = geometry.directions(
        np.array([values(one.header, "ImageOrientationPatient") for one in case.source])
    )[2]
    originals, derived = _along(case.source, normal), _along(case.image, normal)
    rounding = geometry.ROUNDING * _step_mm(originals)
    half_mm = _step_mm(derived) / 2 + max(TOLERANCE_MM, rounding)
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
            number = (values(named, "ReferencedFrameNumber") or [1.0])[0]
            yield text(named, "ReferencedSOPInstanceUID"), int(number)


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
