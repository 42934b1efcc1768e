"""From headers to what the rules look at: contrast, body part, and the evidence for refusals."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydicom.uid import UID, EnhancedMRImageStorage, MRImageStorage

from dicom_node.assembly.geometry import Header, InstanceHeader, Stack, announced, measure, number
from dicom_node.rules import (
    OUR_CREATOR,
    OUR_IMAGE_TYPE,
    PRIVATE_CREATORS,
    TILES,
    UNKNOWN,
    SeriesSummary,
)
from sr_engine.dicom.sorting import NOT_MAGNITUDE, SMALLEST_STACK, orientations

STORAGE = {MRImageStorage: "MR", EnhancedMRImageStorage: "Enhanced MR"}
OUR_MANUFACTURER, OUR_MODEL = "DICOM-NODE", "AI-SR"
GAUSS_FROM = 100.0  # no scanner has 100 T; old ones state gauss
TESLA_PER_GAUSS = 1e-4
BRAIN_T1_MS = 900.0  # white and grey matter at 1.5 T, roughly

HEADS = frozenset({"HEAD", "BRAIN", "SKULL", "NEURO", "HEAD AND BRAIN"})
NOT_STATED = frozenset({"", "N.A.", "NA", "UNKNOWN", "NONE", "OTHER"})
# Words of a description that contradict a head; the value is what people read.
OTHER_PARTS = {
    **dict.fromkeys(("abdomen", "abdominal", "liver", "kidney", "pancreas", "mrcp"), "abdomen"),
    **dict.fromkeys(("spine", "cspine", "tspine", "lspine", "lumbar", "sacrum"), "spine"),
    **dict.fromkeys(("cervical", "thoracic", "vertebra", "vertebral", "wirbelsaeule"), "spine"),
    **dict.fromkeys(("pelvis", "pelvic", "prostate", "uterus", "rectum", "bladder"), "pelvis"),
    **dict.fromkeys(("heart", "cardiac", "myocardial", "aorta"), "heart"),
    **dict.fromkeys(("chest", "thorax", "lung", "sternum"), "chest"),
    **dict.fromkeys(("knee", "shoulder", "ankle", "wrist", "elbow", "hip"), "joint"),
    **dict.fromkeys(("foot", "hand", "leg", "thigh", "arm", "finger"), "limb"),
    **{"breast": "breast", "mamma": "breast", "neck": "neck", "larynx": "neck"},
}
HEAD_WORDS = frozenset({"brain", "head", "skull", "cerebral", "cranial", "neuro"})

PROJECTIONS = frozenset({"PROJECTION IMAGE", "MIP", "MINIP", "MNIP"})
TILED = frozenset({"MOSAIC", "VFRAME"})  # Siemens, and United Imaging
# What differs from one volume to the next at the same place.
VOLUME_KEYS = (
    *("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "InversionTime", "FlipAngle"),
    *("RepetitionTime", "AcquisitionNumber"),
)
NAMED = 4  # stacks that a sentence names
DIFFUSION_TYPES = frozenset({"DIFFUSION", "ADC", "FA", "TRACEW", "TENSOR"})
DIFFUSION_WORDS = frozenset({"dti", "dwi", "adc", "tracew", "diffusion", "diff", "dki", "hardi"})
LOCALIZERS = ("localizer", "localiser", "scout", "survey", "3-plane", "3 plane", "3plane")
# What a scanner measures for itself. Field maps and coil calibrations have the timing of T1.
CALIBRATIONS = re.compile(
    r"field.?map|(?<![a-z0-9])b[01].?map|calib|(?<![a-z])cal(?![a-z])|coil.?sens|(?<![a-z])ref.?scan"
)
STATED_CONTRASTS = {
    "T1": "T1",
    "T2": "T2",
    "T2_STAR": "T2*",
    "PROTON_DENSITY": "PD",
    "FLUID_ATTENUATED": "FLAIR",
}
NAMED_CONTRASTS = (
    ("T1", r"t1.*flair|flair.*t1(?!\d)"),
    ("FLAIR", r"flair|dark.?fluid"),
    ("T2*", r"t2\*|t2.?star|swi(?![a-z])|hemo"),
    ("T1", r"(?<![a-z0-9])t1(?!\d)|mp.?rage|bravo|spgr"),
    ("T2", r"(?<![a-z0-9])t2(?!\d)"),
    ("PD", r"(?<![a-z])pdw?(?![a-z])|proton"),
)


def summarise(instances: Sequence[InstanceHeader], stack: Stack | None = None) -> SeriesSummary:
    """Return what the headers of one series say, as far as the rules care.

    `stack` is that of these instances, where somebody has measured it.
    """
    stack = stack or measure(instances)
    first = stack.images[0].header
    return SeriesSummary(
        modality=text(first, "Modality").upper() or UNKNOWN,
        storage=storage(first),
        manufacturer=text(first, "Manufacturer") or UNKNOWN,
        model=text(first, "ManufacturerModelName") or UNKNOWN,
        body_part=body_part(first),
        contrast=contrast(first),
        acquisition=text(first, "MRAcquisitionType") or UNKNOWN,
        slices=count_slices(stack),
        expected_slices=announced(stack, instances),
        slice_spacing_mm=slice_spacing_mm(stack),
        **numbers_of(first),
        **evidence(stack, instances),
    )


def evidence(stack: Stack, instances: Sequence[InstanceHeader]) -> dict[str, Any]:
    """Return what speaks for a refusal."""
    images = [one.header for one in stack.images]
    first = images[0]
    return {
        "own_output": own_output(one.header for one in instances),
        "mixed": mixed(images),
        "derived": first_found(derived(header) for header in images),
        "localizer": localizer(first),
        "calibration": calibration(first),
        "phase": first_found(no_magnitude(header) for header in images),
        "mosaic": mosaic(images),
        "colour": colour(first),
        "unusual": first_found(unusual(header) for header in images),
        "diffusion": diffusion(images),
        "echoes": echoes(stack),
        "volumes": max(stack.volumes, time_points(first)),
        "differing": differing(stack),
        "orientations": stack.orientations,
        "stacks": stacks(images),
        "left_out": stack.left_out_words,
    }


def text(header: Header, keyword: str) -> str:
    """Return an attribute as text; empty where it is absent."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


