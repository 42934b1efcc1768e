"""The rules of the release gate, one function each; its name is the rule's name.

They cover what dciodvfy and dcentvfy do not see (a stale spacing, a gap, a copied ORIGINAL ...)
and the promise that the tags tell the truth. Messages name UIDs, attributes and geometry, never
a patient value.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_geometry as geometry
from dicom_node.gate_geometry import text, values
from sr_engine.dicom import provenance as engine_provenance
from sr_engine.dicom.provenance import Provenance
from sr_engine.errors import InputRefused

TOLERANCE_MM = 0.01
IDENTITY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
PERSON = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
AS_ACQUIRED = ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "MRAcquisitionType")
NO_PLACE_IN_ENHANCED = ("MRAcquisitionType",)  # forbidden there in what is not ORIGINAL
DERIVATION = (
    "DerivationDescription",
    "DerivationCodeSequence",
    "SourceImageSequence",
    "ReferencedSeriesSequence",
    "RelatedSeriesSequence",
    "ContributingEquipmentSequence",
)
OVERLAY_GROUPS = range(0x6000, 0x6100)
PIXEL_RANGE = {
    "SmallestImagePixelValue": np.min,
    "LargestImagePixelValue": np.max,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the rules look at."""

    derived: tuple[Dataset, ...]  # in the order of the normal
    source: tuple[Dataset, ...]  # headers; Enhanced MR as stored or one header per frame
    provenance: Provenance  # what the job says it did
    multiframe: bool = False  # `derived` are the frames of one instance


