"""Enhanced MR to classic headers: one table maps each functional group to classic attributes.

Source: PS3.3 C.7.6.16 (functional groups), C.8.13.1 and C.8.13.5 (Enhanced MR), C.8.3.1 (MR Image).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from sr_engine.dicom.headers import keep_encoding, sop_uid
from sr_engine.errors import HeaderError


def _same(value: Any, group: Dataset) -> Any:
    return value


def _first(value: Any, group: Dataset) -> Any:
    """Return the first of several values (InversionTimes is multi-valued, InversionTime not)."""
    return value if isinstance(value, str | float | int) else value[0]


def _phase_direction(value: str, group: Dataset) -> str | None:
    """Return the classic term: COLUMN is COL there, OTHER has none."""
    return {"ROW": "ROW", "COLUMN": "COL"}.get(value)


def _side(value: str, group: Dataset) -> str | None:
    """Return R or L; U (unpaired) has no classic value."""
    return value if value in ("R", "L") else None


def _matrix(value: int, group: Dataset) -> list[int] | None:
    """Return AcquisitionMatrix: frequency rows, columns, phase rows, columns (0018,1310)."""
    phase = group.get("MRAcquisitionPhaseEncodingStepsInPlane")
    direction = group.get("InPlanePhaseEncodingDirection")
    if not phase or direction not in ("ROW", "COLUMN"):
        return None
    return [0, value, phase, 0] if direction == "ROW" else [value, 0, 0, phase]


def _date(value: str, group: Dataset) -> str:
    return str(value)[:8]


def _time(value: str, group: Dataset) -> str | None:
    """Return the time of a DT value, its offset cut off."""
    time = str(value)[8:].split("+")[0].split("-")[0]
    return time or None


BODY_PARTS = {  # codes of CID 4030, in SRT and SCT
    ("SRT", "T-A0100"): "BRAIN",
    ("SCT", "12738006"): "BRAIN",
    ("SRT", "T-D1100"): "HEAD",
    ("SCT", "69536005"): "HEAD",
    ("SRT", "T-D1600"): "NECK",
    ("SCT", "45048000"): "NECK",
}


def _body_part(value: Any, group: Dataset) -> str | None:
    """Return BodyPartExamined of a coded anatomic region of the head."""
    if not value:
        return None
    return BODY_PARTS.get((value[0].get("CodingSchemeDesignator"), value[0].get("CodeValue")))


# Terms of the MR Modifier group -> terms of classic ScanOptions.
SCAN_OPTIONS = {
    ("PartialFourier", "YES"): "PFP",
    ("FlowCompensation", "ACCELERATION"): "FC",
    ("FlowCompensation", "VELOCITY"): "FC",
    ("FlowCompensation", "OTHER"): "FC",
    ("SpatialPresaturation", "SLAB"): "SP",
    ("SpectrallySelectedExcitation", "WATER"): "FS",
    ("SpectrallySelectedExcitation", "FAT"): "FS",
}


def _scan_options(value: Any, group: Dataset) -> list[str] | None:
    """Return ScanOptions of a whole MR Modifier group."""
    terms = {term: None for (name, value), term in SCAN_OPTIONS.items() if group.get(name) == value}
    return list(terms) or None


@dataclass(frozen=True)
class Row:
    """One attribute of a functional group and the classic attribute it becomes."""

    group: str
    attribute: str
    keyword: str
    convert: Callable[[Any, Dataset], Any] = _same


TABLE = (
    Row("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"),
    Row("PixelMeasuresSequence", "SliceThickness", "SliceThickness"),
    Row("PixelMeasuresSequence", "SpacingBetweenSlices", "SpacingBetweenSlices"),
    Row("PlanePositionSequence", "ImagePositionPatient", "ImagePositionPatient"),
    Row("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"),
    Row("MRTimingAndRelatedParametersSequence", "RepetitionTime", "RepetitionTime"),
    Row("MRTimingAndRelatedParametersSequence", "FlipAngle", "FlipAngle"),
    Row("MRTimingAndRelatedParametersSequence", "EchoTrainLength", "EchoTrainLength"),
    Row("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    Row("MRModifierSequence", "InversionTimes", "InversionTime", _first),
    Row("MRModifierSequence", "InversionRecovery", "ScanOptions", _scan_options),
    Row("MRImageFrameTypeSequence", "FrameType", "ImageType"),
    Row("MRImageFrameTypeSequence", "ComplexImageComponent", "ComplexImageComponent"),
    Row("FrameAnatomySequence", "AnatomicRegionSequence", "BodyPartExamined", _body_part),
    Row("FrameAnatomySequence", "FrameLaterality", "Laterality", _side),
    Row("FrameVOILUTSequence", "WindowCenter", "WindowCenter"),
    Row("FrameVOILUTSequence", "WindowWidth", "WindowWidth"),
    Row("FrameVOILUTSequence", "VOILUTFunction", "VOILUTFunction"),
    Row("PixelValueTransformationSequence", "RescaleSlope", "RescaleSlope"),
    Row("PixelValueTransformationSequence", "RescaleIntercept", "RescaleIntercept"),
    Row("MRAveragesSequence", "NumberOfAverages", "NumberOfAverages"),
    Row("MRImagingModifierSequence", "PixelBandwidth", "PixelBandwidth", _first),
    Row("MRImagingModifierSequence", "TransmitterFrequency", "ImagingFrequency", _first),
    Row("MRReceiveCoilSequence", "ReceiveCoilName", "ReceiveCoilName"),
    Row("MRTransmitCoilSequence", "TransmitCoilName", "TransmitCoilName"),
    Row("MRFOVGeometrySequence", "PercentSampling", "PercentSampling"),
    Row("MRFOVGeometrySequence", "PercentPhaseFieldOfView", "PercentPhaseFieldOfView"),
    Row(
        "MRFOVGeometrySequence",
        "InPlanePhaseEncodingDirection",
        "InPlanePhaseEncodingDirection",
        _phase_direction,
    ),
    Row(
        "MRFOVGeometrySequence",
        "MRAcquisitionFrequencyEncodingSteps",
        "AcquisitionMatrix",
        _matrix,
    ),
    Row("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    Row("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDateTime"),
    Row("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDate", _date),
    Row("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionTime", _time),
    Row("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
    Row("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
)
USAGE = "ContrastBolusUsageSequence"
NOT_COPIED = {
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PixelData",
    "DimensionIndexSequence",
    "DimensionOrganizationSequence",
}


def flatten(dataset: Dataset) -> list[Dataset]:
    """Return one classic-like header per frame of an Enhanced MR dataset.

    A functional group of the frame wins over a shared one, both win over the root. InstanceNumber
    is the number of the frame, NumberOfFrames that of the object.

    Raises
    ------
    HeaderError
        If the functional groups are missing or not one per frame.
    """
    frames = frame_groups(dataset)
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    root = _root(dataset)
    return [_frame_header(root, shared[0], frame, number) for number, frame in enumerate(frames, 1)]


def frame_groups(dataset: Dataset) -> list[Dataset]:
    """Return the functional groups of each frame; raise HeaderError unless each has some."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if not frames or len(frames) != int(dataset.get("NumberOfFrames", 0)):
        raise HeaderError(
            f"PerFrameFunctionalGroupsSequence of {sop_uid(dataset)} is missing or does not have "
            f"one item per frame"
        )
    return list(frames)


