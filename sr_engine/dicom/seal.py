"""What a signature covers: one instance's provenance, pixels and meaning, whatever its encoding.

An archive may compress pixels without loss, change the VR encoding, correct the patient's name
and move a study; none of that breaks the seal. Other pixels, another geometry or another text of
a report do. Standard library and pydicom only, because the service reads it without the engine.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from sr_engine.dicom import provenance
from sr_engine.dicom.digital_signature import Notary
from sr_engine.errors import InputRefused

SIGNATURE, KEY = 0x05, 0x06
# Groups that say what an image, a presentation or a report means.
COVERED_GROUPS = (0x0018, 0x0020, 0x0028, 0x0040, 0x0070, 0x5200)
# Of group 0008, where archives correct and add most, what we say of the result ourselves. The
# source's instances stand in the provenance; reading hundreds of references in each of hundreds of
# slices would take twenty times as long as writing them.
COVERED = {
    Tag(keyword)
    for keyword in (
        "ImageType",
        "InstanceCreationDate",
        "InstanceCreationTime",
        "SOPClassUID",
        "SOPInstanceUID",
        "SyntheticData",
        "SeriesDate",
        "AcquisitionDate",
        "ContentDate",
        "AcquisitionDateTime",
        "SeriesTime",
        "AcquisitionTime",
        "ContentTime",
        "Modality",
        "Manufacturer",
        "SeriesDescription",
        "ManufacturerModelName",
        "ReferencedImageSequence",
        "DerivationDescription",
        "RelatedSeriesSequence",
        "SourceImageEvidenceSequence",
        "PixelPresentation",
        "VolumetricProperties",
        "VolumeBasedCalculationTechnique",
        "ComplexImageComponent",
        "AcquisitionContrast",
        "DerivationCodeSequence",
    )
}
# Of these, what an archive corrects or adds, or what changes when a study moves.
LEFT_OUT = {
    Tag(keyword)
    for keyword in (
        "StudyInstanceUID",
        "StudyID",
        "RequestAttributesSequence",
        "PerformedProcedureStepID",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "PerformedProcedureStepDescription",
        "CurrentRequestedProcedureEvidenceSequence",
        "ContributingEquipmentSequence",
    )
}
STUDY = Tag("StudyInstanceUID")  # stands in references, too, and changes when a study moves
UNDECODABLE = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Whoever vouches for what the engine writes; the engine has no key of its own."""

    key: str  # the public key, 64 hexadecimal digits
    sign: Callable[[bytes], bytes]  # the same bytes give the same signature
    notary: Notary | None = None  # of a DICOM digital signature besides


def statement(dataset: Dataset) -> bytes:
    """Return the bytes that a signature of the instance is made of: canonical JSON.

    Raises
    ------
    InputRefused
        If the instance carries no provenance of ours, or its pixels cannot be decoded.
    """
    document = {
        "content": hashlib.sha256(_content(dataset)).hexdigest(),
        "pixels": hashlib.sha256(_pixels(dataset)).hexdigest(),
        "provenance": provenance.from_dataset(dataset).digest(),
        "series": str(dataset.SeriesInstanceUID),
        "sop_class": str(dataset.SOPClassUID),
        "sop_instance": str(dataset.SOPInstanceUID),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def seal(dataset: Dataset, signer: Signer) -> None:
    """Write the signature of the complete `dataset` into its private block."""
    block = dataset.private_block(provenance.GROUP, provenance.CREATOR)
    block.add_new(SIGNATURE, "LT", signer.sign(statement(dataset)).hex())
    block.add_new(KEY, "LO", signer.key)


def signature_of(dataset: Dataset) -> tuple[bytes, str] | None:
    """Return the signature and the public key that it names; None without one."""
    signature = provenance.block_text(dataset, SIGNATURE)
    key = provenance.block_text(dataset, KEY)
    if not signature or not key:
        return None
    try:
        return bytes.fromhex(signature), key
    except ValueError:
        raise InputRefused(f"the signature of {dataset.SOPInstanceUID} is damaged") from None


def _pixels(dataset: Dataset) -> bytes:
    """Return the stored values, little endian, decoded where they are compressed."""
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            return bytes(dataset[keyword].value)
    if "PixelData" not in dataset:
        return b""
    syntax = dataset.file_meta.TransferSyntaxUID if hasattr(dataset, "file_meta") else None
    if syntax is None or (syntax.is_little_endian and not syntax.is_compressed):
        length = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames", 1))
        return bytes(dataset.PixelData)[: length * int(dataset.BitsAllocated) // 8]
    try:
        return np.ascontiguousarray(dataset.pixel_array, "<u2").tobytes()
    except UNDECODABLE as error:
        reason = f"the pixel data of {dataset.SOPInstanceUID} cannot be decoded: {error}"
        raise InputRefused(reason) from None


def _content(dataset: Dataset) -> bytes:
    """Return everything of the covered groups as canonical JSON."""
    return json.dumps(_tree(dataset, _covered), sort_keys=True, separators=(",", ":")).encode()


def _covered(tag: BaseTag) -> bool:
    if tag.group not in COVERED_GROUPS:
        return tag in COVERED
    return tag not in LEFT_OUT and tag.element != 0


def _any(tag: BaseTag) -> bool:
    return not tag.is_private and tag.element != 0 and tag != STUDY


def _tree(dataset: Dataset, wanted: Callable[[BaseTag], bool]) -> dict[str, Any]:
    tags = [tag for tag in dataset.keys() if wanted(tag)]
    return {f"{tag:08X}": _plain(dataset[tag]) for tag in tags}


def _plain(element: DataElement) -> list[Any]:
    """Return an element's values as plain JSON, free of padding and of spelling of numbers."""
    if element.VR == "SQ":
        return [_tree(item, _any) for item in element.value]
    value = element.value
    if value is None or value == "":
        return []
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    if element.VR == "FL":  # a float that was not written yet has more digits
        values = [np.float32(each) for each in values]
    return [_one(each) for each in values]


def _one(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int | float) or hasattr(value, "__float__"):
        return repr(float(value))
    return str(value).strip()
