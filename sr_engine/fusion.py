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


def axis_weights(ratio: Sequence[float], axes: Sequence[int]) -> list[float]:
    """Return the weight of the stack of each axis: the inverse of its acquired voxel size.

    Across its slices the network sees only a few neighbours, within them everything. Slices cut
    as a thick-slice scan acquired them therefore tell least of what lies between. An isotropic
    scan gets the plain mean.

    Parameters
    ----------
    ratio
        Acquired over target voxel size along the array axes.
    """
    return [min(ratio) / ratio[axis] for axis in axes]


def fuse(stacks: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> Fused:
    """Return the mean of the stacks, weighted or plain; a single stack has no spread.

    Parameters
    ----------
    weights
        Above zero, of any sum; None for the plain mean.

    Raises
    ------
    GeometryError
        If there is no stack, or their shapes differ.
    """
    shapes = {stack.shape for stack in stacks}
    if len(shapes) != 1:
        raise GeometryError(f"only stacks on one grid can be fused, not {sorted(shapes)}")
    mean, spread = (np.empty(stacks[0].shape, np.float32) for _ in range(2))
    share = np.ones(len(stacks)) if weights is None else np.asarray(weights, float)
    share = (share / share.sum()).astype(np.float32)

    def plane(piece: slice) -> None:
        planes = np.stack([stack[piece] for stack in stacks]).astype(np.float32)
        mean[piece] = np.tensordot(share, planes, axes=1)
        spread[piece] = np.sqrt(np.tensordot(share, (planes - mean[piece]) ** 2, axes=1))

    in_pieces(plane, len(mean))
    return Fused(mean=mean, spread=spread)
