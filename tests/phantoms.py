"""Synthetic series with known answers, and every way we know to spoil one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom import Volume
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from sr_engine.dicom.outputs import write_outputs
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.reader import SourceSeries
from sr_engine.dicom.scanner import write_acquisition
from sr_engine.dicom.template import JobIdentity
from sr_engine.dicom.writer import WrittenSeries
from sr_engine.errors import (
    GeometryError,
    HeaderError,
    InputRefused,
    NotDicom,
    PixelDecodeError,
    UnsupportedInput,
)
from sr_engine.recipe import Recipe

SHAPE = (12, 40, 36)  # slices, rows, columns: all different, so that a swap shows
SPACING_MM = (1.5, 1.0, 1.25)
CENTRE_LPS_MM = np.array([3.0, -21.0, 14.0])


def _rotation(degrees_x: float, degrees_y: float, degrees_z: float) -> np.ndarray:
    """Return the rotation about x, then y, then z."""
    x, y, z = np.deg2rad([degrees_x, degrees_y, degrees_z])
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.array(about_z) @ np.array(about_y) @ np.array(about_x)


# Row and column direction of ImageOrientationPatient.
ORIENTATIONS: dict[str, np.ndarray] = {
    "axial": np.array([[1, 0, 0], [0, 1, 0]], float),
    "sagittal": np.array([[0, 1, 0], [0, 0, -1]], float),
    "coronal": np.array([[1, 0, 0], [0, 0, -1]], float),
    "double-oblique": np.array([[1, 0, 0], [0, 1, 0]], float) @ _rotation(17, -11, 5).T,
}


# A scan after gadolinium, as a classic image says it.
CONTRAST = {
    "ContrastBolusAgent": "Gadobutrol",
    "ContrastBolusRoute": "IV",
    "ContrastBolusVolume": "7.5",
    "ContrastBolusStartTime": "101500",
    "ContrastBolusStopTime": "101505",
    "ContrastBolusTotalDose": "7.5",
    "ContrastFlowRate": "1.5",
    "ContrastFlowDuration": "5",
    "ContrastBolusIngredient": "GADOLINIUM",
    "ContrastBolusIngredientConcentration": "1",
}


def coded(value: str, meaning: str, **values: Any) -> Dataset:
    """Return an item of a code sequence, with more attributes if wanted."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    for keyword, more in values.items():
        setattr(item, keyword, more)
    return item


# The agent of a classic image, and that of an Enhanced one with all that it must have there.
GADOLINIUM = coded("418888003", "Gadobutrol")
ENHANCED_GADOLINIUM = coded(
    "418888003",
    "Gadobutrol",
    ContrastBolusAgentNumber=1,
    ContrastBolusAdministrationRouteSequence=[coded("47625008", "Intravenous route")],
    ContrastBolusIngredientCodeSequence=[coded("45314003", "Gadolinium")],
    ContrastBolusVolume=7.5,
    ContrastBolusIngredientConcentration=1.0,
)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A written series and what must be found in it."""

    paths: list[Path]
    volume: Volume
    corners: dict[float, np.ndarray]  # value -> LPS mm of the one voxel that has it

    @property
    def folder(self) -> Path:
        return self.paths[0].parent


def affine_of(
    orientation: str,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    shape: tuple[int, int, int] = SHAPE,
) -> np.ndarray:
    """Return the affine (k, i, j) -> LPS of a stack centred at CENTRE_LPS_MM."""
    row, column = ORIENTATIONS[orientation]
    affine = np.eye(4)
    axes = np.stack([np.cross(row, column), column, row], axis=1)
    affine[:3, :3] = axes * np.array(spacing_mm)
    affine[:3, 3] = CENTRE_LPS_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def corner_volume(
    orientation: str = "axial",
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> tuple[Volume, dict[float, np.ndarray]]:
    """Return an ellipsoid with eight corner voxels of different values, and where they are."""
    affine = affine_of(orientation, spacing_mm, shape)
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in grid))
    array = np.where(radius < 0.8, 700.0 + 200 * np.cos(5 * radius), 20.0 + 5 * grid[1])
    array = np.rint(array).astype(np.float32)
    corners = {}
    for number in range(8):
        index = [(size - 2) if number >> axis & 1 else 1 for axis, size in enumerate(shape)]
        value = 1500.0 + 100 * number
        array[tuple(index)] = value
        corners[value] = affine[:3, :3] @ np.array(index) + affine[:3, 3]
    return Volume(array, affine, coordinate_system="PATIENT"), corners


def corner_series(folder: Path, orientation: str = "axial", **tags: Any) -> Phantom:
    """Write the corner-marked phantom as a scanner would."""
    volume, corners = corner_volume(orientation)
    return Phantom(
        paths=write_acquisition(volume, folder, tags=tags), volume=volume, corners=corners
    )


def edit(path: Path, change: Callable[[Dataset], None]) -> None:
    """Change one file in place."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


