"""The gate's rules about pixels: what is stored, how it is described and displayed."""

import hashlib
from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import gate_geometry as geometry
from dicom_node.gate_case import Case, Registry, differing, uid_of
from dicom_node.gate_geometry import text, values
from sr_engine.dicom import provenance as engine_provenance
from sr_engine.errors import InputRefused

OVERLAY_GROUPS = range(0x6000, 0x6100)
PIXEL_RANGE = {
    "SmallestImagePixelValue": np.min,
    "LargestImagePixelValue": np.max,
}
# Form -> SOP class and the values of every image that the node makes.
CLASSES = {
    "classic": "1.2.840.10008.5.1.4.1.1.4",
    "enhanced": "1.2.840.10008.5.1.4.1.1.4.1",
}
DESCRIPTION = {
    "SamplesPerPixel": "1",
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelRepresentation": "0",
    "BitsAllocated": "16",
}
RULES: Registry[Case] = Registry()


@RULES.rule
def pixel_description(case: Case) -> Iterator[str]:
    form = case.form or ("enhanced" if case.multiframe else "classic")
    if case.multiframe != (form == "enhanced"):
        yield f"{uid_of(case.derived[0])} is no image of the form {form}"
    for dataset in (case.whole,) if case.whole is not None else case.derived:
        for keyword, expected in (("SOPClassUID", CLASSES[form]), ("Modality", "MR")):
            if text(dataset, keyword) != expected:
                yield f"{keyword} of {uid_of(dataset)} is not that of the form {form}"
        if text(dataset.file_meta, "MediaStorageSOPClassUID") != text(dataset, "SOPClassUID"):
            yield f"the file meta information of {uid_of(dataset)} names another SOP class"
        yield from description_faults(dataset)


def description_faults(dataset: Dataset) -> Iterator[str]:
    """Yield what says that the pixels are anything but unsigned 16-bit grey values."""
    for keyword, expected in DESCRIPTION.items():
        if text(dataset, keyword) != expected:
            yield f"{keyword} of {uid_of(dataset)} is not {expected}"
    bits = values(dataset, "BitsStored")
    if not bits or not 1 <= bits[0] <= 16 or values(dataset, "HighBit") != [bits[0] - 1]:
        yield f"BitsStored and HighBit of {uid_of(dataset)} do not fit together"


@RULES.rule
def rescale(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"):
            if keyword in dataset:
                yield f"{keyword} is present in {uid_of(dataset)}"


@RULES.rule
def window(case: Case) -> Iterator[str]:
    for dataset in case.derived:
        centre, width = values(dataset, "WindowCenter"), values(dataset, "WindowWidth")
        if not centre or not width:
            yield f"WindowCenter or WindowWidth is missing in {uid_of(dataset)}"
        elif width[0] < 1:
            yield f"WindowWidth of {uid_of(dataset)} is {width[0]:g}"
    for keyword in ("WindowCenter", "WindowWidth"):
        yield from differing(case, keyword)


@RULES.rule
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


@RULES.rule
def result_hash(case: Case) -> Iterator[str]:
    whole = hashlib.sha256()
    for dataset in case.derived:
        whole.update(dataset.get("PixelData") or b"")
    try:
        carried = engine_provenance.from_dataset(case.derived[0])
    except InputRefused:  # rule provenance reports it
        return
    stated = carried.result_sha256
    if not stated and "result_sha256" not in engine_provenance.added_since(carried.schema_version):
        yield "the provenance states no SHA-256 of the pixels"
    elif stated and stated != whole.hexdigest():
        yield "the pixels are not those whose SHA-256 the provenance states"


@RULES.rule
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


@RULES.rule
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
