"""Spheres with partial-volume edges, and places for them."""

from collections.abc import Sequence

import numpy as np

SUBDIVISION = 5  # points an axis in each voxel


def sphere(
    shape: Sequence[int], spacing_mm: Sequence[float], centre: Sequence[int], diameter_mm: float
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """Return a box and the share of each of its voxels that the sphere fills, float32.

    Parameters
    ----------
    centre
        Voxel index; the sphere sits in the middle of that voxel.
    """
    fine = (np.arange(SUBDIVISION) + 0.5) / SUBDIVISION - 0.5
    box, squares = [], []
    for n, mm, middle in zip(shape, spacing_mm, centre, strict=True):
        reach = int(np.ceil(diameter_mm / 2 / mm + 0.5))
        part = slice(max(0, middle - reach), min(n, middle + reach + 1))
        box.append(part)
        apart = np.arange(part.start, part.stop)[:, None] - middle + fine
        squares.append((apart.ravel() * mm) ** 2)
    k, i, j = squares
    inside = k[:, None, None] + i[None, :, None] + j[None, None, :] <= (diameter_mm / 2) ** 2
    cut = [len(square) // SUBDIVISION for square in squares]
    cells = inside.reshape(cut[0], SUBDIVISION, cut[1], SUBDIVISION, cut[2], SUBDIVISION)
    return (box[0], box[1], box[2]), cells.mean(axis=(1, 3, 5), dtype=np.float32)


def scattered(
    allowed: np.ndarray,
    count: int,
    spacing_mm: Sequence[float],
    apart_mm: float,
    rng: np.random.Generator,
    taken: Sequence[tuple[int, int, int]] = (),
) -> list[tuple[int, int, int]]:
    """Return up to `count` random voxels of `allowed`, this far apart and from those `taken`."""
    candidates = np.argwhere(allowed)
    found: list[tuple[int, int, int]] = []
    for index in rng.permutation(len(candidates)):
        if len(found) == count:
            break
        k, i, j = (int(v) for v in candidates[index])
        others = np.array([*taken, *found], float).reshape(-1, 3)
        away = np.linalg.norm((others - (k, i, j)) * np.asarray(spacing_mm), axis=1)
        if (away >= apart_mm).all():
            found.append((k, i, j))
    return found