@dataclass(frozen=True)
class Fault:
    """One way to spoil a series, and the refusal it must meet."""

    spoil: Callable[[list[Path]], None]
    error: type[InputRefused]
    reason: str  # a regular expression in the message


def _every(change: Callable[[Dataset], None]) -> Callable[[list[Path]], None]:
    return lambda paths: [edit(path, change) for path in paths] and None


def _one(change: Callable[[Dataset], None], index: int = 5) -> Callable[[list[Path]], None]:
    return lambda paths: edit(paths[index], change)


def _set(**values: Any) -> Callable[[Dataset], None]:
    return lambda dataset: [setattr(dataset, key, value) for key, value in values.items()] and None


def _without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _remove(*indices: int) -> Callable[[list[Path]], None]:
    return lambda paths: [paths[index].unlink() for index in indices] and None


def _moved(axis: int, by_mm: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        position = list(dataset.ImagePositionPatient)
        position[axis] = float(position[axis]) + by_mm
        dataset.ImagePositionPatient = position

    return change


def _copied_volume(paths: list[Path], **changed: Any) -> None:
    """Add every slice a second time under a new SOP Instance UID."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for keyword, value in changed.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path.with_name(f"again-{path.name}"))


def _same_position(paths: list[Path]) -> None:
    position = pydicom.dcmread(paths[4]).ImagePositionPatient
    edit(paths[5], _set(ImagePositionPatient=position))


def _cut(path: Path, fraction: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def _replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def _mosaic(dataset: Dataset) -> None:
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", 36)


def _colour(dataset: Dataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)


def _sheared(paths: list[Path]) -> None:
    for index, path in enumerate(paths):
        edit(path, _moved(1, 0.3 * index))


def _twice(paths: list[Path]) -> None:
    paths[3].with_name("copy.dcm").write_bytes(paths[3].read_bytes())


def _two_series(paths: list[Path]) -> None:
    edit(paths[0], _set(SeriesInstanceUID="1.2.3.4"))


TURNED = [1, 0, 0, 0, 0, -1]
FAULTS: dict[str, Fault] = {
    "too few slices": Fault(_remove(*range(3, 12)), GeometryError, "too few slices: 3"),
    "gap": Fault(_remove(6), GeometryError, "1 slice.* missing at"),
    "uneven": Fault(_one(_moved(2, 0.2)), GeometryError, "not evenly spaced"),
    "sheared": Fault(_sheared, GeometryError, "sheared"),
    "two orientations": Fault(
        lambda paths: (
            [edit(path, _set(ImageOrientationPatient=TURNED)) for path in paths[:6]] and None
        ),
        GeometryError,
        "more than one orientation",
    ),
    "one slice turned": Fault(
        _one(_set(ImageOrientationPatient=TURNED)), GeometryError, "1 slice.* missing at"
    ),
    "two pixel spacings": Fault(
        _one(_set(PixelSpacing=[2, 2])), GeometryError, "more than one PixelSpacing"
    ),
    "two frames of reference": Fault(
        _one(_set(FrameOfReferenceUID="1.2.3")), GeometryError, "more than one FrameOfReferenceUID"
    ),
    "two sizes": Fault(
        _one(_set(Rows=10, PixelData=bytes(10 * SHAPE[2] * 2))), GeometryError, "more than one size"
    ),
    "duplicate position": Fault(_same_position, GeometryError, "same position"),
    "missing PixelSpacing": Fault(
        _one(_without("PixelSpacing")), HeaderError, r"PixelSpacing is missing in 2\.25"
    ),
    "missing ImagePositionPatient": Fault(
        _one(_without("ImagePositionPatient")), HeaderError, "ImagePositionPatient is missing"
    ),
    "missing ImageOrientationPatient": Fault(
        _one(_without("ImageOrientationPatient")), HeaderError, "ImageOrientationPatient is missing"
    ),
    "missing FrameOfReferenceUID": Fault(
        _every(_without("FrameOfReferenceUID")), HeaderError, "FrameOfReferenceUID is missing"
    ),
    "missing Rows": Fault(_one(_without("Rows")), HeaderError, "Rows is missing"),
    "orientation of length 0": Fault(
        _one(_set(ImageOrientationPatient=[0] * 6)), HeaderError, "perpendicular unit vectors"
    ),
    "position with two values": Fault(
        _one(_set(ImagePositionPatient=[0, 0])), HeaderError, "has 2 values instead of 3"
    ),
    "pixel spacing zero": Fault(_every(_set(PixelSpacing=[0, 0])), HeaderError, "not positive"),
    "pixel spacing in micrometres": Fault(
        _every(_set(PixelSpacing=[937.5, 937.5])),
        UnsupportedInput,
        r"field of view of 2\.25.* is 37500 x 33750 mm",
    ),
    "pixel spacing in metres": Fault(
        _every(_set(PixelSpacing=[0.001, 0.001])), UnsupportedInput, "field of view of 2.25"
    ),
    "rescale slope zero": Fault(_one(_set(RescaleSlope=0)), HeaderError, "RescaleSlope .* is 0"),
    "zero rows": Fault(_one(_set(Rows=0)), HeaderError, "Rows of .* is 0"),
    "text for a number": Fault(
        lambda paths: _replace_bytes(paths[5], b"1.0\\1.25", b"1,0\\1.25"),
        HeaderError,
        "PixelSpacing .* no number",
    ),
    "infinite number": Fault(
        lambda paths: _replace_bytes(paths[5], b"1.0\\1.25", b"inf\\1.25"),
        HeaderError,
        "PixelSpacing .* not finite",
    ),
    "wrong value representation": Fault(
        lambda paths: _replace_bytes(paths[5], b"\x28\x00\x02\x00US", b"\x28\x00\x02\x00FD"),
        HeaderError,
        "SamplesPerPixel .* no number",
    ),
    "undecodable ImageType": Fault(
        lambda paths: _replace_bytes(paths[5], b"\x08\x00\x08\x00CS", b"\x08\x00\x08\x00FD"),
        HeaderError,
        "is damaged: Expected total bytes",
    ),
    "same instance twice": Fault(_twice, HeaderError, "occurs in more than one file"),
    "mosaic by ImageType": Fault(
        _every(_set(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])), UnsupportedInput, "mosaic"
    ),
    "mosaic by private tag": Fault(_every(_mosaic), UnsupportedInput, "mosaic"),
    "multi-volume by EchoTime": Fault(
        lambda paths: _copied_volume(paths, EchoTime=9), UnsupportedInput, "differ in EchoTime"
    ),
    "multi-volume without a reason": Fault(_copied_volume, UnsupportedInput, "holds 2 volumes"),
    "phase": Fault(
        _every(_set(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])),
        UnsupportedInput,
        "image type 'P'",
    ),
    "real component": Fault(
        _every(_set(ComplexImageComponent="REAL")), UnsupportedInput, "component 'REAL'"
    ),
    "modality look-up table": Fault(
        _every(_set(ModalityLUTSequence=[])), UnsupportedInput, "modality look-up table"
    ),
    "modality OT": Fault(_every(_set(Modality="OT")), UnsupportedInput, "modality 'OT'"),
    "classic and Enhanced": Fault(
        _one(_set(SOPClassUID=EnhancedMRImageStorage)), UnsupportedInput, "mixes classic"
    ),
    "RGB": Fault(_every(_colour), UnsupportedInput, "'RGB'"),
    "CT": Fault(
        _every(_set(SOPClassUID=CTImageStorage, Modality="CT")),
        UnsupportedInput,
        "CT Image Storage",
    ),
    "secondary capture": Fault(
        _every(_set(SOPClassUID=SecondaryCaptureImageStorage)),
        UnsupportedInput,
        "Secondary Capture",
    ),
    "several frames in classic MR": Fault(
        _one(_set(NumberOfFrames=2)), UnsupportedInput, "classic MR image with 2 frames"
    ),
    "our own output": Fault(
        _every(_set(ImageType=["DERIVED", "SECONDARY", "OTHER", "AI_SR"])),
        UnsupportedInput,
        "already the output",
    ),
    "two series": Fault(_two_series, UnsupportedInput, "holds 2 series"),
    "truncated pixel data": Fault(
        lambda paths: _cut(paths[7], 0.8),
        PixelDecodeError,
        "pixel data of 2.25.* cannot be decoded",
    ),
    "no pixel data": Fault(_one(_without("PixelData")), PixelDecodeError, "has no pixel data"),
    "impossible bits": Fault(
        _one(_set(BitsStored=14, HighBit=9)), PixelDecodeError, "cannot be decoded"
    ),
    "cut in the header": Fault(lambda paths: _cut(paths[7], 0.12), HeaderError, "is missing in"),
    "cut in the file meta information": Fault(
        lambda paths: _cut(paths[7], 0.05), NotDicom, "0008.dcm is no"
    ),
    "text file": Fault(
        lambda paths: paths[7].write_text("hello") and None, NotDicom, "0008.dcm is no"
    ),
    "empty file": Fault(
        lambda paths: paths[7].write_bytes(b"") and None, NotDicom, "0008.dcm is no"
    ),
}


def faulty_series(folder: Path, name: str) -> Path:
    """Write the phantom, spoil it with FAULTS[name] and return its folder."""
    FAULTS[name].spoil(corner_series(folder).paths)
    return folder


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A derived series written from a phantom, with everything that made it."""

    source: SourceSeries
    written: WrittenSeries
    provenance: Provenance  # as the writer completed it
    outputs: tuple[WrittenSeries, ...]  # all of them, `written` first


JOB = JobIdentity(job_id=17, created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))


