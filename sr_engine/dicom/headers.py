"""Reading single values of a header: checked, and refused with the attribute's name and UID."""

import math
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import MediaStorageDirectoryStorage

from sr_engine.dicom.padding import StopWhen, at_padding
from sr_engine.dicom.proportion import is_deflated, refuse_inflation
from sr_engine.errors import HeaderError, NotDicom

# What pydicom raises on damaged bytes and values; LookupError: a character set that is none.
DAMAGED = (
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # of floats, of doubles, of integers


def expand(paths: Iterable[Path]) -> list[Path]:
    """Return the files of `paths`; a folder stands for every file below it."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files


def read_dataset(path: Path, *, stop_before_pixels: bool = False) -> Dataset:
    """Return the dataset in the file `path`.

    Raises
    ------
    NotDicom
        If the file is no DICOM Part 10 file or ends inside the header.
    """
    try:
        with quiet():
            refuse_inflation(path)
            with open(path, "rb") as file:
                padding = None if is_deflated(path) else at_padding(file)
                dataset = read_partial(
                    file, before_pixels(padding) if stop_before_pixels else padding
                )
    except (InvalidDicomError, *DAMAGED) as error:
        raise NotDicom(f"{path.name} is no DICOM file: {error}") from None
    except OSError as error:
        raise NotDicom(f"{path.name} cannot be read: {error.strerror}") from None
    if "TransferSyntaxUID" not in dataset.file_meta or len(dataset) == 0:
        raise NotDicom(f"{path.name} is no DICOM file: no transfer syntax or no data set")
    return dataset


def before_pixels(end: StopWhen | None) -> StopWhen:
    """Return the `stop_when` that ends before the pixels, and where `end` does."""
    return lambda *element: element[0] in PIXELS or bool(end and end(*element))


def read_headers(paths: Iterable[Path]) -> list[Dataset]:
    """Return the headers (no pixel data) of the DICOM files in `paths`, DICOMDIRs left out.

    Raises
    ------
    NotDicom
        If a file is no DICOM file.
    """
    datasets = (read_dataset(path, stop_before_pixels=True) for path in expand(paths))
    return [dataset for dataset in datasets if not is_directory(dataset)]


def is_directory(dataset: Dataset) -> bool:
    """Return whether `dataset` is a DICOMDIR."""
    return text(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


@contextmanager
def refusing_damage(dataset: Dataset) -> Iterator[None]:
    """Refuse values that pydicom cannot convert, wherever in the block they are first looked at.

    Raises
    ------
    HeaderError
        Naming the instance and the element.
    """
    try:
        yield
    except DAMAGED as error:
        reason = str(error).split("\n")[0]
        raise HeaderError(f"the header of {sop_uid(dataset)} is damaged: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's remarks about odd but readable values: they quote patient values."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield


def keep_encoding(source: Dataset, target: Dataset) -> None:
    """Tell `target`, which shares elements with `source`, how those were encoded."""
    implicit_vr, little_endian = source.original_encoding
    target.set_original_encoding(implicit_vr, little_endian, source.original_character_set)


def sop_uid(dataset: Dataset) -> str:
    """Return the SOP Instance UID, for messages also of a broken dataset."""
    return text(dataset, "SOPInstanceUID") or "(no SOP Instance UID)"


def text(dataset: Dataset, keyword: str) -> str:
    """Return the value of `keyword` as text, "" when absent, empty or unreadable."""
    try:
        value = dataset.get(keyword)
    except DAMAGED:
        return ""
    return "" if value is None else str(value).strip()


def texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return the values of a multi-valued text attribute."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else [str(part) for part in value]


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the numeric values of `keyword`, [] when it is absent or empty.

    Raises
    ------
    HeaderError
        If a value is no finite number.
    """
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return []
        parts = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        found = [float(part) for part in parts]
    except DAMAGED:
        raise HeaderError(f"{keyword} of {sop_uid(dataset)} is no number") from None
    if not all(map(math.isfinite, found)):
        raise HeaderError(f"{keyword} of {sop_uid(dataset)} is not finite: {found}")
    return found


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first numeric value of `keyword`, None when it is absent or empty."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def required(dataset: Dataset, keyword: str, count: int) -> list[float]:
    """Return the `count` numbers of `keyword`.

    Raises
    ------
    HeaderError
        If the attribute is missing or has another number of values.
    """
    found = numbers(dataset, keyword)
    if not found:
        raise HeaderError(f"{keyword} is missing in {sop_uid(dataset)}")
    if len(found) != count:
        raise HeaderError(
            f"{keyword} of {sop_uid(dataset)} has {len(found)} values instead of {count}"
        )
    return found


def required_text(dataset: Dataset, keyword: str) -> str:
    """Return the text of `keyword`.

    Raises
    ------
    HeaderError
        If it is missing or empty.
    """
    found = text(dataset, keyword)
    if not found:
        raise HeaderError(f"{keyword} is missing in {sop_uid(dataset)}")
    return found
