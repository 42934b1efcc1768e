"""Eligibility and routing: what becomes of a complete series, and why.

First come the refusals, which no configuration can lift: the engine has no use for such images,
and nothing is left for them but to be forwarded as they are. Then the rules of the configuration:
the first that matches decides; no match means skip. Every reason is a sentence for a PACS
administrator and quotes no free text of the scanner.
"""

import difflib
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

# What `instance.header` holds of a received object: enough for rules and assembly, and no more.
# Enhanced objects add "frames", a list of dicts with the same keys as far as they vary by frame.
HEADER_KEYS = (
    *("SOPClassUID", "SOPInstanceUID", "TransferSyntaxUID", "Modality", "ImageType"),
    *("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "SeriesDescription"),
    *("ProtocolName", "BodyPartExamined", "MRAcquisitionType", "ScanningSequence"),
    *("SequenceVariant", "RepetitionTime", "EchoTime", "InversionTime", "EchoTrainLength"),
    *("FlipAngle", "AcquisitionContrast", "ComplexImageComponent", "Rows", "Columns"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImageOrientationPatient"),
    *("ImagePositionPatient", "InstanceNumber", "AcquisitionNumber", "NumberOfFrames"),
    *("TemporalPositionIdentifier", "NumberOfTemporalPositions", "EchoNumbers"),
    *("DiffusionBValue", "ImagesInAcquisition", "FrameOfReferenceUID", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "AngioFlag", "SyntheticData"),
)
FRAMES, PRIVATE_CREATORS = "frames", "private_creators"  # two more keys, that are no keywords
TILES, LOCATIONS = "tiles", "locations"  # numbers of private elements (`private_values`)
OUR_CREATOR = "DICOM-NODE AI-SR"
OUR_IMAGE_TYPE = "AI_SR"
RETURN_TO_SENDER = "@sender"  # among the destinations of a rule
MIN_SLICES = 16
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class SeriesSummary:
    """What the rules look at. Text is "unknown" and numbers are None where nothing is stated."""

    modality: str = UNKNOWN
    storage: str = UNKNOWN  # "MR", "Enhanced MR", or the name of another storage class
    manufacturer: str = UNKNOWN
    model: str = UNKNOWN
    body_part: str = UNKNOWN  # "head", or what the header names instead
    contrast: str = UNKNOWN  # one of CONTRASTS
    acquisition: str = UNKNOWN  # "2D" or "3D"
    field_strength_t: float | None = None
    slices: int = 0  # distinct positions
    expected_slices: int | None = None  # what the header announces, where that can be believed
    slice_thickness_mm: float | None = None
    slice_spacing_mm: float | None = None
    pixel_spacing_mm: float | None = None
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    # Evidence for the refusals: empty, 0 or 1 where there is none.
    own_output: str = ""
    mixed: str = ""
    derived: str = ""
    localizer: str = ""
    calibration: str = ""
    phase: str = ""
    mosaic: str = ""
    colour: str = ""
    unusual: str = ""  # how the pixels are stored
    diffusion: str = ""
    echoes: int = 1
    volumes: int = 1
    differing: str = ""  # in what the images at one position differ
    orientations: int = 1
    stacks: str = ""
    left_out: str = ""  # what lies beside the volume in the same series


EVIDENCE = frozenset(
    """
    own_output mixed derived localizer calibration phase mosaic colour unusual diffusion echoes
    volumes differing orientations stacks left_out expected_slices
    """.split()
)
CONTRASTS = ("T1", "T2", "T2*", "PD", "FLAIR", UNKNOWN)
CONDITIONS = {f.name: f.type for f in fields(SeriesSummary) if f.name not in EVIDENCE}
NUMERIC = frozenset(name for name, kind in CONDITIONS.items() if kind is not str)


class Rule(Protocol):
    """One rule of the configuration (`settings.RuleSettings`)."""

    @property
    def name(self) -> str: ...
    @property
    def when(self) -> Mapping[str, Any]: ...
    @property
    def unless(self) -> Mapping[str, Any]: ...
    @property
    def action(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def to(self) -> tuple[str, ...]: ...
    @property
    def priority(self) -> str: ...
    @property
    def windows(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a series: enhance, forward, hold or skip."""

    action: str
    rule: str | None  # None where a refusal decided, or no rule matched
    reason: str
    to: tuple[str, ...] = ()
    priority: str = "normal"
    windows: tuple[str, ...] = ()


# The rules of a node that is not configured; config/node.toml explains them.
DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {
        "name": "1.5 T T1 brain",
        "when": {
            "modality": ["MR"],
            "body_part": ["head", "unknown"],
            "contrast": ["T1"],
            "field_strength_t": [1.4, 1.6],
        },
        "action": "enhance",
    },
    {
        "name": "field strength not stated",
        "when": {"modality": ["MR"], "field_strength_t": "absent"},
        "action": "skip",
        "reason": "MagneticFieldStrength is absent, so nothing shows that this is a 1.5 T series",
    },
    {
        "name": "another field strength",
        "when": {"modality": ["MR"]},
        "not": {"field_strength_t": [1.4, 1.6]},
        "action": "skip",
        "reason": "the field strength is {field_strength_t} T; the default rules enhance 1.5 T "
        "(1.4 to 1.6)",
    },
    {
        "name": "another contrast",
        "when": {"modality": ["MR"], "contrast": ["T2", "T2*", "PD", "FLAIR"]},
        "action": "skip",
        "reason": "contrast {contrast} is not enhanced by the default rules",
    },
)


def wrong_modality(summary: SeriesSummary) -> str:
    """Return why the modality is not ours."""
    ours = summary.modality == "MR"
    return "" if ours else f"the modality is {summary.modality}, not MR"


def wrong_storage(summary: SeriesSummary) -> str:
    """Return why the objects are no MR images."""
    if summary.storage in ("MR", "Enhanced MR"):
        return ""
    return f"the objects are {summary.storage}, not MR Image Storage or Enhanced MR Image Storage"


def several(count: int, what: str) -> str:
    """Return a phrase for more than one of something, else nothing."""
    return f"{count} {what}" if count > 1 else ""


def at_every_position(summary: SeriesSummary) -> str:
    """Return how many images each position has, and in what they differ, unless that is said."""
    if summary.mosaic or summary.diffusion or summary.echoes > 1:
        return ""
    count = several(summary.volumes, "images at every position")
    return f"{count}, which differ in {summary.differing}" if summary.differing else count


def said(pattern: str, evidence: str) -> str:
    """Return `pattern` filled with the evidence, or nothing where there is none."""
    return pattern.format(evidence) if evidence else ""


Refusal = Callable[[SeriesSummary], str]
# What the objects are: the first that says something decides.
NO_MR_IMAGES: tuple[Refusal, ...] = (
    lambda s: said("this is our own output ({}); it is never enhanced again", s.own_output),
    wrong_modality,
    wrong_storage,
    lambda s: said("the series mixes {}", s.mixed),
)
# What the images show: all that say something are named.
NO_VOLUME: tuple[Refusal, ...] = (
    lambda s: said("this is a localizer ({})", s.localizer),
    lambda s: said("this is a calibration of the scanner, no image to read ({})", s.calibration),
    lambda s: said("this is a mosaic ({}): many slices in one image, no stack", s.mosaic),
    lambda s: said("the images are derived, not acquired ({})", s.derived),
    lambda s: said("these are phase or other images without magnitude ({})", s.phase),
    lambda s: said("the images are in colour ({})", s.colour),
    lambda s: said("the pixels are stored as nobody expects of MR ({})", s.unusual),
    lambda s: said("this is a diffusion series ({})", s.diffusion),
    lambda s: said("this is a multi-echo series ({})", several(s.echoes, "echo times")),
    lambda s: said("this is a multi-volume series ({})", at_every_position(s)),
    lambda s: said("the images are no single stack: they lie in {}", s.stacks),
)


def refusal_of(summary: SeriesSummary, min_slices: int) -> str:
    """Return why no rule may take the series, or nothing."""
    for refusal in NO_MR_IMAGES:
        if refused := refusal(summary):
            return refused
    refused = "; also, ".join(filter(None, (refusal(summary) for refusal in NO_VOLUME)))
    return refused or too_few_slices(summary, min_slices)


def too_few_slices(summary: SeriesSummary, min_slices: int) -> str:
    """Return why the series is too small, or nothing; announced slices count as slices."""
    slices = max(summary.slices, summary.expected_slices or 0)
    if slices >= min_slices:
        return ""
    few = f"the series has only {slices} slice{'' if slices == 1 else 's'}"
    turned = several(summary.orientations, "orientations")
    few += f" in {turned}" if turned else ""
    return f"{few}, and assembly.min_slices asks for {min_slices}"


def decide(
    summary: SeriesSummary, rules: Sequence[Rule], *, min_slices: int = MIN_SLICES
) -> Decision:
    """Return what becomes of the series: a refusal, else the first rule that matches, else skip.

    What is refused may still be forwarded, by the first rule that says forward or skip.
    """
    refused = refusal_of(summary, min_slices)
    for rule in rules:
        if misses(summary, rule) or (refused and rule.action in ("enhance", "hold")):
            continue
        if refused and (rule.action == "skip" or summary.own_output):
            break
        return Decision(
            action=rule.action,
            rule=rule.name,
            reason=explain(summary, rule),
            to=rule.to,
            priority=rule.priority,
            windows=rule.windows,
        )
    if refused:
        return Decision(action="skip", rule=None, reason=f"Skipped: {refused}.")
    return Decision(action="skip", rule=None, reason=nearest_miss(summary, rules))


def explain(summary: SeriesSummary, rule: Rule) -> str:
    """Return the sentence of a rule that matches."""
    heads = {"skip": "Skipped: ", "hold": "Held: ", "enhance": "Enhanced: "}
    heads["forward"] = "Forwarded: "
    default = f"the rule {rule.name!r} says so"
    words = rule.reason.format_map({name: shown(summary, name) for name in CONDITIONS})
    return f"{heads[rule.action]}{words.rstrip('.') or default}."


def nearest_miss(summary: SeriesSummary, rules: Sequence[Rule]) -> str:
    """Return which rule that would have taken the series nearly matched, and what was missing."""
    wanted = [rule for rule in rules if rule.action != "skip"]
    if not wanted:
        return "Skipped: no rule matches, and none would take any series."
    nearest = min(wanted, key=lambda rule: len(misses(summary, rule)))
    failed = "; ".join(misses(summary, nearest))
    return f"Skipped: no rule matches; the nearest is {nearest.name!r}, but {failed}."


def misses(summary: SeriesSummary, rule: Rule) -> list[str]:
    """Return every condition of `rule` that the series does not meet, as phrases."""
    return [*unmet(summary, rule.when), *met(summary, rule.unless)]


def unmet(summary: SeriesSummary, conditions: Mapping[str, Any]) -> Iterator[str]:
    """Yield the conditions that the series should meet and does not."""
    for name, wanted in conditions.items():
        if not holds(summary, name, wanted):
            yield f"{name} is {shown(summary, name)}, not {wanted_words(name, wanted)}"


def met(summary: SeriesSummary, conditions: Mapping[str, Any]) -> Iterator[str]:
    """Yield the conditions that the series must not meet and does."""
    for name, unwanted in conditions.items():
        if holds(summary, name, unwanted):
            yield f"{name} is {shown(summary, name)}, which the rule excludes"


def holds(summary: SeriesSummary, name: str, wanted: Any) -> bool:
    """Return True when the summary's value is among the wanted ones."""
    value = getattr(summary, name)
    if name not in NUMERIC:
        return str(value).casefold() in {text.casefold() for text in wanted}
    if wanted == "absent" or value is None:
        return bool(value is None and wanted == "absent")
    return bool(wanted[0] <= value <= wanted[1])


def shown(summary: SeriesSummary, name: str) -> str:
    """Return the value as people write it."""
    value = getattr(summary, name)
    if value is None:
        return "absent"
    return f"{value:g}" if isinstance(value, float) else str(value)


def wanted_words(name: str, wanted: Any) -> str:
    """Return the wanted values as people say it."""
    if name in NUMERIC:
        return str(wanted) if wanted == "absent" else f"{wanted[0]:g} to {wanted[1]:g}"
    return " or ".join(wanted)


def parse_conditions(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return `conditions` in one form: lists of texts, [low, high], or "absent".

    Raises
    ------
    ValueError
        If a key is unknown or its value has the wrong form; the message names it.
    """
    return {name: parse_condition(name, wanted) for name, wanted in conditions.items()}


def parse_condition(name: str, wanted: Any) -> Any:
    """Return one condition in its form, or raise ValueError."""
    if name not in CONDITIONS:
        near = difflib.get_close_matches(name, CONDITIONS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown condition {name!r}{hint}")
    if name in NUMERIC:
        return parse_range(name, wanted)
    texts = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{name} must be a list of texts, not {wanted!r}")
    return [parse_contrast(text) for text in texts] if name == "contrast" else texts


def parse_range(name: str, wanted: Any) -> Any:
    """Return [low, high] or "absent", or raise ValueError."""
    if wanted == "absent":
        return wanted
    pair = isinstance(wanted, list) and len(wanted) == 2
    if not pair or not all(type(number) in (int, float) for number in wanted):
        raise ValueError(f'{name} must be [low, high] or "absent", not {wanted!r}')
    if not wanted[0] <= wanted[1]:
        raise ValueError(f"{name}: {wanted[0]} is above {wanted[1]}")
    return wanted


def parse_contrast(text: str) -> str:
    """Return the contrast as CONTRASTS spells it; "T1w" and "pd" are understood."""
    plain = text.upper().replace("WEIGHTED", "").replace("W", "").strip(" -")
    for contrast in CONTRASTS:
        if contrast.upper() in (plain, text.upper()):
            return contrast
    raise ValueError(f"contrast must be one of {', '.join(CONTRASTS)}, not {text!r}")


def parse_reason(text: str) -> str:
    """Return `text` if every {name} in it is a condition, else raise ValueError."""
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is not None and (name not in CONDITIONS or spec or conversion):
            raise ValueError(f"{{{name}}} in a reason must be one of {', '.join(CONDITIONS)}")
    return text
