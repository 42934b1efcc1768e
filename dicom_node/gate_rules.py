"""The rules of the release gate, one function each; its name is the rule's name.

They cover what dciodvfy and dcentvfy do not see (a stale spacing, a gap, a copied ORIGINAL ...)
and the promise that the tags tell the truth. Messages name UIDs, attributes and geometry, never
a patient value. Rules about the pixels stand in `gate_pixels`, those about what only a multi-frame
image has in `gate_multiframe`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_geometry as geometry
from dicom_node.gate_case import IDENTITY, TOLERANCE_MM, Case, Registry, differing, uid_of
from dicom_node.gate_geometry import text, values
from sr_engine.dicom import provenance as engine_provenance
from sr_engine.errors import InputRefused

PERSON = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
AS_ACQUIRED = ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "MRAcquisitionType")
CODE = ("CodeValue", "LongCodeValue", "URNCodeValue", "CodingSchemeDesignator")
NO_AGENT: tuple[str, tuple[tuple[str, ...], ...]] = ("", ())
NO_PLACE_IN_ENHANCED = ("MRAcquisitionType",)  # forbidden there in what is not ORIGINAL
DECIMAL_STRING = 1e-9  # what 16 characters keep of a float of an Enhanced source
DERIVATION = (
    "DerivationDescription",
    "DerivationCodeSequence",
    "SourceImageSequence",
    "ReferencedSeriesSequence",
    "RelatedSeriesSequence",
    "ContributingEquipmentSequence",
)
RULES: Registry[Case] = Registry()


@RULES.rule
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


@RULES.rule
def unique_uids(case: Case) -> Iterator[str]:
    sources = {text(header, "SOPInstanceUID") for header in case.received}
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
    yield from differing(case, "SeriesInstanceUID")
    if text(case.derived[0], "SeriesInstanceUID") in {
        text(header, "SeriesInstanceUID") for header in case.received
    }:
        yield "SeriesInstanceUID is the source's"


@RULES.rule
def duplicate_instance_number(case: Case) -> Iterator[str]:
    numbers = [int(dataset.InstanceNumber) for dataset in case.derived]
    for number in sorted({number for number in numbers if numbers.count(number) > 1}):
        yield f"InstanceNumber {number} occurs {numbers.count(number)} times"


@RULES.rule
def instance_order(case: Case) -> Iterator[str]:
    steps = set(np.diff([int(dataset.InstanceNumber) for dataset in case.derived]).tolist())
    if len(case.derived) > 1 and steps not in ({1}, {-1}) and 0 not in steps:
        yield "InstanceNumber does not count the slices along the normal"


@RULES.rule
def frame_of_reference(case: Case) -> Iterator[str]:
    expected = text(case.source[0], "FrameOfReferenceUID")
    for dataset in case.derived:
        if text(dataset, "FrameOfReferenceUID") != expected:
            yield f"FrameOfReferenceUID of {uid_of(dataset)} is not the source's"


@RULES.rule
def orientation(case: Case) -> Iterator[str]:
    expected = geometry.mean_orientation(case.source)
    for dataset in case.derived:
        away = np.abs(np.array(values(dataset, "ImageOrientationPatient")) - expected).max()
        if away > 1e-3:
            yield f"ImageOrientationPatient of {uid_of(dataset)} is not the source's"


@RULES.rule
def in_plane_grid(case: Case) -> Iterator[str]:
    for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        yield from differing(case, keyword)


@RULES.rule
def duplicate_position(case: Case) -> Iterator[str]:
    for index in np.flatnonzero(geometry.steps(case.derived) < TOLERANCE_MM):
        first, second = case.derived[index : index + 2]
        yield f"{uid_of(first)} and {uid_of(second)} share a position"


@RULES.rule
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


@RULES.rule
def spacing_between_slices(case: Case) -> Iterator[str]:
    yield from _slice_distance(case, "SpacingBetweenSlices", needed=False)


@RULES.rule
def slice_thickness(case: Case) -> Iterator[str]:
    yield from _slice_distance(case, "SliceThickness", needed=True)


@RULES.rule
def field_of_view(case: Case) -> Iterator[str]:
    yield from geometry.field_of_view_faults(case.derived, case.source)


@RULES.rule
def image_type(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        stated = list(dataset.get("ImageType") or [])
        # A multi-frame image has no room for a value of our own.
        ours = stated[3:] == ["RESAMPLED"] if case.multiframe else "AI_SR" in stated
        if len(stated) < 3 or stated[0] != "DERIVED" or not ours:
            yield f"ImageType of {uid_of(dataset)} is {'/'.join(stated) or 'missing'}"


@RULES.rule
def derivation_tags(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        for keyword in DERIVATION:
            if not dataset.get(keyword):
                yield f"{keyword} is missing in {uid_of(dataset)}"


@RULES.rule
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


@RULES.rule
def patient_and_study(case: Case) -> Iterator[str]:
    for keyword in IDENTITY:
        expected = text(case.source[0], keyword)
        for dataset in case.received if keyword in PERSON else ():
            if text(dataset, keyword) != expected:
                yield f"{keyword} of source {uid_of(dataset)} is not that of the others"
        for dataset in case.derived:
            if text(dataset, keyword) != expected:
                yield f"{keyword} of {uid_of(dataset)} is not the source's"


@RULES.rule
def magnetic_field_strength(case: Case) -> Iterator[str]:
    expected = values(case.source[0], "MagneticFieldStrength")
    for dataset in case.derived:
        stated = values(dataset, "MagneticFieldStrength")
        if stated != expected:
            yield f"MagneticFieldStrength of {uid_of(dataset)} is {stated}, acquired at {expected}"


@RULES.rule
def acquisition_parameters(case: Case) -> Iterator[str]:
    for keyword in AS_ACQUIRED:
        acquired = {text(header, keyword) for header in case.source if text(header, keyword)}
        known = np.array(sorted({v for header in case.source for v in values(header, keyword)}))
        if case.multiframe and keyword in NO_PLACE_IN_ENHANCED:
            continue
        for dataset in case.derived if acquired else ():
            # As a number, too: "4.20" is 4.2 in an attribute of another representation.
            stated = np.array(values(dataset, keyword))
            same = np.isclose(stated[:, None], known, rtol=DECIMAL_STRING, atol=0).any()
            if text(dataset, keyword) not in acquired and not same:
                yield f"{keyword} of {uid_of(dataset)} is not as acquired"


@RULES.rule
def contrast_agent(case: Case) -> Iterator[str]:
    acquired = {_agent(header) for header in case.source}
    named = acquired - {NO_AGENT}
    for dataset in case.derived:
        stated = _agent(dataset)
        if not named and stated != NO_AGENT:
            yield f"{uid_of(dataset)} names a contrast agent, which the source does not"
        # An agent that is only coded there may be named here, too.
        elif named and not any(
            codes == stated[1] and name in ("", stated[0]) for name, codes in named
        ):
            yield f"the contrast agent of {uid_of(dataset)} is not as acquired"


def _agent(header: Dataset) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """Return the contrast agent by name and by codes."""
    items = header.get("ContrastBolusAgentSequence") or ()
    codes = tuple(tuple(text(item, keyword) for keyword in CODE) for item in items)
    return text(header, "ContrastBolusAgent"), codes


@RULES.rule
def series_description(case: Case) -> Iterator[str]:
    yield from differing(case, "SeriesDescription")
    if text(case.derived[0], "SeriesDescription") in {
        text(header, "SeriesDescription") for header in case.source
    }:
        yield "SeriesDescription is the source's: the two series could be confused"


@RULES.rule
def content_qualification(case: Case) -> Iterator[str]:
    sticky = any(text(header, "ContentQualification") == "RESEARCH" for header in case.source)
    declared = _recipe(case).get("content_qualification", "RESEARCH")
    expected = "RESEARCH" if sticky else declared
    for dataset in case.derived:
        stated = text(dataset, "ContentQualification")
        if stated != expected:
            yield f"ContentQualification of {uid_of(dataset)} is {stated!r}, not {expected!r}"


@RULES.rule
def synthetic_data(case: Case) -> Iterator[str]:
    expected = "YES" if _recipe(case).get("synthetic_data", True) else ""
    for dataset in case.derived:
        if text(dataset, "SyntheticData") != expected:
            yield f"SyntheticData of {uid_of(dataset)} is not {expected or 'absent'!r}"


def _recipe(case: Case) -> Mapping[str, object]:
    return case.provenance.recipe


@RULES.rule
def foreign_private_groups(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        groups = {tag.group for tag in dataset.keys() if tag.is_private}
        for group in sorted(groups - {engine_provenance.GROUP}):
            yield f"private group {group:04X} in {uid_of(dataset)} describes other pixels"


@RULES.rule
def provenance(case: Case) -> Iterator[str]:
    expected = case.provenance.digest()
    digests = set()
    for dataset in case.derived:
        try:
            carried = engine_provenance.from_dataset(dataset)
        except InputRefused as error:
            yield str(error)
            continue
        digests.add(carried.digest())
        if carried.digest() != expected:
            yield f"the provenance of {uid_of(dataset)} is not that of the job"
        uids = {carried.derived_series_uid, *carried.series.values()}
        if text(dataset, "SeriesInstanceUID") not in uids:
            yield f"the provenance of {uid_of(dataset)} is another series'"
    if len(digests) > 1:
        yield "the instances carry different provenance"
