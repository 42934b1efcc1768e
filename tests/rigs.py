"""Small rigs for tests of the network side: instances, settings, a running node."""

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.sop_class import Verification

from dicom_node.content import split_file
from dicom_node.intake import Incoming
from dicom_node.network import transport
from dicom_node.network.parcels import Item
from dicom_node.network.scp import NodeScp
from dicom_node.pixel_files import PixelFiles
from dicom_node.settings import PeerSettings, Settings, make_settings
from dicom_node.store import DeliveryTask, Store, open_store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MR = "1.2.840.10008.5.1.4.1.1.4"
PATIENT = "Rig^Patricia"


def make_instance(number: int = 1, **values: Any) -> Dataset:
    """Return a small MR image; `values` are attributes by keyword."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = UID(MR)
    dataset.SOPInstanceUID = UID(f"1.2.826.0.1.{number}")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID("1.2.826.0.2"), UID("1.2.826.0.3")
    dataset.Modality, dataset.PatientName, dataset.PatientID = "MR", PATIENT, "RIG-4711"
    dataset.SeriesDescription, dataset.ImageType = "t1 rig", ["ORIGINAL", "PRIMARY"]
    dataset.InstanceNumber, dataset.MagneticFieldStrength = number, "1.5"
    dataset.ImagePositionPatient = [0, 0, float(number)]
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 32, 48, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    pixels = np.arange(32 * 48) * 3 % 4096
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return the data set as a DICOM file in another transfer syntax, the same image."""
    copy = dcmread(BytesIO(_file(dataset)))
    if UID(syntax).is_compressed and UID(syntax).is_encapsulated:
        copy.compress(UID(syntax), generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        copy.PixelData = np.frombuffer(copy.PixelData, "<u2").astype(">u2").tobytes()
    return _file(copy, syntax)


def _file(dataset: Dataset, syntax: str | None = None) -> bytes:
    dataset.file_meta.TransferSyntaxUID = UID(syntax or dataset.file_meta.TransferSyntaxUID)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def write_instance(folder: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Return the path of the instance as a file."""
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    path.write_bytes(encoded(dataset, syntax))
    return path


def write_series(folder: Path, count: int) -> list[Item]:
    """Return `count` new instances as items that can be sent."""
    folder.mkdir(parents=True, exist_ok=True)
    series_uid = generate_uid()
    items = []
    for number in range(1, count + 1):
        dataset = make_instance(number, SOPInstanceUID=generate_uid(), SeriesInstanceUID=series_uid)
        path = write_instance(folder, dataset)
        items.append(Item(key=number, sop_uid=str(dataset.SOPInstanceUID), path=path))
    return items


def incoming(file: bytes, tmp_path: Path, **values: Any) -> Incoming:
    """Return a DICOM file as if a C-STORE had brought it."""
    path = tmp_path / "incoming.tmp"
    path.write_bytes(file)
    syntax, data = split_file(path)
    header = dcmread(BytesIO(file), stop_before_pixels=True)
    announced = {"sop_class": str(header.SOPClassUID), "sop_uid": str(header.SOPInstanceUID)}
    fields = {"encoded": data, "transfer_syntax": syntax, "calling_ae": "MR1"} | announced
    return Incoming(**fields | values)


def destination(port: int, ae_title: str = "SRNODE", **values: Any) -> PeerSettings:
    """Return a peer on this machine to which something can be sent."""
    fields = {"name": "peer", "ae_title": ae_title, "host": "127.0.0.1", "port": port}
    return PeerSettings(**fields | {"roles": ("destination",)} | values)


SOURCE = {"name": "scanner", "ae_title": "MR1", "host": "localhost", "roles": ["source"]}


def rig_settings(folder: Path, **sections: Any) -> Settings:
    """Return settings that keep everything in `folder` and listen on any free port."""
    data: dict[str, Any] = {
        "node": {"port": 0, "state_dir": str(folder)} | sections.pop("node", {}),
        "files": {"min_free_bytes": 0} | sections.pop("files", {}),
        "peers": [SOURCE],
    }
    return make_settings(data | sections)


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A listening node."""

    settings: Settings
    store: Store
    files: PixelFiles
    scp: NodeScp

    @property
    def peer(self) -> PeerSettings:
        """The node as others see it."""
        return destination(self.scp.port)


def due_at(store: Store, now: datetime, busy: Collection[str] = ()) -> list[DeliveryTask]:
    """Return the deliveries to try, each with what its destination has not confirmed."""
    deliveries = store.deliveries
    return [deliveries.with_unsent(task) for task in deliveries.due(now, busy)]


@contextmanager
def running_node(folder: Path, **sections: Any) -> Iterator[Rig]:
    """Yield a node that listens; it is stopped at the end."""
    settings = rig_settings(folder, **sections)
    store = open_store(settings.database_url)
    files = PixelFiles(folder / "in", settings.files.min_free_bytes)
    rig = Rig(settings=settings, store=store, files=files, scp=NodeScp(settings, store, files))
    rig.scp.start()
    try:
        yield rig
    finally:
        rig.scp.stop(drain_s=1.0)
        store.close()


def dcmtk(name: str) -> str | None:
    """Return the path of a dcmtk program; pynetdicom installs namesakes beside the interpreter."""
    ours = Path(sys.executable).parent
    places = [each for each in os.environ.get("PATH", "").split(os.pathsep) if Path(each) != ours]
    return shutil.which(name, path=os.pathsep.join(places))


@contextmanager
def pacs(
    on_store: Callable[[Event], int] = lambda event: 0x0000,
    *,
    requested: Callable[[Event], None] | None = None,
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian,),
) -> Iterator[PeerSettings]:
    """Yield a peer that answers C-STORE with what `on_store` returns."""
    ae = AE(ae_title="PACS")
    ae.add_supported_context(Verification)
    ae.add_supported_context(MR, list(syntaxes))
    handlers: list[EventHandlerType] = [(evt.EVT_C_STORE, on_store)]
    if requested is not None:
        handlers.append((evt.EVT_REQUESTED, requested))
    server = transport.listen(ae, ("127.0.0.1", 0), handlers)
    try:
        yield destination(server.server_address[1], "PACS")
    finally:
        transport.close(server, 0.0)
