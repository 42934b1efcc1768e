"""Who may associate with this node, and the A-ASSOCIATE-RJ for everybody else."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from dicom_node.settings import PeerSettings


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What an A-ASSOCIATE-RJ says (PS3.8 9.3.4), and why, for the log."""

    result: int  # 1 permanent, 2 transient
    source: int  # 1 service user, 2 ACSE, 3 presentation
    reason: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Caller:
    """How a peer presents itself when it opens an association."""

    calling_ae: str
    called_ae: str
    address: str


class Admission:
    """The doorkeeper: AE titles and addresses against the configured peers."""

    def __init__(self, ae_title: str, peers: Sequence[PeerSettings]) -> None:
        self.ae_title = ae_title
        self.peers = tuple(peers)

    def judge(self, caller: Caller) -> PeerSettings | Rejection:
        """Return the peer that calls, or how to turn the caller away."""
        if caller.called_ae.strip() != self.ae_title:
            why = f"called AE title {caller.called_ae.strip()!r} is not ours"
            return Rejection(result=1, source=1, reason=7, why=why)
        named = [peer for peer in self.peers if peer.ae_title == caller.calling_ae.strip()]
        if not named:
            why = f"calling AE title {caller.calling_ae.strip()!r} is no configured peer"
            return Rejection(result=1, source=1, reason=3, why=why)
        for peer in sorted(named, key=lambda peer: "source" not in peer.roles):
            if _may_call_from(peer, caller.address):
                return peer
        # The same reason as for an unknown title: a stranger learns nothing about our peers.
        why = f"{caller.calling_ae.strip()!r} is not expected from {caller.address}"
        return Rejection(result=1, source=1, reason=3, why=why)


def _may_call_from(peer: PeerSettings, address: str) -> bool:
    """Return whether the peer lives at `address`.

    `addresses` wins over `host`: a PACS may answer at one address and call from others. A source
    that states neither may call from anywhere.
    """
    where = _plain(address)
    if peer.addresses:
        return any(where in ip_network(each, strict=False) for each in peer.addresses)
    return not peer.host or where in _resolved(peer.host)


def _resolved(host: str) -> set[IPv4Address | IPv6Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # a name that does not resolve belongs to nobody
        return set()
    return {_plain(str(entry[4][0])) for entry in found}


def _plain(address: str) -> IPv4Address | IPv6Address:
    """Return the address without a scope; an IPv4-mapped one (::ffff:...) as IPv4."""
    parsed = ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
