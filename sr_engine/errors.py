"""Errors of the engine.

EngineError
├── InputRefused            the input is at fault: `sr-engine` exits with 1
│   ├── NotDicom            no DICOM file, or a damaged one
│   ├── HeaderError         an attribute is missing or has an impossible value
│   ├── GeometryError       the slices are no uniform stack
│   ├── PixelDecodeError    the pixel data cannot be decoded
│   └── UnsupportedInput    valid DICOM that is no single MR volume
├── RecipeError             a processing option has an impossible value
├── WeightsError            the weight file is damaged, foreign or has a wrong hash
└── WriteError              the derived series cannot be written
"""


class EngineError(Exception):
    """Anything the engine refuses or fails to do."""

    exit_code = 3


class InputRefused(EngineError):
    """The input is at fault; the message names the value and the UID."""

    exit_code = 1


class NotDicom(InputRefused):
    """The file is not DICOM, or it is cut short."""


class HeaderError(InputRefused):
    """An attribute is missing or has an impossible value."""


class GeometryError(InputRefused):
    """The slices do not form one uniform stack."""


class PixelDecodeError(InputRefused):
    """The pixel data cannot be decoded."""


class UnsupportedInput(InputRefused):
    """Valid DICOM, but not a single MR volume (mosaic, several volumes, colour ...)."""


class RecipeError(EngineError):
    """A processing option has an impossible value."""

    exit_code = 2


class WeightsError(EngineError):
    """The weight file is damaged, foreign, or its hash is not the expected one."""


class WriteError(EngineError):
    """The derived series cannot be written."""
