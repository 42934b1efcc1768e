"""PSNR, SSIM and Fourier shell correlation inside the head."""

import numpy as np
from scipy import fft, ndimage
from skimage.metrics import structural_similarity

SHELLS = 32
CONE = 0.75  # squared cosine of 30 degrees


def psnr_db(result: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in the mask; the peak is 1."""
    error = np.mean((result[mask].astype(np.float64) - reference[mask]) ** 2)
    return float(-10 * np.log10(error))


def ssim(result: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean structural similarity in the mask.

    Source: Wang 2004, three-dimensional, Gaussian window of sigma 1.5, range 1.
    """
    _, field = structural_similarity(
        reference,
        result.astype(np.float32),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(field[mask].mean())


def fsc_resolution_mm(
    result: np.ndarray,
    reference: np.ndarray,
    mask: np.ndarray,
    voxel_mm: tuple[float, ...],
    threshold: float = 0.5,
    cone_axis: int | None = None,
) -> float:
    """Return the resolution where the Fourier shell correlation falls below `threshold`.

    Parameters
    ----------
    cone_axis
        Count only waves within 30 degrees of this axis: the resolution through thick slices.

    Source: van Heel and Schatz 2005, equation 1, under a soft mask.
    """
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2)
    first = fft.fftn((result - result[mask].mean()) * soft)
    second = fft.fftn((reference - reference[mask].mean()) * soft)
    squares, along = np.zeros(result.shape), np.zeros(())
    for axis, (count, size) in enumerate(zip(result.shape, voxel_mm, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = count
        square = fft.fftfreq(count, size).reshape(shape) ** 2
        squares = squares + square
        along = square if axis == cone_axis else along
    finest = 0.5 / max(voxel_mm)
    shell = np.minimum((np.sqrt(squares) * SHELLS / finest).astype(int), SHELLS)
    if cone_axis is not None:
        shell = np.where(along >= CONE * squares, shell, SHELLS)
    shell = shell.ravel()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, values.ravel(), minlength=SHELLS + 1)[:SHELLS]

    cross = total((first * second.conj()).real)
    power = np.sqrt(total(np.abs(first) ** 2) * total(np.abs(second) ** 2))
    low = np.nonzero(cross / power < threshold)[0]
    if len(low) == 0 or low[0] == 0:
        return 2 * max(voxel_mm)
    return float(SHELLS / (low[0] * finest))
