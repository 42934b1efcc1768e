"""Calling a peer: the socket, TLS where the peer is called with it, and why there is neither."""

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

from dicom_node.errors import NodeError
from dicom_node.network.tls import Credentials, expected_name, words_of
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Time limits of an association that we request, in seconds, and our certificates for it."""

    connect_s: float = 10.0
    association_s: float = 15.0
    reply_s: float = 30.0
    tls: Credentials | None = None  # for peers that are called with TLS


USUAL = Timeouts()


class AssociationFault(NodeError):
    """There is no association (any more); `fault` says why, `comment` in the peer's words."""

    def __init__(self, fault: Fault, comment: str = "", *, mid_way: bool = False) -> None:
        super().__init__(f"{fault.value}: {comment}" if comment else fault.value)
        self.fault = fault
        self.comment = comment
        self.mid_way = mid_way  # there was an association, and it broke


def client_context(peer: PeerSettings, tls: Credentials | None) -> ssl.SSLContext | None:
    """Return the TLS to call a peer with; None only for a peer that is called without.

    Raises
    ------
    AssociationFault
        If there is no certificate of ours.
    """
    if not peer.tls:
        return None
    if tls is None:
        raise AssociationFault(
            Fault.UNREACHABLE, f"no certificate of ours to call {peer.name} with"
        )
    return tls.client()


def connect(peer: PeerSettings, timeouts: Timeouts) -> socket.socket:
    """Return a connection to a peer, through TLS where it is called with that.

    Raises
    ------
    AssociationFault
        If there is none.
    """
    context = client_context(peer, timeouts.tls)
    where = f"{peer.host}:{peer.port}"
    try:
        plain = socket.create_connection((peer.host, peer.port), timeouts.connect_s)
    except socket.gaierror as error:
        raise AssociationFault(Fault.UNREACHABLE, f"{peer.host}: {error.strerror}") from error
    except UnicodeError as error:  # a label of it is empty or too long
        raise AssociationFault(Fault.UNREACHABLE, f"{peer.host}: no host name") from error
    except OSError as error:
        raise AssociationFault(Fault.UNREACHABLE, where) from error
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=expected_name(peer))
    except OSError as error:
        with suppress(OSError):
            plain.close()
        words = f"TLS with {where}: {words_of(error)}"
        raise AssociationFault(Fault.UNREACHABLE, words) from error
