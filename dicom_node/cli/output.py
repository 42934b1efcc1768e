"""How the command line speaks: one JSON document, one line, a table."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicom_node.settings import Settings, load_settings


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, default=str))


def one_line(text: object) -> str:
    """Return a text without line breaks."""
    return " ".join(str(text).split())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns; the last one is as wide as it likes."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]
        )
        for row in rows
    )


def settings_of(
    arguments: argparse.Namespace, *, path: Path | None = None, **overrides: str
) -> Settings:
    """Return the configuration that the command's options ask for, or that of the file `path`."""
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    if arguments.state_dir is not None:
        named["node.state_dir"] = str(arguments.state_dir)
    return load_settings(path or arguments.config, overrides=named)
