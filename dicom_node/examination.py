"""What one received instance is: its names, digests and header values; or why it is refused.

There are two ways to the same answer. Ordinary data sets are read element by element (`elements`),
in a fraction of the time; everything unusual, and everything that will be refused, is left to
pydicom (`content`), which knows the words for it.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import Any, cast

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.tag import BaseTag
from pydicom.uid import UID

from dicom_node.bombs import frame_is_too_large
from dicom_node.content import (
    PARSE_ERRORS,
    as_file,
    attributes_digest,
    file_meta,
    parse,
    refuse_short_pixels,
    uid_of,
)
from dicom_node.elements import CHARACTER_SET, Scanned, scan
from dicom_node.errors import InstanceRejected, NotAnInstance
from dicom_node.headers import ENHANCED_NAMES, header_of, value_of
from dicom_node.private_values import private_values
from dicom_node.rules import HEADER_KEYS, PRIVATE_CREATORS
from dicom_node.syntaxes import TRANSFER_SYNTAXES

NAMES = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
FROM_META = "TransferSyntaxUID"  # of the header values, the one that is no element
LONGEST_IS = 12  # characters (PS3.5 6.2)
REMEMBERED_BYTES = 256  # longer values are worked out each time


def tag_of(keyword: str) -> int:
    """Return the tag of an attribute."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag


