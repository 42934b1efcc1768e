"""The listener with real associations on loopback."""

import os
import socket
import struct
import subprocess
import threading
import time

import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    Verification,
)

from dicom_node.errors import NodeError
from dicom_node.network import pynetdicom_scu, scu
from dicom_node.network.rejection import notice_rejection
from dicom_node.network.scp import NodeScp
from dicom_node.retry import Fault
from dicom_node.syntaxes import TRANSFER_SYNTAXES
from tests.rigs import (
    MR,
    SOURCE,
    Rig,
    dcmtk,
    encoded,
    make_instance,
    running_node,
    write_instance,
    write_series,
)


@pytest.fixture
def node(tmp_path):
    with running_node(tmp_path / "state") as rig:
        yield rig


def associate(rig: Rig, *, calling: str = "MR1", called: str = "SRNODE", syntax: str | None = None):
    """Return what becomes of a plain pynetdicom association with the node."""
    ae = AE(ae_title=calling)
    ae.dimse_timeout = ae.acse_timeout = 10
    ae.add_requested_context(Verification)
    ae.add_requested_context(MRImageStorage, syntax or ExplicitVRLittleEndian)
    association = ae.associate(
        "127.0.0.1",
        rig.scp.port,
        ae_title=called,
        evt_handlers=[(evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies)],
    )
    notice_rejection(association)
    return association


def store(association, path):
    """Return the status of one C-STORE."""
    return association.send_c_store(path)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda uid: uid.keyword,
)
def test_instance_is_stored_as_sent(node, tmp_path, syntax):
    path = write_instance(tmp_path, make_instance(), syntax)
    association = associate(node, syntax=syntax)

    assert store(association, path).Status == 0x0000
    association.release()

    row = node.store.series.find_instance("1.2.826.0.1.1")
    assert row.transfer_syntax == syntax
    assert row.path.read_bytes().endswith(encoded(make_instance(), syntax)[400:])


REFUSED_SYNTAXES = (
    "1.2.840.10008.1.2.4.110",  # JPEG XL lossless
    "1.2.840.10008.1.2.4.100",  # MPEG-2
    "1.2.840.10008.1.2.4.94",  # JPIP: the pixels are elsewhere
    "1.2.840.10008.1.2.1.98",  # encapsulated uncompressed
    "1.2.840.113619.5.2",  # GE, implicit big endian
)


def test_each_syntax_is_negotiated_that_can_be_decoded_and_no_other(node):
    entity = AE(ae_title="MR1")
    for syntax in (*TRANSFER_SYNTAXES, *REFUSED_SYNTAXES):
        entity.add_requested_context(MRImageStorage, syntax)
    association = entity.associate("127.0.0.1", node.scp.port, ae_title="SRNODE")

    accepted = [context.transfer_syntax[0] for context in association.accepted_contexts]
    refused = {context.result for context in association.rejected_contexts}
    association.release()

    assert accepted == list(TRANSFER_SYNTAXES)
    assert refused == {4}  # transfer syntaxes not supported (PS3.8 Table 9-18)
    assert len(association.rejected_contexts) == len(REFUSED_SYNTAXES)


@pytest.mark.parametrize(
    "sop_class",
    [EnhancedMRImageStorage, SecondaryCaptureImageStorage, RawDataStorage, "1.3.12.2.1107.5.9.1"],
)
def test_what_comes_with_a_study_is_not_refused_at_negotiation(node, sop_class):
    entity = AE(ae_title="MR1")
    entity.add_requested_context(sop_class)
    association = entity.associate("127.0.0.1", node.scp.port, ae_title="SRNODE")

    assert association.is_established and len(association.accepted_contexts) == 1
    association.release()


def test_echo_is_answered(node):
    scu.echo(node.peer, "MR1")


