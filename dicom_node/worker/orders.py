"""What the engine is asked to do in one attempt at a job: one order for each volume."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.settings import Settings
from dicom_node.store import JobRow
from dicom_node.worker.sources import Source
from sr_engine.dicom.kinds import Part
from sr_engine.errors import InputRefused

if TYPE_CHECKING:
    from sr_engine.pipeline import EnhanceResult

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the engine is asked to do with one volume."""

    paths: tuple[Path, ...]
    folder: Path
    job: JobRow
    kinds: tuple[str, ...]  # what is to be written, by the names of `sr_engine.dicom.kinds`
    replaces: tuple[str, ...] = ()  # the derived series of an earlier generation
    part: Part | None = None  # None: the series is one volume


Engine = Callable[[Order, Settings, Progress], "EnhanceResult"]


def orders_of(
    sources: Sequence[Source],
    folder: Path,
    job: JobRow,
    kinds: Sequence[str],
    replaces: Sequence[str],
) -> Iterator[Order]:
    """Yield the order for each volume.

    Parameters
    ----------
    replaces
        The series of the earlier generation, one of each volume. Where it had as many, each of
        ours takes the place of one; else all of ours take the place of all of those.
    """
    paired = len(replaces) == len(sources)
    for place, source in enumerate(sources):
        yield Order(
            paths=source.paths,
            folder=folder,
            job=job,
            kinds=tuple(kinds),
            replaces=(replaces[place],) if paired else tuple(replaces),
            part=Part(name=source.name, rank=place + 1) if source.name else None,
        )


def carry_out(
    orders: Sequence[Order], engine: Engine, settings: Settings, progress: Progress
) -> list["EnhanceResult"]:
    """Return what the engine makes of each order, one after the other.

    Raises
    ------
    InputRefused
        If one volume is at fault; the message names it where there are several.
    """
    made = []
    for place, order in enumerate(orders):
        if order.part is None:
            return [engine(order, settings, progress)]
        try:
            made.append(engine(order, settings, share_of(progress, place, len(orders))))
        except InputRefused as error:
            raise InputRefused(f"{order.part.name}: {error}") from error
    return made


def share_of(progress: Progress, place: int, count: int) -> Progress:
    """Return what takes the progress of one of several volumes as a part of the job's."""

    def tell(stage: str, share: float) -> None:
        progress(f"{stage} ({place + 1} of {count})", (place + share) / count)

    return tell
