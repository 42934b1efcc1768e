"""PSNR, SSIM and Fourier shell correlation inside the head."""

import numpy as np
from scipy import fft, ndimage
from skimage.metrics import structural_similarity

SHELLS = 32


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
) -> float:
    """Return the resolution where the Fourier shell correlation falls below `threshold`.

    Source: van Heel and Schatz 2005, equation 1, under a soft mask.
    """
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2)
    first = fft.fftn((result - result[mask].mean()) * soft)
    second = fft.fftn((reference - reference[mask].mean()) * soft)
    squares = np.zeros(result.shape)
    for axis, (count, size) in enumerate(zip(result.shape, voxel_mm, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = count
        squares = squares + fft.fftfreq(count, size).reshape(shape) ** 2
    finest = 0.5 / max(voxel_mm)
    shell = np.minimum((np.sqrt(squares) * SHELLS / finest).astype(int), SHELLS).ravel()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, values.ravel(), minlength=SHELLS + 1)[:SHELLS]

    cross = total((first * second.conj()).real)
    power = np.sqrt(total(np.abs(first) ** 2) * total(np.abs(second) ** 2))
    low = np.nonzero(cross / power < threshold)[0]
    if len(low) == 0 or low[0] == 0:
        return 2 * max(voxel_mm)
    return float(SHELLS / (low[0] * finest))
