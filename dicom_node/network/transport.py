"""What every association of ours needs below DIMSE: quick, bounded and stoppable sockets."""

import gc
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from threading import Thread, current_thread
from typing import Protocol, cast

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from dicom_node.errors import NodeError
from dicom_node.network.limits import Complaints, LimitExceeded, Limits, Meter, Seats
from dicom_node.network.lobby import Anyone, Door, Doorkeeper, Lobby, Visitor
from dicom_node.network.storage import Service, StorageAssociation
from dicom_node.network.tls import Credentials
from dicom_node.settings import PeerSettings

PDU_BYTES = 131072  # what we ask peers to send at most; larger PDUs, fewer turns of the reactor
STEP_BYTES = 2**18
POLL_S = 0.05
HAND_OVER_S = 2.0  # until a connection that was admitted is an association
BACKLOG = 256  # connections that the system keeps while the lobby is busy
UNLIMITED = 10**6  # pynetdicom counts associations too late: `Seats` has done it
UNREADABLE_S = 0.1  # how long an association whose request is garbage is waited for
COLLECT_EVERY = 16  # ended associations; they are cycles, which Python alone frees too late


def tune(event: Event, limits: Limits, complaints: Complaints | None = None) -> None:
    """Set up the socket of a new connection; bind it to EVT_CONN_OPEN.

    Nagle's algorithm holds every small PDU back for 40 ms. pynetdicom leaves accepted sockets
    without time limit, and believes a PDU that announces 4 GiB.
    """
    wrapper = event.assoc.dul.socket
    if wrapper is None or wrapper.socket is None:
        return  # gone already
    wrapper.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wrapper.socket.settimeout(limits.pdu_s)
    meter = Meter(limits)
    event.assoc.bind(evt.EVT_DIMSE_RECV, lambda _: meter.restart())

    def recv(nr_bytes: int) -> bytearray:
        try:
            meter.add(nr_bytes)
            return receive(wrapper, nr_bytes, limits.pdu_s)
        except LimitExceeded as error:
            if complaints:
                address = event.assoc.requestor.address or ""
                complaints.note(error.kind, "connection.cut", reason=str(error), address=address)
            raise

    wrapper.recv = recv  # type: ignore[method-assign]


