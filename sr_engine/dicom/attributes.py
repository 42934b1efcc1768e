"""Which attributes a derived MR series takes from its source, as tables.

Source: PS3.3 A.4 (MR Image IOD) and the modules that it names.
Everything that no table names is left behind: private groups, icons, overlays, padding, pixel
value ranges, presentation states and trigger times describe the source's pixels.
"""

from collections.abc import Iterable, Sequence

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from sr_engine.dicom.headers import refusing_damage, text

# Whole groups of patient and trial attributes.
COPIED_GROUPS = (0x0010, 0x0012)

STUDY = (
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "StudyDescription",
    "ProcedureCodeSequence",
    "ReferencedStudySequence",
    "AdmittingDiagnosesDescription",
    "StudyInstanceUID",
    "StudyID",
    "TimezoneOffsetFromUTC",
)
SERIES = (
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "PerformingPhysicianName",
    "OperatorsName",
    "ProtocolName",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "Laterality",
    "PatientPosition",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "PerformedProcedureStepID",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepDescription",
    "RequestAttributesSequence",
    "RequestingPhysician",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
    "RecognizableVisualFeatures",
)
# A reader of the result must know that an agent was given: enhancement is a finding.
CONTRAST = (
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "ContrastBolusAdministrationRouteSequence",
    "ContrastBolusRoute",
    "ContrastBolusVolume",
    "ContrastBolusStartTime",
    "ContrastBolusStopTime",
    "ContrastBolusTotalDose",
    "ContrastFlowRate",
    "ContrastFlowDuration",
    "ContrastBolusIngredient",
    "ContrastBolusIngredientConcentration",
)
# As acquired: nothing here describes what we made of it, MagneticFieldStrength least of all.
ACQUISITION = (
    "AcquisitionNumber",
    *CONTRAST,
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "MRAcquisitionType",
    "SequenceName",
    "AngioFlag",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "NumberOfAverages",
    "ImagingFrequency",
    "ImagedNucleus",
    "EchoNumbers",
    "MagneticFieldStrength",
    "NumberOfPhaseEncodingSteps",
    "EchoTrainLength",
    "PercentSampling",
    "PercentPhaseFieldOfView",
    "PixelBandwidth",
    "ReconstructionDiameter",
    "ReceiveCoilName",
    "TransmitCoilName",
    "AcquisitionMatrix",
    "InPlanePhaseEncodingDirection",
    "FlipAngle",
    "VariableFlipAngleFlag",
    "SAR",
    "dBdt",
    "B1rms",
    "TemporalPositionIdentifier",
    "NumberOfTemporalPositions",
)
COPIED = STUDY + SERIES + ACQUISITION

# Type 2 of every IOD: present even when the source does not know them.
TYPE_2_STUDY = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
)
# Type 2 of the MR Image IOD.
TYPE_2 = (
    "PositionReferenceIndicator",
    "ScanOptions",
    "MRAcquisitionType",
    "EchoTime",
    "EchoTrainLength",
)
# The scanner's own, moved to ContributingEquipmentSequence.
EQUIPMENT = (
    "Manufacturer",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
LO_LENGTH = 64
STRING_VR = (
    *("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT"),
    *("PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"),
)


def copied_tags(source: Dataset, keywords: Iterable[str] = COPIED) -> list[BaseTag]:
    """Return the tags of `source` that a derived series takes over as they are."""
    named = {Tag(tag) for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    return [
        tag
        for tag in source.keys()
        if tag in named or (tag.group in COPIED_GROUPS and dictionary_has_tag(tag))
    ]


def copy_elements(source: Dataset, target: Dataset, tags: Iterable[BaseTag]) -> None:
    """Copy elements; strings that nobody decoded yet are copied as bytes.

    A name in a wrongly declared character set or a weight of "77,5" would not survive decoding
    and encoding.

    Raises
    ------
    HeaderError
        If a binary value or sequence cannot be read.
    """
    for tag in tags:
        item = source.get_item(tag)
        if isinstance(item, RawDataElement) and item.value and _vr(item) in STRING_VR:
            target[tag] = item._replace(
                VR=_vr(item), is_implicit_VR=False, is_little_endian=True, length=len(item.value)
            )
        else:
            with refusing_damage(source):
                target[tag] = source[tag]


def _vr(item: RawDataElement) -> str:
    """Return the value representation; implicit VR leaves it to the dictionary."""
    return item.VR or dictionary_VR(item.tag)


def add_missing_type_2(dataset: Dataset, keywords: Iterable[str] = TYPE_2) -> None:
    """Add the empty attributes that the IOD wants at least present."""
    for keyword in keywords:
        if keyword not in dataset:
            setattr(dataset, keyword, None)


def add_laterality(dataset: Dataset) -> None:
    """Say that there is no side, where no body part says it (PS3.3 C.7.3.1, type 2C)."""
    if not dataset.get("BodyPartExamined") and "Laterality" not in dataset:
        dataset.Laterality = None


def add_contrast(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Add the contrast agent of the first slice that names one; none where no slice does.

    An agent that is only coded (Enhanced MR) is named in ContrastBolusAgent, too: that is where
    readers of classic images look, and type 2 there (PS3.3 C.7.6.4).

    Raises
    ------
    HeaderError
        If a value or sequence cannot be read.
    """
    stating = next((header for header in headers if _names_contrast(header)), None)
    if stating is None:
        return
    for keyword in CONTRAST:
        if keyword in dataset:
            del dataset[keyword]
    copy_elements(stating, dataset, [Tag(name) for name in CONTRAST if name in stating])
    if not text(dataset, "ContrastBolusAgent"):
        with refusing_damage(stating):
            meanings = [
                text(item, "CodeMeaning")
                for item in stating.ContrastBolusAgentSequence
                if agent_was_given(headers, text(item, "ContrastBolusAgentNumber"))
            ]
        dataset.ContrastBolusAgent = ", ".join(filter(None, meanings))[:LO_LENGTH]


def agent_was_given(headers: Sequence[Dataset], number: str) -> bool:
    """Return False where all that frames of an Enhanced source say of agent `number` is NO.

    An Enhanced image may list an agent that was injected after it was acquired.
    """
    said = {
        text(item, "ContrastBolusAgentAdministered")
        for header in headers
        for item in header.get("ContrastBolusUsageSequence") or ()
        if text(item, "ContrastBolusAgentNumber") == number
    }
    return said != {"NO"}


def _names_contrast(header: Dataset) -> bool:
    with refusing_damage(header):
        return bool(text(header, "ContrastBolusAgent") or header.get("ContrastBolusAgentSequence"))


def earliest_acquisition(headers: Sequence[Dataset]) -> Dataset:
    """Return AcquisitionDate, AcquisitionTime and AcquisitionDateTime of the earliest slice."""
    keywords = ("AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime")

    def moment(header: Dataset) -> tuple[str, str]:
        stated = str(header.get("AcquisitionDateTime") or "")
        date, time = header.get("AcquisitionDate"), header.get("AcquisitionTime")
        return (str(date or stated[:8]), str(time or stated[8:]))

    dated = [header for header in headers if any(header.get(keyword) for keyword in keywords)]
    found = Dataset()
    if dated:
        first = min(dated, key=moment)
        for keyword in keywords:
            if keyword in first:
                found[keyword] = first[keyword]
    return found
