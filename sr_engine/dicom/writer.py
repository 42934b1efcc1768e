"""A volume in scanner units to a derived classic MR series, one file per slice.

The same source, volume, recipe, provenance and job always give the same bytes.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from sr_engine.dicom import display
from sr_engine.dicom.headers import keep_encoding, number, quiet
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.reader import SourceSeries
from sr_engine.dicom.template import JobIdentity, derivation_description, series_template
from sr_engine.dicom.uids import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    derived_instance_uid,
    derived_series_uid,
)
from sr_engine.errors import WriteError
from sr_engine.recipe import Recipe

__all__ = ["JobIdentity", "WrittenSeries", "write_series"]

KIND = "MR"
# One rounding for every slice: nanometres, and directions good to 1e-7 mm over a head.
POSITION_DECIMALS, DIRECTION_DECIMALS = 6, 10


@dataclass(frozen=True, kw_only=True)
class WrittenSeries:
    """A derived series on disk, in volume order."""

    series_uid: str
    sop_uids: tuple[str, ...]
    paths: tuple[Path, ...]
    sop_class_uid: str
    provenance: Provenance  # as written into every instance


@quiet()
def write_series(
    source: SourceSeries,
    volume: Volume,
    *,
    out_dir: Path,
    recipe: Recipe,
    provenance: Provenance,
    job: JobIdentity,
) -> WrittenSeries:
    """Write `volume` as a series derived from `source` and return what was written.

    Parameters
    ----------
    volume
        float (slices, rows, columns) in the source's scanner units; the affine maps
        (slice, row, column) to LPS mm.

    Raises
    ------
    WriteError
        If the volume has values that are not finite or a file cannot be written.
    """
    if not np.all(np.isfinite(volume.array)):
        raise WriteError(f"the volume derived from {source.series_uid} has values not finite")
    stored = display.to_stored(source.volume.array, volume.array)
    made = _completed(provenance, source, recipe, job, stored)
    template = series_template(source, recipe=recipe, provenance=made, job=job)
    template.DerivationDescription = derivation_description(
        source, volume.spatial_shape, volume.spacing, made
    )
    _add_pixel_description(template, source, volume, stored)
    _add_plane_description(template, volume)
    out_dir.mkdir(parents=True, exist_ok=True)
    numbers = instance_numbers(source, len(stored.array))
    paths, uids = [], []
    for index, plane in enumerate(stored.array):
        dataset = _instance(template, volume, index, numbers[index], plane)
        path = out_dir / f"{numbers[index]:05d}.dcm"
        write_durably(dataset, path)
        paths.append(path)
        uids.append(str(dataset.SOPInstanceUID))
    sync_folder(out_dir)
    return WrittenSeries(
        series_uid=made.derived_series_uid,
        sop_uids=tuple(uids),
        paths=tuple(paths),
        sop_class_uid=str(MRImageStorage),
        provenance=made,
    )


def _completed(
    provenance: Provenance,
    source: SourceSeries,
    recipe: Recipe,
    job: JobIdentity,
    stored: display.StoredPixels,
) -> Provenance:
    """Return `provenance` with what only the writer knows."""
    series_uid = derived_series_uid(
        source.series_uid,
        source.sop_uids,
        recipe.digest(),
        provenance.bundle_sha256,
        provenance.software_version,
        job.generation,
        KIND,
    )
    return replace(
        provenance,
        derived_series_uid=series_uid,
        slices=len(stored.array),
        pixel_gain=stored.gain,
        clipped_voxels=stored.clipped,
    )


def _add_pixel_description(
    dataset: Dataset, source: SourceSeries, volume: Volume, stored: display.StoredPixels
) -> None:
    """Describe unsigned grey values without rescale (PS3.3 C.8.3.1 expects none in MR)."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.array.shape[1:]
    dataset.BitsAllocated = 16
    dataset.BitsStored = stored.bits_stored
    dataset.HighBit = stored.bits_stored - 1
    dataset.PixelRepresentation = 0
    centre, width = display.window(source.headers, source.volume.array, volume.array)
    dataset.WindowCenter = display.window_value(centre * stored.gain)
    dataset.WindowWidth = display.window_value(max(width * stored.gain, 1.0))


def _add_plane_description(dataset: Dataset, volume: Volume) -> None:
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


def instance_numbers(source: SourceSeries, count: int) -> list[int]:
    """Return 1 ... `count` along the normal, falling where the source's numbers fall."""
    stated = [number(header, "InstanceNumber") for header in source.headers]
    falls = None not in (stated[0], stated[-1]) and stated[0] > stated[-1]  # type: ignore[operator]
    return list(range(count, 0, -1)) if falls else list(range(1, count + 1))


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
    dataset.ImagePositionPatient = _ds(list(position), POSITION_DECIMALS)
    dataset.SliceLocation = _ds([position @ normal], POSITION_DECIMALS)[0]
    dataset.add_new("PixelData", "OW", plane.astype("<u2").tobytes())
    dataset.file_meta = file_meta(dataset)
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
