"""Associations by pynetdicom: rejections that it overlooks, replies that it loses."""

import socket
import threading
import time

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import MRImageStorage, Verification

from dicom_node.network import pynetdicom_scu, transport
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.retry import Fault
from tests.rigs import destination, pacs, write_series

HASTY = Timeouts(connect_s=2.0, association_s=2.0, reply_s=2.0)


@pytest.fixture
def items(tmp_path):
    return write_series(tmp_path / "a", 4)


def test_socket_of_ours_sends_at_once(items):
    options = []

    def look(event):
        raw = event.assoc.dul.socket.socket
        options.append(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with pacs(requested=look) as peer:
        association = pynetdicom_scu.associate(peer, "SRNODE", [build_context(Verification)], HASTY)
        ours = association.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        pynetdicom_scu.part(association)

    assert ours and all(options)


def test_roles_that_are_asked_for_are_negotiated():
    ae = AE(ae_title="PACS")
    ae.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    server = transport.listen(ae, ("127.0.0.1", 0), [])
    try:
        association = pynetdicom_scu.associate(
            destination(server.server_address[1], "PACS"),
            "SRNODE",
            [build_context(MRImageStorage)],
            HASTY,
            roles=[build_role(MRImageStorage, scp_role=True)],
        )
        [context] = association.accepted_contexts
        pynetdicom_scu.part(association)
    finally:
        transport.close(server, 0.0)

    assert (context.as_scu, context.as_scp) == (False, True)


def lose_the_processor(event):
    """Let the requestor's thread look at the connection only after the reactor has closed it."""
    deadline = time.monotonic() + 10
    while event.assoc.dul.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("result", "source", "reason", "fault"),
    [(1, 1, 7, Fault.REJECTED_PERMANENT), (2, 3, 2, Fault.REJECTED_TRANSIENT)],
)
def test_rejection_that_comes_too_early_for_pynetdicom_is_noticed(result, source, reason, fault):
    """The peer is a bare socket: what it says, and when, must not depend on any library."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reject():
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(bytes((3, 0, 0, 0, 0, 4, 0, result, source, reason)))
                connection.recv(1)  # until the caller has gone

        peer = threading.Thread(target=reject)
        peer.start()
        handlers = [(evt.EVT_REQUESTED, lose_the_processor)]
        with pytest.raises(AssociationFault) as caught:
            pynetdicom_scu.associate(
                destination(server.getsockname()[1]),
                "SRNODE",
                [build_context(Verification)],
                HASTY,
                handlers=handlers,
            )
        peer.join()

    assert caught.value.fault is fault


class Gap:
    """A reactor checkpoint that loses the processor just after it was found open."""

    def __init__(self):
        self._event = threading.Event()
        self._event.set()

    def wait(self):
        self._event.wait()
        time.sleep(0.6)

    def __getattr__(self, name):
        return getattr(self._event, name)


def widen_the_gap(event):
    """Let the reply arrive before the sender waits for it, and the reactor look just then."""
    event.assoc._reactor_checkpoint = Gap()
    send_msg = event.assoc.dimse.send_msg

    def send_and_lose_the_processor(*arguments):
        send_msg(*arguments)
        time.sleep(1.0)

    event.assoc.dimse.send_msg = send_and_lose_the_processor


def store_through_the_gap(peer, path, *, cured):
    """Return the status of a C-STORE while the reactor sits in its gap."""
    handlers = [(evt.EVT_CONN_OPEN, widen_the_gap)]
    if cured:
        handlers.append((evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies))
    ae = AE(ae_title="SRNODE")
    ae.dimse_timeout = 1.0
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title, evt_handlers=handlers)
    time.sleep(0.05)
    status = association.send_c_store(path)
    association.abort()
    return status.get("Status")


def test_reply_is_lost_in_the_gap_of_pynetdicom_and_kept_by_the_cure(items):
    with pacs() as peer:
        assert store_through_the_gap(peer, items[0].path, cured=False) is None
        assert store_through_the_gap(peer, items[0].path, cured=True) == 0x0000


def test_cure_was_written_for_the_installed_pynetdicom():
    assert pynetdicom_scu.CURE_FITS, (
        "read keep_replies against the new pynetdicom, then renew its fingerprint"
    )


def test_other_pynetdicom_is_noticed(monkeypatch):
    monkeypatch.setattr(pynetdicom_scu, "KNOWN_PYNETDICOM", "another")

    with pytest.warns(RuntimeWarning, match="lost replies"):
        assert not pynetdicom_scu._cure_fits()
