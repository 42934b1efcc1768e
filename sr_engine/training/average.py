"""The mean of the weights of several sittings of one training: often better than each of them.

Source: Wortsman et al. 2022 (arXiv 2203.05482, model soups). It needs networks that grew out of
one another; the mean of strangers is worth nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from sr_engine.errors import RecipeError
from sr_engine.model import bundle


def average(files: Sequence[Path], shares: Sequence[float], out: Path) -> str:
    """Write the weighted mean of weight files to `out`; return the file's SHA-256.

    Its record holds the records of all of them.

    Raises
    ------
    RecipeError
        If there are fewer than two files, a share for each of them is missing or not above zero,
        or the networks differ.
    WeightsError
        If a file is no bundle.
    """
    if len(files) < 2 or len(shares) != len(files) or min(shares) <= 0:
        raise RecipeError(f"{len(files)} weight files need as many shares above zero: {shares}")
    bundles = [bundle.load(file) for file in files]
    if any(each.model.config != bundles[0].model.config for each in bundles):
        raise RecipeError("only networks of one configuration can be averaged")
    states = [each.model.state_dict() for each in bundles]
    parts = [share / sum(shares) for share in shares]
    mean = {
        name: sum(part * state[name] for part, state in zip(parts, states, strict=True))
        for name in states[0]
    }
    bundles[0].model.load_state_dict(mean)
    record = {
        "stage": "average",
        "average": [
            {"share": round(part, 6), "sha256": each.sha256, "record": each.record}
            for part, each in zip(parts, bundles, strict=True)
        ],
    }
    return bundle.save(out, bundles[0].model, record)
