"""Classic and Enhanced MR files to one `SourceSeries`: headers checked, slices in order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from sr_engine.dicom import enhanced, geometry, pixels
from sr_engine.dicom.fitness import refuse_unfit
from sr_engine.dicom.headers import (
    expand,
    is_directory,
    number,
    quiet,
    read_dataset,
    read_headers,
    refusing_damage,
    required,
    required_text,
    sop_uid,
    text,
    texts,
)
from sr_engine.dicom.sorting import sort
from sr_engine.errors import HeaderError, UnsupportedInput

__all__ = ["SourceSeries", "read_headers", "read_series"]

# Images of two persons, or of two studies, never make one volume.
PERSON = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
IDENTITY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "StudyInstanceUID",
)
GAUSS_PER_TESLA = 10_000.0
THICK_SLICE_MM = 3.0  # when MRAcquisitionType is missing: thicker than this is 2-D
# ImageType values that say whether the scanner unwarped gradient nonlinearity.
UNWARPED = {"DIS2D": True, "DIS3D": True, "GDC": True, "ND": False}


@dataclass(frozen=True, kw_only=True)
class SourceSeries:
    """One MR series as a volume in scanner units, with the header of every slice."""

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    volume: Volume  # float32 (slices, rows, columns); affine: see geometry
    headers: tuple[Dataset, ...]  # one per slice in volume order, no pixel data
    multiframe: bool  # Enhanced MR: `headers` are flattened frames
    sop_uids: tuple[str, ...]  # distinct source instances, in volume order
    sop_class_uid: str
    acquired_voxel_mm: tuple[float, float, float]  # slice, row, column axis
    spacing_mm: tuple[float, float, float]  # distance of voxel centres, same axes
    slice_thickness_mm: float
    acquisition: str  # "2D" or "3D"
    lossy: bool
    distortion_corrected: bool | None  # None: the header does not say
    field_strength_t: float | None


@quiet()
def read_series(paths: Iterable, *, tolerance_mm: float = 0.01) -> SourceSeries:
    """Return the one series stored in `paths` (files, or folders that hold nothing else).

    Parameters
    ----------
    tolerance_mm
        How far a slice may lie from its place in an evenly spaced stack.

    Raises
    ------
    NotDicom, HeaderError, GeometryError, PixelDecodeError, UnsupportedInput
        All `InputRefused`; the message names value and UID.
    """
    read = [read_dataset(path) for path in expand(paths)]
    files = [dataset for dataset in read if not is_directory(dataset)]
    meant = _meant(files)
    datasets = [files[place] for place in meant]
    _refuse_mixture(datasets)
    frames = [frame for place, slices in meant.items() for frame in _frames(files[place], slices)]
    headers = [header for header, _ in frames]
    for header in headers:
        _refuse_unfit_frame(header)
    stack = geometry.stack_of(headers, tolerance_mm=tolerance_mm)
    ordered = [headers[index] for index in stack.order]
    return _source(
        ordered,
        _intensities([frames[n] for n in stack.order]),
        stack,
        multiframe=_is_enhanced(datasets[0]),
    )


def _meant(files: Sequence[Dataset]) -> dict[int, dict[int, Dataset]]:
    """Return the headers of the volume's slices by the places of file and frame, from 0.

    All frames of all files are sorted together: the root of an Enhanced object may say MIXED where
    some of its frames are what was meant.
    """
    slices = [
        (place, number, header)
        for place, dataset in enumerate(files)
        for number, header in enumerate(_slice_headers(dataset))
    ]
    found: dict[int, dict[int, Dataset]] = {}
    for index in sort([header for *_, header in slices]).chosen:
        place, number, header = slices[index]
        found.setdefault(place, {})[number] = header
    return found


def _slice_headers(dataset: Dataset) -> list[Dataset]:
    """Return the header of each slice in one file; `_frames` refuses an object without frames."""
    if not _is_enhanced(dataset) or "PerFrameFunctionalGroupsSequence" not in dataset:
        return [dataset]
    with refusing_damage(dataset):
        return enhanced.flatten(dataset)


def _refuse_mixture(datasets: Sequence[Dataset]) -> None:
    """Refuse anything but the instances of one MR series, each once."""
    if not datasets:
        raise UnsupportedInput("there is no DICOM file in the input")
    for dataset in datasets:
        for keyword in IDENTITY:
            required_text(dataset, keyword)
        with refusing_damage(dataset):
            refuse_unfit(dataset)
    series = sorted({text(dataset, "SeriesInstanceUID") for dataset in datasets})
    if len(series) > 1:
        raise UnsupportedInput(f"the input holds {len(series)} series: {', '.join(series[:3])}")
    for keyword in PERSON:
        if len({as_read(dataset, keyword) for dataset in datasets}) > 1:
            raise UnsupportedInput(f"the images of series {series[0]} have more than one {keyword}")
    if len({_is_enhanced(dataset) for dataset in datasets}) > 1:
        raise UnsupportedInput(f"series {series[0]} mixes classic and Enhanced MR instances")
    uids = [sop_uid(dataset) for dataset in datasets]
    twice = sorted({uid for uid in uids if uids.count(uid) > 1})
    if twice:
        raise HeaderError(f"SOPInstanceUID {twice[0]} occurs in more than one file")


def as_read(dataset: Dataset, keyword: str) -> bytes:
    """Return a value as it stands in the file: decoded once, its bytes would be gone."""
    value = dataset.get_item(keyword).value if keyword in dataset else None
    return value.strip(b" \0") if isinstance(value, bytes) else str(value or "").encode()


def _is_enhanced(dataset: Dataset) -> bool:
    return text(dataset, "SOPClassUID") == EnhancedMRImageStorage


def _intensities(frames: Sequence[tuple[Dataset, pixels.Stored]]) -> np.ndarray:
    """Return the volume of ordered slices in scanner units, without what is declared padding."""
    headers = [header for header, _ in frames]
    array = np.stack([pixels.rescaled(stored.values, header) for header, stored in frames])
    padded = np.stack([stored.padded for _, stored in frames])
    return pixels.without_padding(array, padded, headers)


def _frames(dataset: Dataset, headers: dict[int, Dataset]) -> list[tuple[Dataset, pixels.Stored]]:
    """Return header and stored values of those slices of one file that are meant."""
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored"):
        if required(dataset, keyword, 1)[0] < 1:
            raise HeaderError(f"{keyword} of {sop_uid(dataset)} is 0")
    with refusing_damage(dataset):
        count = len(enhanced.frame_groups(dataset)) if _is_enhanced(dataset) else 1
    stored = pixels.decode(dataset)
    shape = (count, *stored.values.shape[-2:])
    values, padded = stored.values.reshape(shape), stored.padded.reshape(shape)
    pixels.note_lossy_compression(dataset)
    for header in headers.values():
        for keyword in pixels.LOSSY_KEYWORDS:
            if keyword in dataset:
                header[keyword] = dataset[keyword]
    del dataset.PixelData
    return [
        (header, pixels.Stored(values=values[number], padded=padded[number]))
        for number, header in headers.items()
    ]


def _refuse_unfit_frame(header: Dataset) -> None:
    """Refuse a slice that is no magnitude image with a place."""
    with refusing_damage(header):
        refuse_unfit(header)
        for keyword, count in geometry.PLANE.items():
            required(header, keyword, count)


def _source(
    headers: list[Dataset], array: np.ndarray, stack: geometry.Stack, *, multiframe: bool
) -> SourceSeries:
    """Return the series of ordered slices."""
    first = headers[0]
    frame_of_reference_uid = required_text(first, "FrameOfReferenceUID")
    thickness = number(first, "SliceThickness")
    return SourceSeries(
        study_uid=text(first, "StudyInstanceUID"),
        series_uid=text(first, "SeriesInstanceUID"),
        frame_of_reference_uid=frame_of_reference_uid,
        volume=Volume(
            array,
            stack.affine,
            coordinate_system="PATIENT",
            frame_of_reference_uid=frame_of_reference_uid,
        ),
        headers=tuple(headers),
        multiframe=multiframe,
        sop_uids=tuple(dict.fromkeys(sop_uid(header) for header in headers)),
        sop_class_uid=text(first, "SOPClassUID"),
        acquired_voxel_mm=geometry.acquired_voxel_mm(first, stack.spacing_mm),
        spacing_mm=stack.spacing_mm,
        slice_thickness_mm=thickness if thickness and thickness > 0 else stack.spacing_mm[0],
        acquisition=_acquisition(first, stack.spacing_mm[0]),
        lossy=any(text(header, "LossyImageCompression") == "01" for header in headers),
        distortion_corrected=_distortion_corrected(texts(first, "ImageType")),
        field_strength_t=field_strength_t(first),
    )


def _acquisition(header: Dataset, spacing_mm: float) -> str:
    """Return MRAcquisitionType, guessed from the slice distance where it is missing."""
    stated = text(header, "MRAcquisitionType")
    if stated in ("2D", "3D"):
        return stated
    return "2D" if spacing_mm > THICK_SLICE_MM else "3D"


def _distortion_corrected(image_type: Sequence[str]) -> bool | None:
    """Return what ImageType says about the correction of gradient nonlinearity."""
    said = [UNWARPED[value] for value in image_type if value in UNWARPED]
    return any(said) if said else None


def field_strength_t(header: Dataset) -> float | None:
    """Return the field strength in tesla; old scanners wrote gauss."""
    value = number(header, "MagneticFieldStrength")
    if not value:
        return None
    return value / GAUSS_PER_TESLA if value > 100 else value