def provenance_of(source: SourceSeries, recipe: Recipe, **changed: Any) -> Provenance:
    """Return the provenance a pipeline would hand to the writer."""
    values = {
        "source_study_uid": source.study_uid,
        "source_series_uid": source.series_uid,
        "source_sop_uids": source.sop_uids,
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest(),
        "bundle_name": "phantom-student",
        "bundle_sha256": "ab" * 32,
        "software_name": "sr-engine",
        "software_version": "0.0.1",
        "job_id": "17",
        "created": "2026-03-04T05:06:07+00:00",
    }
    return Provenance(**{**values, **changed})


def finer(source: SourceSeries, factors: tuple[int, int, int] = (1, 2, 2)) -> Volume:
    """Return the source on a finer grid of the same field of view, nearest neighbour."""
    array, affine = source.volume.array, source.volume.affine.copy()
    for axis, factor in enumerate(factors):
        array = np.repeat(array, factor, axis=axis)
        step = affine[:3, axis] / factor
        affine[:3, 3] -= step * (factor - 1) / 2
        affine[:3, axis] = step
    return Volume(
        array,
        affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=source.frame_of_reference_uid,
    )


def derive(
    source: SourceSeries,
    out_dir: Path,
    *,
    volume: Volume | None = None,
    recipe: Recipe | None = None,
    job: JobIdentity = JOB,
    **options: Any,
) -> Derived:
    """Write what a pipeline would write for `source`, a finer copy unless `volume` is given."""
    recipe = recipe or Recipe()
    quality = options.pop("quality", {})
    provenance = provenance_of(source, recipe, generation=job.generation, quality=quality)
    volume = finer(source) if volume is None else volume
    # A spread that differs from voxel to voxel, in scanner units.
    options = {"spread": np.asarray(volume.array, np.float32) / 32} | options
    outputs = write_outputs(
        source,
        volume,
        out_dir=out_dir,
        recipe=recipe,
        provenance=provenance,
        job=job,
        **options,
    )
    made = outputs[0].provenance
    return Derived(source=source, written=outputs[0], provenance=made, outputs=outputs)