Rule = Callable[[Case], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Enter `function` into RULES under its own name."""
    RULES[function.__name__] = function
    return function


def uid_of(dataset: Dataset) -> str:
    """Return the SOP Instance UID, for messages also of a broken dataset."""
    return text(dataset, "SOPInstanceUID") or "an instance without UID"


def _differing(case: Case, keyword: str) -> Iterator[str]:
    """Yield the instances in which `keyword` is not that of the first."""
    first = text(case.derived[0], keyword)
    for dataset in case.derived[1:]:
        if text(dataset, keyword) != first:
            yield f"{keyword} of {uid_of(dataset)} differs within the series"


@rule
def slice_count(case: Case) -> Iterator[str]:
    expected = written_count(case)
    if len(case.derived) != expected:
        yield f"{len(case.derived)} instances instead of {expected}"


def written_count(case: Case) -> int:
    """Return how many slices the writer says it wrote."""
    try:
        return engine_provenance.from_dataset(case.derived[0]).slices
    except InputRefused:  # rule provenance reports it
        return len(case.derived)


@rule
def unique_uids(case: Case) -> Iterator[str]:
    sources = {text(header, "SOPInstanceUID") for header in case.source}
    seen: set[str] = set()
    for dataset in case.derived:
        uid = uid_of(dataset)
        if uid in seen and not case.multiframe:
            yield f"SOPInstanceUID {uid} occurs twice"
        if uid in sources:
            yield f"SOPInstanceUID {uid} is one of the source's"
        if uid != text(dataset.file_meta, "MediaStorageSOPInstanceUID"):
            yield f"the file meta information of {uid} names another instance"
        seen.add(uid)
    yield from _differing(case, "SeriesInstanceUID")
    if text(case.derived[0], "SeriesInstanceUID") in {
        text(header, "SeriesInstanceUID") for header in case.source
    }:
        yield "SeriesInstanceUID is the source's"


@rule
def duplicate_instance_number(case: Case) -> Iterator[str]:
    numbers = [int(dataset.InstanceNumber) for dataset in case.derived]
    for number in sorted({number for number in numbers if numbers.count(number) > 1}):
        yield f"InstanceNumber {number} occurs {numbers.count(number)} times"


@rule
def instance_order(case: Case) -> Iterator[str]:
    steps = set(np.diff([int(dataset.InstanceNumber) for dataset in case.derived]).tolist())
    if len(case.derived) > 1 and steps not in ({1}, {-1}, {0}) and 0 not in steps:
        yield "InstanceNumber does not count the slices along the normal"


@rule
def frame_of_reference(case: Case) -> Iterator[str]:
    expected = text(case.source[0], "FrameOfReferenceUID")
    for dataset in case.derived:
        if text(dataset, "FrameOfReferenceUID") != expected:
            yield f"FrameOfReferenceUID of {uid_of(dataset)} is not the source's"


@rule
def orientation(case: Case) -> Iterator[str]:
    expected = geometry.mean_orientation(case.source)
    for dataset in case.derived:
        away = np.abs(np.array(values(dataset, "ImageOrientationPatient")) - expected).max()
        if away > 1e-3:
            yield f"ImageOrientationPatient of {uid_of(dataset)} is not the source's"


@rule
def in_plane_grid(case: Case) -> Iterator[str]:
    for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        yield from _differing(case, keyword)


@rule
def duplicate_position(case: Case) -> Iterator[str]:
    for index in np.flatnonzero(geometry.steps(case.derived) < TOLERANCE_MM):
        first, second = case.derived[index : index + 2]
        yield f"{uid_of(first)} and {uid_of(second)} share a position"


@rule
def gap_in_stack(case: Case) -> Iterator[str]:
    steps = geometry.steps(case.derived)
    usual = float(np.median(steps)) if len(steps) else 0.0
    for index in np.flatnonzero(np.abs(steps - usual) > TOLERANCE_MM):
        if steps[index] >= TOLERANCE_MM:
            yield (
                f"{steps[index]:.3f} mm instead of {usual:.3f} mm from "
                f"{uid_of(case.derived[index])} to {uid_of(case.derived[index + 1])}"
            )
    if geometry.drift_mm(case.derived) > 5 * TOLERANCE_MM:
        yield "the slices move sideways along the stack"


def _slice_distance(case: Case, keyword: str, *, needed: bool) -> Iterator[str]:
    steps = geometry.steps(case.derived)
    usual = float(np.median(steps)) if len(steps) else 0.0
    for dataset in case.derived:
        stated = values(dataset, keyword)
        if not stated:
            if needed:
                yield f"{keyword} is missing in {uid_of(dataset)}"
        elif abs(stated[0] - usual) > TOLERANCE_MM:
            yield f"{keyword} of {uid_of(dataset)} is {stated[0]:g} mm, measured {usual:.4f} mm"


@rule
def spacing_between_slices(case: Case) -> Iterator[str]:
    yield from _slice_distance(case, "SpacingBetweenSlices", needed=False)


@rule
def slice_thickness(case: Case) -> Iterator[str]:
    yield from _slice_distance(case, "SliceThickness", needed=True)


@rule
def field_of_view(case: Case) -> Iterator[str]:
    yield from geometry.field_of_view_faults(case.derived, case.source)


@rule
def image_type(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        stated = list(dataset.get("ImageType") or [])
        # A multi-frame image has no room for a value of our own.
        ours = stated[3:] == ["RESAMPLED"] if case.multiframe else "AI_SR" in stated
        if len(stated) < 3 or stated[0] != "DERIVED" or not ours:
            yield f"ImageType of {uid_of(dataset)} is {'/'.join(stated) or 'missing'}"


@rule
def derivation_tags(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        for keyword in DERIVATION:
            if not dataset.get(keyword):
                yield f"{keyword} is missing in {uid_of(dataset)}"


@rule
def references(case: Case) -> Iterator[str]:
    known = {text(header, "SOPInstanceUID") for header in case.source}
    used = set(case.provenance.source_sop_uids)
    for dataset in case.derived:
        images = dataset.get("SourceImageSequence") or []
        named = {text(item, "ReferencedSOPInstanceUID") for item in images}
        series = dataset.get("ReferencedSeriesSequence") or []
        listed = {
            text(item, "ReferencedSOPInstanceUID")
            for one in series
            for item in one.get("ReferencedInstanceSequence") or []
        }
        if not (named | listed) <= known:
            yield f"{uid_of(dataset)} refers to instances that are not the source's"
        elif named != used or listed != used:
            yield f"{uid_of(dataset)} names {len(named)} of {len(used)} source instances"


@rule
def patient_and_study(case: Case) -> Iterator[str]:
    for keyword in IDENTITY:
        expected = text(case.source[0], keyword)
        for dataset in case.source[1:] if keyword in PERSON else ():
            if text(dataset, keyword) != expected:
                yield f"{keyword} of source {uid_of(dataset)} is not that of the others"
        for dataset in case.derived:
            if text(dataset, keyword) != expected:
                yield f"{keyword} of {uid_of(dataset)} is not the source's"


@rule
def magnetic_field_strength(case: Case) -> Iterator[str]:
    expected = values(case.source[0], "MagneticFieldStrength")
    for dataset in case.derived:
        stated = values(dataset, "MagneticFieldStrength")
        if stated != expected:
            yield f"MagneticFieldStrength of {uid_of(dataset)} is {stated}, acquired at {expected}"


@rule
def acquisition_parameters(case: Case) -> Iterator[str]:
    for keyword in AS_ACQUIRED:
        acquired = {text(header, keyword) for header in case.source if text(header, keyword)}
        known = acquired | {value for header in case.source for value in values(header, keyword)}
        if case.multiframe and keyword in NO_PLACE_IN_ENHANCED:
            continue
        for dataset in case.derived:
            # As a number, too: "4.20" is 4.2 in an attribute of another representation.
            stated = {text(dataset, keyword), *values(dataset, keyword)}
            if acquired and not stated & known:
                yield f"{keyword} of {uid_of(dataset)} is not as acquired"


@rule
def series_description(case: Case) -> Iterator[str]:
    yield from _differing(case, "SeriesDescription")
    if text(case.derived[0], "SeriesDescription") in {
        text(header, "SeriesDescription") for header in case.source
    }:
        yield "SeriesDescription is the source's: the two series could be confused"


@rule
def content_qualification(case: Case) -> Iterator[str]:
    sticky = any(text(header, "ContentQualification") == "RESEARCH" for header in case.source)
    declared = _recipe(case).get("content_qualification", "RESEARCH")
    expected = "RESEARCH" if sticky else declared
    for dataset in case.derived:
        stated = text(dataset, "ContentQualification")
        if stated != expected:
            yield f"ContentQualification of {uid_of(dataset)} is {stated!r}, not {expected!r}"


@rule
def synthetic_data(case: Case) -> Iterator[str]:
    expected = "YES" if _recipe(case).get("synthetic_data", True) else ""
    for dataset in case.derived:
        if text(dataset, "SyntheticData") != expected:
            yield f"SyntheticData of {uid_of(dataset)} is not {expected or 'absent'!r}"


def _recipe(case: Case) -> Mapping[str, object]:
    return case.provenance.recipe


@rule
def rescale(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"):
            if keyword in dataset:
                yield f"{keyword} is present in {uid_of(dataset)}"


@rule
def window(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        centre, width = values(dataset, "WindowCenter"), values(dataset, "WindowWidth")
        if not centre or not width:
            yield f"WindowCenter or WindowWidth is missing in {uid_of(dataset)}"
        elif width[0] < 1:
            yield f"WindowWidth of {uid_of(dataset)} is {width[0]:g}"
    for keyword in ("WindowCenter", "WindowWidth"):
        yield from _differing(case, keyword)


@rule
def pixel_data(case: Case) -> Iterator[str]:
    low, high = np.inf, -np.inf
    for dataset in case.derived:
        expected = int(dataset.Rows) * int(dataset.Columns) * 2
        if len(dataset.get("PixelData") or b"") != expected:
            yield f"the pixel data of {uid_of(dataset)} are not {expected} bytes"
            continue
        stored = geometry.stored(dataset)
        low, high = min(low, float(stored.min())), max(high, float(stored.max()))
        if stored.max() >> int(dataset.get("BitsStored", 16)):
            yield f"pixels of {uid_of(dataset)} exceed BitsStored"
    if low >= high:
        yield "all pixels of the series have one value"


@rule
def result_hash(case: Case) -> Iterator[str]:
    whole = hashlib.sha256()
    for dataset in case.derived:
        whole.update(dataset.get("PixelData") or b"")
    try:
        stated = engine_provenance.from_dataset(case.derived[0]).result_sha256
    except InputRefused:  # rule provenance reports it
        return
    if stated and stated != whole.hexdigest():
        yield "the pixels are not those whose SHA-256 the provenance states"


@rule
def stale_pixel_value_range(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        for keyword, extreme in PIXEL_RANGE.items():
            stated = values(dataset, keyword)
            if stated and stated[0] != extreme(geometry.stored(dataset)):
                yield f"{keyword} of {uid_of(dataset)} is {stated[0]:g}: not that of the pixels"
        for keyword in ("PixelPaddingValue", "IconImageSequence"):
            if keyword in dataset:
                yield f"{keyword} of {uid_of(dataset)} describes other pixels"
        if any(tag.group in OVERLAY_GROUPS for tag in dataset.keys()):
            yield f"an overlay of {uid_of(dataset)} describes other pixels"


@rule
def lossy_ratio(case: Case) -> Iterator[str]:
    lossy = any(text(header, "LossyImageCompression") == "01" for header in case.source)
    ratio_known = any(values(header, "LossyImageCompressionRatio") for header in case.source)
    for dataset in case.derived:
        stated = text(dataset, "LossyImageCompression")
        if lossy and stated != "01":
            yield f"LossyImageCompression of {uid_of(dataset)} hides that the source was lossy"
        if stated == "01" and not values(dataset, "LossyImageCompressionRatio"):
            if ratio_known or not lossy:
                yield f"LossyImageCompressionRatio is missing in {uid_of(dataset)}"


@rule
def foreign_private_groups(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        groups = {tag.group for tag in dataset.keys() if tag.is_private}
        for group in sorted(groups - {engine_provenance.GROUP}):
            yield f"private group {group:04X} in {uid_of(dataset)} describes other pixels"


@rule
def provenance(case: Case) -> Iterator[str]:
    keys = ("job_id", "source_series_uid", "recipe_digest", "bundle_sha256", "generation")
    digests = set()
    for dataset in case.derived:
        try:
            carried = engine_provenance.from_dataset(dataset)
        except InputRefused as error:
            yield str(error)
            continue
        digests.add(carried.digest())
        if any(getattr(carried, key) != getattr(case.provenance, key) for key in keys):
            yield f"the provenance of {uid_of(dataset)} is another job's"
        uids = {carried.derived_series_uid, *carried.series.values()}
        if text(dataset, "SeriesInstanceUID") not in uids:
            yield f"the provenance of {uid_of(dataset)} is another series'"
    if len(digests) > 1:
        yield "the instances carry different provenance"
