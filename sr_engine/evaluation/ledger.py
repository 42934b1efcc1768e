"""Rows of figures in one JSON file, written after every row: an interrupted run goes on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sr_engine.errors import InputRefused

Row = dict[str, Any]
Say = Callable[[str], None]


class Ledger:
    """The rows found so far, each in the place that the values of `keys` name.

    A row holds as long as its values of `made_with` (weights, steps) are those of this run, and is
    replaced when its turn comes otherwise.
    """

    def __init__(
        self, path: Path | None, keys: Sequence[str], made_with: Sequence[str], header: Row
    ) -> None:
        self.path = path
        self.keys = tuple(keys)
        self.made_with = tuple(made_with)
        self.header = header
        self.rows: list[Row] = []
        if path is not None and not path.parent.is_dir():  # not after the first row's minutes
            raise InputRefused(f"{path}: there is no folder {path.parent}; make it first")
        if path is not None and path.is_file():
            self.rows = [row for row in self._read(path) if row.keys() >= {*keys, *made_with}]

    @staticmethod
    def _read(path: Path) -> list[Row]:
        try:
            return list(json.loads(path.read_text())["rows"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputRefused(f"{path}: no report that could be continued") from error

    def find(self, **values: Any) -> Row | None:
        """Return the row with these values of `keys` and `made_with`, if there is one."""
        return next((r for r in self.rows if all(r[k] == v for k, v in values.items())), None)

    def add(self, row: Row) -> None:
        """Put a row in its place and write the file."""
        self.rows = [r for r in self.rows if any(r[k] != row[k] for k in self.keys)]
        self.rows.append(row)
        self.write({})

    def write(self, more: Row) -> Row:
        """Write and return header, rows and `more`, e.g. the means."""
        report = {**self.header, "rows": self.rows, **more}
        if self.path is not None:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(report, indent=1))
            part.replace(self.path)
        return report
