"""What rules and assembly look at in a data set (`rules.HEADER_KEYS`), as JSON can hold it."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from math import isfinite
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from dicom_node.content import PARSE_ERRORS, WORD_BYTES, swapped
from dicom_node.private_values import GROUPS, private_values
from dicom_node.rules import FRAMES, HEADER_KEYS, PRIVATE_CREATORS

NUMERIC = frozenset("DS FD FL IS SL SS UL US".split())
# What Enhanced objects call differently.
ENHANCED_NAMES = {
    "FrameType": "ImageType",
    "EffectiveEchoTime": "EchoTime",
    "InversionTimes": "InversionTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
}


def header_of(dataset: Dataset) -> dict[str, Any]:
    """Return what rules and assembly look at (`rules.HEADER_KEYS`), as JSON can hold it.

    Enhanced objects get "frames": what varies by frame; what does not stands beside the rest.
    """
    header = private_values(_private_elements(dataset)) | _chosen(dataset)
    header["TransferSyntaxUID"] = str(dataset.file_meta.TransferSyntaxUID)
    header[PRIVATE_CREATORS] = sorted(set(_private_creators(dataset)))
    for group in _items(dataset, "SharedFunctionalGroupsSequence"):
        header |= _flattened(group)
    frames = [_flattened(item) for item in _items(dataset, "PerFrameFunctionalGroupsSequence")]
    if frames:
        same = {key: value for key, value in frames[0].items() if _constant(frames, key)}
        header |= same
        header[FRAMES] = [{k: frame[k] for k in frame if k not in same} for frame in frames]
    return header


def _chosen(dataset: Dataset) -> dict[str, Any]:
    found = {}
    for keyword in (*HEADER_KEYS, *ENHANCED_NAMES):
        value = value_of(dataset, keyword)
        if value is not None:
            found[ENHANCED_NAMES.get(keyword, keyword)] = value
    return found


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return one value as JSON can hold it, None where there is none."""
    try:
        value = _plain(dataset.get(keyword))
    except PARSE_ERRORS:
        return None  # a value that cannot be read counts as absent; the engine will say more
    return None if value is not None and _is_spoilt(keyword, value) else value


def _is_spoilt(keyword: str, value: Any) -> bool:
    """Return whether a number is none: pydicom hands out the text that it could not read."""
    values = value if isinstance(value, list) else [value]
    numeric = dictionary_VR(keyword) in NUMERIC
    return numeric and not all(isinstance(each, int | float) for each in values)


def _flattened(groups: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tag in groups.keys():
        for item in () if tag.is_private else _items(groups, tag):
            found |= _chosen(item)
    return found


def _items(dataset: Dataset, name: str | BaseTag) -> Iterable[Dataset]:
    """Return a sequence's items; none where it is not there, is none, or cannot be read."""
    try:
        element = dataset[name]
        return element.value if element.VR == "SQ" else ()
    except PARSE_ERRORS:
        return ()


def _constant(frames: list[dict[str, Any]], key: str) -> bool:
    return all(key in frame and frame[key] == frames[0][key] for frame in frames)


def _private_elements(dataset: Dataset) -> dict[int, tuple[str | None, bytes]]:
    """Return the elements of the groups that `private_values` looks at, as they are encoded."""
    found: dict[int, tuple[str | None, bytes]] = {}
    for tag in dataset.keys():
        element = dataset.get_item(tag) if tag.group in GROUPS and tag.is_private else None
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            word = 1 if element.is_little_endian else WORD_BYTES.get(element.VR or "", 1)
            found[int(tag)] = (element.VR, swapped(element.value, word))
    return found


def _private_creators(dataset: Dataset) -> Iterator[str]:
    for tag in dataset.keys():
        if tag.is_private_creator:
            try:
                yield str(dataset[tag].value or "")
            except PARSE_ERRORS:
                continue


def _plain(value: Any) -> Any:
    if isinstance(value, MultiValue | list):
        return [_plain(each) for each in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | Decimal):
        return float(value) if isfinite(value) else None
    return storable_text(value) if isinstance(value, str) and value else None


def storable_text(text: str) -> str:
    """Return the text without what no database takes: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
