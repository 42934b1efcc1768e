"""A minimal storing SCP for the demo and the tests: the archive that one has at hand."""

import threading
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_node.network.transport import PDU_BYTES, close, listen
from dicom_node.pixel_files import PixelFiles


class LoopbackArchive:
    """Keeps what it receives as ``<folder>/<series>/<sop>.dcm``; a context manager."""

    def __init__(
        self, folder: Path, *, ae_title: str = "ARCHIVE", host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.host = host
        self.port = port  # 0: any free one, known after `start`
        self.received: list[str] = []  # SOP instance UIDs, one per C-STORE, in order
        self._files = PixelFiles(folder, min_free_bytes=0)
        self._lock = threading.Lock()
        self._ae = AE(ae_title=ae_title)
        self._ae.maximum_pdu_size = PDU_BYTES
        self._ae.maximum_associations = 100
        self._ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            self._ae.add_supported_context(
                str(context.abstract_syntax), [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            )

    def start(self) -> Self:
        """Listen; raises NodeError when the port is taken."""
        self._server = listen(self._ae, (self.host, self.port), [(evt.EVT_C_STORE, self._on_store)])
        self.port = int(self._server.server_address[1])
        return self

    def stop(self) -> None:
        """Stop listening and end every association."""
        close(self._server, drain_s=0.0)

    def paths(self) -> list[Path]:
        """Return every file that is kept."""
        return self._files.paths()

    def _on_store(self, event: Event) -> int:
        encoded = event.encoded_dataset()
        header = dcmread(BytesIO(encoded), stop_before_pixels=True)
        self._files.write(header.SeriesInstanceUID, header.SOPInstanceUID, [encoded])
        with self._lock:
            self.received.append(str(header.SOPInstanceUID))
        return 0x0000

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
