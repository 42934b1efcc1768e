"""Who gets in, and what those who do not may cost, on real sockets."""

import itertools
import os
import socket
import threading
import time

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from dicom_node import telemetry
from dicom_node.network import pynetdicom_scu, scu
from dicom_node.network.rejection import notice_rejection
from tests.faults.flood import request
from tests.rigs import SOURCE, Rig, running_node, write_series

OTHER = {"name": "other", "ae_title": "MR2", "host": "127.0.0.3"}
ACCEPTED, UNKNOWN_CALLING, UNKNOWN_CALLED = None, (1, 1, 3), (1, 1, 7)
FULL = (2, 3, 2)


@pytest.fixture
def node(tmp_path):
    with running_node(tmp_path / "state", peers=[SOURCE | {"host": "127.0.0.1"}, OTHER]) as rig:
        yield rig


def associate(rig: Rig, calling="MR1", called="SRNODE", address="127.0.0.1"):
    """Return what becomes of an association that is asked for from `address`."""
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = 10
    ae.add_requested_context(Verification)
    ae.add_requested_context(MRImageStorage)
    association = ae.associate(
        "127.0.0.1",
        rig.scp.port,
        ae_title=called,
        bind_address=(address, 0),
        evt_handlers=[(evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies)],
    )
    notice_rejection(association)
    return association


def rejection(association):
    """Return result, source and reason of an A-ASSOCIATE-RJ; None when it was accepted."""
    if association.is_established:
        association.release()
        return ACCEPTED
    assert association.is_rejected
    reply = association.acceptor.primitive
    return reply.result, reply.result_source, reply.diagnostic


def answer_on_the_wire(rig: Rig) -> tuple[int, ...]:
    """Return result, source and reason of the A-ASSOCIATE-RJ that MR1 gets.

    Read from the socket: fifty threads of pynetdicom in this process can make another one miss it.
    """
    with socket.create_connection(("127.0.0.1", rig.scp.port), timeout=10) as connection:
        connection.sendall(request("MR1"))
        answer = connection.recv(10, socket.MSG_WAITALL)
    assert answer[:6] == bytes.fromhex("0300 0000 0004")
    return tuple(answer[7:])


@pytest.mark.parametrize(
    ("calling", "called", "address", "answer"),
    [
        ("MR1", "SRNODE", "127.0.0.1", ACCEPTED),
        ("MR1", "SRNODE", "127.0.0.2", UNKNOWN_CALLING),
        ("MR1", "NOBODY", "127.0.0.1", UNKNOWN_CALLED),
        ("MR1", "NOBODY", "127.0.0.2", UNKNOWN_CALLING),
        ("STRANGER", "SRNODE", "127.0.0.1", UNKNOWN_CALLING),
        ("STRANGER", "SRNODE", "127.0.0.2", UNKNOWN_CALLING),
        ("STRANGER", "NOBODY", "127.0.0.1", UNKNOWN_CALLED),
        ("STRANGER", "NOBODY", "127.0.0.2", UNKNOWN_CALLING),
        ("MR1", "SRNODE", "127.0.0.3", UNKNOWN_CALLING),  # where another peer lives
        ("MR2", "SRNODE", "127.0.0.3", ACCEPTED),
    ],
)
def test_admission_matrix(node, calling, called, address, answer):
    assert rejection(associate(node, calling, called, address)) == answer


def test_idle_associations_of_one_peer_do_not_keep_another_out(tmp_path):
    peers = [SOURCE | {"host": "127.0.0.1"}, OTHER]
    limits = {"associations_per_peer": 50}
    with running_node(tmp_path, peers=peers, limits=limits, node={"max_associations": 60}) as node:
        idle = [associate(node) for _ in range(50)]
        assert all(each.is_established for each in idle)

        assert answer_on_the_wire(node) == FULL
        assert rejection(associate(node, "MR2", address="127.0.0.3")) == ACCEPTED
        for each in idle:
            each.abort()


def test_seats_threads_and_sockets_of_ended_associations_are_free_again(tmp_path):
    peers = [SOURCE | {"host": "127.0.0.1"}]
    with running_node(tmp_path, peers=peers, limits={"associations_per_peer": 1}) as node:
        scu.echo(node.peer, "MR1")
        wait_for(lambda: not node.scp.associations())
        files, threads = open_files(), threading.active_count()

        for end in ("release", "abort", "cut") * 5:
            association = associate(node)
            assert association.is_established
            leave(association, end)
            wait_for(lambda: not node.scp.associations())

        wait_for(lambda: threading.active_count() <= threads)
        wait_for(lambda: open_files() <= files)


