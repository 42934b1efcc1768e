"""Three volumes made along three axes into one, with their disagreement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr_engine.errors import GeometryError
from sr_engine.threads import in_pieces


@dataclass(frozen=True, kw_only=True)
class Fused:
    """Mean and standard deviation over the axes, each (k, i, j), float32."""

    mean: np.ndarray
    spread: np.ndarray


def fuse(stacks: Sequence[np.ndarray]) -> Fused:
    """Return the plain mean of the stacks; a single stack has no spread.

    Raises
    ------
    GeometryError
        If there is no stack, or their shapes differ.
    """
    shapes = {stack.shape for stack in stacks}
    if len(shapes) != 1:
        raise GeometryError(f"only stacks on one grid can be fused, not {sorted(shapes)}")
    mean, spread = (np.empty(stacks[0].shape, np.float32) for _ in range(2))
    share = np.float32(1 / len(stacks))

    def plane(piece: slice) -> None:
        planes = np.stack([stack[piece] for stack in stacks]).astype(np.float32)
        mean[piece] = planes.sum(axis=0) * share
        spread[piece] = np.sqrt(((planes - mean[piece]) ** 2).sum(axis=0) * share)

    in_pieces(plane, len(mean))
    return Fused(mean=mean, spread=spread)
