"""The listener: C-ECHO and C-STORE of known peers, "success" for what is durable only."""

from collections.abc import Callable
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

from dicom_node import telemetry
from dicom_node.network import hints
from dicom_node.network.commitment import Reports, context
from dicom_node.network.commitment_scp import CommitmentScp
from dicom_node.network.hints import HintScp
from dicom_node.network.keeping import (
    NO_SUCH_OPERATION,
    arrived_in,
    as_dataset,
    keep,
    keep_meanwhile,
)
from dicom_node.network.limits import Limits
from dicom_node.network.negotiation import Offer
from dicom_node.network.peers import Admission
from dicom_node.network.storage import Answer, Arrived, Service
from dicom_node.network.tls import credentials
from dicom_node.network.transport import Listener, Policy, close, listen
from dicom_node.pixel_files import PixelFiles
from dicom_node.settings import PeerSettings, Settings
from dicom_node.store import Store
from dicom_node.syntaxes import TRANSFER_SYNTAXES

# Not of the standard, but scanners send them among the images: Siemens CSA non-image, Philips MR
# spectrum, series data and exam card.
PRIVATE_STORAGE = (
    "1.3.12.2.1107.5.9.1",
    *(f"1.3.46.670589.11.0.0.12.{kind}" for kind in (1, 2, 4)),
)
ALL = "all"
# Served by pynetdicom, with the three threads that it spends on an association.
ELSEWHERE = (str(StorageCommitmentPushModel), *hints.CLASSES)

log = telemetry.get_logger()


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


