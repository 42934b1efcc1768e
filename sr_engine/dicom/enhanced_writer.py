"""The derived series as one Enhanced MR image: the same pixels in the same places.

Source: PS3.3 A.36 (Enhanced MR), C.8.13 (its modules), C.7.6.16 (functional groups).
"""

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from sr_engine.dicom import attributes, multiframe
from sr_engine.dicom.headers import keep_encoding, text
from sr_engine.dicom.kinds import ENHANCED, Kind
from sr_engine.dicom.multiframe import item, move, sct
from sr_engine.dicom.template import reference, series_number
from sr_engine.dicom.uids import derived_instance_uid
from sr_engine.dicom.writer import Result, WrittenSeries, finish, frame_order

KIND = Kind(form=ENHANCED)
# Value 2 must be PRIMARY here, and there is no room for a fifth one (C.8.16.1); the private
# creator tells our own output.
IMAGE_TYPE = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
CONTRASTS = (
    *("DIFFUSION", "FLOW_ENCODED", "FLUID_ATTENUATED", "PERFUSION", "PROTON_DENSITY", "STIR"),
    *("TAGGING", "T1", "T2", "T2_STAR", "TOF"),
)
# What was acquired and stays at the root. The functional groups of timing and modifiers want more
# than a classic source says (SAR, operating mode), so those of their values that readers look for
# are kept as additions, which every SOP class permits (PS3.4 B.4.1: Standard Extended).
KEPT_AT_ROOT = (
    "AcquisitionNumber",
    "MagneticFieldStrength",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "EchoTrainLength",
    *attributes.CONTRAST,
)
UNKNOWN_ROUTE = ("261665006", "Unknown")
GONE = ("Laterality", "SliceLocation", "AcquisitionDate", "AcquisitionTime")


