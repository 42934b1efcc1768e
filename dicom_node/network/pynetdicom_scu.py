"""Associations that pynetdicom keeps for us: storage commitment, query and retrieval.

What is sent goes another way, see `caller`.
"""

import hashlib
import inspect
import queue
import socket
import ssl
import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import pynetdicom
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from dicom_node.network.connecting import AssociationFault, Timeouts, client_context
from dicom_node.network.limits import Limits
from dicom_node.network.rejection import notice_rejection
from dicom_node.network.tls import Credentials, diagnose, expected_name
from dicom_node.network.transport import PDU_BYTES, tune
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings

# The methods of pynetdicom 3.0.4 that `keep_replies` was written against.
KNOWN_PYNETDICOM = "f92cdcdca7323d138aa897fbfde2d81dc5e07279ffa381371d13d97c6a0405c9"
# Without the cure a lost reply must at least be noticed soon.
UNCURED_REPLY_S = 5.0


def fingerprint() -> str:
    """Return the SHA-256 of the methods of pynetdicom that the lost-reply cure relies on.

    Raises
    ------
    OSError
        If pynetdicom is installed without its source.
    """
    methods = (
        Association._run_reactor,
        Association.send_c_store,
        DIMSEServiceProvider.get_msg,
    )
    source = "".join(inspect.getsource(method) for method in methods)
    return hashlib.sha256(source.encode()).hexdigest()


def _cure_fits() -> bool:
    try:
        known = fingerprint() == KNOWN_PYNETDICOM
    except OSError:
        known = False
    if not known:
        warnings.warn(
            f"pynetdicom {pynetdicom.__version__} is not the one whose lost replies are cured: "
            f"replies are awaited for {UNCURED_REPLY_S:g} s only",
            RuntimeWarning,
            stacklevel=2,
        )
    return known


CURE_FITS = _cure_fits()


def keep_replies(event: Event) -> None:
    """Make the reactor leave replies to whom they belong; bind it to EVT_CONN_OPEN.

    In pynetdicom 3.0.4 both the thread in ``send_c_store`` and the reactor of the association take
    messages from one queue. The pause that should keep them apart has a gap: between "the
    checkpoint is open" and its look into the queue the reactor may lose the processor; when it
    comes back, it takes the C-STORE reply and drops it as unexpected. The sender then waits for its
    time limit, aborts, and the rest of the series stays behind (pynetdicom #842, #850).

    The reactor is the one that looks without blocking. Here it finds requests only: a
    reply, or the (None, None) that wakes a waiting sender, is never the reactor's.
    """
    dimse = event.assoc.dimse
    take = dimse.get_msg

    def get_msg(block: bool = False) -> Any:
        if block or _is_request(dimse.msg_queue):
            return take(block)
        return None, None

    dimse.get_msg = get_msg  # type: ignore[method-assign]


def _is_request(messages: queue.Queue) -> bool:
    with messages.mutex:
        message = messages.queue[0][1] if messages.queue else None
    return message is not None and message.MessageIDBeingRespondedTo is None


def associate(
    peer: PeerSettings,
    calling_ae: str,
    contexts: Iterable[PresentationContext],
    timeouts: Timeouts,
    *,
    handlers: Sequence[EventHandlerType] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
) -> Association:
    """Return an established association with at least one accepted context.

    Parameters
    ----------
    handlers
        Bound after our own: of what the peer may ask on this association.
    roles
        Roles other than the default, which is that we are the SCU.

    Raises
    ------
    AssociationFault
        If there is none; the fault and the peer's own words say why.
    """
    ae = AE(ae_title=calling_ae)
    ae.maximum_pdu_size = PDU_BYTES
    ae.connection_timeout = timeouts.connect_s
    ae.acse_timeout = timeouts.association_s
    ae.dimse_timeout = timeouts.reply_s if CURE_FITS else min(timeouts.reply_s, UNCURED_REPLY_S)
    connected = threading.Event()
    on_open = [lambda event: connected.set(), *([keep_replies] if CURE_FITS else [])]
    bound: list[EventHandlerType] = [
        (evt.EVT_CONN_OPEN, tune, [Limits(pdu_s=timeouts.reply_s)]),
        *((evt.EVT_CONN_OPEN, handler) for handler in on_open),
    ]
    association = ae.associate(
        _resolve(peer),
        peer.port,
        list(contexts),
        peer.ae_title,
        evt_handlers=[*bound, *handlers],
        ext_neg=list(roles),
        tls_args=_tls_args(peer, timeouts.tls),
    )
    if association.is_established:
        return association
    notice_rejection(association)
    if peer.tls and timeouts.tls and not connected.is_set():
        why = diagnose(
            (peer.host, peer.port), timeouts.tls, expected_name(peer), timeouts.connect_s
        )
        raise AssociationFault(Fault.UNREACHABLE, why or f"{peer.host}:{peer.port}")
    raise _why_none(association, peer, connected.is_set())


def _tls_args(peer: PeerSettings, tls: Credentials | None) -> tuple[ssl.SSLContext, str] | None:
    """Return what pynetdicom needs to call with TLS; never None for a peer that must have it."""
    context = client_context(peer, tls)
    return None if context is None else (context, expected_name(peer))


def _resolve(peer: PeerSettings) -> str:
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AssociationFault(Fault.UNREACHABLE, f"{peer.host}: {error.strerror}") from error
    except UnicodeError as error:  # no name of a host
        raise AssociationFault(Fault.UNREACHABLE, f"{peer.host!r} is no host name") from error
    return str(found[0][4][0])


def _why_none(association: Association, peer: PeerSettings, connected: bool) -> AssociationFault:
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        fault = Fault.REJECTED_PERMANENT if answer.result == 1 else Fault.REJECTED_TRANSIENT
        return AssociationFault(fault, answer.reason_str)
    if not connected:
        return AssociationFault(Fault.UNREACHABLE, f"{peer.host}:{peer.port}")
    if association.rejected_contexts:
        return AssociationFault(Fault.NO_CONTEXT)
    return AssociationFault(Fault.ABORTED, "no answer to the association request")


def part(association: Association) -> None:
    """Release the association; abort it when the peer does not answer that."""
    if association.is_established:
        association.release()
