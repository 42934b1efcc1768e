"""The recipe: everything that decides what the engine makes of a series, hashed.

Standard library only: the service reads it without importing the engine.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from sr_engine.errors import RecipeError

QUALIFICATIONS = ("RESEARCH", "PRODUCT", "SERVICE")
WINDOWS = ("source", "full")
BODY_PART = re.compile(r"[A-Z0-9 _]{0,16}")  # PS3.5 6.2: VR CS
LO_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Processing options; two equal recipes and equal inputs give equal UIDs and pixels.

    Raises
    ------
    RecipeError
        If a value is impossible; the message names it.
    """

    spacing_mm: float = 0.7  # target voxel size; a finer acquired axis keeps its own
    steps: int = 1  # network calls a slice
    seed: int = 0
    use_bias_field: bool = True  # b guides the network (N4)
    use_gradient_map: bool = True  # g guides the network (spherical harmonics)
    data_consistency: bool = True
    consistency_weight: float = 1.0
    reduce_noise: bool = True  # noise left in calm tissue is made less
    keep_small_structures: bool = True  # small contrasts are not shown weaker than measured
    correct_bias: bool = False  # divide the output by the field: shading is no longer the input's
    correct_distortion: bool = False  # not built: true is refused, so that nobody relies on it
    triaxial: bool = True
    weighted_fusion: bool = True  # False: the plain mean over the axes
    synthetic_data: bool = True  # (0008,001C) SyntheticData YES on what we write
    keep_scanner_manufacturer: bool = False  # some hanging protocols key on Manufacturer
    content_qualification: str = "RESEARCH"
    description_suffix: str = " AI-SR RESEARCH"
    series_number_base: int = 0  # added to source x 100 + generation
    body_part: str = ""  # BodyPartExamined; "": the source's
    protocol_name: str = ""  # ProtocolName; "": the source's
    window: str = "source"  # as bright as the source, or "full": the range of the result

    def __post_init__(self) -> None:
        if not 0.3 <= self.spacing_mm <= 3.0:
            raise RecipeError(f"spacing_mm must be between 0.3 and 3.0 mm, not {self.spacing_mm}")
        if not 1 <= self.steps <= 64:
            raise RecipeError(f"steps must be between 1 and 64, not {self.steps}")
        if not 0.0 <= self.consistency_weight <= 10.0:
            raise RecipeError(
                f"consistency_weight must be between 0 and 10, not {self.consistency_weight}"
            )
        if self.correct_distortion:
            raise RecipeError("correct_distortion is not built: it must be false")
        if self.content_qualification not in QUALIFICATIONS:
            raise RecipeError(
                f"content_qualification must be one of {', '.join(QUALIFICATIONS)}, "
                f"not {self.content_qualification!r}"
            )
        self._refuse_impossible_tags()

    def _refuse_impossible_tags(self) -> None:
        if not 0 <= self.series_number_base <= 1_000_000_000:
            raise RecipeError(
                "series_number_base must be between 0 and 1000000000, "
                f"not {self.series_number_base}"
            )
        if not BODY_PART.fullmatch(self.body_part):
            raise RecipeError(
                f"body_part is up to 16 capitals, digits, blanks and _, not {self.body_part!r}"
            )
        if len(self.protocol_name) > LO_LENGTH or not _plain(self.protocol_name):
            raise RecipeError(
                f"protocol_name is up to 64 ASCII characters without a backslash, "
                f"not {self.protocol_name!r}"
            )
        if self.window not in WINDOWS:
            raise RecipeError(f"window must be one of {', '.join(WINDOWS)}, not {self.window!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Return the recipe of `values`.

        Raises
        ------
        RecipeError
            If a key is unknown or a value impossible.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise RecipeError(f"unknown recipe option {sorted(unknown)[0]!r}")
        return cls(**values)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of all options."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(text: str) -> bool:
    return text.isascii() and (not text or text.isprintable()) and "\\" not in text