def write_enhanced(result: Result, template: Dataset, out_dir: Path) -> WrittenSeries:
    """Write one Enhanced MR image of all slices and return what was written.

    Parameters
    ----------
    template
        What the classic slices have in common, see `writer.image_template`.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    dataset = enhanced_image(result, template)
    path = out_dir / result.job.file_name(KIND.file_name)
    finish(dataset, path, result.signer)
    return WrittenSeries(
        kind=KIND.name,
        series_uid=str(dataset.SeriesInstanceUID),
        sop_uids=(str(dataset.SOPInstanceUID),),
        paths=(path,),
        sop_class_uid=str(dataset.SOPClassUID),
        provenance=result.provenance,
    )


def enhanced_image(result: Result, template: Dataset) -> Dataset:
    """Return the complete dataset of the Enhanced MR image."""
    root = Dataset()
    keep_encoding(template, root)
    for tag in template.keys():
        root[tag] = template.get_item(tag)
    root.SOPClassUID = EnhancedMRImageStorage
    root.SeriesInstanceUID = result.provenance.series[KIND.name]
    root.SeriesNumber = series_number(result.source, result.job, result.recipe, KIND)
    root.SOPInstanceUID = derived_instance_uid(root.SeriesInstanceUID, 0)
    root.InstanceNumber = 1
    shared = multiframe.take_planes(root)
    shared.FrameAnatomySequence = [multiframe.anatomy(root)]
    shared.DerivationImageSequence = [_derivation(root)]
    shared.update(_acquisition(root))
    if "ContrastBolusAgentSequence" in root:
        shared.ContrastBolusUsageSequence = _usage(root, result.source.headers)
    _describe(root, shared, result)
    order = frame_order(result)
    root.SharedFunctionalGroupsSequence = [shared]
    root.PerFrameFunctionalGroupsSequence = multiframe.frames(result.volume, order)
    multiframe.add_dimensions(root)
    multiframe.add_pixels(root, result.stored.array[order])
    return root


def _derivation(root: Dataset) -> Dataset:
    """Return the derivation, which belongs to the frames here, taken out of the root."""
    group = Dataset()
    move(root, group, "DerivationDescription", "DerivationCodeSequence", "SourceImageSequence")
    return group


def _acquisition(root: Dataset) -> Dataset:
    """Return the functional group of the echo, and leave at the root what has no better place."""
    shared = Dataset()
    echo_time = root.get("EchoTime")
    if echo_time not in (None, ""):
        shared.MREchoSequence = [item(EffectiveEchoTime=float(echo_time))]
    nucleus, moment = text(root, "ImagedNucleus"), _acquired_at(root)
    for keyword in (*attributes.ACQUISITION, *GONE):
        if keyword in root and keyword not in KEPT_AT_ROOT:
            del root[keyword]
    for keyword in KEPT_AT_ROOT:
        if keyword in root and not text(root, keyword):
            del root[keyword]
    _complete_agents(root)
    if nucleus:
        root.ResonantNucleus = nucleus
    if moment:
        root.AcquisitionDateTime = moment
    return shared


def _complete_agents(root: Dataset) -> None:
    """Add what a coded agent must have here and need not have in a classic image.

    Source: PS3.3 C.7.6.4b (Enhanced Contrast/Bolus).
    """
    routes = list(root.get("ContrastBolusAdministrationRouteSequence") or [])
    if "ContrastBolusAdministrationRouteSequence" in root:
        del root.ContrastBolusAdministrationRouteSequence  # it stands in the items, if anywhere
    agents = list(root.get("ContrastBolusAgentSequence") or [])
    if "ContrastBolusAgentSequence" in root:
        del root.ContrastBolusAgentSequence
    if agents:
        root.ContrastBolusAgentSequence = [
            _complete_agent(agent, number, routes) for number, agent in enumerate(agents, 1)
        ]


def _complete_agent(agent: Dataset, number: int, routes: list[Dataset]) -> Dataset:
    """Return a copy of an item of ContrastBolusAgentSequence that has all it must have."""
    made = Dataset()
    keep_encoding(agent, made)
    for tag in agent.keys():
        made[tag] = agent.get_item(tag)
    if not text(made, "ContrastBolusAgentNumber"):
        made.ContrastBolusAgentNumber = number
    if not made.get("ContrastBolusAdministrationRouteSequence"):
        made.ContrastBolusAdministrationRouteSequence = routes or sct(UNKNOWN_ROUTE)
    if "ContrastBolusIngredientCodeSequence" not in made:
        made.ContrastBolusIngredientCodeSequence = []
    attributes.add_missing_type_2(
        made, ("ContrastBolusVolume", "ContrastBolusIngredientConcentration")
    )
    return made


def _usage(root: Dataset, headers: Sequence[Dataset]) -> list[Dataset]:
    """Return the functional group of the agents (PS3.3 C.7.6.16.2.12)."""
    numbers = [agent.ContrastBolusAgentNumber for agent in root.ContrastBolusAgentSequence]
    return [
        item(
            ContrastBolusAgentNumber=number,
            ContrastBolusAgentAdministered=(
                "YES" if attributes.agent_was_given(headers, str(number)) else "NO"
            ),
            # Whether the pixels show it nobody has looked.
            ContrastBolusAgentDetected=None,
            ContrastBolusAgentPhase=None,
        )
        for number in numbers
    ]


def _acquired_at(root: Dataset) -> str:
    """Return AcquisitionDateTime; Enhanced MR has no date and time of its own for it."""
    stated, date = text(root, "AcquisitionDateTime"), text(root, "AcquisitionDate")
    return stated or (date and date + text(root, "AcquisitionTime"))


def _describe(root: Dataset, shared: Dataset, result: Result) -> None:
    """Add the Enhanced MR Image module, and the frame type that repeats it."""
    stated = text(result.source.headers[0], "AcquisitionContrast")
    root.ImageType = IMAGE_TYPE
    frame_type = item(FrameType=IMAGE_TYPE)
    for target in (root, frame_type):
        target.PixelPresentation = "MONOCHROME"
        target.VolumetricProperties = "VOLUME"
        target.VolumeBasedCalculationTechnique = "NONE"
        target.ComplexImageComponent = "MAGNITUDE"
        target.AcquisitionContrast = stated if stated in CONTRASTS else "UNKNOWN"
    shared.MRImageFrameTypeSequence = [frame_type]
    root.AcquisitionContextSequence = []
    root.ApplicableSafetyStandardAgency = "IEC"
    root.SourceImageEvidenceSequence = [evidence(result)]
    del root.ReferencedSeriesSequence  # the same list; readers complain when it stands twice


def evidence(result: Result) -> Dataset:
    """Return the source instances by study and series (PS3.3 C.8.13.2)."""
    source = result.source
    instances = [reference(source.sop_class_uid, uid) for uid in source.sop_uids]
    series = item(SeriesInstanceUID=source.series_uid, ReferencedSOPSequence=instances)
    return item(StudyInstanceUID=source.study_uid, ReferencedSeriesSequence=[series])
