"""Sending: C-STORE with a status for every single instance, and C-ECHO."""

import hashlib
import inspect
import queue
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynetdicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_node.errors import NodeError
from dicom_node.network.limits import Limits
from dicom_node.network.rejection import notice_rejection
from dicom_node.network.tls import Credentials, diagnose, expected_name
from dicom_node.network.transport import PDU_BYTES, tune
from dicom_node.pixel_files import sha256_of
from dicom_node.retry import Fault, Verdict, classify
from dicom_node.settings import PeerSettings

# The methods of pynetdicom 3.0.4 that `keep_replies` was written against.
KNOWN_PYNETDICOM = "f92cdcdca7323d138aa897fbfde2d81dc5e07279ffa381371d13d97c6a0405c9"
MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: the identifiers are the odd numbers up to 255
RESUMES = 3
SLOWEST_BYTES_PER_S = 1_000_000  # a large instance may take longer than one time limit


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Time limits of an association that we request, in seconds, and our certificates for it."""

    connect_s: float = 10.0
    association_s: float = 15.0
    reply_s: float = 30.0
    tls: Credentials | None = None  # for peers that are called with TLS


@dataclass(frozen=True, kw_only=True)
class Item:
    """One instance to send; `key` is the caller's."""

    key: int
    sop_uid: str
    path: Path
    sha256: str | None = None  # what the file must have; None: whatever it is


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one item: a DIMSE status, or why there is none."""

    item: Item
    fault: int | Fault
    comment: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the sender does about it."""
        return classify(self.fault).verdict


@dataclass(frozen=True, kw_only=True)
class Sendable:
    """An item with what an association must be asked for."""

    item: Item
    sop_class: UID
    transfer_syntax: UID

    @property
    def context(self) -> tuple[UID, UID]:
        """SOP class and transfer syntax."""
        return self.sop_class, self.transfer_syntax


class AssociationFault(NodeError):
    """There is no association (any more); `fault` says why, `comment` in the peer's words."""

    def __init__(self, fault: Fault, comment: str = "", *, mid_way: bool = False) -> None:
        super().__init__(f"{fault.value}: {comment}" if comment else fault.value)
        self.fault = fault
        self.comment = comment
        self.mid_way = mid_way  # there was an association, and it broke


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


# Without the cure a lost reply must at least be noticed soon; `send` then resumes.
UNCURED_REPLY_S = 5.0
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


def echo(peer: PeerSettings, calling_ae: str, timeouts: Timeouts = Timeouts()) -> None:
    """Return when the peer has answered a C-ECHO with success.

    Raises
    ------
    AssociationFault
        If it has not.
    """
    association = associate(peer, calling_ae, [build_context(Verification)], timeouts)
    try:
        status = association.send_c_echo()
    except RuntimeError as error:  # closed since
        raise AssociationFault(Fault.ABORTED, str(error)) from error
    finally:
        part(association)
    if status.get("Status") != 0x0000:
        raise AssociationFault(Fault.TIMED_OUT, f"C-ECHO: {status.get('Status', 'no answer')}")


def send(
    items: Sequence[Item],
    peer: PeerSettings,
    calling_ae: str,
    *,
    timeouts: Timeouts = Timeouts(),
    proceed: Callable[[], bool] = lambda: True,
    resumes: int = RESUMES,
) -> Iterator[Outcome]:
    """Yield one outcome per instance that was tried, as soon as it is known.

    An association that broke or timed out is never used again; the rest of the instances follow
    over a fresh one, `resumes` times at most without progress. Then the instance at hand gets the
    fault as its outcome, and nothing is tried after it; the same when no association can be had.

    Parameters
    ----------
    proceed
        Asked before every instance; False ends the sending there.
    """
    waiting: list[Sendable] = []
    for item in items:
        found = sendable(item)
        if isinstance(found, Outcome):
            yield found
        else:
            waiting.append(found)
    breaks = 0
    while waiting and proceed():
        before = len(waiting)
        try:
            for outcome in _send_over_one(waiting, peer, calling_ae, timeouts, proceed):
                waiting = [each for each in waiting if each.item is not outcome.item]
                yield outcome
        except AssociationFault as fault:
            breaks = breaks + 1 if len(waiting) == before else 1
            if not fault.mid_way or breaks > resumes:
                yield Outcome(item=waiting[0].item, fault=fault.fault, comment=fault.comment)
                return