@pytest.mark.parametrize(
    ("calling", "called", "answer"),
    [("STRANGER", "SRNODE", (1, 1, 3)), ("MR1", "NOBODY", (1, 1, 7))],
)
def test_stranger_gets_the_rejection_that_fits(node, calling, called, answer):
    association = associate(node, calling=calling, called=called)

    reply = association.acceptor.primitive
    assert association.is_rejected
    assert (reply.result, reply.result_source, reply.diagnostic) == answer


def test_unknown_address_is_rejected(tmp_path):
    elsewhere = SOURCE | {"host": "192.0.2.1"}
    with running_node(tmp_path, peers=[elsewhere]) as node:
        assert associate(node).is_rejected


def test_peer_that_is_no_source_may_echo_but_not_store(tmp_path):
    pacs = SOURCE | {"roles": ["destination"]}
    with running_node(tmp_path, peers=[pacs]) as node:
        scu.echo(node.peer, "MR1")
        [outcome] = scu.send(write_series(tmp_path / "a", 1), node.peer, "MR1")

        assert outcome.fault == 0x0124
        assert node.store.ledger().acknowledged == 0


def test_storage_class_that_is_not_configured_gets_no_context(tmp_path):
    ae = AE(ae_title="MR1")
    ae.add_requested_context(CTImageStorage)
    with running_node(tmp_path, node={"storage_classes": [MR]}) as node:
        association = ae.associate("127.0.0.1", node.scp.port, ae_title="SRNODE")

    assert not association.is_established and association.rejected_contexts


def test_refusal_carries_status_and_reason(node, tmp_path):
    path = write_instance(tmp_path, make_instance())
    path.write_bytes(path.read_bytes()[:-1])
    association = associate(node)

    answer = store(association, path)
    association.release()

    assert answer.Status == 0xC000
    assert answer.ErrorComment == "PixelData is cut short: 3071 of 3072 bytes"


def test_conflict_is_answered_with_its_status(node, tmp_path):
    association = associate(node)
    store(association, write_instance(tmp_path, make_instance()))
    other = write_instance(tmp_path, make_instance(EchoTime="9"))

    assert store(association, other).Status == 0x0111
    association.release()


def test_announced_uid_must_be_the_one_in_the_data_set(node, tmp_path):
    path = write_instance(tmp_path, make_instance())
    file = path.read_bytes()
    meta_end = 132 + 12 + int.from_bytes(file[140:144], "little")
    path.write_bytes(file[:meta_end].replace(b"1.2.826.0.1.1", b"1.2.826.0.1.7") + file[meta_end:])
    association = associate(node)

    answer = store(association, path)
    association.release()

    assert answer.Status == 0xA900 and "1.2.826.0.1.7" in answer.ErrorComment


def test_exception_in_the_handler_is_no_success(node, tmp_path, monkeypatch):
    def break_down(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("dicom_node.network.keeping.take_in_meanwhile", break_down)
    association = associate(node)

    assert store(association, write_instance(tmp_path, make_instance())).Status == 0xC211
    association.release()
    scu.echo(node.peer, "MR1")


def test_port_in_use_is_one_clear_line(node):
    settings = node.settings.model_copy(
        update={"node": node.settings.node.model_copy(update={"port": node.scp.port})}
    )

    with pytest.raises(NodeError, match=f"cannot listen on 127.0.0.1:{node.scp.port}: ") as error:
        NodeScp(settings, node.store, node.files).start()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "junk",
    [
        b"",  # a health check: connect, and away
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + os.urandom(512),  # TLS where none is spoken
        b"\x01\x00\xff\xff\xff\xff",  # an A-ASSOCIATE-RQ of 4 GiB
        b"\x01\x00\x00\x00\x00\x44" + b"\x00" * 68,
        b"\x04\x00\x00\x00\x00\x04\x00\x00\x00\x02",  # data before any association
        os.urandom(4096),
    ],
    ids=["nothing", "http", "tls", "4 GiB", "empty request", "early data", "noise"],
)
def test_junk_does_not_disturb_the_node(node, junk):
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", node.scp.port)) as connection:
            connection.sendall(junk)

    scu.echo(node.peer, "MR1")


