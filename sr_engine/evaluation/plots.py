"""Statistics as plots: they hold no image of anybody."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sr_engine.evaluation.cases import NAME, PROTOCOL
from sr_engine.evaluation.figures import colour, new_figure, save_figure
from sr_engine.evaluation.ledger import Row

GAINS = (("psnr_db_over_linear", "PSNR gain (dB)"), ("ssim_over_linear", "SSIM gain"))


def voxel_label(given: str) -> str:
    """Return how an input is called in a sweep; empty for an input of the protocol."""
    read = NAME.fullmatch(given)
    if read is None or read[1] + read[2] in PROTOCOL:
        return ""
    return f"{read[2]} iso" if read[1] == "iso" else f"1x1x{read[2]}"


def plot_gains(rows: Sequence[Row], path: Path) -> Path | None:
    """Write box plots of what each method gains over the better linear one, by input."""
    rows = [row for row in rows if "psnr_db_over_linear" in row and not voxel_label(row["input"])]
    if not rows:
        return None
    inputs = list(dict.fromkeys(row["input"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = new_figure(min(11.0, 1.6 + 0.45 * len(methods) * len(inputs) ** 0.7 + 2), 6)
    axes = figure.subplots(2, len(inputs), squeeze=False, sharey="row")
    for line, (score, label) in enumerate(GAINS):
        for column, given in enumerate(inputs):
            place = axes[line][column]
            values = [
                [r[score] for r in rows if (r["input"], r["method"]) == (given, method)]
                for method in methods
            ]
            place.boxplot(values, tick_labels=methods, widths=0.6)
            place.axhline(0, color="#999999", linewidth=0.8)
            place.tick_params(axis="x", rotation=90, labelsize=7)
            if line == 0:
                place.set_title(given, fontsize=9)
                place.set_xticklabels([])
        axes[line][0].set_ylabel(f"{label} over the better linear", fontsize=8)
    return save_figure(figure, path)


def plot_sweep(rows: Sequence[Row], path: Path) -> Path | None:
    """Write the gain over the better linear method against the voxel size."""
    rows = [row for row in rows if "psnr_db_over_linear" in row and voxel_label(row["input"])]
    if not rows:
        return None
    labels = sorted({voxel_label(row["input"]) for row in rows}, key=_voxel_order)
    figure = new_figure(8, 3.6)
    for place, (score, label) in zip(figure.subplots(1, 2), GAINS, strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            found = [
                [r[score] for r in rows if (voxel_label(r["input"]), r["method"]) == (x, method)]
                for x in labels
            ]
            here = [i for i, values in enumerate(found) if values]
            tone = colour(method, number)
            place.plot(here, [np.mean(found[i]) for i in here], "o-", color=tone, label=method)
            for i in here:
                place.plot([i] * len(found[i]), found[i], ".", color=tone, alpha=0.35)
        _sweep_axis(place, labels, label)
    return save_figure(figure, path)


def _sweep_axis(place: Any, labels: Sequence[str], label: str) -> None:
    place.axhline(0, color="#999999", linewidth=0.8)
    place.set_xticks(range(len(labels)), labels, rotation=45, fontsize=8)
    place.set_xlabel("voxel of the input (mm)")
    place.set_ylabel(f"{label} over the better linear", fontsize=8)
    place.legend(fontsize=7)


def _voxel_order(label: str) -> tuple[bool, float]:
    thick = label.startswith("1x1x")
    return thick, float(label.removeprefix("1x1x").removesuffix(" iso"))


def plot_steps(rows: Sequence[Row], path: Path) -> Path | None:
    """Write the gain against the number of steps, for the student and the teacher."""
    kinds = ("student", "teacher")
    rows = [
        row
        for row in rows
        if row["method"].partition("@")[0] in kinds and "psnr_db_over_linear" in row
    ]
    if len({row["steps"] for row in rows}) < 2:
        return None
    figure = new_figure(6, 3.6)
    place = figure.subplots()
    groups = dict.fromkeys((row["input"], row["method"].partition("@")[0]) for row in rows)
    for number, (given, kind) in enumerate(groups):
        found: dict[int, list[float]] = {}
        for row in rows:
            if (row["input"], row["method"].partition("@")[0]) == (given, kind):
                found.setdefault(row["steps"], []).append(row["psnr_db_over_linear"])
        steps = sorted(found)
        gains = [float(np.mean(found[step])) for step in steps]
        style = "o-" if kind == "student" else "s--"
        place.plot(steps, gains, style, color=colour("", number), label=f"{kind} {given}")
    place.set_xscale("log", base=2)
    place.set_xlabel("network calls a slice")
    place.set_ylabel("PSNR gain over the better linear (dB)", fontsize=8)
    place.legend(fontsize=7)
    return save_figure(figure, path)


def plot_calibration(means: Sequence[Row], path: Path) -> Path | None:
    """Write the mean error of each decile of the spread."""
    chosen = [mean for mean in means if "calibration" in mean and mean["method"] == "student"]
    if not chosen:
        return None
    figure = new_figure(5, 3.6)
    place = figure.subplots()
    for number, mean in enumerate(chosen):
        found = mean["calibration"]
        label = f"{mean['input']}, rank {found['rank_correlation']:.2f}"
        place.plot(found["spread"], found["error"], "o-", color=colour("", number), label=label)
    place.set_xlabel(
        "spread over the axes, mean of a decile (1: brightest of the head)", fontsize=8
    )
    place.set_ylabel("mean absolute error", fontsize=8)
    place.legend(fontsize=7)
    return save_figure(figure, path)


def plot_lesions(means: Sequence[Row], path: Path) -> Path | None:
    """Write contrast recovery against the size of planted lesions."""
    inputs = list(dict.fromkeys(mean["input"] for mean in means))
    if not inputs:
        return None
    figure = new_figure(4 * len(inputs), 3.6)
    axes = figure.subplots(1, len(inputs), squeeze=False, sharey=True)
    for place, given in zip(axes[0], inputs, strict=True):
        chosen = [mean for mean in means if mean["input"] == given]
        for number, method in enumerate(dict.fromkeys(mean["method"] for mean in chosen)):
            line = [mean for mean in chosen if mean["method"] == method]
            sizes, shares = [m["size_mm"] for m in line], [m["recovery"] for m in line]
            place.plot(sizes, shares, "o-", color=colour(method, number), label=method)
        place.set_title(given, fontsize=9)
        place.set_xlabel("diameter (mm)")
        place.legend(fontsize=7)
    axes[0][0].set_ylabel("contrast recovery")
    return save_figure(figure, path)


def plot_real(rows: Sequence[Row], path: Path) -> Path | None:
    """Write gain in signal-to-noise and relative edge width of each real series."""
    rows = [row for row in rows if row.get("snr_gain") is not None and "width_change" in row]
    if not rows:
        return None
    figure = new_figure(8, 1.2 + 0.25 * len(rows))
    axes = figure.subplots(1, 2, sharey=True)
    names = [row["case"] for row in rows]
    axes[0].barh(names, [100 * row["snr_gain"] for row in rows], color=colour("student", 0))
    axes[0].axvline(5, color="#b3402a", linewidth=0.8)
    axes[0].set_xlabel("signal-to-noise against cubic (%)", fontsize=8)
    axes[1].barh(names, [100 * row["width_change"] for row in rows], color=colour("student", 0))
    axes[1].axvline(0, color="#999999", linewidth=0.8)
    axes[1].set_xlabel("10-90 % edge width against cubic (%)", fontsize=8)
    axes[0].tick_params(axis="y", labelsize=7)
    return save_figure(figure, path)
