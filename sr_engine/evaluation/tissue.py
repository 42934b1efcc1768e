"""Where white matter, the ventricles and the cortex of a T1w are, roughly: places to look at.

No atlas: three classes of brightness in the head, then shape. What is called white matter is the
largest calm bright region deeper than a scalp is thick; it need not be all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu

DEEP_MM = (
    8.0  # below the surface of the head: skull-stripped brains keep most of their white matter
)
OPENED_MM = 2.0  # thinner bright sheets are scalp, not white matter
VENTRICLE_DEPTH = 0.4  # of the deepest place: fluid nearer to the surface lies in a sulcus
VENTRICLE_MM3 = 200.0
NEAR_MM = (3.0, 8.0)  # from a ventricle
FAR_MM = 15.0  # from a ventricle: no cortex is nearer
CORTEX_MM = 4.0  # from white matter


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Masks on the grid of a volume, and the mean intensity of its white matter."""

    white: np.ndarray
    near_ventricles: np.ndarray  # white matter, where MS lesions are most often
    cortex: np.ndarray
    white_mean: float


def find_tissue(array: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> Tissue:
    """Return white matter, that near the ventricles, and the cortex of a T1w."""
    smooth = ndimage.gaussian_filter(array, [0.7 / mm for mm in spacing_mm])
    depth_mm = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    deep = depth_mm > DEEP_MM
    dark, bright = threshold_multiotsu(smooth[deep][:: max(1, int(deep.sum() / 200_000))], 3)
    white = _largest(_opened((smooth > bright) & deep, spacing_mm))
    fluid = (smooth < dark) & (depth_mm > VENTRICLE_DEPTH * depth_mm.max())
    ventricles = _large(fluid, VENTRICLE_MM3 / float(np.prod(spacing_mm)))
    from_white_mm = ndimage.distance_transform_edt(~white, sampling=spacing_mm)
    cortex = (smooth > dark) & (smooth <= bright) & (from_white_mm < CORTEX_MM) & mask
    near = np.zeros_like(white)
    if ventricles.any():
        apart_mm = ndimage.distance_transform_edt(~ventricles, sampling=spacing_mm)
        near = white & (apart_mm > NEAR_MM[0]) & (apart_mm < NEAR_MM[1])
        cortex &= apart_mm > FAR_MM
    return Tissue(
        white=white,
        near_ventricles=near,
        cortex=cortex,
        white_mean=float(array[white].mean()) if white.any() else float(array[mask].mean()),
    )


def _opened(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return `mask` without what is thinner than twice OPENED_MM."""
    core = ndimage.distance_transform_edt(mask, sampling=spacing_mm) > OPENED_MM
    return ndimage.distance_transform_edt(~core, sampling=spacing_mm) <= OPENED_MM


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _large(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Return the components of at least so many voxels."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= voxels)[labels]