def texts(header: Header, keyword: str) -> list[str]:
    """Return the values of an attribute as upper-case texts."""
    value = header.get(keyword)
    values = value if isinstance(value, list | tuple) else [value]
    return [str(one).strip().upper() for one in values if one is not None]


def numbers_of(header: Header) -> dict[str, Any]:
    """Return the plain numbers of the summary."""
    spacing = header.get("PixelSpacing")
    rows = spacing[0] if isinstance(spacing, list | tuple) and spacing else None
    return {
        "field_strength_t": field_strength_t(header),
        "slice_thickness_mm": number(header.get("SliceThickness")),
        "pixel_spacing_mm": number(rows),
        "repetition_time_ms": number(header.get("RepetitionTime")),
        "echo_time_ms": number(header.get("EchoTime")),
        "inversion_time_ms": number(header.get("InversionTime")),
    }


def field_strength_t(header: Header) -> float | None:
    """Return MagneticFieldStrength in tesla; old scanners state gauss. None when not stated."""
    value = number(header.get("MagneticFieldStrength"))
    if value is None or value <= 0:
        return None
    return value * TESLA_PER_GAUSS if value >= GAUSS_FROM else value


def count_slices(stack: Stack) -> int:
    """Return the number of places; images without one, or turned against others, count as one."""
    if stack.orientations > 1:
        return len(stack.images)
    return len(stack.positions_mm) + len(stack.images) - sum(stack.images_at)


def slice_spacing_mm(stack: Stack) -> float | None:
    """Return the smallest distance between two slices."""
    places = stack.positions_mm
    return float(min(places[1:] - places[:-1])) if len(places) > 1 else None


def storage(header: Header) -> str:
    """Return the storage class: "MR", "Enhanced MR", or the name of another one."""
    uid = UID(text(header, "SOPClassUID"))
    return STORAGE.get(uid) or uid.name or UNKNOWN


def words(header: Header) -> frozenset[str]:
    """Return the words of the scanner's free texts, lower case."""
    return frozenset(re.findall(r"[a-z]+", free_text(header)))


def free_text(header: Header) -> str:
    """Return the scanner's free texts in lower case."""
    return f"{text(header, 'SeriesDescription')} {text(header, 'ProtocolName')}".lower()


def body_part(header: Header) -> str:
    """Return "head", another part in words, or "unknown"; a stated part wins over descriptions."""
    stated = text(header, "BodyPartExamined").upper()
    if stated in HEADS:
        return "head"
    if stated not in NOT_STATED:
        return stated.lower()
    found = words(header)
    named = first_found(OTHER_PARTS.get(word, "") for word in sorted(found))
    return named or ("head" if found & HEAD_WORDS else UNKNOWN)


