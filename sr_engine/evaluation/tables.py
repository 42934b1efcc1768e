"""Reports as Markdown tables for docs/evaluation.md."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sr_engine.evaluation.ledger import Row

FEWEST_PAIRS = 5  # below, a rank test cannot say anything


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return one Markdown table."""
    text = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    text += ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join(text) + "\n"


def number(value: object, digits: int = 2, sign: bool = False) -> str:
    """Return a figure for a cell; a dash for None."""
    if value is None:
        return "-"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def identity(row: Row) -> str:
    """Return the first digits of the SHA-256 of a row's weights; a dash for a linear method."""
    return str(row["weights"])[:8] or "-"


def scores_table(rows: Sequence[Row], means: Sequence[Row]) -> str:
    """Return quality by input and method; p is Wilcoxon's, against the better linear method."""
    header = ["input", "method", "weights", "steps", "cases", "PSNR dB", "SSIM", "FSC 0.5 mm"]
    header += [
        "S-I cone mm",
        "gain dB",
        "gain SSIM",
        "p",
        "over student dB",
        "cases below the line",
    ]
    lines = []
    for mean in means:
        chosen = [
            row
            for row in rows
            if all(row[key] == mean[key] for key in ("input", "method", "weights", "steps"))
        ]
        below = mean.get("below_linear")
        lines.append(
            [
                *(
                    mean["input"],
                    mean["method"],
                    identity(mean),
                    mean["steps"] or "-",
                    mean["cases"],
                ),
                *(number(mean["psnr_db"]), number(mean["ssim"], 4), number(mean["fsc05_mm"])),
                number(mean.get("fsc05_si_mm")),
                number(mean.get("psnr_db_over_linear"), sign=True),
                number(mean.get("ssim_over_linear"), 4, sign=True),
                p_value([row.get("psnr_db_over_linear") for row in chosen]),
                number(mean.get("psnr_db_over_student"), 3, sign=True),
                "-" if below is None else ", ".join(below) or "none",
            ]
        )
    return table(header, lines)


def p_value(gains: Sequence[float | None]) -> str:
    """Return the probability of such gains if there were none; a dash where there are too few."""
    known = [gain for gain in gains if gain]
    if len(known) < FEWEST_PAIRS:
        return "-"
    return f"{float(stats.wilcoxon(known).pvalue):.3g}"


def cost_table(means: Sequence[Row]) -> str:
    """Return consistency, holds, calibration of the spread and cost by input and method."""
    header = ["input", "method", "weights", "residual / noise", "residual / sigma", "held"]
    header += ["rank correlation", "blobs 5 mm", "blobs 3 mm", "seconds", "peak MiB"]
    lines = []
    for mean in means:
        found = mean.get("blobs", {})
        blobs = [
            f"{found[size]['caught']} of {found[size]['planted']}" if size in found else "-"
            for size in ("5 mm", "3 mm")
        ]
        rank = mean.get("calibration", {}).get("rank_correlation")
        held = mean.get("held_share")
        lines.append(
            [
                *(mean["input"], mean["method"], identity(mean)),
                number(mean.get("residual_over_noise")),
                number(mean.get("residual_over_sigma")),
                "-" if held is None else f"{100 * held:.0f} %",
                number(rank),
                *blobs,
                number(mean.get("seconds"), 1),
                number(mean["peak_mib"], 0),
            ]
        )
    return table(header, lines)


def lesions_table(means: Sequence[Row]) -> str:
    """Return what became of planted lesions by input, method and size."""
    header = ["input", "method", "weights", "size mm", "lesions", "recovery", "hypo", "hyper"]
    header += [
        "cubic's",
        "at or above cubic",
        "detected",
        "invented clusters a case",
        "beside the lesions",
    ]
    lines = [
        [
            *(mean["input"], mean["method"], identity(mean)),
            *(f"{mean['size_mm']:g}", mean["lesions"]),
            *(number(mean.get(f"recovery{part}"), 3) for part in ("", "_hypo", "_hyper", "_cubic")),
            f"{100 * mean.get('at_or_above_cubic_share', 0):.0f} %",
            f"{100 * mean['detected_share']:.0f} %",
            number(mean["excess_clusters"], 1),
            number(mean["leak_clusters"], 1),
        ]
        for mean in means
    ]
    return table(header, lines)


def real_lesions_table(rows: Sequence[Row]) -> str:
    """Return what contrast real lesions keep."""
    header = ["case", "input", "method", "weights", "contrast kept", "mean of the lesions"]
    header += ["lesions"]
    lines = [
        [
            *(row["case"], row["input"], row["method"], identity(row)),
            *(number(row["kept"], 3), number(row["kept_per_lesion"], 3), row["lesions"]),
        ]
        for row in rows
    ]
    return table(header, lines)


def real_table(rows: Sequence[Row]) -> str:
    """Return noise and sharpness of real series."""
    header = ["series", "weights", "acquired mm", "SNR cubic", "SNR", "gain"]
    header += ["edge cubic mm", "edge mm", "change", "ventricle", "cortex", "verdict"]
    lines: list[list[object]] = []
    for row in rows:
        if "refused" in row:
            lines.append([row["case"], identity(row), *["-"] * 9, f"refused: {row['refused']}"])
            continue
        gain, change = row["snr_gain"], row.get("width_change")
        lines.append(
            [
                *(row["case"], identity(row)),
                " x ".join(f"{mm:g}" for mm in row["acquired_voxel_mm"]),
                *(number(row.get("snr_cubic"), 1), number(row.get("snr"), 1)),
                "-" if gain is None else f"{100 * gain:+.1f} %",
                *(number(row.get("width_cubic_mm")), number(row.get("width_mm"))),
                "-" if change is None else f"{100 * change:+.1f} %",
                *(number(row.get(f"width_{part}_ratio"), 3) for part in ("ventricle", "cortex")),
                "pass" if row["passed"] else "hold",
            ]
        )
    return table(header, lines)


def steadiness(rows: Sequence[Row]) -> str:
    """Return how often an honest result of the student would have been held, in one sentence."""
    verdicts = [row["passed"] for row in rows if row["method"] == "student" and "passed" in row]
    if not verdicts:
        return ""
    held = len(verdicts) - int(np.sum(verdicts))
    return f"Honest results of the student that the verdict held: {held} of {len(verdicts)}.\n"
