"""Signal-to-noise and edge width of an image that has no reference.

Places are found on the cubic interpolation alone, and both images are measured there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from sr_engine.evaluation.spheres import scattered
from sr_engine.physics.intensity import STRIPPED_ZEROS

PATCHES, PATCH_MM, PATCHES_APART_MM = 30, 5.0, 7.0
DENOISED_MM = 1.5  # sigma of the blur under which homogeneous tissue is looked for
CALM_SHARE = 0.05  # of the bright, deep voxels: the calmest, where tissue is homogeneous
DEEP_MM = 8.0
SCALP_MM, CUT_MM = 10.0, 2.0  # nearer to the surface lie scalp and skull, or the knife's edge
VENTRICLE_DEPTH = 0.4  # of the deepest place: a boundary deeper than this is a ventricle's
EDGES = 1500  # of the ventricles, and as many of the cortex
STEEP_SHARE = 0.3  # of the places where the slope is greatest along its own direction
PROFILE_MM = np.arange(-3.0, 3.01, 0.25)
BLURS_MM = np.geomspace(0.15, 2.5, 100)  # sigma of the error function
SHIFTS_MM = np.linspace(-1.0, 1.0, 17)
GOOD_FIT = 0.9  # share of a profile's variance that an edge explains
TEN_TO_NINETY = 2 * 1.2816  # width of an error function's rise, in sigmas
FEWEST = 30  # edges or patches below this are no measurement


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Boundaries of a head: voxel index, unit normal in mm, and whether deep (ventricle)."""

    voxel: np.ndarray
    normal: np.ndarray
    deep: np.ndarray


def find_patches(
    cubic: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], seed: int = 0
) -> list[tuple[slice, slice, slice]]:
    """Return boxes of 5 mm in homogeneous tissue: white matter in a T1w."""
    # Without its noise: places where cubic's noise happens to be low would flatter cubic.
    tissue = ndimage.gaussian_filter(cubic, [DENOISED_MM / mm for mm in spacing_mm])
    sigmas = [PATCH_MM / 2 / mm for mm in spacing_mm]
    mean = ndimage.gaussian_filter(tissue, sigmas)
    variance = np.maximum(ndimage.gaussian_filter(tissue**2, sigmas) - mean**2, 0)
    deep = ndimage.distance_transform_edt(mask, sampling=spacing_mm) > DEEP_MM
    if not deep.any():
        return []
    bright = deep & (mean > np.median(mean[deep]))
    calm = variance / np.maximum(mean, 1e-6) ** 2
    allowed = bright & (calm <= np.quantile(calm[bright], CALM_SHARE))
    rng = np.random.default_rng(seed)
    half = [max(1, round(PATCH_MM / 2 / mm)) for mm in spacing_mm]
    boxes = []
    for place in scattered(allowed, PATCHES, spacing_mm, PATCHES_APART_MM, rng):
        box = [slice(max(0, p - h), p + h + 1) for p, h in zip(place, half, strict=True)]
        boxes.append((box[0], box[1], box[2]))
    return boxes


def signal_to_noise(image: np.ndarray, boxes: Sequence[tuple[slice, slice, slice]]) -> float:
    """Return the median over the boxes of mean over deviation, a slope of the tissue removed."""
    ratios = []
    for box in boxes:
        values = image[box].astype(np.float64)
        index = np.indices(values.shape).reshape(3, -1)
        basis = np.vstack([np.ones(values.size), index]).T
        fitted = basis @ np.linalg.lstsq(basis, values.ravel(), rcond=None)[0]
        deviation = np.sqrt(np.sum((values.ravel() - fitted) ** 2) / (values.size - 4))
        ratios.append(values.mean() / max(deviation, 1e-9))
    return float(np.median(ratios))


def find_edges(
    cubic: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], seed: int = 0
) -> Edges:
    """Return boundaries in the brain, at random among the steepest, deep ones and outer ones."""
    sigmas = [1.0 / mm for mm in spacing_mm]
    slopes = np.stack(
        [
            ndimage.gaussian_filter(cubic, sigmas, order=[int(a == axis) for a in range(3)])
            / spacing_mm[axis]
            for axis in range(3)
        ]
    )
    steepness = np.linalg.norm(slopes, axis=0)
    main = np.argmax(np.abs(slopes), axis=0)
    crest = np.zeros(mask.shape, bool)
    for axis in range(3):
        size = [3 if a == axis else 1 for a in range(3)]
        crest |= (main == axis) & (steepness >= ndimage.maximum_filter(steepness, size))
    depth_mm = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    stripped = float((cubic == 0).mean()) > STRIPPED_ZEROS
    crest &= _whole_profile(mask.shape, spacing_mm)
    deep = depth_mm > VENTRICLE_DEPTH * depth_mm.max()
    outer = ~deep & (depth_mm > (CUT_MM if stripped else SCALP_MM))
    rng = np.random.default_rng(seed)
    voxel = np.concatenate([_steepest(crest & part, steepness, rng) for part in (deep, outer)])
    at = tuple(voxel.T)
    normal = (slopes[:, *at] / np.maximum(steepness[at], 1e-9)).T
    return Edges(voxel=voxel, normal=normal, deep=deep[at])


def _whole_profile(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Return where a profile along any direction lies in the image; thin slabs have no rim."""
    inner = np.zeros(tuple(shape), bool)
    rims = [int(np.ceil(-PROFILE_MM[0] / mm)) for mm in spacing_mm]
    k, i, j = (
        slice(rim, n - rim) if n > 4 * rim else slice(0, n)
        for n, rim in zip(shape, rims, strict=True)
    )
    inner[k, i, j] = True
    return inner


def _steepest(crest: np.ndarray, steepness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return up to EDGES random voxels of the steepest ones of `crest`, (n, 3)."""
    if crest.any():
        crest = crest & (steepness >= np.quantile(steepness[crest], 1 - STEEP_SHARE))
    voxel = np.argwhere(crest)
    return voxel[rng.permutation(len(voxel))[:EDGES]]


def edge_widths_mm(
    image: np.ndarray, edges: Edges, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 10-90 % width at each edge, and which of them are edges at all.

    The error function that fits a profile best is searched on a grid of shifts and blurs, so that
    noise neither narrows nor widens an edge.
    """
    along = edges.normal[:, :, None] * PROFILE_MM / np.asarray(spacing_mm)[:, None]
    position = (edges.voxel[:, :, None] + along).transpose(1, 0, 2)
    profiles = ndimage.map_coordinates(image, position, order=1, mode="nearest")
    profiles = profiles - profiles.mean(axis=1, keepdims=True)
    total = np.maximum((profiles**2).sum(axis=1), 1e-12)
    best, width = np.zeros(len(profiles)), np.full(len(profiles), np.nan)
    for blur in BLURS_MM:
        for shift in SHIFTS_MM:
            rise = special.erf((PROFILE_MM - shift) / (blur * np.sqrt(2)))
            rise = (rise - rise.mean()) / np.linalg.norm(rise - rise.mean())
            explained = np.maximum(profiles @ rise, 0) ** 2 / total
            better = explained > best
            best[better], width[better] = explained[better], blur * TEN_TO_NINETY
    return width, best >= GOOD_FIT