def receive(wrapper: AssociationSocket, nr_bytes: int, limit_s: float) -> bytearray:
    """Return the next `nr_bytes` of the connection; fewer when the peer closed it.

    Raises
    ------
    LimitExceeded
        If they have not come after `limit_s`: for the whole PDU, a drip does not renew it.
    """
    deadline = time.monotonic() + limit_s
    data = bytearray(min(nr_bytes, STEP_BYTES))  # what is announced is not believed before it comes
    got = 0
    try:
        while got < nr_bytes and (sock := wrapper.socket) is not None:
            if time.monotonic() > deadline:
                raise TimeoutError
            if got == len(data):
                data.extend(bytes(min(nr_bytes - got, STEP_BYTES)))
            with memoryview(data) as view, view[got:] as rest:
                read = sock.recv_into(rest)
            if not read:
                break
            got += read
    except TimeoutError:
        text = f"{got} of {nr_bytes} bytes of a PDU after {limit_s:g} s"
        raise LimitExceeded("slow PDU", text) from None
    del data[got:]
    return data


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who may come in, and what they may cost."""

    limits: Limits = Limits()
    doorkeeper: Doorkeeper = Anyone()
    tls: Credentials | None = None
    tls_port: int | None = None  # None: TLS, if any, on the only port


class Running(Protocol):
    """An association, whoever serves it."""

    @property
    def is_established(self) -> bool:
        """Return whether the peer may go on."""
        ...

    def abort(self) -> None:
        """End it now."""
        ...


class Listener:
    """Accepts associations: a lobby in front of `storage`, and of pynetdicom's server."""

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        handlers: Sequence[EventHandlerType],
        policy: Policy,
        admitted: Callable[[Association, PeerSettings], None],
        service: Service | None,
    ) -> None:
        self._service = service
        self._served: set[StorageAssociation] = set()
        self._limits = policy.limits
        self._seats = Seats(policy.limits)
        self._complaints = Complaints()
        self._admitted = admitted
        self._guests: dict[socket.socket, tuple[Visitor, PeerSettings]] = {}
        self._hosts: set[Thread] = set()
        self._ended = 0
        ae.maximum_associations = UNLIMITED
        everyone: list[EventHandlerType] = [(evt.EVT_CONN_OPEN, self._on_open), *handlers]
        self._server = ae.make_server(
            address, evt_handlers=everyone, server_class=ThreadedAssociationServer
        )
        doors = self._doors(address[0], policy)
        self._lobby = Lobby(
            doors,
            policy.limits,
            policy.doorkeeper,
            self._seats,
            self._hand_over,
            self._complaints,
        )
        self._lobby.start()

    def _doors(self, host: str, policy: Policy) -> list[Door]:
        """Return the sockets that listen, plain and TLS."""
        plain = cast(socket.socket, self._server.socket)
        plain.listen(BACKLOG)
        self.server_address = plain.getsockname()
        self.tls_address = self.server_address if policy.tls else None
        if policy.tls is None or policy.tls_port is None:
            return [Door(sock=plain, tls=policy.tls)]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = (host, policy.tls_port)
        try:
            secure = socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            plain.close()
            raise NodeError(
                f"cannot listen on {host}:{policy.tls_port} for TLS: {error}"
            ) from error
        self.tls_address = secure.getsockname()
        return [Door(sock=plain), Door(sock=secure, tls=policy.tls)]

    @property
    def active_associations(self) -> list[Running]:
        """Return the associations that have been admitted and have not ended."""
        return [*self._served, *self._server.active_associations]

    @property
    def open(self) -> bool:
        """Return whether connections are accepted."""
        return self._lobby.open

    def waiting(self) -> int:
        """Return how many connections have not asked for an association yet, or leave."""
        return self._lobby.waiting()

    def shutdown(self) -> None:
        """Accept no more; associations that were admitted go on."""
        self._lobby.stop()
        deadline = time.monotonic() + HAND_OVER_S
        while self._hosts and time.monotonic() < deadline:  # `active_associations` has them all
            time.sleep(POLL_S)

    def _hand_over(self, visitor: Visitor, peer: PeerSettings) -> None:
        """Serve an admitted connection in a thread of its own, or let pynetdicom do it."""
        ours = self._service is not None and self._service.suffices(visitor.data)
        serve = self._serve if ours else self._host
        if not ours:
            self._guests[visitor.sock] = (visitor, peer)
        host = Thread(target=serve, args=(visitor, peer), name="host")
        host.daemon = False  # an association inherits that, and is drained, not dropped
        self._hosts.add(host)
        try:
            host.start()
        except RuntimeError:  # no thread to be had: the lobby deals with it
            self._hosts.discard(host)
            self._guests.pop(visitor.sock, None)
            raise

    def _serve(self, visitor: Visitor, peer: PeerSettings) -> None:
        """Serve C-ECHO and C-STORE to the end of the association."""
        association = None
        try:
            association = StorageAssociation(
                cast(Service, self._service), visitor, peer, self._complaints
            )
            self._served.add(association)
            self._hosts.discard(current_thread())
            association.run()
        finally:
            self._hosts.discard(current_thread())
            self._leave(visitor, peer)
            self._served.discard(association)

    def _host(self, visitor: Visitor, peer: PeerSettings) -> None:
        started = False
        try:
            self._server.finish_request(visitor.sock, visitor.address)
            started = True
        finally:
            self._hosts.discard(current_thread())
            if not started:  # no thread to be had, for example
                self._guests.pop(visitor.sock, None)
                self._leave(visitor, peer)

    def _on_open(self, event: Event) -> None:
        """Let the association begin with the request that the lobby has read."""
        assoc = event.assoc
        wrapper = cast(AssociationSocket, assoc.dul.socket)
        visitor, peer = self._guests.pop(cast(socket.socket, wrapper.socket))
        self._leave_at_the_end(assoc, visitor, peer)
        self._admitted(assoc, peer)
        wrapper.recv = BytesIO(visitor.data).read  # type: ignore[method-assign,assignment]
        visitor.data.clear()
        assoc.dul._read_pdu_data()
        if assoc.dul._recv_pdu.empty():
            self._complaints.note(
                "bad request", "connection.cut", peer=peer.name, address=visitor.host
            )
            assoc.acse_timeout = UNREADABLE_S
        tune(event, self._limits, self._complaints)

    def _leave_at_the_end(self, assoc: Association, visitor: Visitor, peer: PeerSettings) -> None:
        run = assoc.run

        def run_and_leave() -> None:
            try:
                run()
            finally:
                self._leave(visitor, peer)
                self._ended += 1
                if self._ended % COLLECT_EVERY == 0:
                    gc.collect()

        assoc.run = run_and_leave  # type: ignore[method-assign]

    def _leave(self, visitor: Visitor, peer: PeerSettings) -> None:
        """Free what an association held."""
        visitor.sock.close()
        self._seats.leave(peer.name)


def listen(
    ae: AE,
    address: tuple[str, int],
    handlers: Sequence[EventHandlerType],
    policy: Policy = Policy(),
    admitted: Callable[[Association, PeerSettings], None] = lambda association, peer: None,
    service: Service | None = None,
) -> Listener:
    """Return a running listener that accepts associations on `address`.

    Parameters
    ----------
    admitted
        Called with every association that pynetdicom serves, before its first message.
    service
        What is served without pynetdicom; None: nothing.

    Raises
    ------
    NodeError
        If the address cannot be bound: the message names it.
    """
    host, port = address
    try:
        return Listener(ae, address, handlers, policy, admitted, service)
    except (OSError, ValueError) as error:
        raise NodeError(f"cannot listen on {host}:{port}: {error}") from error


def close(server: Listener, drain_s: float) -> int:
    """Return how many connections were cut: half-open ones at once, the others after `drain_s`."""
    server.shutdown()
    deadline = time.monotonic() + drain_s
    while _established(server) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    late = server.active_associations
    aborts = [Thread(target=association.abort, daemon=True) for association in late]
    for abort in aborts:
        abort.start()
    for abort in aborts:  # a peer that reads nothing must not keep us from ending
        abort.join(timeout=2.0)
    return len(late)


def _established(server: Listener) -> bool:
    return any(association.is_established for association in server.active_associations)