def contrast(header: Header) -> str:
    """Return the contrast: as stated, else from the timing, else from the names.

    An angiogram has the timing of a T1-weighted series and shows something else.
    """
    if text(header, "AngioFlag").upper() == "Y":
        return UNKNOWN
    stated = STATED_CONTRASTS.get(text(header, "AcquisitionContrast").upper(), "")
    flavour = ""
    if storage(header) == "Enhanced MR":  # value 3 is the image flavour (PS3.3 C.8.16.1)
        flavour = first_found(STATED_CONTRASTS.get(t, "") for t in texts(header, "ImageType")[2:3])
    return stated or from_timing(header) or from_names(header) or flavour or UNKNOWN


def from_names(header: Header) -> str:
    """Return the contrast that the scanner's free texts name."""
    found = free_text(header)
    return first_found(name for name, pattern in NAMED_CONTRASTS if re.search(pattern, found))


def from_timing(header: Header) -> str:
    """Return the contrast that TR, TE, TI and flip angle make, or nothing where it is not clear."""
    tr_ms, te_ms = number(header.get("RepetitionTime")), number(header.get("EchoTime"))
    ti_ms = number(header.get("InversionTime")) or 0.0
    sequence = set(texts(header, "ScanningSequence"))
    if tr_ms is None or te_ms is None or tr_ms <= 0:
        return ""
    if "EP" in sequence:
        return "T2" if "SE" in sequence else "T2*"
    if ti_ms > 0 or "IR" in sequence:
        return from_inversion(ti_ms, te_ms)
    if "GR" in sequence:
        return from_gradient_echo(header, tr_ms, te_ms)
    return from_spin_echo(tr_ms, te_ms) if "SE" in sequence else ""


def from_inversion(ti_ms: float, te_ms: float) -> str:
    """Return FLAIR (fluid is nulled, long TE), T1 (MPRAGE, T1 FLAIR), or nothing (STIR)."""
    if ti_ms >= 1500 and te_ms >= 60:
        return "FLAIR"
    return "T1" if 400 <= ti_ms <= 1400 and te_ms <= 30 else ""


def from_spin_echo(tr_ms: float, te_ms: float) -> str:
    """Return the contrast of a spin echo by the classic quadrants."""
    if tr_ms <= 1000:
        return "T1" if te_ms <= 30 else ""
    if tr_ms < 1500:
        return ""
    return "PD" if te_ms <= 45 else "T2" if te_ms >= 60 else ""


def from_gradient_echo(header: Header, tr_ms: float, te_ms: float) -> str:
    """Return the contrast of a spoiled gradient echo: flip angles above Ernst's give T1."""
    variant = set(texts(header, "SequenceVariant"))
    flip_deg = number(header.get("FlipAngle"))
    if te_ms >= 12:
        return "T2*"
    if flip_deg is None or ("SS" in variant and "SP" not in variant):  # balanced: T2 over T1
        return ""
    ernst_deg = math.degrees(math.acos(math.exp(-tr_ms / BRAIN_T1_MS)))
    return "T1" if flip_deg >= ernst_deg else "PD" if flip_deg <= ernst_deg / 2 else ""


def own_output(headers: Iterable[Header]) -> str:
    """Return by what an image shows that this product made it."""
    for header in headers:
        if OUR_CREATOR in (header.get(PRIVATE_CREATORS) or ()):
            return f"private creator {OUR_CREATOR}"
        if OUR_IMAGE_TYPE in texts(header, "ImageType"):
            return f"ImageType {OUR_IMAGE_TYPE}"
        made_by = (text(header, "Manufacturer"), text(header, "ManufacturerModelName"))
        if made_by == (OUR_MANUFACTURER, OUR_MODEL):
            return f"Manufacturer {OUR_MANUFACTURER}"
    return ""


def mixed(images: Sequence[Header]) -> str:
    """Return the kinds of objects when the series has more than one."""
    kinds = sorted({f"{text(header, 'Modality')} as {storage(header)}" for header in images})
    return " and ".join(kinds) if len(kinds) > 1 else ""


def derived(header: Header) -> str:
    """Return the ImageType that says that the image was not acquired."""
    values = texts(header, "ImageType")
    if values[:1] == ["DERIVED"] or not PROJECTIONS.isdisjoint(values):
        return f"ImageType {'/'.join(values)}"
    return "SyntheticData YES" if text(header, "SyntheticData").upper() == "YES" else ""


