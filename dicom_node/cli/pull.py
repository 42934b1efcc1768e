"""`dicom-node pull`: fetch series from a peer, with a progress bar on a terminal."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from dicom_node.cli.operations import Refused, opened, refuse_foreign_root
from dicom_node.cli.output import one_line, print_json, settings_of

REFUSED = 1
WIDTH = 30
EVERY_S = 0.1  # between two drawings of the bar
ANY = "any"


class Bar:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, label: str) -> None:
        """Begin the bar of `label`."""
        self._label = label
        self._shown = sys.stderr.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._first: int | None = None

    def tell(self, done: int, total: int) -> None:
        """Draw how many of how many are here."""
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if not self._shown or (done < total and now - self._drawn < EVERY_S):
            return
        self._drawn = now
        filled = WIDTH * done // total if total else WIDTH
        rate = (done - self._first) / max(now - self._began, 1e-3)
        bar = "#" * filled + "." * (WIDTH - filled)
        sys.stderr.write(f"\r{self._label} [{bar}] {done}/{total}, {rate:.0f} images/s  ")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line to what follows."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def pull(arguments: argparse.Namespace) -> int:
    """Fetch what was asked for, series by series."""
    from dicom_node import pull as pulling
    from dicom_node.pixel_files import PixelFiles

    settings = settings_of(arguments)
    refuse_foreign_root(settings)
    peer = settings.peer(arguments.source)
    wanted = pulling.Wanted(
        accession=(arguments.accession or "").strip(),
        series_uid=(arguments.series or "").strip(),
        study_uid=(arguments.study or "").strip(),
    )
    rate = settings.pull.images_per_s if arguments.rate is None else arguments.rate
    files = PixelFiles(settings.node.state_dir.resolve() / "in", settings.files.min_free_bytes)
    with opened(settings) as store:
        way = pulling.way_to(peer, settings, store, files)
        puller = pulling.Puller(peer=peer, way=way, store=store, pace=pulling.Pace(rate))
        found = puller.find(wanted)
        taken = [one for one in found if wanted.series_uid or ours(one, arguments.modality)]
        left = [one for one in found if one not in taken]
        if not taken:
            kinds = ", ".join(sorted({one.modality or "?" for one in left}))
            raise Refused(f"{peer.name} has {len(left)} series, none of them MR: {kinds}")
        fetched = []
        with pulling.listening(peer, settings, store, files):
            for number, one in enumerate(taken, 1):
                label = f"series {number} of {len(taken)}"
                fetched.append(fetch(puller, one, label, arguments.json))
                if fetched[-1].missing and fetched[-1].trouble and not fetched[-1].arrived:
                    break  # it would be the same for the others
    return report(arguments, fetched, len(taken) - len(fetched), left)


def ours(one: Any, modality: str) -> bool:
    """Return whether a series of an accession number is wanted."""
    return modality.lower() == ANY or one.modality.upper() == modality.upper()


def fetch(puller: Any, one: Any, label: str, quiet: bool) -> Any:
    """Fetch one series and say how it went; return it."""
    bar = Bar(label)
    try:
        done = puller.fetch(one, bar.tell)
    finally:
        bar.end()
    if not quiet:
        print(f"{label}: {one.series_uid} ({one.modality or '?'}): {in_words(done)}", flush=True)
    return done


def in_words(done: Any) -> str:
    """Return what became of a series for a person."""
    parts = [f"{len(done.series.instances)} images", f"{done.arrived} arrived"]
    parts += [f"{done.known} were here"] if done.known else []
    parts += [f"{done.warned} with a warning"] if done.warned else []
    parts += [f"{done.failed} refused or failed"] if done.failed else []
    parts += [f"{len(done.missing)} missing"] if done.missing else []
    trouble = f": {one_line(done.trouble)}" if done.trouble else ""
    return ", ".join(parts) + trouble


def as_json(done: Any) -> dict[str, Any]:
    """Return what became of a series as plain JSON."""
    return {
        "series_uid": done.series.series_uid,
        "study_uid": done.series.study_uid,
        "modality": done.series.modality,
        "instances": len(done.series.instances),
        "known": done.known,
        "arrived": done.arrived,
        "warned": done.warned,
        "failed": done.failed,
        "missing": list(done.missing),
        "trouble": done.trouble,
    }


def report(
    arguments: argparse.Namespace, fetched: Sequence[Any], not_tried: int, left: Sequence[Any]
) -> int:
    """Say how it went in all; return the exit code."""
    missing = sum(len(one.missing) for one in fetched)
    arrived, known = (sum(getattr(one, name) for one in fetched) for name in ("arrived", "known"))
    if arguments.json:
        series = [as_json(one) for one in fetched]
        other = [{"series_uid": one.series_uid, "modality": one.modality} for one in left]
        print_json(
            {"peer": arguments.source, "arrived": arrived, "known": known, "missing": missing}
            | {"not_tried": not_tried, "series": series, "left_there": other}
        )
    else:
        there = f"; {len(left)} series of other modalities were left there" if left else ""
        print(f"{arrived} images arrived, {known} were here, {missing} are missing{there}")
    empty = sum(not one.series.instances for one in fetched)
    if not missing and not not_tried and not empty:
        return 0
    why = next((one.trouble for one in fetched if one.trouble), "see the counts")
    unnamed = f" and {empty} series have no images" if empty else ""
    skipped = f" and {not_tried} series were not tried" if not_tried else ""
    print(
        f"dicom-node pull: {missing} images are missing{skipped}{unnamed}: {one_line(why)}",
        file=sys.stderr,
    )
    return REFUSED
