"""Planted lesions by size, against the cubic interpolation lesion by lesion."""

from collections.abc import Sequence

import numpy as np

from sr_engine.evaluation.ledger import Row

CASE_FIGURES = ("excess_clusters", "cubic_excess_clusters", "leak_clusters", "leak_rms", "leak_max")


def lesion_means(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each input, method and size."""
    cubic = {
        (row["case"], row["input"], tuple(one["centre"])): one["recovery"]
        for row in rows
        if row["method"] == "cubic"
        for one in row["lesions"]
    }
    keys = ("input", "method", "steps", "weights")
    means = []
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        chosen = [row for row in rows if tuple(row[key] for key in keys) == group]
        beside: Row = {}
        for key in CASE_FIGURES:
            beside[key] = round(float(np.mean([row[key] for row in chosen])), 6)
        every = [(row, one) for row in chosen for one in row["lesions"]]
        for size in sorted({one["size_mm"] for _, one in every}):
            ones = [(row, one) for row, one in every if one["size_mm"] == size]
            mean: Row = {**dict(zip(keys, group, strict=True)), "size_mm": size}
            means.append(mean | _by_size(ones, cubic) | beside)
    return means


def _by_size(ones: Sequence[tuple[Row, Row]], cubic: dict) -> Row:
    """Return recovery, detection and the comparison with cubic of the lesions of one size."""
    recovery = np.array([one["recovery"] for _, one in ones])
    dark = np.array([not one["hyperintense"] for _, one in ones])
    row: Row = {
        "lesions": len(ones),
        "recovery": round(float(recovery.mean()), 4),
        "detected_share": round(float(np.mean([one["detected"] for _, one in ones])), 4),
    }
    for name, chosen in (("hypo", dark), ("hyper", ~dark)):
        if chosen.any():
            row[f"recovery_{name}"] = round(float(recovery[chosen].mean()), 4)
    theirs = [cubic.get((r["case"], r["input"], tuple(one["centre"]))) for r, one in ones]
    pairs = [(a, b) for a, b in zip(recovery, theirs, strict=True) if b is not None]
    if pairs:
        row["recovery_cubic"] = round(float(np.mean([b for _, b in pairs])), 4)
        row["at_or_above_cubic_share"] = round(float(np.mean([a >= b for a, b in pairs])), 4)
        row["keeps_cubic_contrast"] = bool(row["recovery"] >= row["recovery_cubic"])
    return row
