"""Pixel data to scanner units: decode, mask, sign, rescale."""

import struct

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from sr_engine.dicom.headers import number, sop_uid, text
from sr_engine.dicom.proportion import refuse_too_many_pixels
from sr_engine.errors import HeaderError, PixelDecodeError

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


def decode(dataset: Dataset) -> np.ndarray:
    """Return the stored values, ((frames,) rows, columns), int32, before any rescale.

    Raises
    ------
    PixelDecodeError
        If pixel data are missing, cut short or not decodable.
    """
    uid = sop_uid(dataset)
    if "PixelData" not in dataset:
        raise PixelDecodeError(f"instance {uid} has no pixel data")
    rows, columns = number(dataset, "Rows") or 0, number(dataset, "Columns") or 0
    refuse_too_many_pixels(rows, columns, number(dataset, "NumberOfFrames") or 1, uid)
    try:
        return _significant_bits(pixel_array(dataset).astype(np.int32), dataset)
    except UNDECODABLE as error:
        reason = str(error).split("\n")[0]
        raise PixelDecodeError(f"pixel data of {uid} cannot be decoded: {reason}") from None


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
