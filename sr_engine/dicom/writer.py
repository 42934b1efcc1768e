"""A volume in scanner units to a derived classic MR series, one file per slice.

The same source, volume, recipe, provenance and job always give the same bytes.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from sr_engine.dicom import digital_signature, display, seal
from sr_engine.dicom.headers import keep_encoding, number, quiet
from sr_engine.dicom.kinds import CLASSIC
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.reader import SourceSeries
from sr_engine.dicom.template import JobIdentity, derivation_description, series_template
from sr_engine.dicom.uids import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    derived_instance_uid,
)
from sr_engine.errors import WriteError
from sr_engine.recipe import Recipe

# One rounding for every slice: nanometres, and directions good to 1e-7 mm over a head.
POSITION_DECIMALS, DIRECTION_DECIMALS = 6, 10


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one job made, on its way to files.

    Attributes
    ----------
    volume
        float (slices, rows, columns) in the source's scanner units; the affine maps
        (slice, row, column) to LPS mm.
    spread : shape of the volume, float32, or None
        Standard deviation over the axes, in scanner units.
    provenance
        Complete: it names every series that is written.
    """

    source: SourceSeries
    volume: Volume
    stored: display.StoredPixels
    recipe: Recipe
    provenance: Provenance
    job: JobIdentity
    spread: np.ndarray | None = None
    findings: tuple[str, ...] = ()  # of the quality gate: why a person must look
    signer: seal.Signer | None = None

    @cached_property
    def window(self) -> tuple[float, float]:
        """Return centre and width in stored values: percentiles of two volumes, taken once."""
        headers = self.source.headers if self.recipe.window == "source" else ()
        centre, width = display.window(headers, self.source.volume.array, self.volume.array)
        return centre * self.stored.gain, max(width * self.stored.gain, 1.0)


@dataclass(frozen=True, kw_only=True)
class WrittenSeries:
    """A derived series on disk, in volume order."""

    kind: str
    series_uid: str
    sop_uids: tuple[str, ...]
    paths: tuple[Path, ...]
    sop_class_uid: str
    provenance: Provenance  # as written into every instance


def image_template(result: Result) -> Dataset:
    """Return everything that the slices of `result` have in common, geometry and window too."""
    source, made = result.source, result.provenance
    template = series_template(source, recipe=result.recipe, provenance=made, job=result.job)
    template.DerivationDescription = derivation_description(
        source, result.volume.spatial_shape, result.volume.spacing, made
    )
    _add_pixel_description(template, result)
    add_plane_description(template, result.volume)
    return template


def write_classic(result: Result, template: Dataset, out_dir: Path) -> WrittenSeries:
    """Write one classic MR image per slice and return what was written.

    Raises
    ------
    WriteError
        If a file cannot be written.
    """
    numbers = instance_numbers(result.source, len(result.stored.array))
    paths, uids = [], []
    for index, plane in enumerate(result.stored.array):
        dataset = _instance(template, result.volume, index, numbers[index], plane)
        path = out_dir / result.job.file_name(f"{numbers[index]:05d}.dcm")
        finish(dataset, path, result.signer)
        paths.append(path)
        uids.append(str(dataset.SOPInstanceUID))
    return WrittenSeries(
        kind=CLASSIC,
        series_uid=str(template.SeriesInstanceUID),
        sop_uids=tuple(uids),
        paths=tuple(paths),
        sop_class_uid=str(template.SOPClassUID),
        provenance=result.provenance,
    )


def finish(dataset: Dataset, path: Path, signer: seal.Signer | None) -> None:
    """Seal a complete instance, if somebody vouches for it, and write it."""
    dataset.file_meta = file_meta(dataset)
    if signer is not None:
        seal.seal(dataset, signer)
        if signer.notary is not None:
            digital_signature.sign(dataset, signer.notary)
    write_durably(dataset, path)


def _add_pixel_description(dataset: Dataset, result: Result) -> None:
    """Describe unsigned grey values without rescale (PS3.3 C.8.3.1 expects none in MR)."""
    stored = result.stored
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.array.shape[1:]
    dataset.BitsAllocated = 16
    dataset.BitsStored = stored.bits_stored
    dataset.HighBit = stored.bits_stored - 1
    dataset.PixelRepresentation = 0
    centre, width = result.window
    dataset.WindowCenter = display.window_value(centre)
    dataset.WindowWidth = display.window_value(width)


def add_plane_description(dataset: Dataset, volume: Volume) -> None:
    """Describe orientation and spacing, equal for all slices."""
    unit_k, unit_i, unit_j = volume.unit_vectors()
    if float(np.cross(unit_j, unit_i) @ unit_k) < 0:
        raise WriteError("the slices of the volume run against the normal of their planes")
    spacing_k, spacing_i, spacing_j = volume.spacing
    dataset.ImageOrientationPatient = _ds([*unit_j, *unit_i], DIRECTION_DECIMALS)
    dataset.PixelSpacing = _ds([spacing_i, spacing_j], DIRECTION_DECIMALS)
    dataset.SliceThickness = _ds([spacing_k], DIRECTION_DECIMALS)[0]
    dataset.SpacingBetweenSlices = dataset.SliceThickness


def _ds(values: list[float], decimals: int) -> list[str]:
    """Return decimal strings of at most 16 characters; adding 0 turns -0 into 0."""
    return [format_number_as_ds(round(float(value), decimals) + 0.0) for value in values]


def slice_position(volume: Volume, index: int) -> list[str]:
    """Return ImagePositionPatient of slice `index`."""
    return _ds(list(volume.affine[:3, 3] + index * volume.affine[:3, 0]), POSITION_DECIMALS)


def instance_numbers(source: SourceSeries, count: int) -> list[int]:
    """Return 1 ... `count` along the normal, falling where the source's numbers fall."""
    stated = [number(header, "InstanceNumber") for header in source.headers]
    falls = None not in (stated[0], stated[-1]) and stated[0] > stated[-1]  # type: ignore[operator]
    return list(range(count, 0, -1)) if falls else list(range(1, count + 1))


def frame_order(result: Result) -> list[int]:
    """Return the slices in the order of their instance numbers: the order of frames."""
    numbers = instance_numbers(result.source, len(result.stored.array))
    return [int(index) for index in np.argsort(numbers)]


def _instance(
    template: Dataset, volume: Volume, index: int, instance_number: int, plane: np.ndarray
) -> Dataset:
    """Return the complete dataset of slice `index`."""
    dataset = Dataset()
    keep_encoding(template, dataset)
    for tag in template.keys():
        dataset[tag] = template.get_item(tag)
    position = volume.affine[:3, 3] + index * volume.affine[:3, 0]
    normal = volume.unit_vectors()[0]
    dataset.SOPInstanceUID = derived_instance_uid(template.SeriesInstanceUID, index)
    dataset.InstanceNumber = instance_number
    dataset.ImagePositionPatient = slice_position(volume, index)
    dataset.SliceLocation = _ds([position @ normal], POSITION_DECIMALS)[0]
    dataset.add_new("PixelData", "OW", plane.astype("<u2").tobytes())
    return dataset


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """Return the file meta information of `dataset`, explicit little endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def write_durably(dataset: Dataset, path: Path) -> None:
    """Write one file so that it is either whole or not there.

    Raises
    ------
    WriteError
        If the disk does not take it; no partial file is left.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, quiet():
            dcmwrite(stream, dataset, enforce_file_format=True)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WriteError(f"{path.name} cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
