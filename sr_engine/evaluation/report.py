"""From the JSON files of the measuring commands to tables and plots.

What is written holds statistics alone; pages with images of heads are made by `--pages` of the
measuring commands.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from sr_engine.errors import InputRefused
from sr_engine.evaluation import plots, tables
from sr_engine.evaluation.ledger import Row, Say
from sr_engine.evaluation.lesion_summary import lesion_means
from sr_engine.evaluation.real import summarise
from sr_engine.evaluation.summary import compared, mean_rows

TELLING = {"scores": "psnr_db", "lesions": "leak_rms", "real lesions": "kept"}


def kind_of(row: Row) -> str:
    """Return which command made a row."""
    return next((kind for kind, key in TELLING.items() if key in row), "real")


def read_rows(paths: Sequence[Path]) -> dict[str, list[Row]]:
    """Return the rows of all reports by what they are about.

    Raises
    ------
    InputRefused
        If a file is no report.
    """
    found: dict[str, list[Row]] = {}
    for path in paths:
        try:
            rows = json.loads(path.read_text())["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputRefused(f"{path}: no report of a measuring command ({error})") from error
        for row in rows:
            found.setdefault(kind_of(row), []).append(row)
    return found


def write_report(paths: Sequence[Path], out: Path, say: Say = print) -> Path:
    """Write plots and tables.md into `out`; return the tables' path."""
    out.mkdir(parents=True, exist_ok=True)
    found = read_rows(paths)
    text = ["# Figures\n", f"Made by `sr-engine report` from {len(paths)} files.\n"]
    if "scores" in found:
        text += _scores(found["scores"], out)
    if "lesions" in found:
        means = lesion_means(found["lesions"])
        drawn = plots.plot_lesions(means, out / "lesions.png")
        text += ["## Planted lesions\n", tables.lesions_table(means), _link(drawn)]
    if "real lesions" in found:
        text += ["## Real lesions\n", tables.real_lesions_table(found["real lesions"])]
    if "real" in found:
        text += _real(found["real"], out)
    path = out / "tables.md"
    path.write_text("\n".join(part for part in text if part))
    for file in (path, *sorted(out.glob("*.png"))):
        say(f"{file}  {file.stat().st_size / 1024:.0f} kB")
    return path


def _scores(rows: Sequence[Row], out: Path) -> list[str]:
    rows = compared(rows)
    means = mean_rows(rows)
    return [
        "## Quality\n",
        tables.scores_table(rows, means),
        _link(plots.plot_gains(rows, out / "gains.png")),
        _link(plots.plot_sweep(rows, out / "sweep.png")),
        _link(plots.plot_steps(rows, out / "steps.png")),
        "## Consistency, verdict, cost\n",
        tables.cost_table(means),
        tables.steadiness(rows),
        _link(plots.plot_calibration(means, out / "calibration.png")),
    ]


def _real(rows: Sequence[Row], out: Path) -> list[str]:
    summary = summarise(rows)
    met = "; ".join(f"{key} {value}" for key, value in summary.items())
    return [
        "## Real series\n",
        tables.real_table(rows),
        f"{met}.\n",
        _link(plots.plot_real(rows, out / "real.png")),
    ]


def _link(path: Path | None) -> str:
    return f"![{path.stem}]({path.name})\n" if path else ""
