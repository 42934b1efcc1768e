"""The transfer syntaxes that are received."""

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

# In the order of our preference: the first that a peer offers as well is taken. Each has a decoder
# in the engine; what nobody here can decode (JPEG XL, video) is refused at negotiation.
TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLosslessRPCL,
    HTJ2KLossless,
    RLELossless,
    # Taken, because the scanner's only copy is better than none; the reader tells that they lost.
    JPEG2000,
    HTJ2K,
    JPEGLSNearLossless,
    JPEGExtended12Bit,
    JPEGBaseline8Bit,
)
