"""The gate's rules for the spread: a map that viewers lay over the image beside it."""

from collections.abc import Iterable, Iterator

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_frames, gate_multiframe, gate_pixels
from dicom_node import gate_geometry as geometry
from dicom_node.gate_case import SPREAD, TOLERANCE_MM, Beside, Registry, uid_of
from dicom_node.gate_geometry import text, values

RULES: Registry[Beside] = Registry()


def maps(case: Beside) -> tuple[Dataset, ...]:
    """Return the maps, none where the companion is something else."""
    return case.made if case.companion == SPREAD else ()


@RULES.rule
def spread_grid(case: Beside) -> Iterator[str]:
    image = case.image[0].header
    expected = _places(one.header for one in case.image)
    for dataset in maps(case):
        slices = gate_frames.slices_of((dataset,))
        if not gate_frames.is_multiframe(dataset):
            yield f"{uid_of(dataset)} has no frames"
            continue
        found = _places(one.header for one in slices)
        if found.shape != expected.shape or np.abs(found - expected).max() > TOLERANCE_MM:
            yield f"the frames of {uid_of(dataset)} do not lie where the image's slices lie"
        for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            if not all(_alike(one.header, image, keyword) for one in slices):
                yield f"{keyword} of {uid_of(dataset)} is not the image's"
        if text(dataset, "FrameOfReferenceUID") != text(image, "FrameOfReferenceUID"):
            yield f"FrameOfReferenceUID of {uid_of(dataset)} is not the image's"


def _alike(one: Dataset, other: Dataset, keyword: str) -> bool:
    here, there = values(one, keyword), values(other, keyword)
    return len(here) == len(there) > 0 and bool(np.allclose(here, there, atol=1e-6))


def _places(headers: Iterable[Dataset]) -> np.ndarray:
    """Return the positions of the slices, (slices, 3), in the order of the normal."""
    placed = list(headers)
    positions = [values(one, "ImagePositionPatient") for one in placed]
    planes = [values(one, "ImageOrientationPatient") for one in placed]
    if {len(one) for one in positions} != {3} or {len(one) for one in planes} != {6}:
        return np.empty((0, 3))
    normal = geometry.directions(np.array(planes))[2]
    return np.array(sorted(positions, key=lambda position: float(np.dot(position, normal))))


@RULES.rule
def spread_pixels(case: Beside) -> Iterator[str]:
    for dataset in maps(case):
        yield from gate_multiframe.dimension_faults(dataset)
        yield from gate_pixels.description_faults(dataset)
        faults = list(gate_multiframe.count_faults(dataset))
        yield from faults
        if not faults and np.ptp(geometry.stored(dataset)) == 0:
            yield f"all pixels of {uid_of(dataset)} have one value"


@RULES.rule
def spread_unit(case: Beside) -> Iterator[str]:
    for dataset in maps(case):
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        mappings = shared.get("RealWorldValueMappingSequence") or [Dataset()]
        slopes = values(mappings[0], "RealWorldValueSlope")
        if not slopes or not slopes[0] > 0 or not mappings[0].get("MeasurementUnitsCodeSequence"):
            yield f"{uid_of(dataset)} does not say what its values mean"


@RULES.rule
def spread_qualification(case: Beside) -> Iterator[str]:
    for dataset in maps(case):
        for keyword in ("ContentQualification", "SyntheticData"):
            if text(dataset, keyword) != text(case.image[0].instance, keyword):
                yield f"{keyword} of {uid_of(dataset)} is not the image's"