def sendable(item: Item) -> Sendable | Outcome:
    """Return the item with what must be asked for, or why its file cannot be sent."""
    try:
        meta = read_file_meta_info(item.path)
        found = Sendable(
            item=item,
            sop_class=UID(meta.MediaStorageSOPClassUID),
            transfer_syntax=UID(meta.TransferSyntaxUID),
        )
    except (OSError, InvalidDicomError, AttributeError) as error:
        return Outcome(item=item, fault=Fault.NO_FILE, comment=str(error))
    if meta.MediaStorageSOPInstanceUID != item.sop_uid:
        comment = f"the file holds {meta.MediaStorageSOPInstanceUID}"
        return Outcome(item=item, fault=Fault.NO_FILE, comment=comment)
    return found


def _send_over_one(
    waiting: Sequence[Sendable],
    peer: PeerSettings,
    calling_ae: str,
    timeouts: Timeouts,
    proceed: Callable[[], bool],
) -> Iterator[Outcome]:
    """Yield the outcomes that one association brings."""
    asked = list(dict.fromkeys(each.context for each in waiting))[:MOST_CONTEXTS]
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in asked]
    association = associate(peer, calling_ae, contexts, timeouts)
    accepted = {
        (context.abstract_syntax, context.transfer_syntax[0])
        for context in association.accepted_contexts
    }
    try:
        for number, each in enumerate(waiting):
            if each.context not in asked:
                continue  # its turn comes with the next association
            if not proceed():
                return
            if each.context not in accepted:
                comment = f"{each.sop_class.name}, {each.transfer_syntax.name}"
                yield Outcome(item=each.item, fault=Fault.NO_CONTEXT, comment=comment)
            elif each.item.sha256 not in (None, sha256_of(each.item.path)):
                yield Outcome(item=each.item, fault=Fault.ALTERED, comment="its SHA-256 differs")
            else:
                yield _store(association, each, number % 65535 + 1, timeouts)
    finally:
        part(association)


def _store(
    association: Association, each: Sendable, message_id: int, timeouts: Timeouts
) -> Outcome:
    """Return the peer's status for one instance.

    Raises
    ------
    AssociationFault
        If the association broke or the time limit passed; it must not be used again.
    """
    limit_s = timeouts.reply_s if CURE_FITS else min(timeouts.reply_s, UNCURED_REPLY_S)
    try:
        limit_s += each.item.path.stat().st_size / SLOWEST_BYTES_PER_S
        association.dimse_timeout = limit_s
        started = time.monotonic()
        status = association.send_c_store(each.item.path, msg_id=message_id)
    except (RuntimeError, OSError) as error:  # closed meanwhile, or the file went away
        association.abort()
        raise AssociationFault(Fault.ABORTED, str(error), mid_way=True) from error
    if "Status" not in status:
        late = time.monotonic() - started >= limit_s
        association.abort()
        raise AssociationFault(Fault.TIMED_OUT if late else Fault.ABORTED, mid_way=True)
    return Outcome(
        item=each.item, fault=int(status.Status), comment=str(status.get("ErrorComment", ""))
    )


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
    ae.dimse_timeout = timeouts.reply_s
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
    if not peer.tls:
        return None
    if tls is None:
        raise AssociationFault(
            Fault.UNREACHABLE, f"no certificate of ours to call {peer.name} with"
        )
    return tls.client(), expected_name(peer)


def _resolve(peer: PeerSettings) -> str:
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AssociationFault(Fault.UNREACHABLE, f"{peer.host}: {error.strerror}") from error
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