NAME_TAGS = tuple(map(tag_of, NAMES))
HEADER_TAGS = tuple(
    (tag_of(keyword), keyword, ENHANCED_NAMES.get(keyword, keyword))
    for keyword in (*HEADER_KEYS, *ENHANCED_NAMES)
    if keyword != FROM_META
)
ROWS, COLUMNS, SAMPLES, BITS = map(tag_of, ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
FRAMES, PHOTOMETRIC = tag_of("NumberOfFrames"), tag_of("PhotometricInterpretation")
DICTIONARY_VRS = {keyword: dictionary_VR(tag) for tag, keyword, _ in HEADER_TAGS}
_NUMBER = rb"-?\d{1,6}(?:\.\d{1,8})?"
PLAIN = {  # what differs from slice to slice, as most scanners write it
    "DS": re.compile(rb"%s(?:\\%s)* ?" % (_NUMBER, _NUMBER)),
    "IS": re.compile(rb"-?\d{1,9} ?"),
    "UI": re.compile(rb"[12](?:\.(?:0|[1-9]\d{0,30})){1,30}\x00?"),
}
FROM_TEXT: dict[str, Callable[[str], Any]] = {"DS": float, "IS": int, "UI": str}
OTHER_PIXELS = frozenset(map(tag_of, ("FloatPixelData", "DoubleFloatPixelData")))


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """One encoded data set as it arrived, without file meta information."""

    encoded: bytes
    transfer_syntax: str
    calling_ae: str
    sop_class: str | None = None  # as announced by the C-STORE command
    sop_uid: str | None = None
    study_uid: str | None = None  # of the place where it is to be stored
    by_hand: bool = False  # a person imports it, who may put back what was corrected by mistake


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A readable instance with its names and digests."""

    sop_uid: str
    sop_class: str
    series_uid: str
    study_uid: str
    meta: bytes  # what stands before the data set in the file
    encoded: bytes
    attributes_sha256: str
    header: dict[str, Any]
    sha256: str = field(init=False)  # of the file

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.meta)
        digest.update(self.encoded)
        object.__setattr__(self, "sha256", digest.hexdigest())

    @property
    def size_bytes(self) -> int:
        """Return how long the whole file is."""
        return len(self.meta) + len(self.encoded)

    @property
    def file(self) -> bytes:
        """Return the whole file."""
        return self.meta + self.encoded


def examine(incoming: Incoming) -> Examined:
    """Return the instance with its digests.

    Raises
    ------
    NotAnInstance
        If it is no data set, has no usable UIDs, or is not what the command announced.
    InstanceRejected
        If it is cut short, or its pixels could not be decoded. At negotiation no such syntax is
        accepted; a file may have any.
    """
    if incoming.transfer_syntax not in TRANSFER_SYNTAXES:
        name = UID(incoming.transfer_syntax).name
        raise InstanceRejected(f"transfer syntax {name} cannot be decoded here")
    return quick_look(incoming) or thorough_look(incoming)


def thorough_look(incoming: Incoming) -> Examined:
    """Return what pydicom makes of the instance; raises as `examine`."""
    announced = incoming.sop_class or "", incoming.sop_uid or ""
    dataset = parse(as_file(*announced, incoming.transfer_syntax, incoming.encoded))
    attributes_sha256 = attributes_digest(dataset)
    sop_class, sop_uid = uid_of(dataset, "SOPClassUID"), uid_of(dataset, "SOPInstanceUID")
    for name, told, found in (
        ("SOP class", incoming.sop_class, sop_class),
        ("SOP instance", incoming.sop_uid, sop_uid),
        ("study", incoming.study_uid, uid_of(dataset, "StudyInstanceUID")),
    ):
        if told is not None and told != found:
            raise NotAnInstance(f"{name} {told} was announced, the data set is {found}")
    refuse_short_pixels(dataset)
    return Examined(
        sop_uid=sop_uid,
        sop_class=sop_class,
        series_uid=uid_of(dataset, "SeriesInstanceUID"),
        study_uid=uid_of(dataset, "StudyInstanceUID"),
        meta=file_meta(sop_class, sop_uid, incoming.transfer_syntax),
        encoded=incoming.encoded,
        attributes_sha256=attributes_sha256,
        header=header_of(dataset),
    )


def quick_look(incoming: Incoming) -> Examined | None:
    """Return the same for an ordinary data set that nothing is wrong with, else None."""
    found = scan(incoming.encoded, incoming.transfer_syntax)
    if found is None or not has_all_pixels(found):
        return None
    names = [plain_uid(found, tag) for tag in NAME_TAGS]
    sop_class, sop_uid, series_uid, study_uid = names
    told = (incoming.sop_class, incoming.sop_uid, incoming.study_uid)
    found_names = (sop_class, sop_uid, study_uid)
    as_told = all(one in (None, name) for one, name in zip(told, found_names, strict=True))
    if not all(names) or not as_told:
        return None
    try:
        header = quick_header(found, incoming.transfer_syntax)
    except PARSE_ERRORS:  # a character set that nobody knows, for example
        return None
    return Examined(
        sop_uid=sop_uid,
        sop_class=sop_class,
        series_uid=series_uid,
        study_uid=study_uid,
        meta=file_meta(sop_class, sop_uid, incoming.transfer_syntax),
        encoded=incoming.encoded,
        attributes_sha256=found.attributes_sha256,
        header=header,
    )


def plain_uid(found: Scanned, tag: int) -> str:
    """Return a UID of the data set; nothing, if it is missing or no plain one."""
    vr, value = found.values.get(tag, ("", b""))
    text = value.rstrip(b" \x00")
    plain = vr in (None, "UI") and not text.strip(b"0123456789.") and len(text) <= 64
    return text.decode("ascii") if plain else ""


def has_all_pixels(found: Scanned) -> bool:
    """Return whether there is nothing to be said against the pixels."""
    values = found.values
    if ROWS not in values or not OTHER_PIXELS.isdisjoint(values):
        return True
    numbers = [of_vr(found, tag, "US") for tag in (ROWS, COLUMNS, SAMPLES, BITS)]
    frames = of_vr(found, FRAMES, "IS", missing=b"1").rstrip(b" \x00").lstrip(b" ")
    subsampled = values.get(PHOTOMETRIC, (None, b"YBR"))[1].startswith(b"YBR")
    plain = all(len(number) == 2 for number in numbers) and frames.isdigit()
    if not plain or len(frames) > LONGEST_IS or subsampled:
        return False
    rows, columns, samples, bits = (int.from_bytes(number, "little") for number in numbers)
    nr_frames = int(frames) or 1  # pydicom's reader takes none for one
    if found.fragments is not None:
        too_large = frame_is_too_large(rows, columns, samples * bits)
        return found.fragments > nr_frames and not too_large
    if found.pixel_bytes is None:
        return False
    return found.pixel_bytes >= ceil(rows * columns * samples * nr_frames * bits / 8)


def of_vr(found: Scanned, tag: int, vr: str, missing: bytes = b"") -> bytes:
    """Return the value of an element; nothing, if it says that it has another VR."""
    told, value = found.values.get(tag, (None, missing))
    return value if told in (None, vr) else b""


class _SliceBefore(threading.local):
    """The values of the slice that this thread saw before, encoded and converted, by tag."""

    def __init__(self) -> None:
        self._character_set = b""
        self._values: dict[int, tuple[tuple[str | None, bytes], Any]] = {}

    def of(self, character_set: bytes) -> dict[int, tuple[tuple[str | None, bytes], Any]]:
        """Return them; none, if they were of another character set."""
        if character_set != self._character_set:
            self._character_set, self._values = character_set, {}
        return self._values


_slice_before = _SliceBefore()


def quick_header(found: Scanned, transfer_syntax: str) -> dict[str, Any]:
    """Return the same as `headers.header_of`."""
    values = found.values
    character_set = values.get(CHARACTER_SET, (None, b""))[1]
    creators = [tag for tag in values if tag & 0x0001FF00 == 0x00010000 and tag & 0xFF >= 0x10]
    header: dict[str, Any] = private_values(values) if creators else {}
    before = _slice_before.of(character_set)
    for tag, keyword, name in HEADER_TAGS:
        encoded = values.get(tag)
        if encoded is None:
            continue
        known = before.get(tag)
        if known is not None and known[0] == encoded:
            value = known[1]
        else:
            value = converted(tag, keyword, *encoded, character_set)
            if len(encoded[1]) <= REMEMBERED_BYTES:
                before[tag] = encoded, value
        if value is not None:
            header[name] = list(value) if isinstance(value, list) else value
    header[FROM_META] = str(UID(transfer_syntax))
    header[PRIVATE_CREATORS] = sorted(
        {str(converted(tag, "", *values[tag], character_set) or "") for tag in creators}
    )
    return header


def converted(tag: int, keyword: str, vr: str | None, value: bytes, character_set: bytes) -> Any:
    """Return one value as JSON can hold it, None where there is none."""
    if len(value) > REMEMBERED_BYTES:
        return convert(tag, keyword, vr, value, character_set)
    return remembered(tag, keyword, vr, value, character_set)


def convert(tag: int, keyword: str, vr: str | None, value: bytes, character_set: bytes) -> Any:
    """Return one value as JSON can hold it; pydicom works out what is no plain number."""
    kind = vr or DICTIONARY_VRS.get(keyword)
    if vr in (None, DICTIONARY_VRS.get(keyword)) and kind in PLAIN and PLAIN[kind].fullmatch(value):
        texts = value.decode("ascii").strip(" \x00").split("\\")
        values = [FROM_TEXT[kind](text) for text in texts]
        return values if len(values) > 1 else values[0]
    dataset = Dataset()
    if character_set:
        dataset[CHARACTER_SET] = raw(CHARACTER_SET, "CS", character_set)
        dataset[CHARACTER_SET]
    dataset[tag] = raw(tag, vr, value)
    return value_of(dataset, keyword) if keyword else dataset[tag].value


# The slices of a series differ in a few values only.
remembered = lru_cache(maxsize=4096)(convert)


def raw(tag: int, vr: str | None, value: bytes) -> RawDataElement:
    """Return an element as pydicom reads it."""
    content = value or cast(bytes | None, empty_value_for_VR(vr, raw=True))
    return RawDataElement(BaseTag(tag), vr, len(value), content, 0, vr is None, True)
