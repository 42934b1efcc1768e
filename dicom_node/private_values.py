"""The few private elements that say what no standard one does: tiles, slices, phase images."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dicom_node.rules import LOCATIONS, TILES

WORDS = {"US": "<H", "SS": "<h", "UL": "<L", "SL": "<l"}
TEXTS = ("DS", "IS")
COMPONENTS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")  # as GE counts them


@dataclass(frozen=True, kw_only=True)
class PrivateValue:
    """One number in a private block."""

    name: str  # among the header values
    creator: str
    group: int
    element: int
    vr: str  # where the data set does not say (implicit VR, or UN)


TABLE = (
    # NumberOfImagesInMosaic, and the frames in a "VFRAME" image of United Imaging
    PrivateValue(name=TILES, creator="SIEMENS MR HEADER", group=0x19, element=0x0A, vr="US"),
    PrivateValue(name=TILES, creator="Image Private Header", group=0x65, element=0x50, vr="DS"),
    # LocationsInAcquisition, and NumberOfSlicesMR of Philips
    PrivateValue(name=LOCATIONS, creator="GEMS_RELA_01", group=0x21, element=0x4F, vr="SS"),
    PrivateValue(
        name=LOCATIONS, creator="Philips Imaging DD 001", group=0x2001, element=0x18, vr="SL"
    ),
    # One of COMPONENTS; ImageType says OTHER for all of them
    PrivateValue(
        name="ComplexImageComponent", creator="GEMS_PARM_01", group=0x43, element=0x2F, vr="SS"
    ),
)
GROUPS = frozenset(row.group for row in TABLE)

Encoded = Mapping[int, tuple[str | None, bytes]]  # tag -> VR where it is told, little-endian value


def private_values(elements: Encoded) -> dict[str, Any]:
    """Return the header values that TABLE finds in a data set; what is no number is left out."""
    found: dict[str, Any] = {}
    for row in TABLE:
        block = block_of(elements, row)
        told, value = elements.get((row.group << 16) | (block << 8) | row.element, (None, b""))
        number = number_of(row.vr if told in (None, "UN") else told, value)
        if block and number is not None:
            found[row.name] = number
    component = found.pop("ComplexImageComponent", None)
    if component in range(len(COMPONENTS)):
        found["ComplexImageComponent"] = COMPONENTS[int(component)]
    return found


def block_of(elements: Encoded, row: PrivateValue) -> int:
    """Return the block that the creator has reserved (PS3.5 7.8.1), 0 where it has none."""
    for block in range(0x10, 0x100):
        _, value = elements.get((row.group << 16) | block, (None, None))
        if value is None:
            return 0
        if value.rstrip(b" \x00") == row.creator.encode():
            return block
    return 0


def number_of(vr: str, value: bytes) -> float | None:
    """Return the first number of an encoded value, None where there is none."""
    try:
        if vr in TEXTS:
            return float(value.split(b"\\")[0])
        return float(struct.unpack_from(WORDS[vr], value)[0])
    except (KeyError, ValueError, struct.error):
        return None
