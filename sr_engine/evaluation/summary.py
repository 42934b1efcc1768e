"""Every row against the student and against the better linear method of its case; the means."""

from collections.abc import Sequence

import numpy as np

from sr_engine.evaluation.ledger import Row
from sr_engine.evaluation.methods import LINEAR

SCORES = ("psnr_db", "ssim")
AVERAGED = (
    *("psnr_db", "ssim", "fsc05_mm", "fsc05_si_mm", "seconds", "peak_mib"),
    *("residual_over_noise", "residual_over_sigma", "residual_rms", "noise_sigma"),
)


def compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with what they gain over the linear line and over the student.

    The line of a case is the better of the linear methods, score by score. `below_linear` names
    the scores that are under it.
    """
    by_scene: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        by_scene.setdefault((row["case"], row["input"]), {})[row["method"]] = row
    out = []
    for row in rows:
        scene = by_scene[row["case"], row["input"]]
        linear = [scene[name] for name in LINEAR if name in scene]
        extra: Row = {}
        for score in SCORES:
            if linear and row["method"] not in LINEAR:
                extra[f"{score}_over_linear"] = row[score] - max(r[score] for r in linear)
            if "student" in scene and row["method"] not in ("student", *LINEAR):
                extra[f"{score}_over_student"] = row[score] - scene["student"][score]
        extra = {key: round(value, 4) for key, value in extra.items()}
        if linear and row["method"] not in LINEAR:
            extra["below_linear"] = [s for s in SCORES if extra[f"{s}_over_linear"] < 0]
        out.append({**row, **extra})
    return out


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the mean of each input and method over the cases, of rows from `compared`."""
    means = []
    keys = ("input", "method", "steps", "weights")
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        chosen = [r for r in rows if tuple(r[key] for key in keys) == group]
        mean: Row = {**dict(zip(keys, group, strict=True)), "cases": len(chosen)}
        gains = [f"{s}_over_{o}" for s in SCORES for o in ("linear", "student")]
        for key in (*AVERAGED, *gains):
            values = [r[key] for r in chosen if r.get(key) is not None]
            if values:
                mean[key] = round(float(np.mean(values)), 4)
        if any("below_linear" in row for row in chosen):
            mean["below_linear"] = [r["case"] for r in chosen if r.get("below_linear")]
        held = [r["passed"] for r in chosen if "passed" in r]
        if held:
            mean["held_share"] = round(1 - sum(held) / len(held), 4)
        means.append(mean | _blobs(chosen) | _calibration(chosen))
    inputs = list(dict.fromkeys(mean["input"] for mean in means))
    return sorted(means, key=lambda mean: inputs.index(mean["input"]))  # rows made again come last


def _blobs(rows: Sequence[Row]) -> Row:
    """Return how many planted blobs were caught, by size."""
    found = [row["blobs"] for row in rows if "blobs" in row]
    sizes = list(dict.fromkeys(size for blobs in found for size in blobs))
    counts = {
        size: {
            key: sum(blobs[size][key] for blobs in found if size in blobs)
            for key in ("planted", "caught")
        }
        for size in sizes
    }
    return {"blobs": counts} if counts else {}


def _calibration(rows: Sequence[Row]) -> Row:
    found = [row["calibration"] for row in rows if row.get("calibration")]
    if not found:
        return {}
    return {
        "calibration": {
            key: np.round(np.mean([one[key] for one in found], axis=0), 5).tolist()
            for key in ("spread", "error", "rank_correlation", "decile_correlation")
        }
    }
