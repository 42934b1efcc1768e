"""Does the spread over the axes say where the result is wrong?"""

import numpy as np
from scipy import stats

DECILES = 10
SAMPLED = 200_000  # voxels for the rank correlation: sorting all of a head takes seconds


def spread_calibration(
    result: np.ndarray, spread: np.ndarray, reference: np.ndarray, mask: np.ndarray
) -> dict:
    """Return mean spread and mean absolute error of each decile of the spread.

    `rank_correlation` is Spearman's, of voxels; `decile_correlation` that of the ten means.
    """
    error = np.abs(result[mask] - reference[mask])
    inside = spread[mask]
    step = max(1, len(inside) // SAMPLED)
    order = np.argsort(inside, kind="stable")
    parts = np.array_split(order, DECILES)
    spreads = [float(inside[part].mean()) for part in parts]
    errors = [float(error[part].mean()) for part in parts]
    return {
        "spread": [round(v, 5) for v in spreads],
        "error": [round(v, 5) for v in errors],
        "rank_correlation": _rank(inside[::step], error[::step]),
        "decile_correlation": _rank(np.array(spreads), np.array(errors)),
    }


def _rank(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return round(float(stats.spearmanr(first, second).statistic), 4)
