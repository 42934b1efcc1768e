"""What a peer has, whatever it was asked by, and what became of fetching it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """One series of a peer."""

    study_uid: str
    series_uid: str
    modality: str
    instances: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # of the instances; where nobody asks, or says: none


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How a retrieval stands: instances that came, came with a warning, failed, are to come."""

    completed: int = 0
    warned: int = 0
    failed: int = 0
    remaining: int = 0


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """How a retrieval ended: the peer's last counts, and its words where it was no success."""

    counts: Counts
    trouble: str = ""
