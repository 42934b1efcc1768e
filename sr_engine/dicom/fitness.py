"""Is this a magnitude MR image? Every refusal is a sentence with the value and the UID."""

from collections.abc import Callable

from pydicom.dataset import Dataset
from pydicom.uid import UID, EnhancedMRImageStorage, MRImageStorage

from sr_engine.dicom.headers import number, numbers, sop_uid, text, texts
from sr_engine.dicom.provenance import CREATOR, GROUP
from sr_engine.dicom.sorting import NOT_MAGNITUDE
from sr_engine.errors import UnsupportedInput

OWN_IMAGE_TYPE = "AI_SR"
SIEMENS_HEADER = (0x0019, "SIEMENS MR HEADER", 0x0A)  # NumberOfImagesInMosaic


def _storage_class(dataset: Dataset) -> str | None:
    uid = UID(text(dataset, "SOPClassUID"))
    if uid in (MRImageStorage, EnhancedMRImageStorage):
        return None
    return f"is a {uid.name or 'nameless SOP class'}, no MR image"


def _modality(dataset: Dataset) -> str | None:
    modality = text(dataset, "Modality")
    return None if modality == "MR" else f"has modality {modality!r}, not MR"


def _colour(dataset: Dataset) -> str | None:
    photometric = text(dataset, "PhotometricInterpretation")
    if number(dataset, "SamplesPerPixel") in (None, 1) and photometric == "MONOCHROME2":
        return None
    return f"has photometric interpretation {photometric!r}, not MONOCHROME2 grey values"


def _mosaic(dataset: Dataset) -> str | None:
    group, creator, element = SIEMENS_HEADER
    try:
        tiles = dataset.private_block(group, creator)[element].value
    except KeyError:
        tiles = None
    if "MOSAIC" in texts(dataset, "ImageType") or tiles is not None:
        return "is a mosaic: many slices tiled into one image"
    return None


def _not_magnitude(dataset: Dataset) -> str | None:
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return None  # each frame is asked by itself
    component = text(dataset, "ComplexImageComponent")
    odd = NOT_MAGNITUDE.intersection(texts(dataset, "ImageType")[2:])
    if odd:
        return f"has image type {sorted(odd)[0]!r}: no magnitude image"
    if component not in ("", "MAGNITUDE"):
        return f"has complex image component {component!r}: no magnitude image"
    return None


def _own_output(dataset: Dataset) -> str | None:
    ours = CREATOR in dataset.private_creators(GROUP)  # Enhanced MR has no room in its ImageType
    if ours or OWN_IMAGE_TYPE in texts(dataset, "ImageType"):
        return "is already the output of an AI super-resolution"
    return None


def _lookup_table(dataset: Dataset) -> str | None:
    if "ModalityLUTSequence" in dataset:
        return "has a modality look-up table: the scanner's units are unknown"
    return None


def _several_frames(dataset: Dataset) -> str | None:
    frames = int(number(dataset, "NumberOfFrames") or 1)
    if frames > 1 and dataset.SOPClassUID == MRImageStorage:
        return f"is a classic MR image with {frames} frames"
    return None


CHECKS: tuple[Callable[[Dataset], str | None], ...] = (
    _storage_class,
    _modality,
    _own_output,
    _mosaic,
    _not_magnitude,
    _colour,
    _lookup_table,
    _several_frames,
)

# An attribute that changes at one position makes the series several volumes.
VOLUME_KEYS = (
    "EchoTime",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "InversionTime",
    "FlipAngle",
    "TriggerTime",
    "AcquisitionNumber",
)


def refuse_unfit(dataset: Dataset) -> None:
    """Return nothing when `dataset` is a magnitude MR image.

    Raises
    ------
    UnsupportedInput
        With the first of CHECKS that fails.
    """
    for check in CHECKS:
        reason = check(dataset)
        if reason:
            raise UnsupportedInput(f"instance {sop_uid(dataset)} {reason}")


def differing_key(headers: list[Dataset]) -> str | None:
    """Return the first of VOLUME_KEYS in which `headers` differ."""
    for keyword in VOLUME_KEYS:
        if len({tuple(numbers(header, keyword)) for header in headers}) > 1:
            return keyword
    return None
