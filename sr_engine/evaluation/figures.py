"""Matplotlib, the optional extra `report`: one place that imports it, and one that saves."""

from io import BytesIO
from pathlib import Path
from typing import Any

from sr_engine.errors import EngineError

COLOURS = {"student": "#0b6fa4", "cubic": "#9a6a00", "zerofill": "#777777"}
OTHERS = ("#b3402a", "#3d7d3d", "#7b4fa3", "#c2528b", "#2a9d8f", "#555500", "#a05050", "#304090")


def new_figure(width_inch: float, height_inch: float) -> Any:
    """Return an empty figure.

    Raises
    ------
    EngineError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EngineError("plots need matplotlib: pip install 'dicom-node[report]'") from error
    return Figure(figsize=(width_inch, height_inch), layout="constrained")


def save_figure(figure: Any, path: Path, dpi: int = 80) -> Path:
    """Write a figure as PNG without a date inside, so that equal figures are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path


def save_grey(figure: Any, path: Path, dpi: int) -> Path:
    """Write a figure without colours as an 8-bit PNG: a third of the size."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=dpi)
    Image.open(buffer).convert("L").save(path, optimize=True)
    return path


def colour(name: str, number: int) -> str:
    """Return the colour of a method: fixed for the usual ones, else by its number."""
    return COLOURS.get(name.partition("@")[0], OTHERS[number % len(OTHERS)])
