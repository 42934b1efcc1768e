"""What can be written of one result: the image in two forms, and companions of either.

A series that holds several volumes gives a result of each, its parts.

Standard library only: the service reads it without the engine.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sr_engine.errors import WriteError

CLASSIC, ENHANCED = "classic", "enhanced"
FORMS = (CLASSIC, ENHANCED)
SPREAD, KEY_OBJECTS, PRESENTATION, REPORT = "spread", "key_objects", "presentation", "report"
COMPANIONS = (SPREAD, KEY_OBJECTS, PRESENTATION, REPORT)
# There are series numbers for so many parts, and more echoes are no pictures to read.
MOST_PARTS = 8


@dataclass(frozen=True, kw_only=True, order=True)
class Kind:
    """One series that a job may write: an image form, or a companion of it.

    A companion refers to the image that lies beside it, so each form has its own.
    """

    form: str
    companion: str = ""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise WriteError(f"an image form is one of {', '.join(FORMS)}, not {self.form!r}")
        if self.companion and self.companion not in COMPANIONS:
            known = ", ".join(COMPANIONS)
            raise WriteError(f"a companion is one of {known}, not {self.companion!r}")

    @property
    def name(self) -> str:
        """Return what databases and provenance call it: "classic", "enhanced+spread"."""
        return f"{self.form}+{self.companion}" if self.companion else self.form

    @property
    def uid_name(self) -> str:
        """Return what enters the UIDs; "MR" is the classic series' name since the first one."""
        return "MR" if self.name == CLASSIC else self.name

    @property
    def file_name(self) -> str:
        """Return the name of its file (a classic series has one per slice instead)."""
        return f"{self.name.replace('+', '-').replace('_', '-')}.dcm"

    @property
    def offset(self) -> int:
        """Return what is added to the series number, so that no two of a study are equal."""
        rank = COMPANIONS.index(self.companion) + 1 if self.companion else 0
        return 20 * rank + (10 if self.form == ENHANCED else 0)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the several volumes of a series, whose result stands beside those of the others."""

    name: str  # "sagittal, TE 12 ms": what people call it
    rank: int  # from 1


def kind_of(name: str) -> Kind:
    """Return the kind called `name`; raise WriteError if there is none."""
    form, _, companion = name.partition("+")
    return Kind(form=form, companion=companion)


def in_order(kinds: Iterable[Kind]) -> tuple[Kind, ...]:
    """Return `kinds` with the images first: what refers to them comes after them."""

    def place(kind: Kind) -> tuple[int, int]:
        rank = COMPANIONS.index(kind.companion) + 1 if kind.companion else 0
        return rank, FORMS.index(kind.form)

    return tuple(sorted(set(kinds), key=place))
