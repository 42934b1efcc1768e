"""What every association of ours needs below DIMSE: quick, bounded and stoppable sockets."""

import socket
import time
from collections.abc import Sequence
from threading import Thread

from pynetdicom import AE, evt
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from dicom_node.errors import NodeError

PDU_BYTES = 131072  # what we ask peers to send at most; larger PDUs, fewer turns of the reactor
LONGEST_PDU_BYTES = 16 * 2**20  # some peers ignore the limit; none needs more than this
SOCKET_TIMEOUT_S = 30.0  # a peer that stalls inside a PDU, or stops reading, is cut after this
POLL_S = 0.05


def tune(event: Event) -> None:
    """Set up the socket of a new connection; bind it to EVT_CONN_OPEN.

    Nagle's algorithm holds every small PDU back for 40 ms. pynetdicom leaves accepted sockets
    without time limit, and believes a PDU that announces 4 GiB.
    """
    wrapper = event.assoc.dul.socket
    if wrapper is None or wrapper.socket is None:
        return  # gone already: a health check
    wrapper.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wrapper.socket.settimeout(SOCKET_TIMEOUT_S)
    wrapper.recv = lambda nr_bytes: receive(wrapper, nr_bytes)  # type: ignore[method-assign]


def receive(wrapper: AssociationSocket, nr_bytes: int) -> bytearray:
    """Return the next `nr_bytes` of the connection; fewer when the peer closed it.

    Raises
    ------
    OSError
        If the peer announces a PDU longer than LONGEST_PDU_BYTES, or stalls.
    """
    if nr_bytes > LONGEST_PDU_BYTES:
        raise OSError(f"a PDU of {nr_bytes} bytes is announced, {LONGEST_PDU_BYTES} is the most")
    deadline = time.monotonic() + SOCKET_TIMEOUT_S  # for the whole PDU: a drip does not renew it
    data = bytearray(nr_bytes)
    view = memoryview(data)
    got = 0
    while got < nr_bytes and (sock := wrapper.socket) is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"a PDU was not complete after {SOCKET_TIMEOUT_S:g} s")
        read = sock.recv_into(view[got:])
        if not read:
            break
        got += read
    view.release()
    del data[got:]
    return data


def listen(
    ae: AE, address: tuple[str, int], handlers: Sequence[EventHandlerType]
) -> ThreadedAssociationServer:
    """Return a running server that accepts associations on `address`.

    Raises
    ------
    NodeError
        If the address cannot be bound: the message names it.
    """
    everyone: list[EventHandlerType] = [(evt.EVT_CONN_OPEN, tune), *handlers]
    host, port = address
    try:
        server = ae.start_server(address, block=False, evt_handlers=everyone)
    except (OSError, ValueError) as error:
        raise NodeError(f"cannot listen on {host}:{port}: {error}") from error
    if server is None:
        raise NodeError(f"cannot listen on {host}:{port}")
    return server


def close(server: ThreadedAssociationServer, drain_s: float) -> int:
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


def _established(server: ThreadedAssociationServer) -> bool:
    return any(association.is_established for association in server.active_associations)
