"""Series for the benchmarks: made once, sent again and again under new UIDs."""

import itertools
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from sr_engine.dicom.scanner import PROTOCOL

ROOT = "1.2.826.0.1.3680043.9.9"
STAND_IN = {"SOPInstanceUID": "1", "SeriesInstanceUID": "2", "StudyInstanceUID": "3"}
UID_LENGTH = 56


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One encoded instance under UIDs of its own."""

    sop_uid: str
    series_uid: str
    file: bytes
    data_set_at: int  # where the data set begins in `file`


def uid(kind: str, number: int) -> str:
    """Return a UID of UID_LENGTH characters; equal for equal arguments."""
    head = f"{ROOT}.{kind}."
    return f"{head}1{number:0{UID_LENGTH - len(head) - 1}d}"


class Scanner:
    """Encodes a series of square 16-bit MR slices; every `scan` is another one."""

    def __init__(self, size: int, slices: int, **values: Any) -> None:
        """Make the slices; `values` are attributes that differ from a usual protocol's."""
        self.size = size
        self._templates = [encode(slice_at(size, number, **values)) for number in range(slices)]
        self._start = int.from_bytes(os.urandom(6), "big") << 32  # no UID is sent twice
        self._serial = itertools.count(self._start)

    def scan(self) -> list[Instance]:
        """Return one series that was never sent before."""
        series, study = (uid(STAND_IN[f"{kind}InstanceUID"], next(self._serial)) for kind in KINDS)
        return [self._rename(template, series, study) for template in self._templates]

    def _rename(self, template: bytes, series: str, study: str) -> Instance:
        sop = uid(STAND_IN["SOPInstanceUID"], next(self._serial))
        file = template
        for kind, ours in (("SOP", sop), ("Series", series), ("Study", study)):
            file = file.replace(stand_in(kind).encode(), ours.encode())
        meta_bytes = int.from_bytes(file[140:144], "little")
        return Instance(sop_uid=sop, series_uid=series, file=file, data_set_at=144 + meta_bytes)


KINDS = ("Series", "Study")


def stand_in(kind: str) -> str:
    """Return the UID that stands in a template."""
    return uid(STAND_IN[f"{kind}InstanceUID"], 0)


def slice_at(size: int, number: int, **values: Any) -> Dataset:
    """Return one slice of a 3-D acquisition: what varies by slice in a real one varies here."""
    dataset = Dataset()
    for keyword, value in (PROTOCOL | values).items():
        setattr(dataset, keyword, value)
    for kind in ("SOP", *KINDS):
        setattr(dataset, f"{kind}InstanceUID", UID(stand_in(kind)))
    dataset.FrameOfReferenceUID = UID(f"{ROOT}.4")
    dataset.PatientName, dataset.PatientID = "BENCH^RECEIVE", "BENCH-1"
    dataset.InstanceNumber, dataset.Rows, dataset.Columns = number + 1, size, size
    dataset.PixelSpacing = [256 / size, 256 / size]
    dataset.SliceThickness, dataset.SliceLocation = "1", ds(number * 1.03 - 90)
    dataset.ImageOrientationPatient = [ds(v) for v in (0.9998, 0.0175, 0, -0.0175, 0.9998, 0)]
    dataset.ImagePositionPatient = [ds(v) for v in (-128.3, -131.7, number * 1.03 - 90)]
    dataset.AcquisitionTime = f"0905{number // 10 % 60:02d}.{number % 10}00000"
    dataset.WindowCenter, dataset.WindowWidth = ds(600 + number % 7), ds(1400 + number % 5)
    noise = np.random.default_rng(number).integers(0, 4096, (size, size), dtype="<u2")
    dataset.add_new("PixelData", "OW", noise.tobytes())
    return dataset


def ds(value: float) -> Any:
    """Return `value` as a DS of at most 16 characters."""
    return format_number_as_ds(float(value))


def encode(dataset: Dataset) -> bytes:
    """Return the data set as a file in explicit VR little endian."""
    buffer = BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def write(instances: list[Instance], folder: Path) -> list[Path]:
    """Return the files of `instances` in `folder`; files of those names are written over."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, instance in enumerate(instances):
        paths.append(folder / f"{number:04d}.dcm")
        paths[-1].write_bytes(instance.file)
    return paths
