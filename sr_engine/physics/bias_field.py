"""The receive field of the coil, estimated as N4 does it."""

import math

import numpy as np
import SimpleITK as sitk
from highdicom import Volume

from sr_engine.physics import separable
from sr_engine.physics.bspline import interpolation_matrix
from sr_engine.physics.intensity import head_mask

SHRUNK_MM = 5.0  # the field is smooth: it is fitted on voxels of about this size
ITERATIONS = (30, 20, 10)  # an N4 level each; the lattice doubles from one to the next
THREADS = 1  # fixed, so that sums are added in one order on every machine
FEWEST = 4  # voxels an axis: the cubic lattice needs as many


def estimate_bias_field(volume: Volume, mask: np.ndarray | None = None) -> np.ndarray:
    """Return the log bias field: volume shape, float32, mean 0 over the head.

    Zero everywhere when the head is too small for a fit. ``array / exp(field)`` is the corrected
    image.

    Parameters
    ----------
    mask : bool, shape of the volume
        Head; `head_mask` finds it if it is not known yet.

    Source: Tustison 2010, N4ITK.
    """
    array = np.asarray(volume.array, np.float32)
    mask = head_mask(array) if mask is None else mask
    factors = [_factor(n, mm) for n, mm in zip(array.shape, volume.spacing, strict=True)]
    small, inside = _shrunk(array, factors), _shrunk(mask.astype(np.float32), factors) > 0.5
    inside &= small > 0
    if min(small.shape) < FEWEST or np.count_nonzero(inside) < FEWEST**3:
        return np.zeros(array.shape, np.float32)
    spacing_mm = [f * mm for f, mm in zip(factors, volume.spacing, strict=True)]
    field = _grown(_fit(small, inside, spacing_mm), array.shape, factors)
    return field - np.float32(field[mask].mean())


def without_field(array: np.ndarray, bias_log: np.ndarray | None) -> np.ndarray:
    """Return `array` divided by the field, float32; as it is where the field is None.

    Parameters
    ----------
    bias_log : shape of `array`
        Log bias field on the grid of `array`, as `estimate_bias_field` gives it.
    """
    array = np.asarray(array, np.float32)
    return array if bias_log is None else array * np.exp(-np.asarray(bias_log, np.float32))


def _factor(n: int, spacing_mm: float) -> int:
    """Return how many voxels are averaged along an axis; at least `FEWEST` remain if there are."""
    return max(1, min(round(SHRUNK_MM / spacing_mm), n // FEWEST))


def _fit(small: np.ndarray, inside: np.ndarray, spacing_mm: list[float]) -> np.ndarray:
    """Return the log field on the shrunken grid."""
    # The scale is arbitrary to N4, but its histogram is not: keep well away from log 0.
    image = sitk.GetImageFromArray(np.maximum(small / small[inside].mean(), 1e-3))
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    for itk in (image, mask):
        itk.SetSpacing([float(mm) for mm in reversed(spacing_mm)])
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(THREADS)
    n4.SetMaximumNumberOfIterations(list(ITERATIONS))
    n4.Execute(image, mask)
    return sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).astype(np.float32)


def _shrunk(array: np.ndarray, factors: list[int]) -> np.ndarray:
    """Return the mean over boxes; the last box is filled up with the edge."""
    pad = [(0, math.ceil(n / f) * f - n) for n, f in zip(array.shape, factors, strict=True)]
    array = np.pad(array, pad, mode="edge")
    k, i, j = (n // f for n, f in zip(array.shape, factors, strict=True))
    boxes = array.reshape(k, factors[0], i, factors[1], j, factors[2])
    return boxes.mean(axis=(1, 3, 5), dtype=np.float32)


def _grown(field: np.ndarray, shape: tuple[int, ...], factors: list[int]) -> np.ndarray:
    """Return the field on the full grid."""
    matrices = [
        interpolation_matrix(m, (np.arange(n) + 0.5) / factor - 0.5)
        for m, n, factor in zip(field.shape, shape, factors, strict=True)
    ]
    return separable.apply(matrices, field)