def leave(association, how):
    """End an association in one of the ways that peers have."""
    if how != "cut":
        getattr(association, how)()
        return
    ours = association.dul.socket.socket
    ours.shutdown(socket.SHUT_RDWR)
    association.join(5)
    ours.close()  # pynetdicom leaves that to the garbage collector


def open_files():
    return len(os.listdir("/proc/self/fd"))


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_idle_association_is_cut(tmp_path):
    with running_node(tmp_path, node={"network_timeout_s": 0.5}) as node:
        association = associate(node)

        wait_for(lambda: association.is_aborted, 5)
        wait_for(lambda: not node.scp.associations())


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("long PDU", [b"\x04\x00\x10\x00\x00\x00"]),
        ("slow PDU", [b"\x04\x00\x00\x00\x01\x00", b"\x00\x00\x00\xfc\x01\x01 of it"]),
        ("slow PDU", [b"\x04\x00\x00\x00\x01\x00\x00\x00\x00\xfc\x01\x01", *[b"x"] * 60]),
        ("slow message", [b"\x04\x00\x00\x00\x00\x07\x00\x00\x00\x03\x01\x01x"] * 60),
    ],
    ids=["announced too long", "stalled in a PDU", "dripped PDU", "dripped message"],
)
def test_admitted_peer_that_misbehaves_is_cut(tmp_path, kind, sent):
    def cut():
        return telemetry.connections_refused.labels(kind=kind)._value.get()

    limits = {"pdu_s": 0.5, "pdu_bytes": 2**20}
    with running_node(tmp_path, limits=limits) as node:
        association = associate(node)
        raw, before = association.dul.socket.socket, cut()
        for data in sent:
            try:
                raw.sendall(data)
            except OSError:
                break
            time.sleep(0.05)

        wait_for(lambda: not node.scp.associations(), 5)
        assert cut() == before + 1
        scu.echo(node.peer, "MR1")


def test_a_full_lobby_lets_the_oldest_go(tmp_path):
    with running_node(tmp_path, limits={"waiting": 8}) as node:
        silent = [socket.create_connection(("127.0.0.1", node.scp.port)) for _ in range(30)]
        scu.echo(node.peer, "MR1")

        assert silent[0].recv(1) == b""
        for each in silent:
            each.close()


def test_who_waits_is_told_when_the_node_stops(node):
    with socket.create_connection(("127.0.0.1", node.scp.port)) as waiting:
        wait_for(lambda: node.scp._server.waiting() == 1)
        node.scp.stop(0.0)

        assert waiting.recv(10) == bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 1))


JUNK = [
    b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x01\x00\xff\xff\xff\xff",
    os.urandom(100),
]


def stall(port, held):
    """Leave a connection open, with nothing or half a request said."""
    connection = socket.create_connection(("127.0.0.1", port))
    held.append(connection)
    if len(held) % 2:
        connection.sendall(b"\x01\x00\x00\x00\x01\x00" + bytes(40))


def babble(port, junk):
    """Say something that is no DICOM, and go without waiting for an answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(junk)


def test_a_valid_send_succeeds_while_others_flood(tmp_path, capsys):
    items = write_series(tmp_path / "a", 10)
    with running_node(tmp_path / "state") as node:
        held, stop = [], threading.Event()

        def flood():
            for junk in itertools.cycle(JUNK):
                if stop.is_set() or len(held) > 600:
                    return
                babble(node.scp.port, junk)
                stall(node.scp.port, held)

        scu.echo(node.peer, "MR1")
        threads = threading.active_count()
        flooding = threading.Thread(target=flood)
        flooding.start()
        slowest = 0.0
        while flooding.is_alive():
            started = time.monotonic()
            [outcome] = scu.send(items[:1], node.peer, "MR1")
            slowest = max(slowest, time.monotonic() - started)
            assert outcome.fault == 0x0000
        stop.set()
        flooding.join()
        during = threading.active_count()
        for each in held:
            each.close()

    assert len(held) > 600
    assert slowest < 5
    assert during <= threads + 6  # whatever waits costs no thread
    assert capsys.readouterr().out.count("connection.refused") < 80
