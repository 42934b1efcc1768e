"""Pixel data to scanner units: decode, mask, sign, rescale."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from scipy import ndimage

from sr_engine.dicom.headers import number, sop_uid, text
from sr_engine.dicom.proportion import refuse_too_many_pixels
from sr_engine.errors import HeaderError, PixelDecodeError, UnsupportedInput

# Transfer syntaxes that may lose information, with the method's term (PS3.3 C.7.6.1.1.5).
LOSSY = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
    HTJ2K: "ISO_15444_15",
}
LOSSY_KEYWORDS = (
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
# What the decoders of pydicom, pylibjpeg, gdcm and pyjpegls raise on data they cannot decode.
UNDECODABLE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Stored values, ((frames,) rows, columns), int32, and which of them are padding, bool."""

    values: np.ndarray
    padded: np.ndarray


def decode(dataset: Dataset) -> Stored:
    """Return the stored values before any rescale, and which of them are declared padding.

    Raises
    ------
    HeaderError
        If the padding is declared by something that is no number.
    PixelDecodeError
        If pixel data are missing, cut short or not decodable.
    """
    uid = sop_uid(dataset)
    if "PixelData" not in dataset:
        raise PixelDecodeError(f"instance {uid} has no pixel data")
    rows, columns = number(dataset, "Rows") or 0, number(dataset, "Columns") or 0
    refuse_too_many_pixels(rows, columns, number(dataset, "NumberOfFrames") or 1, uid)
    padding = padding_range(dataset)
    try:
        values = _significant_bits(pixel_array(dataset).astype(np.int32), dataset)
    except UNDECODABLE as error:
        reason = str(error).split("\n")[0]
        raise PixelDecodeError(f"pixel data of {uid} cannot be decoded: {reason}") from None
    return Stored(values=values, padded=_within(values, padding))


def padding_range(dataset: Dataset) -> tuple[int, int] | None:
    """Return the least and the greatest stored value that is padding, None where none is declared.

    Raises
    ------
    HeaderError
        If one of the two attributes is no number.

    Source: PS3.3 C.7.5.1.1.2.
    """
    ends = [number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")]
    if ends[0] is None:  # a limit without the value that it belongs to says nothing
        return None
    known = [_with_sign_of_pixels(end, dataset) for end in ends if end is not None]
    return min(known), max(known)


def _with_sign_of_pixels(value: float, dataset: Dataset) -> int:
    """Return `value` in the pixels' representation: its own VR is often written wrong."""
    signed = number(dataset, "PixelRepresentation") == 1
    bits = int(number(dataset, "BitsAllocated") or 16)
    if signed and value >= 1 << (bits - 1):
        return int(value) - (1 << bits)
    if not signed and value < 0:
        return int(value) + (1 << bits)
    return int(value)


def _within(values: np.ndarray, limits: tuple[int, int] | None) -> np.ndarray:
    """Return which of `values` lie in `limits`, both ends included."""
    if limits is None:
        return np.zeros(values.shape, bool)
    return (values >= limits[0]) & (values <= limits[1])


def _significant_bits(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return the values of the stored bits alone: old scanners keep overlays above HighBit."""
    bits = dataset.BitsStored
    shift = dataset.HighBit + 1 - bits
    if not 1 <= bits <= 16 or shift < 0 or stored.ndim not in (2, 3):
        raise ValueError(f"BitsStored {bits}, HighBit {dataset.HighBit}, shape {stored.shape}")
    values = (stored >> shift) & ((1 << bits) - 1)
    if dataset.PixelRepresentation == 1:
        values = values - ((values >> (bits - 1)) << bits)  # two's complement
    return values


def rescaled(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return float32 scanner units: stored values with this slice's own rescale applied.

    The private Philips scale slope (2005,100E) is left alone: displays and measurements use
    the public rescale.

    Raises
    ------
    HeaderError
        If the slope is zero.
    """
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if slope == 0:
        raise HeaderError(f"RescaleSlope of {sop_uid(header)} is 0")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    return (stored * slope + intercept).astype(np.float32)


def without_padding(
    array: np.ndarray, padded: np.ndarray, headers: Sequence[Dataset]
) -> np.ndarray:
    """Return `array` with its padding as dark as the darkest intensity that was measured.

    Only what reaches the rim of its slice is padding. That which lies between 0 and that intensity
    stays: exact zeros around a stripped brain mean something to whoever looks for the head.

    Parameters
    ----------
    array, padded : (slices, rows, columns)
        Scanner units, and which of them are declared padding.
    headers
        One per slice.

    Raises
    ------
    UnsupportedInput
        If an image is nothing but padding; one that is black all over may be empty air.
    """
    padded = _from_the_rim(padded)
    if not padded.any():
        return array
    for plane, where, header in zip(array, padded, headers, strict=True):
        if where.all() and plane.any():
            raise UnsupportedInput(
                f"image {sop_uid(header)} is nothing but padding "
                f"(PixelPaddingValue {text(header, 'PixelPaddingValue')})"
            )
    darkest = array.min(where=~padded, initial=np.inf)
    return np.where(padded, np.clip(array, min(0, darkest), max(0, darkest)), array)


def _from_the_rim(padded: np.ndarray) -> np.ndarray:
    """Return the padding that reaches the rim of its slice.

    A value inside of the head that happens to be that of the padding was measured.
    """
    rim = np.zeros_like(padded)
    rim[:, [0, -1], :] = rim[:, :, [0, -1]] = True
    beside = np.ones((1, 3, 3), bool)
    return ndimage.binary_propagation(rim & padded, structure=beside, mask=padded)


def note_lossy_compression(dataset: Dataset) -> None:
    """Write down in the header that the transfer syntax lost information, if it did."""
    method = LOSSY.get(dataset.file_meta.TransferSyntaxUID)
    if method is None or text(dataset, "LossyImageCompression") == "01":
        return
    frames = int(number(dataset, "NumberOfFrames") or 1)
    pixels_bytes = dataset.Rows * dataset.Columns * frames * dataset.BitsAllocated // 8
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = method
    dataset.LossyImageCompressionRatio = round(pixels_bytes / max(len(dataset.PixelData), 1), 2)
