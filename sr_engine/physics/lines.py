"""scipy's filters along one axis after another, the lines shared among several threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from sr_engine.threads import in_pieces

Array = np.ndarray
LINES = 16  # planes of lines that a thread takes at once


def mean_filter(x: Array, size: int) -> Array:
    """Return ``ndimage.uniform_filter(x, size)``, float32."""
    return _along_axes(ndimage.uniform_filter1d, x, [{"size": size}] * 3)


def largest_filter(x: Array, size: int) -> Array:
    """Return ``ndimage.maximum_filter(x, size)``, float32."""
    return _along_axes(ndimage.maximum_filter1d, x, [{"size": size}] * 3)


def smallest_filter(x: Array, size: int) -> Array:
    """Return ``ndimage.minimum_filter(x, size)``, float32."""
    return _along_axes(ndimage.minimum_filter1d, x, [{"size": size}] * 3)


def gaussian_filter(x: Array, sigmas: list[float]) -> Array:
    """Return ``ndimage.gaussian_filter(x, sigmas)``, float32; sigma 0 leaves an axis alone."""
    options = [{"sigma": sigma} if sigma > 0 else None for sigma in sigmas]
    return _along_axes(ndimage.gaussian_filter1d, x, options)


def _along_axes(filter1d: Callable, x: Array, options: list[dict[str, Any] | None]) -> Array:
    x = np.asarray(x, np.float32)
    for axis, chosen in enumerate(options):
        if chosen is not None:
            x = _along(filter1d, x, axis, chosen)
    return x


def _along(filter1d: Callable, x: Array, axis: int, options: dict[str, Any]) -> Array:
    """Return `x` filtered along `axis`; every line is whole in one thread."""
    out = np.empty_like(x)
    across = 1 if axis == 0 else 0

    def filter_lines(piece: slice) -> None:
        lines = (slice(None), piece) if across else (piece,)
        filter1d(x[lines], axis=axis, output=out[lines], **options)

    in_pieces(filter_lines, x.shape[across], LINES)
    return out
