"""The gate's rules for what goes out beside an image: maps, pairs, presentations, reports.

They refer to images, so the worst mistake is a reference to another patient's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_frames
from dicom_node import gate_geometry as geometry
from dicom_node.gate_geometry import text, values
from dicom_node.gate_rules import IDENTITY, TOLERANCE_MM, uid_of
from sr_engine.dicom import provenance as engine_provenance
from sr_engine.errors import InputRefused

SPREAD, KEY_OBJECTS = "spread", "key_objects"
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
    "presentation": ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
    "report": ("1.2.840.10008.5.1.4.1.1.88.22", "SR"),
}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What the rules look at; headers without pixels."""

    kind: str  # "classic+spread", as in `sr_engine.dicom.kinds`
    made: tuple[Dataset, ...]  # the instances of the companion
    image: tuple[Dataset, ...]  # the derived image that lies beside it, in its form
    source: tuple[Dataset, ...]

    @property
    def companion(self) -> str:
        """Return what it is."""
        return self.kind.partition("+")[2]


Rule = Callable[[Beside], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Enter `function` into RULES under its own name."""
    RULES[function.__name__] = function
    return function


@rule
def companion_class(case: Beside) -> Iterator[str]:
    expected = SOP_CLASSES[case.companion]
    for dataset in case.made:
        if (text(dataset, "SOPClassUID"), text(dataset, "Modality")) != expected:
            yield f"{uid_of(dataset)} is no {case.companion.replace('_', ' ')}"


@rule
def companion_identity(case: Beside) -> Iterator[str]:
    for keyword in IDENTITY:
        expected = text(case.source[0], keyword)
        for dataset in case.made:
            if text(dataset, keyword) != expected:
                yield f"{keyword} of {uid_of(dataset)} is not the source's"


@rule
def companion_series(case: Beside) -> Iterator[str]:
    others = {text(one, "SeriesInstanceUID") for one in (*case.image, *case.source)}
    taken = {text(one, "SOPInstanceUID") for one in (*case.image, *case.source)}
    for dataset in case.made:
        if text(dataset, "SeriesInstanceUID") in others:
            yield f"SeriesInstanceUID of {uid_of(dataset)} is that of an image"
        if uid_of(dataset) in taken:
            yield f"SOPInstanceUID {uid_of(dataset)} occurs twice"
        taken.add(uid_of(dataset))


@rule
def companion_provenance(case: Beside) -> Iterator[str]:
    try:
        expected = engine_provenance.from_dataset(case.image[0])
        carried = [engine_provenance.from_dataset(dataset) for dataset in case.made]
    except InputRefused as error:
        yield str(error)
        return
    for dataset, one in zip(case.made, carried, strict=True):
        if one != expected:
            yield f"the provenance of {uid_of(dataset)} is not that of the image"
        if one.series.get(case.kind) != text(dataset, "SeriesInstanceUID"):
            yield f"the provenance of {uid_of(dataset)} is another series'"


@rule
def companion_references(case: Beside) -> Iterator[str]:
    known = {text(one, "SOPInstanceUID") for one in (*case.image, *case.source)}
    studies = {text(case.source[0], "StudyInstanceUID")}
    for dataset in case.made:
        named = set(_nested(dataset, "ReferencedSOPInstanceUID"))
        if not named:
            yield f"{uid_of(dataset)} refers to no image"
        if not named <= known:
            yield f"{uid_of(dataset)} refers to instances that are neither derived nor the source's"
        if not set(_nested(dataset, "StudyInstanceUID")) <= studies:
            yield f"{uid_of(dataset)} refers to another study"


def _nested(dataset: Dataset, keyword: str) -> Iterator[str]:
    """Yield every value of an attribute, at whatever depth, that is about images."""
    for element in dataset:
        if element.keyword == keyword:
            yield str(element.value)
        elif element.VR == "SQ" and element.keyword not in OF_THE_STUDY:
            for item in element.value:
                yield from _nested(item, keyword)


@rule
def key_object_pairs(case: Beside) -> Iterator[str]:
    if case.companion != KEY_OBJECTS:
        return
    along = _along(case.source) | _along(case.image)
    half_mm = max(_step_mm(case.source), _step_mm(case.image)) / 2 + TOLERANCE_MM
    for dataset in case.made:
        listed = list(_listed(dataset))
        if len(listed) != 2 * len(_along(case.source)):
            yield f"{uid_of(dataset)} does not pair every original slice"
        for original, derived in zip(listed[::2], listed[1::2], strict=False):
            if original in along and derived in along:
                apart_mm = abs(along[original] - along[derived])
                if apart_mm > half_mm:
                    yield f"{uid_of(dataset)} pairs slices that are {apart_mm:.2f} mm apart"


Slice = tuple[str, int]  # SOP instance UID, frame number (1 in a classic image)


def _listed(dataset: Dataset) -> Iterator[Slice]:
    """Yield the images of a Key Object Selection in their order."""
    for item in dataset.get("ContentSequence") or ():
        for named in item.get("ReferencedSOPSequence") or ():
            yield str(named.ReferencedSOPInstanceUID), int(named.get("ReferencedFrameNumber") or 1)


def _along(images: tuple[Dataset, ...]) -> dict[Slice, float]:
    """Return the place of every slice along the normal of the first one."""
    found: dict[Slice, float] = {}
    normal = None
    for dataset in images:
        multiframe = gate_frames.is_multiframe(dataset)
        for number, one in enumerate(gate_frames.slices(dataset) if multiframe else (dataset,), 1):
            if normal is None:
                planes = np.array([values(one, "ImageOrientationPatient")])
                normal = geometry.directions(planes)[2]
            position = np.array(values(one, "ImagePositionPatient"))
            found[uid_of(dataset), number] = float(position @ normal)
    return found


def _step_mm(images: tuple[Dataset, ...]) -> float:
    along = np.sort(list(_along(images).values()))
    return float(np.diff(along).max(initial=0.0))


@rule
def spread_grid(case: Beside) -> Iterator[str]:
    if case.companion != SPREAD:
        return
    for dataset in case.made:
        if not gate_frames.is_multiframe(dataset):
            yield f"{uid_of(dataset)} has no frames"
            continue
        expected, found = sorted(_along(case.image).values()), sorted(_along((dataset,)).values())
        if len(expected) != len(found) or not np.allclose(expected, found, atol=TOLERANCE_MM):
            yield f"the frames of {uid_of(dataset)} do not lie where the image's slices lie"
        image = next(iter(_slices(case.image[0])))
        first = next(iter(_slices(dataset)))
        for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            if not np.allclose(values(first, keyword), values(image, keyword), atol=1e-6):
                yield f"{keyword} of {uid_of(dataset)} is not the image's"
        if text(dataset, "FrameOfReferenceUID") != text(image, "FrameOfReferenceUID"):
            yield f"FrameOfReferenceUID of {uid_of(dataset)} is not the image's"


@rule
def spread_unit(case: Beside) -> Iterator[str]:
    for dataset in case.made if case.companion == SPREAD else ():
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        mappings = shared.get("RealWorldValueMappingSequence") or [Dataset()]
        slopes = values(mappings[0], "RealWorldValueSlope")
        if not slopes or not slopes[0] > 0 or not mappings[0].get("MeasurementUnitsCodeSequence"):
            yield f"{uid_of(dataset)} does not say what its values mean"


@rule
def spread_qualification(case: Beside) -> Iterator[str]:
    for dataset in case.made if case.companion == SPREAD else ():
        for keyword in ("ContentQualification", "SyntheticData"):
            if text(dataset, keyword) != text(case.image[0], keyword):
                yield f"{keyword} of {uid_of(dataset)} is not the image's"


def _slices(dataset: Dataset) -> Iterator[Dataset]:
    return gate_frames.slices(dataset) if gate_frames.is_multiframe(dataset) else iter((dataset,))
