"""Lesions for training: small ellipsoids that healthy anatomy does not explain.

Whoever learns the least squared error on healthy heads alone learns that a small contrast is noise,
and with lesions among them still that part of it is: what is shown in the mean is less than what is
there. So the target shows a lesion that is small against the measured voxel stronger than it is,
and what is learned of it, a fraction of that, is nearer to the truth.
"""

import numpy as np
import torch
from torch import Tensor

SMALL_SHARE = 0.7
SMALL_VOXELS, LARGE_VOXELS = (1.2, 3.5), (3.5, 8.0)  # diameters
FULL_VOXELS, MOST = 5.0, 8.0  # diameter whose samples weigh once; the weight of the smallest
CONTRAST = (0.05, 0.3)  # of the head's brightest tissue; white matter is 0.6 to 0.8 of it in T1w
LONGEST = 1.8  # longest over shortest diameter
RAISED = 1.0  # by how much more the target shows one, most of all
TRUE_VOXELS = 1.7  # measured voxels from which on it is shown as it is; one less: RAISED


def plant(
    high: Tensor, mask: Tensor, count: int, seed: int, voxel: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `high` with `count` lesions, the target that shows them, and weights (uint8).

    A sample weighs by the inverse of its lesion's cross-section, so that in a slice a small lesion
    counts for as much as one of FULL_VOXELS; 0 where none is.

    Parameters
    ----------
    high : (K, J, I), float32    never below 0, before and after
    mask : (K, J, I), bool       the lesions' centres lie within
    voxel
        Size of the measured voxel, in those of `high`: the side of a cube of its volume.
    """
    rng = np.random.default_rng(seed)
    places = torch.nonzero(mask)
    volume, shown = high.numpy().copy(), high.numpy().copy()
    planted = np.zeros(volume.shape, np.uint8)
    for index in rng.integers(len(places), size=count):
        size = rng.uniform(*(SMALL_VOXELS if rng.random() < SMALL_SHARE else LARGE_VOXELS))
        radii = 0.5 * size * rng.uniform(1.0, LONGEST, 3) ** rng.integers(0, 2)
        centre = places[index].numpy() + rng.uniform(-0.5, 0.5, 3)
        box, share = _ellipsoid(volume.shape, centre, radii)
        contrast = rng.choice((-1, 1)) * rng.uniform(*CONTRAST)
        volume[box] += np.float32(contrast) * share
        shown[box] += np.float32(contrast * raised(size / voxel)) * share
        weight = np.clip((FULL_VOXELS / size) ** 2, 1, MOST).round().astype(np.uint8)
        planted[box] = np.maximum(planted[box], weight * (share > 0.25))
    return (
        torch.from_numpy(np.maximum(volume, 0)),
        torch.from_numpy(np.maximum(shown, 0)),
        torch.from_numpy(planted),
    )


def raised(voxels: float) -> float:
    """Return how much stronger than it is the target shows a lesion of so many measured voxels."""
    return 1.0 + RAISED * float(np.clip(TRUE_VOXELS - voxels, 0, 1))


def _ellipsoid(
    shape: tuple[int, ...], centre: np.ndarray, radii: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return a box and the share of each of its voxels that the ellipsoid fills, about."""
    box, squares = [], []
    for n, middle, radius in zip(shape, centre, radii, strict=True):
        low, high = int(middle - radius - 1), int(middle + radius + 2)
        part = slice(max(0, low), min(n, high + 1))
        box.append(part)
        squares.append(((np.arange(part.start, part.stop) - middle) / radius) ** 2)
    k, j, i = squares
    distance = np.sqrt(k[:, None, None] + j[None, :, None] + i[None, None, :])
    # A face one voxel wide: linear in the distance from it, in voxels of the shortest radius.
    return tuple(box), np.clip(0.5 + (1 - distance) * radii.min(), 0, 1).astype(np.float32)