def calibration(header: Header) -> str:
    """Return by what the series shows that it serves the scanner and nobody looks at it."""
    name = text(header, "SeriesDescription") or text(header, "ProtocolName")
    named = CALIBRATIONS.search(name.lower())  # one protocol may name all series of an examination
    return f"the description says {named[0]!r}" if named else ""


def localizer(header: Header) -> str:
    """Return by what the series shows that it only serves to plan others."""
    if "LOCALIZER" in texts(header, "ImageType"):
        return "ImageType LOCALIZER"
    named = first_found(word for word in LOCALIZERS if word in free_text(header))
    named = named or ("loc" if "loc" in words(header) else "")
    return f"the description says {named!r}" if named else ""


def image_type(header: Header, unwanted: Iterable[str]) -> str:
    """Return the unwanted one among the values of ImageType from the third on."""
    found = first_found(v for v in texts(header, "ImageType")[2:] if v in unwanted)
    return f"ImageType {found}" if found else ""


def no_magnitude(header: Header) -> str:
    """Return by what an image shows that it is no magnitude."""
    component = text(header, "ComplexImageComponent").upper()
    said = f"ComplexImageComponent {component}" if component in NOT_MAGNITUDE else ""
    return image_type(header, NOT_MAGNITUDE) or said


def colour(header: Header) -> str:
    """Return the photometric interpretation of images with several samples a pixel."""
    samples = number(header.get("SamplesPerPixel")) or 1
    return text(header, "PhotometricInterpretation") or "colour" if samples > 1 else ""


def unusual(header: Header) -> str:
    """Return what the engine's reader does not take: it would end as a failed job."""
    photometric = text(header, "PhotometricInterpretation")
    frames, bits = number(header.get("NumberOfFrames")), number(header.get("BitsAllocated"))
    if storage(header) == "MR" and frames is not None and frames > 1:
        return f"{frames:g} frames in a classic image"
    if photometric not in ("", "MONOCHROME2") and not colour(header):
        return photometric
    return f"{bits:g} bits" if bits is not None and bits > 16 else ""


def diffusion(images: Sequence[Header]) -> str:
    """Return by what the series shows that it measures diffusion."""
    strongest = max(number(header.get("DiffusionBValue")) or 0.0 for header in images)
    first = images[0]
    if strongest > 0:
        return f"b value {strongest:g}"
    if text(first, "AcquisitionContrast").upper() == "DIFFUSION":
        return "AcquisitionContrast DIFFUSION"
    named = first_found(sorted(words(first) & DIFFUSION_WORDS))
    planar = "EP" in texts(first, "ScanningSequence")
    said = f"the description says {named!r}" if named and planar else ""
    return image_type(first, DIFFUSION_TYPES) or said


def echoes(stack: Stack) -> int:
    """Return the number of different echo times among images of the first one's orientation."""
    same = text(stack.images[0].header, "ImageOrientationPatient")
    turned = stack.orientations > 1
    times = {
        round(te_ms, 2)
        for one in stack.images
        if (te_ms := number(one.header.get("EchoTime"))) is not None
        and not (turned and text(one.header, "ImageOrientationPatient") != same)
    }
    return max(1, len(times))


def mosaic(images: Sequence[Header]) -> str:
    """Return by what the series shows that its images are made of tiles."""
    said = first_found(image_type(header, TILED) for header in images)
    tiles = max(number(header.get(TILES)) or 0.0 for header in images)
    return said or (f"{tiles:g} tiles in an image" if tiles > 1 else "")


def differing(stack: Stack) -> str:
    """Return in what the images at one place differ, by the attributes that make volumes."""
    if stack.volumes < 2:
        return ""
    found = []
    for keyword in VOLUME_KEYS:
        values = {text(one.header, keyword) for one in stack.images}
        if 1 < len(values) <= len(stack.images) // len(stack.positions_mm):
            found.append(keyword)
    return " and ".join(found)


def stacks(images: Sequence[Header]) -> str:
    """Return how many images each orientation has, where there is more than one of them."""
    counts = sorted(orientations(images), reverse=True)
    if len(counts) < 2:
        return ""
    if counts[1] < SMALLEST_STACK:
        return f"{len(counts)} orientations"
    return f"{len(counts)} orientations with {', '.join(map(str, counts[:NAMED]))} images"


def time_points(header: Header) -> int:
    """Return how many time points the series states, 1 where it states none."""
    return int(number(header.get("NumberOfTemporalPositions")) or 1)


def first_found(values: Iterable[str]) -> str:
    """Return the first text that is not empty, or nothing."""
    return next(filter(None, values), "")