class NodeScp:
    """The storage SCP; `start` and `stop` are its life."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        files: PixelFiles,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.host = settings.node.host
        self.port = settings.node.port  # 0: any free one, known after `start`
        self._drain_s = settings.node.drain_s
        self._store = store
        self._files = files
        self._clock = clock
        self._policy = _policy(settings)
        self._ae = _entity(settings)
        self._service = Service(
            offer=_offer(self._ae),
            limits=self._policy.limits,
            idle_s=settings.node.network_timeout_s,
            store=self._store_meanwhile,
            elsewhere=ELSEWHERE,
        )
        self._peers: WeakKeyDictionary[Association, PeerSettings] = WeakKeyDictionary()
        self._commitment = CommitmentScp(store, settings, clock)
        self._reports = Reports(store, settings, clock)
        self._hints = HintScp(store, clock, lambda event: self._peers[event.assoc])
        self._server: Listener | None = None

    def start(self) -> None:
        """Listen.

        Raises
        ------
        NodeError
            If the address is taken; the message names it.
        """
        handlers: list[EventHandlerType] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_N_EVENT_REPORT, self._reports.on_event),
            (evt.EVT_N_CREATE, self._hints.on_create),
            (evt.EVT_N_SET, self._hints.on_set),
        ]
        address = (self.host, self.port)
        self._server = listen(
            self._ae, address, handlers, self._policy, self._on_admitted, self._service
        )
        self.port = int(self._server.server_address[1])
        self._commitment.start()
        log.info("scp.listening", host=self.host, port=self.port)
        if self.tls_port:
            log.info("scp.listening", host=self.host, port=self.tls_port, kind="TLS")

    def stop(self, drain_s: float | None = None) -> None:
        """Take no new association, let the running ones end, abort them after `drain_s`."""
        if self._server is None:
            return
        aborted = close(self._server, self._drain_s if drain_s is None else drain_s)
        self._server = None
        self._commitment.stop()
        log.info("scp.stopped", count=aborted)

    @property
    def listening(self) -> bool:
        """Return whether new associations are taken."""
        return self._server is not None and self._server.open

    @property
    def tls_port(self) -> int:
        """Return the port that speaks TLS; 0 while there is none."""
        return int(self._server.tls_address[1]) if self._server and self._server.tls_address else 0

    def failing(self) -> list[str]:
        """Return the name of the thread that reports to scanners, where it does not."""
        return ["commitment"] if self._commitment.failing else []

    def associations(self) -> int:
        """Return how many associations are open."""
        return len(self._server.active_associations) if self._server else 0

    def _on_admitted(self, association: Association, peer: PeerSettings) -> None:
        """Note whose association this is."""
        self._peers[association] = peer

    def _store_one(self, peer: PeerSettings, arrived: Arrived) -> Answer:
        """Return 0x0000 when the instance is durable, else why not."""
        return keep(peer, arrived, self._files, self._store, self._clock())

    def _store_meanwhile(
        self, peer: PeerSettings, arrived: Arrived, reply: Callable[[Answer], None]
    ) -> None:
        """Give the same answer to `reply`, perhaps later."""
        keep_meanwhile(peer, arrived, self._files, self._store, self._clock(), reply)

    def _on_store(self, event: Event) -> int | Dataset:
        """Answer a C-STORE on an association that pynetdicom serves."""
        arrived = arrived_in(event)
        if arrived is None:  # of a storage class, but another command
            comment = "C-STORE is the only operation here"
            return as_dataset(Answer(status=NO_SUCH_OPERATION, comment=comment))
        return as_dataset(self._store_one(self._peers[event.assoc], arrived))

    def _on_action(self, event: Event) -> tuple[int, None]:
        """Return 0x0000 when the request for storage commitment is on record."""
        return self._commitment.on_action(event, self._peers[event.assoc]), None


def _entity(settings: Settings) -> AE:
    ae = AE(ae_title=settings.node.ae_title)
    ae.maximum_pdu_size = settings.node.max_pdu_bytes
    ae.acse_timeout = settings.node.acse_timeout_s
    ae.network_timeout = settings.node.network_timeout_s
    ae.add_supported_context(Verification)
    # In both roles: scanners ask us, and destinations report to us on associations they open.
    commitment = context()
    ae.add_supported_context(
        str(commitment.abstract_syntax), commitment.transfer_syntax, scu_role=True, scp_role=True
    )
    for sop_class in hints.CLASSES:
        ae.add_supported_context(sop_class, commitment.transfer_syntax)
    for sop_class in storage_classes(settings):
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    return ae


def storage_classes(settings: Settings) -> tuple[str, ...]:
    """Return the SOP classes that are accepted, "all" written out."""
    stated = settings.node.storage_classes
    if ALL not in stated:
        return stated
    standard = (str(each.abstract_syntax) for each in AllStoragePresentationContexts)
    return tuple(
        dict.fromkeys((*standard, *PRIVATE_STORAGE, *(each for each in stated if each != ALL)))
    )


def accepted_contexts(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return for each SOP class that is accepted its transfer syntaxes, by preference."""
    return {
        str(each.abstract_syntax): tuple(map(str, each.transfer_syntax))
        for each in _entity(settings).supported_contexts
    }


def implementation(settings: Settings) -> str:
    """Return implementation class UID and version name, as associations state them."""
    offer = _offer(_entity(settings))
    return f"{offer.implementation_uid} ({offer.implementation_version})"


def _policy(settings: Settings) -> Policy:
    """Return who may come in; raises SettingsError when a certificate cannot be used."""
    only_tls = settings.tls.port == settings.node.port != 0
    return Policy(
        limits=Limits.of(settings),
        doorkeeper=Admission(settings.node.ae_title, settings.peers),
        tls=credentials(settings.tls),
        tls_port=None if only_tls else settings.tls.port,
    )


def _offer(ae: AE) -> Offer:
    """Return what `storage` serves."""
    contexts = {str(each.abstract_syntax): each for each in ae.supported_contexts}
    for name in ELSEWHERE:
        del contexts[name]
    return Offer(
        syntaxes={name: tuple(map(str, each.transfer_syntax)) for name, each in contexts.items()},
        longest_pdu=ae.maximum_pdu_size,
        implementation_uid=ae.implementation_class_uid,
        implementation_version=ae.implementation_version_name or "",
    )
