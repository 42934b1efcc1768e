"""Who may associate with this node, and the A-ASSOCIATE-RJ for everybody else."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from dicom_node.settings import PeerSettings

Address = IPv4Address | IPv6Address
NAMES_KEPT_S = 60.0  # how long the addresses of a host name are believed
ASK_SOON_S = 5.0  # while one is unknown: that peer may just be starting


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
    secure: bool = False  # it has shown a certificate of an authority that we trust
    names: frozenset[str] = frozenset()  # in that certificate, in lower case


STRANGER = Rejection(result=1, source=1, reason=3, why="no configured peer lives there")
TOO_MANY = Rejection(result=2, source=3, reason=2, why="local limit exceeded")
SHUTTING_DOWN = Rejection(result=2, source=3, reason=1, why="the node is stopping")


class Admission:
    """The doorkeeper: AE titles, addresses and certificates against the configured peers."""

    def __init__(self, ae_title: str, peers: Sequence[PeerSettings]) -> None:
        self.ae_title = ae_title
        self.peers = tuple(peer for peer in peers if not peer.is_web)  # those never call
        self._directory = Directory(peer.host for peer in self.peers if not peer.addresses)

    def welcome(self, address: str) -> bool:
        """Return whether any peer may call from `address`: all that is known at accept."""
        return any(self._may_call_from(peer, address) for peer in self.peers)

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
            if self._may_call_from(peer, caller.address):
                return _identified(peer, caller)
        # The same reason as for an unknown title: a stranger learns nothing about our peers.
        why = f"{caller.calling_ae.strip()!r} is not expected from {caller.address}"
        return Rejection(result=1, source=1, reason=3, why=why)

    def _may_call_from(self, peer: PeerSettings, address: str) -> bool:
        """Return whether the peer lives at `address`.

        `addresses` wins over `host`: a PACS may answer at one address and call from others. A
        source that states neither may call from anywhere.
        """
        where = plain(address)
        if peer.addresses:
            return any(where in network(each) for each in peer.addresses)
        return not peer.host or where in self._directory.addresses(peer.host)


class Directory:
    """The addresses of host names; a slow name server never holds up who asks here."""

    def __init__(self, hosts: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known = resolve_all(hosts)
        self._asked_at = clock()
        self._lock = threading.Lock()

    def addresses(self, host: str) -> frozenset[Address]:
        """Return where `host` lives, as the name servers said a minute ago at most."""
        with self._lock:
            kept_s = NAMES_KEPT_S if all(self._known.values()) else ASK_SOON_S
            stale = self._clock() - self._asked_at > kept_s
            if stale:
                self._asked_at = self._clock()
        if stale:
            threading.Thread(target=self._ask_again, name="names", daemon=True).start()
        return self._known[host]

    def _ask_again(self) -> None:
        found = resolve_all(self._known)
        self._known = {host: found[host] or before for host, before in self._known.items()}


def _identified(peer: PeerSettings, caller: Caller) -> PeerSettings | Rejection:
    """Return the peer if the caller has identified itself as this peer must."""
    if peer.tls and not caller.secure:
        why = f"{peer.name} must call with TLS"
        return Rejection(result=1, source=1, reason=1, why=why)
    if peer.tls_name and caller.secure and peer.tls_name.lower() not in caller.names:
        why = f"the certificate is for {', '.join(sorted(caller.names))}, not {peer.tls_name}"
        return Rejection(result=1, source=1, reason=3, why=why)
    return peer


@cache
def network(text: str) -> IPv4Network | IPv6Network:
    """Return a configured address or network."""
    return ip_network(text, strict=False)


def resolve_all(hosts: Iterable[str]) -> dict[str, frozenset[Address]]:
    """Return the addresses of every host; together they take as long as the slowest."""
    names = sorted({host for host in hosts if host})
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(names, pool.map(resolve, names), strict=True))


def resolve(host: str) -> frozenset[Address]:
    """Return the addresses of `host`; a name that does not resolve belongs to nobody."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(plain(str(entry[4][0])) for entry in found)


def plain(address: str) -> Address:
    """Return the address without a scope; an IPv4-mapped one (::ffff:...) as IPv4."""
    parsed = ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
