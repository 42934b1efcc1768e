"""What noise the network left in calm tissue is made less.

The network learned from scans with noise of their own, and on real series it keeps noise of that
kind: a scanner's filters and interpolation have made it smooth, so that neither the network nor the
estimate of sigma takes it for noise. What is hidden from that estimate is read off the result: the
texture of calm tissue, less the noise that is known, of which the network has taken its share.
"""

import numpy as np

from sr_engine.physics.lines import mean_filter
from sr_engine.threads import in_pieces

WINDOW_MM = 3.5
SHARE = 0.5  # of the way to the filtered volume: fine texture is not all noise
CALM_QUANTILE = 0.1  # of the variances in the brighter half of the head: tissue without structure
STRIDE = 3  # voxels: a ninth of the voxels' lines tells the same quantile


def reduce_noise(
    volume: np.ndarray, mask: np.ndarray, spacing_mm: float, sigma: float
) -> tuple[np.ndarray, float]:
    """Return `volume` half-way to its guided filter by itself, and the hidden noise's deviation.

    Detail of a variance below that of the hidden noise is levelled, edges stay. A head that has no
    more texture than `sigma` explains is returned as it is, and 0.

    Source: He, Sun and Tang 2013, Guided image filtering, equations 5, 6 and 8, with the guide and
    the input the same.

    Parameters
    ----------
    volume : (k, i, j), float32
    mask : (k, i, j), bool       the head
    sigma
        Noise of one channel of what was measured.
    """
    window = 2 * max(1, round(0.5 * (WINDOW_MM / spacing_mm - 1))) + 1
    mean = mean_filter(volume, window)
    variance = mean_filter(volume * volume, window)

    def central(piece: slice) -> None:
        variance[piece] = np.maximum(variance[piece] - mean[piece] ** 2, 0)

    in_pieces(central, len(variance))
    noise = _calm_variance(mean, variance, mask) - sigma**2
    if noise <= 0:
        return volume, 0.0

    def gain(piece: slice) -> None:
        variance[piece] /= variance[piece] + np.float32(noise)
        mean[piece] *= 1 - variance[piece]

    in_pieces(gain, len(variance))
    slope, level = mean_filter(variance, window), mean_filter(mean, window)

    def apply(piece: slice) -> None:
        slope[piece] = 1 - np.float32(SHARE) * (1 - slope[piece])
        level[piece] *= np.float32(SHARE)
        level[piece] += slope[piece] * volume[piece]

    in_pieces(apply, len(level))
    return level, float(np.sqrt(noise))


def _calm_variance(mean: np.ndarray, variance: np.ndarray, mask: np.ndarray) -> float:
    """Return the variance within windows of calm tissue, 0 where there is no tissue."""
    some = (slice(None, None, STRIDE), slice(None, None, STRIDE))
    means, variances = mean[some][mask[some]], variance[some][mask[some]]
    if not means.size:
        return 0.0
    bright = variances[means >= np.median(means)]
    return float(np.quantile(bright, CALM_QUANTILE))