def _root(dataset: Dataset) -> Dataset:
    """Return the public attributes common to all frames, with their classic companions."""
    root = Dataset()
    for tag in dataset.keys():
        if not tag.is_private and keyword_for_tag(tag) not in NOT_COPIED:
            root[tag] = dataset.get_item(tag)
    keep_encoding(dataset, root)
    if dataset.get("AcquisitionDateTime"):
        _put(root, "AcquisitionDate", _date(dataset.AcquisitionDateTime, dataset))
        _put(root, "AcquisitionTime", _time(dataset.AcquisitionDateTime, dataset))
    if dataset.get("PulseSequenceName"):
        _put(root, "SequenceName", dataset.PulseSequenceName[:16])  # SH
    if dataset.get("ResonantNucleus"):
        _put(root, "ImagedNucleus", dataset.ResonantNucleus)
    return root


def _shallow_copy(dataset: Dataset) -> Dataset:
    """Return a dataset of the same elements (copy.copy would share the element table)."""
    twin = Dataset()
    for tag in dataset.keys():
        twin[tag] = dataset.get_item(tag)
    keep_encoding(dataset, twin)
    return twin


def _put(dataset: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute as a new element: plain assignment would change the shared one."""
    tag = Tag(keyword)
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value)


def _frame_header(root: Dataset, shared: Dataset, frame: Dataset, number: int) -> Dataset:
    """Return the classic header of one frame."""
    header = _shallow_copy(root)
    _put(header, "InstanceNumber", number)
    groups = {row.group: _group(shared, frame, row.group) for row in TABLE}
    for row in TABLE:
        group = groups[row.group]
        value = group.get(row.attribute)
        if value is None or value == "":
            continue
        classic = row.convert(value, group)
        if classic is not None:
            _put(header, row.keyword, classic)
    usage = frame.get(USAGE) or shared.get(USAGE)
    if usage:
        _put(header, USAGE, list(usage))  # an item per agent: no row of the table could say it
    modifier = _group(shared, frame, "MRModifierSequence")
    _put(header, "ScanningSequence", scanning_sequence(root, modifier))
    _put(header, "SequenceVariant", sequence_variant(root, modifier))
    if "IR" not in header.ScanningSequence and "InversionTime" in header:
        del header.InversionTime  # type 2C: only with an inversion
    return header


def _group(shared: Dataset, frame: Dataset, keyword: str) -> Dataset:
    """Return the functional group that holds for the frame, empty when there is none."""
    items = frame.get(keyword) or shared.get(keyword)
    return items[0] if items else Dataset()


def scanning_sequence(root: Dataset, modifier: Dataset) -> list[str]:
    """Return ScanningSequence (0018,0020) of the enhanced pulse sequence attributes."""
    by_echo = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}
    terms = list(by_echo.get(root.get("EchoPulseSequence"), ["RM"]))
    if modifier.get("InversionRecovery") == "YES":
        terms.append("IR")
    if root.get("EchoPlanarPulseSequence") == "YES":
        terms.append("EP")
    return terms


def sequence_variant(root: Dataset, modifier: Dataset) -> list[str]:
    """Return SequenceVariant (0018,0021) of the enhanced pulse sequence attributes."""
    conditions = {
        "SK": root.get("SegmentedKSpaceTraversal") in ("PARTIAL", "FULL"),
        "SS": root.get("SteadyStatePulseSequence") not in (None, "NONE"),
        "SP": modifier.get("Spoiling") not in (None, "", "NONE"),
        "MP": modifier.get("InversionRecovery") == "YES",
        "OSP": root.get("OversamplingPhase") not in (None, "", "NONE"),
    }
    return [term for term, present in conditions.items() if present] or ["NONE"]
