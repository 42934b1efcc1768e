"""A volume as a 1.5 T scanner would have stored it: for the demo and the tests.

Classic MR instances of a T1-weighted 3-D gradient echo with inversion (MPRAGE). The same volume
and tags always give the same UIDs and bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pydicom.valuerep import format_number_as_ds

from sr_engine.dicom.display import MAX_12_BIT
from sr_engine.dicom.uids import acquired_uid
from sr_engine.dicom.writer import file_meta, sync_folder, write_durably

PATIENT_NAME, PATIENT_ID = "PHANTOM^DEMO", "PHANTOM-0001"
PROTOCOL: dict[str, Any] = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "SOPClassUID": MRImageStorage,
    "StudyDate": "20260105",
    "SeriesDate": "20260105",
    "AcquisitionDate": "20260105",
    "ContentDate": "20260105",
    "StudyTime": "090000",
    "SeriesTime": "090500",
    "AcquisitionTime": "090500",
    "ContentTime": "090900",
    "AccessionNumber": "",
    "Modality": "MR",
    "Manufacturer": "DICOM-NODE PHANTOM",
    "InstitutionName": "Phantom hospital",
    "ReferringPhysicianName": "",
    "StationName": "PHANTOM1",
    "StudyDescription": "Head phantom",
    "SeriesDescription": "t1_mpr",
    "ManufacturerModelName": "PHANTOM 1.5T",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "BodyPartExamined": "HEAD",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "ScanOptions": "",
    "MRAcquisitionType": "3D",
    "SequenceName": "tfl3d1_ns",
    "AngioFlag": "N",
    "RepetitionTime": "1900",
    "EchoTime": "2.97",
    "InversionTime": "1100",
    "NumberOfAverages": "1",
    "ImagingFrequency": "63.68",
    "ImagedNucleus": "1H",
    "EchoNumbers": "1",
    "MagneticFieldStrength": "1.5",
    "EchoTrainLength": "1",
    "PercentSampling": "100",
    "PercentPhaseFieldOfView": "100",
    "PixelBandwidth": "170",
    "DeviceSerialNumber": "1",
    "SoftwareVersions": "phantom 1",
    "ProtocolName": "t1_mpr",
    "TransmitCoilName": "Body",
    "InPlanePhaseEncodingDirection": "ROW",
    "FlipAngle": "15",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": 2,
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
}


def write_acquisition(
    volume: Volume,
    out_dir: Path,
    *,
    tags: Mapping[str, Any],
    patient_name: str = PATIENT_NAME,
    patient_id: str = PATIENT_ID,
) -> list[Path]:
    """Write `volume` as a series of classic MR instances and return the files.

    Parameters
    ----------
    volume
        (slices, rows, columns), not negative. Beyond 4095 it is scaled down to 12 bits.
    tags
        Keyword -> value, overriding PROTOCOL and what follows from the volume.

    Raises
    ------
    WriteError
        If a file cannot be written.
    """
    pixels = _twelve_bits(volume.array)
    template = _template(volume, pixels, {**tags}, patient_name, patient_id)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, plane in enumerate(pixels):
        dataset = Dataset()
        dataset.update(template)
        position = volume.affine[:3, 3] + index * volume.affine[:3, 0]
        dataset.ImagePositionPatient = _ds(position)
        dataset.InstanceNumber = index + 1
        dataset.SOPInstanceUID = acquired_uid(template.SeriesInstanceUID, str(index))
        dataset.add_new("PixelData", "OW", plane.tobytes())
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.file_meta = file_meta(dataset)
        paths.append(out_dir / f"{index + 1:04d}.dcm")
        write_durably(dataset, paths[-1])
    sync_folder(out_dir)
    return paths


def _twelve_bits(array: np.ndarray) -> np.ndarray:
    """Return `array` as 12-bit stored values."""
    peak = float(array.max(initial=0))
    scaled = array * (MAX_12_BIT / peak) if peak > MAX_12_BIT else array
    return np.clip(np.rint(scaled), 0, MAX_12_BIT).astype("<u2")


def _template(
    volume: Volume,
    pixels: np.ndarray,
    tags: dict[str, Any],
    patient_name: str,
    patient_id: str,
) -> Dataset:
    """Return the attributes that all slices share."""
    dataset = Dataset()
    for keyword, value in PROTOCOL.items():
        setattr(dataset, keyword, value)
    dataset.PatientName, dataset.PatientID = patient_name, patient_id
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.AcquisitionMatrix = [0, dataset.Rows, dataset.Columns, 0]
    dataset.PixelSpacing = _ds(volume.spacing[1:])
    dataset.SliceThickness = _ds([volume.spacing[0]])[0]
    dataset.SpacingBetweenSlices = dataset.SliceThickness
    _, unit_i, unit_j = volume.unit_vectors()
    dataset.ImageOrientationPatient = _ds([*unit_j, *unit_i])
    peak = float(np.percentile(pixels, 99.5))
    dataset.WindowCenter, dataset.WindowWidth = round(peak / 2), max(round(peak), 2)
    content = hashlib.sha256(pixels.tobytes() + volume.affine.tobytes())
    content.update(json.dumps([patient_name, patient_id, tags], default=str).encode())
    series = content.hexdigest()
    dataset.StudyInstanceUID = acquired_uid(patient_id, "study")
    dataset.SeriesInstanceUID = acquired_uid(series, "series")
    dataset.FrameOfReferenceUID = acquired_uid(patient_id, "frame of reference")
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def _ds(values: Any) -> list[str]:
    """Return decimal strings; adding 0 turns -0 into 0."""
    return [format_number_as_ds(round(float(value), 10) + 0.0) for value in values]
