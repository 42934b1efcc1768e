"""Three volumes made along three axes into one, with their disagreement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr_engine.errors import GeometryError


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
    # Sums instead of np.mean and np.std: those would hold all stacks in memory once more.
    mean = np.zeros(stacks[0].shape, np.float32)
    for stack in stacks:
        mean += np.asarray(stack, np.float32) / np.float32(len(stacks))
    variance = np.zeros_like(mean)
    for stack in stacks:
        variance += (np.asarray(stack, np.float32) - mean) ** 2 / np.float32(len(stacks))
    return Fused(mean=mean, spread=np.sqrt(variance))
