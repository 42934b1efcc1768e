"""How many slices of real series are laid out as one before them, and what that saves.

python -m benchmarks.layouts FOLDER

Each folder in FOLDER is a series. Printed are the share of its slices that `elements.scan` did not
need to walk through, and its microseconds for a slice with what it has learned and without.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dicom_node import elements
from dicom_node.content import split_file
from dicom_node.errors import NotAnInstance

LEAST_SLICES = 4


class Counted(elements.Alike):
    """Counts the slices that did not need to be walked through."""

    found = 0

    def read(self, data: bytes) -> elements.Scanned | None:
        """Return what `Alike` returns."""
        known = super().read(data)
        Counted.found += known is not None
        return known


class Unlearned(elements.Alike):
    """Never learns anything."""

    def learn(self, *_: Any) -> None:
        """Leave it."""


def slices_of(folder: Path) -> list[tuple[str, bytes]]:
    """Return transfer syntax and data set of every DICOM file, in the order of their names."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found.append(split_file(path))
        except NotAnInstance:
            continue
    return found


def scan_us(kind: type[elements.Alike], slices: Sequence[tuple[str, bytes]]) -> float:
    """Return the microseconds of one slice, where `kind` is what remembers."""
    elements._alike.clear()
    with patch.object(elements, "Alike", kind):
        started = time.perf_counter()
        for syntax, data in slices:
            elements.scan(data, syntax)
        return 1e6 * (time.perf_counter() - started) / len(slices)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    print("| series | slices | laid out alike | us a slice | without |\n|---|---|---|---|---|")
    for series in sorted(path for path in folder.iterdir() if path.is_dir()):
        slices = slices_of(series)
        if len(slices) < LEAST_SLICES:
            continue
        scan_us(Unlearned, slices)
        without = scan_us(Unlearned, slices)
        Counted.found = 0
        learning = scan_us(Counted, slices)
        share = Counted.found / len(slices)
        print(f"| {series.name} | {len(slices)} | {share:.2f} | {learning:.0f} | {without:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