def test_peer_that_stalls_in_its_request_is_cut(tmp_path):
    with running_node(tmp_path, node={"acse_timeout_s": 0.5}) as node:
        with socket.create_connection(("127.0.0.1", node.scp.port)) as connection:
            connection.sendall(b"\x01\x00\x00\x00\x01\x00" + b"\x00" * 10)
            connection.settimeout(10)
            assert connection.recv(100) == b""


def test_peer_that_drips_its_request_is_cut(tmp_path):
    with running_node(tmp_path, node={"acse_timeout_s": 0.5}) as node:
        with socket.create_connection(("127.0.0.1", node.scp.port)) as connection:
            connection.sendall(b"\x01\x00\x00\x00\x01\x00")
            with pytest.raises(OSError):
                for _ in range(100):
                    connection.sendall(b"\x00")
                    time.sleep(0.1)


def test_association_dropped_in_the_middle_keeps_what_was_acknowledged(node, tmp_path):
    items = write_series(tmp_path / "a", 3)
    association = associate(node)
    assert store(association, items[0].path).Status == 0x0000
    raw = association.dul.socket.socket
    half_a_pdu = struct.pack(">BxLLBB", 4, 0x4000, 0x3FFC, 1, 1) + b"half"
    raw.sendall(half_a_pdu)  # a good one: of a bad one the node would end the association first
    raw.shutdown(socket.SHUT_RDWR)

    again = list(scu.send(items, node.peer, "MR1"))

    assert {outcome.fault for outcome in again} == {0x0000}
    assert node.store.ledger().acknowledged == 3
    assert len(node.files.paths()) == 3 and not list(node.files.root.glob("*/*.part"))


def test_parallel_associations_that_send_the_same_series_make_one(node, tmp_path):
    items = write_series(tmp_path / "a", 6)
    outcomes = []

    def send_all():
        outcomes.extend(scu.send(items, node.peer, "MR1"))

    threads = [threading.Thread(target=send_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [outcome.fault for outcome in outcomes] == [0x0000] * 24
    assert node.store.ledger().acknowledged == len(node.files.paths()) == 6


def test_too_many_associations_are_rejected_for_now(tmp_path):
    with running_node(tmp_path, node={"max_associations": 1}) as node:
        first = associate(node)
        second = associate(node)

        reply = second.acceptor.primitive
        assert (reply.result, reply.result_source, reply.diagnostic) == (2, 3, 2)
        first.release()


def test_stop_lets_the_running_association_finish(node, tmp_path):
    items = write_series(tmp_path / "a", 3)
    association = associate(node)
    store(association, items[0].path)
    stopping = threading.Thread(target=node.scp.stop, args=(20.0,))
    stopping.start()
    time.sleep(0.7)  # longer than the listener needs to close

    [refused] = scu.send(items[1:2], node.peer, "MR1")
    assert store(association, items[1].path).Status == 0x0000
    association.release()
    stopping.join(10)

    assert refused.fault is Fault.UNREACHABLE
    assert not stopping.is_alive()


def test_stop_aborts_who_does_not_finish(node):
    association = associate(node)
    started = time.monotonic()

    node.scp.stop(drain_s=0.5)

    assert time.monotonic() - started < 5
    time.sleep(0.5)
    assert association.is_aborted and node.scp.associations() == 0


def test_accepted_socket_answers_at_once(node):
    association = associate(node)
    [accepted] = node.scp._server.active_associations
    option = accepted.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    association.release()

    assert option


def test_dcmtk_storescu_is_understood(node, tmp_path):
    program = dcmtk("storescu")
    if program is None:
        pytest.skip("dcmtk is not installed")
    paths = [str(item.path) for item in write_series(tmp_path / "a", 4)]
    command = [program, "-aet", "MR1", "-aec", "SRNODE", "127.0.0.1", str(node.scp.port), *paths]

    done = subprocess.run(
        command, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert node.store.ledger().acknowledged == 4
    assert MR == node.store.series.all_instances()[0].sop_class
