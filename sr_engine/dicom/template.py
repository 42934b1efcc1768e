"""What all instances of one derived series have in common (design page of the derived series)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import BytesIO

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag
from pydicom.uid import MRImageStorage

from sr_engine.dicom import attributes
from sr_engine.dicom import provenance as provenance_module
from sr_engine.dicom.headers import number, text
from sr_engine.dicom.kinds import CLASSIC, KEY_OBJECTS, PRESENTATION, REPORT, SPREAD, Kind, Part
from sr_engine.dicom.pixels import LOSSY_KEYWORDS
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.reader import SourceSeries
from sr_engine.errors import WriteError
from sr_engine.recipe import Recipe

MANUFACTURER = "DICOM-NODE"
MODEL_NAME = "AI-SR"
IMAGE_TYPE = ["DERIVED", "SECONDARY", "OTHER", "AI_SR"]
LO_LENGTH, SH_LENGTH, ST_LENGTH = 64, 16, 1024
LARGEST_IS = 2**31 - 1
FREE_SERIES_NUMBER = 9000
# `Kind.offset` leaves room for so many generations; the next ones begin so far above.
GENERATIONS, NEXT_GENERATIONS = 10, 10_000_000
# Further parts lie between generations, at steps of 12 500 source numbers: nobody counts so.
NEXT_PART = 1_250_000

# Codes of PS3.16: CID 7203, 7202, 7210, 7005.
RESAMPLING = ("113085", "Spatial resampling")
SOURCE_IMAGE = ("121322", "Source image for image processing operation")
SOURCE_SERIES = ("121323", "Source series for image processing operation")
ACQUISITION_EQUIPMENT = ("109101", "Acquisition Equipment")
PROCESSING_EQUIPMENT = ("109102", "Processing Equipment")

IMAGE = Kind(form=CLASSIC)
# What tells the companions of an image from it in a list of series.
WORDS = {
    "": "",
    SPREAD: " spread",
    KEY_OBJECTS: " level pairs",
    PRESENTATION: " level labels",
    REPORT: " quality report",
}


@dataclass(frozen=True, kw_only=True)
class JobIdentity:
    """What one processing job adds to the identity of a derived series."""

    job_id: int | str
    created: datetime  # aware; every date we write is this one, so a resend has the same bytes
    generation: int = 1
    series_number: int | None = None
    replaces: tuple[str, ...] = ()  # the derived series of the generation before, if it made any
    part: Part | None = None  # None: the series is one volume

    def __post_init__(self) -> None:
        if self.created.tzinfo is None:
            raise WriteError(f"job {self.job_id}: created {self.created} has no time zone")

    def file_name(self, name: str) -> str:
        """Return the name of one of its files: the parts of a result lie in one folder."""
        return f"{self.part.rank}-{name}" if self.part else name


def code(value: tuple[str, str]) -> list[Dataset]:
    """Return a code sequence of one DCM code."""
    item = Dataset()
    item.CodeValue, item.CodeMeaning = value
    item.CodingSchemeDesignator = "DCM"
    return [item]


def local_time(source: SourceSeries, created: datetime) -> datetime:
    """Return `created` in the source's local time, or in this machine's when it does not say."""
    offset = text(source.headers[0], "TimezoneOffsetFromUTC")
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        delta = timedelta(minutes=-minutes if offset[0] == "-" else minutes)
        return created.astimezone(timezone(delta))
    return created.astimezone()


def series_template(
    source: SourceSeries, *, recipe: Recipe, provenance: Provenance, job: JobIdentity
) -> Dataset:
    """Return the attributes common to all instances; geometry, window and pixels are missing."""
    dataset = companion_template(
        source, IMAGE, attributes.COPIED, recipe=recipe, provenance=provenance, job=job
    )
    dataset.SOPClassUID = MRImageStorage
    dataset.Modality = "MR"
    dataset.ImageType = IMAGE_TYPE
    dataset.update(attributes.earliest_acquisition(source.headers))
    attributes.add_contrast(dataset, source.headers)
    attributes.add_missing_type_2(dataset)
    dataset.ImageComments = f"AI super-resolution, not for diagnosis. Job {job.job_id}"
    _add_derivation(dataset, source, job.replaces)
    add_qualities(dataset, source, recipe)
    return dataset


def companion_template(
    source: SourceSeries,
    kind: Kind,
    copied: Sequence[str],
    *,
    recipe: Recipe,
    provenance: Provenance,
    job: JobIdentity,
) -> Dataset:
    """Return the attributes of every series of one job: patient, study, series, equipment.

    Parameters
    ----------
    copied
        Keywords that are taken from the source beside the groups of the patient.
    """
    first = source.headers[0]
    dataset = Dataset()
    declared = first.get("SpecificCharacterSet")
    # What pydicom compares to decide whether text may be written as the bytes it was read as.
    encoding = convert_encodings(declared) if declared else default_encoding
    dataset.set_original_encoding(False, True, encoding)
    attributes.copy_elements(first, dataset, attributes.copied_tags(first, copied))
    attributes.add_missing_type_2(dataset, attributes.TYPE_2_STUDY)
    for keyword, value in (
        ("BodyPartExamined", recipe.body_part),
        ("ProtocolName", recipe.protocol_name),
    ):
        if value and keyword in copied:
            setattr(dataset, keyword, value)
    if recipe.body_part and "AnatomicRegionSequence" in dataset:
        del dataset.AnatomicRegionSequence  # the source's, which may be another region
    local = local_time(source, job.created)
    _add_dates(dataset, local)
    _add_series(dataset, source, kind, recipe, provenance, job)
    _add_equipment(dataset, first, recipe, provenance, local)
    provenance_module.to_private_block(dataset, provenance)
    return dataset


def _add_dates(dataset: Dataset, local: datetime) -> None:
    for name in ("InstanceCreation", "Series", "Content"):
        setattr(dataset, f"{name}Date", local.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", local.strftime("%H%M%S"))


def _add_series(
    dataset: Dataset,
    source: SourceSeries,
    kind: Kind,
    recipe: Recipe,
    provenance: Provenance,
    job: JobIdentity,
) -> None:
    dataset.SeriesInstanceUID = provenance.series.get(kind.name, provenance.derived_series_uid)
    dataset.SeriesNumber = series_number(source, job, recipe, kind)
    part = f" {job.part.name}" if job.part else ""
    suffix = (part + recipe.description_suffix + WORDS[kind.companion])[:LO_LENGTH]
    described = text(source.headers[0], "SeriesDescription")
    dataset.SeriesDescription = (described[: LO_LENGTH - len(suffix)] + suffix).strip()


def series_number(source: SourceSeries, job: JobIdentity, recipe: Recipe, kind: Kind) -> int:
    """Return base + source x 100 + generation, or base + 9000 + generation beyond what IS holds.

    From the tenth generation on they lie ten million higher, and so on: the numbers between are
    those of other kinds, of the next series, and of further parts.
    """
    above = kind.offset + (NEXT_PART * (job.part.rank - 1) if job.part else 0)
    if job.series_number is not None:
        return job.series_number + above
    stated = int(number(source.headers[0], "SeriesNumber") or 0)
    tens, generation = divmod(job.generation, GENERATIONS)
    first = recipe.series_number_base + tens * NEXT_GENERATIONS + generation
    proposed = first + stated * 100
    fits = 0 < stated and proposed + above - kind.offset <= LARGEST_IS - 100
    return above + (proposed if fits else first + FREE_SERIES_NUMBER)


def _add_equipment(
    dataset: Dataset, first: Dataset, recipe: Recipe, provenance: Provenance, local: datetime
) -> None:
    """Name ourselves as the equipment and the scanner as the one that acquired."""
    ours = _own_equipment(provenance)
    scanner = Dataset()
    for keyword in attributes.EQUIPMENT:
        if text(first, keyword):
            scanner[keyword] = first[keyword]
    if "Manufacturer" not in scanner:
        scanner.Manufacturer = "UNKNOWN"  # type 1 in this sequence
    scanner.PurposeOfReferenceCodeSequence = code(ACQUISITION_EQUIPMENT)
    processing = Dataset()
    processing.update(ours)
    processing.PurposeOfReferenceCodeSequence = code(PROCESSING_EQUIPMENT)
    processing.ContributionDateTime = local.strftime("%Y%m%d%H%M%S%z")
    processing.ContributionDescription = "AI super-resolution"
    earlier = list(first.get("ContributingEquipmentSequence") or [])
    dataset.ContributingEquipmentSequence = [*earlier, scanner, processing]
    dataset.update(ours)
    if recipe.keep_scanner_manufacturer:
        for keyword in ("Manufacturer", "ManufacturerModelName"):
            if text(first, keyword):
                dataset[keyword] = first[keyword]


def _own_equipment(provenance: Provenance) -> Dataset:
    """Return the General Equipment attributes of this software."""
    ours = Dataset()
    ours.Manufacturer = MANUFACTURER
    ours.ManufacturerModelName = MODEL_NAME
    ours.DeviceSerialNumber = provenance.bundle_sha256[:16] or "NONE"
    versions = (
        f"{provenance.software_name} {provenance.software_version}",
        provenance.bundle_name,
        f"sha256 {provenance.bundle_sha256[:16]}",
    )
    # A backslash would split one value into two.
    ours.SoftwareVersions = [version.replace("\\", "/")[:LO_LENGTH] for version in versions]
    return ours


def _add_derivation(dataset: Dataset, source: SourceSeries, replaces: Sequence[str]) -> None:
    """Refer to every source instance, as all enter every slice; and name what this replaces."""
    images = [source_image(source.sop_class_uid, uid) for uid in source.sop_uids]
    instances = [reference(source.sop_class_uid, uid) for uid in source.sop_uids]
    referenced = Dataset()
    referenced.SeriesInstanceUID = source.series_uid
    referenced.ReferencedInstanceSequence = instances
    dataset.DerivationCodeSequence = code(RESAMPLING)
    dataset.RelatedSeriesSequence = [related_series(source)]
    for replaced_uid in replaces:  # CID 7210 has no code for that purpose
        replaced = Dataset()
        replaced.StudyInstanceUID, replaced.SeriesInstanceUID = source.study_uid, replaced_uid
        replaced.PurposeOfReferenceCodeSequence = []
        dataset.RelatedSeriesSequence.append(replaced)
    for keyword, items in (
        ("SourceImageSequence", images),
        ("ReferencedSeriesSequence", [referenced]),
    ):
        dataset[keyword] = encoded_sequence(keyword, items)


def related_series(source: SourceSeries) -> Dataset:
    """Return the item that names the source series (PS3.3 C.7.3.1)."""
    related = Dataset()
    related.StudyInstanceUID = source.study_uid
    related.SeriesInstanceUID = source.series_uid
    related.PurposeOfReferenceCodeSequence = code(SOURCE_SERIES)
    return related


def derivation_description(
    source: SourceSeries, shape: Sequence[int], spacing_mm: Sequence[float], made: Provenance
) -> str:
    """Return what was done in one paragraph, at most 1024 characters."""

    def grid(size: Sequence[int], voxel_mm: Sequence[float]) -> str:
        voxels = " x ".join(str(count) for count in size)
        return f"{voxels} voxels of {' x '.join(f'{side:.3f}' for side in voxel_mm)} mm"

    shading = ("divided by the estimated bias field",) if made.recipe.get("correct_bias") else ()
    sentences = (
        "AI super-resolution (conditional latent diffusion, 7T-like appearance)",
        f"model {made.bundle_name} {made.bundle_sha256[:12]}, {made.recipe.get('steps')} steps",
        f"from {grid(source.volume.spatial_shape, source.spacing_mm)}",
        f"to {grid(shape, spacing_mm)}",
        *shading,
        f"stored value = scanner units x {made.pixel_gain:g}",
        "Details may be synthetic. Research use, not for diagnosis",
    )
    return ". ".join(sentences)[: ST_LENGTH - 1] + "."


def reference(sop_class_uid: str, uid: str) -> Dataset:
    """Return an item that names an instance."""
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = uid
    return item


def source_image(sop_class_uid: str, uid: str) -> Dataset:
    """Return one source image; all frames of a multi-frame one are used, so none is named."""
    item = reference(sop_class_uid, uid)
    item.PurposeOfReferenceCodeSequence = code(SOURCE_IMAGE)
    item.SpatialLocationsPreserved = "NO"  # viewers must not transfer pixel coordinates
    return item


def add_qualities(dataset: Dataset, source: SourceSeries, recipe: Recipe) -> None:
    """Say what the pixels are worth: research, synthetic, lossy."""
    stated = {text(header, "ContentQualification") for header in source.headers}
    sticky = "RESEARCH" in stated
    dataset.ContentQualification = "RESEARCH" if sticky else recipe.content_qualification
    if recipe.synthetic_data:
        dataset.SyntheticData = "YES"
    burned = {text(header, "BurnedInAnnotation") for header in source.headers}
    dataset.BurnedInAnnotation = "YES" if "YES" in burned else "NO"
    dataset.LossyImageCompression = "00"
    if source.lossy:
        lossy = next(h for h in source.headers if text(h, "LossyImageCompression") == "01")
        for keyword in LOSSY_KEYWORDS:
            if keyword in lossy:
                dataset[keyword] = lossy[keyword]


def encoded_sequence(keyword: str, items: list[Dataset]) -> RawDataElement:
    """Return a sequence as encoded bytes (explicit little endian), to be written many times.

    Each slice repeats a reference to every source slice; encoding them once saves most of the
    time of writing a series. Only for items without text of an extended character set.
    """
    holder = Dataset()
    setattr(holder, keyword, items)
    buffer = BytesIO()
    stream = DicomFileLike(buffer)
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, holder)
    value = buffer.getvalue()[12:]  # tag, VR, reserved, length
    tag = Tag(tag_for_keyword(keyword) or 0)
    return RawDataElement(tag, "SQ", len(value), value, 0, False, True)
