"""Scanner units to stored values, and the window that shows them as bright as the source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from sr_engine.dicom.headers import numbers, text

MAX_STORED = 65535
MAX_12_BIT = 4095
GOOD_PEAK = 256  # fewer steps than this would show as banding: a gain is chosen
TARGET_PEAK = 20_000  # the gain's aim; leaves room below 65535
# A result is about as contrasty as its source: a slope beyond these is a percentile gone astray.
SLOPES = (0.5, 2.0)
# VOILUTFunction: as good as LINEAR is LINEAR_EXACT, half a grey value apart (PS3.3 C.11.2.1.3).
LINEAR = ("", "LINEAR", "LINEAR_EXACT")


@dataclass(frozen=True, kw_only=True)
class StoredPixels:
    """The stored values of a derived series and how they were made."""

    array: np.ndarray  # (slices, rows, columns), uint16
    gain: float  # stored = round(scanner units * gain)
    clipped: int  # voxels outside 0 ... 65535
    bits_stored: int


def pixel_gain(source: np.ndarray, derived: np.ndarray) -> float:
    """Return the factor from scanner units to stored values: 1 wherever 16 bits can hold them.

    Numbers measured on the derived series then compare with the source's. Only tiny ranges (a
    Philips rescale to floats) and those beyond 65535 get a gain, of the form 1, 2 or 5 x 10^n.
    """
    peak = float(max(source.max(), derived.max()))
    integral = bool(np.all(source == np.rint(source)))
    if peak <= 0 or (peak <= MAX_STORED and (integral or peak >= GOOD_PEAK)):
        return 1.0
    exponent = np.floor(np.log10(TARGET_PEAK / peak))
    decade = 10.0**exponent
    steps = [step * decade for step in (1.0, 2.0, 5.0)]
    return float(max(step for step in steps if step * peak <= TARGET_PEAK))


def to_stored(source: np.ndarray, derived: np.ndarray) -> StoredPixels:
    """Return `derived` (scanner units) as unsigned stored values."""
    gain = pixel_gain(source, derived)
    scaled = np.rint(derived.astype(np.float64) * gain)
    clipped = int(np.count_nonzero((scaled < 0) | (scaled > MAX_STORED)))
    array = np.clip(scaled, 0, MAX_STORED).astype(np.uint16)
    bits = 12 if array.max(initial=0) <= MAX_12_BIT else 16
    return StoredPixels(array=array, gain=gain, clipped=clipped, bits_stored=bits)


def window(
    headers: Sequence[Dataset], source: np.ndarray, derived: np.ndarray
) -> tuple[float, float]:
    """Return centre and width, in scanner units, that show `derived` like `source`.

    The source's window (its median over the slices) is carried over by the straight line that
    maps the 50th and 95th percentile of the head in `source` to those in `derived`, as it stands
    where that line is steeper than 2 or flatter than 0.5. A source without a usable window gets
    the 1st to 99th percentile of the derived volume.
    """
    stated = source_window(headers)
    if stated is None:
        low, high = np.percentile(derived, (1, 99))
        return float(low + high) / 2, float(high - low)
    centre, width = stated
    dark, bright = np.percentile(_bright_part(source), (50, 95))
    dark_derived, bright_derived = np.percentile(_bright_part(derived), (50, 95))
    slope = (bright_derived - dark_derived) / (bright - dark) if bright > dark else 0.0
    if not SLOPES[0] <= slope <= SLOPES[1]:
        return centre, width
    return float(dark_derived + (centre - dark) * slope), float(width * slope)


def source_window(headers: Sequence[Dataset]) -> tuple[float, float] | None:
    """Return the median centre and width of the source's windows, None without usable ones.

    A window of a sigmoid is none: shown as a straight line it would be another image.
    """
    found = []
    for header in headers:
        centres, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
        linear = text(header, "VOILUTFunction").upper() in LINEAR
        if linear and centres and widths and widths[0] > 0:
            found.append((centres[0], widths[0]))
    if not found:
        return None
    centre, width = np.median(found, axis=0)
    return float(centre), float(width)


def _bright_part(array: np.ndarray) -> np.ndarray:
    """Return the voxels above the mean: the head without its background, cheaply.

    What is negative counts as 0, or it would pull the mean below the air. The zeros do count: the
    mean of the positive alone would jump where a result rings a little in air that was set to 0.
    """
    bright = array[array > np.maximum(array, 0).mean()]
    return bright if bright.size else array.ravel()


def window_value(value: float) -> str:
    """Return a window value as DS: whole numbers where they are fine enough."""
    return str(round(value)) if abs(value) >= 100 else f"{value:.5g}"
