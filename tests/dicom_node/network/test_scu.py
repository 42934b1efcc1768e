"""Sending to peers that answer well, badly, late or not at all."""

import socket
import threading
import time
from collections import Counter

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import MRImageStorage, Verification

from dicom_node.content import split_file
from dicom_node.network import scu, transport
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.scu import AssociationFault, Item, Timeouts, send
from dicom_node.retry import Fault, Verdict
from tests.rigs import destination, make_instance, pacs, write_instance, write_series

HASTY = Timeouts(connect_s=2.0, association_s=2.0, reply_s=2.0)


@pytest.fixture
def items(tmp_path):
    return write_series(tmp_path / "a", 4)


def faults(outcomes):
    return [outcome.fault for outcome in outcomes]


def test_every_instance_arrives_once_byte_by_byte(tmp_path, items):
    with LoopbackArchive(tmp_path / "archive") as archive:
        outcomes = list(send(items, destination(archive.port, "ARCHIVE"), "SRNODE"))

    assert faults(outcomes) == [0x0000] * 4
    assert Counter(archive.received) == Counter(item.sop_uid for item in items)
    for item in items:
        [copy] = [path for path in archive.paths() if path.stem == item.sop_uid]
        assert split_file(copy) == split_file(item.path)


def test_association_asks_only_for_what_is_at_hand(items):
    asked = []

    def note(event):
        asked.extend(event.assoc.requestor.requested_contexts)

    with pacs(requested=note) as peer:
        list(send(items, peer, "SRNODE"))

    assert [(cx.abstract_syntax, cx.transfer_syntax) for cx in asked] == [
        (MRImageStorage, [ExplicitVRLittleEndian])
    ]


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111, 0xA700, 0xA900, 0xC000])
def test_each_instance_has_its_own_status(items, status):
    bad = items[1].sop_uid

    def answer(event):
        return status if event.request.AffectedSOPInstanceUID == bad else 0x0000

    with pacs(answer) as peer:
        outcomes = list(send(items, peer, "SRNODE"))

    assert faults(outcomes) == [0, status, 0, 0]


def test_rejection_tells_how_lasting_it_is(items):
    for result, expected in ((1, Fault.REJECTED_PERMANENT), (2, Fault.REJECTED_TRANSIENT)):

        def reject(event, result=result):
            event.assoc.acse.send_reject(result, 1, 1)
            event.assoc.kill()

        with pacs(requested=reject) as peer:
            [outcome] = send(items, peer, "SRNODE")
        assert outcome.fault is expected and outcome.item is items[0]


def test_nobody_there_is_unreachable(items):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        [outcome] = send(items, destination(probe.getsockname()[1]), "SRNODE")

    assert outcome.fault is Fault.UNREACHABLE and "127.0.0.1" in outcome.comment


def test_unknown_host_name_is_unreachable(items):
    [outcome] = send(items, destination(104, host="no-such-host.invalid"), "SRNODE")

    assert outcome.fault is Fault.UNREACHABLE and "no-such-host" in outcome.comment


def test_peer_that_accepts_and_is_silent_is_given_up(items):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        [outcome] = send(items, destination(silent.getsockname()[1]), "SRNODE", timeouts=HASTY)

    assert outcome.verdict is Verdict.TRANSIENT
    assert time.monotonic() - started < 6


def test_peer_without_our_contexts_is_a_lasting_fault(items):
    with pacs(syntaxes=[RLELossless]) as peer:
        [outcome] = send(items, peer, "SRNODE")

    assert outcome.fault is Fault.NO_CONTEXT


def test_one_refused_context_does_not_keep_the_others_back(tmp_path, items):
    path = write_instance(tmp_path, make_instance(), RLELossless)
    odd = Item(key=9, sop_uid="1.2.826.0.1.1", path=path)

    with pacs(syntaxes=[ExplicitVRLittleEndian, ImplicitVRLittleEndian]) as peer:
        outcomes = list(send([items[0], odd, items[1]], peer, "SRNODE"))

    assert faults(outcomes) == [0, Fault.NO_CONTEXT, 0]


def test_missing_damaged_and_foreign_files_are_named(tmp_path, items):
    gone = Item(key=7, sop_uid="1.2", path=tmp_path / "gone.dcm")
    junk = Item(key=8, sop_uid="1.2", path=tmp_path / "junk.dcm")
    junk.path.write_bytes(b"junk" * 99)
    foreign = Item(key=9, sop_uid="1.2", path=items[0].path)

    with pacs() as peer:
        outcomes = list(send([gone, junk, foreign, items[0]], peer, "SRNODE"))

    assert faults(outcomes) == [Fault.NO_FILE] * 3 + [0]


def test_aborted_association_is_resumed_on_a_fresh_one(items):
    seen = []

    def abort_once(event):
        seen.append((event.request.AffectedSOPInstanceUID, id(event.assoc)))
        if len(seen) == 2:
            event.assoc.abort()
        return 0x0000

    with pacs(abort_once) as peer:
        outcomes = list(send(items, peer, "SRNODE", timeouts=HASTY))

    assert faults(outcomes) == [0] * 4
    assert [uid for uid, _ in seen] == [items[i].sop_uid for i in (0, 1, 1, 2, 3)]
    assert len({association for _, association in seen}) == 2


def test_late_answer_never_counts_for_the_next_instance(items):
    late = threading.Event()

    def dawdle_once(event):
        if event.request.AffectedSOPInstanceUID == items[1].sop_uid and not late.is_set():
            late.set()
            time.sleep(3.0)
            return 0xC000  # arrives after the time limit
        return 0x0000

    with pacs(dawdle_once) as peer:
        outcomes = list(send(items, peer, "SRNODE", timeouts=HASTY))

    assert faults(outcomes) == [0] * 4


def test_resuming_is_bounded(items):
    associations = []

    def always_abort(event):
        associations.append(event.assoc)
        event.assoc.abort()
        return 0x0000

    with pacs(always_abort) as peer:
        outcomes = list(send(items, peer, "SRNODE", timeouts=HASTY))

    assert faults(outcomes) == [Fault.ABORTED]
    assert len(associations) == scu.RESUMES + 1


def test_peer_that_stops_reading_does_not_hang_us(items, tmp_path, monkeypatch):
    monkeypatch.setattr(scu, "RESUMES", 0)
    big = make_instance(1, SOPInstanceUID="1.2.826.9")
    big.PixelData, big.NumberOfFrames = bytes(32 * 48 * 2 * 20000), 20000
    item = Item(key=1, sop_uid="1.2.826.9", path=write_instance(tmp_path, big))
    gate = threading.Event()

    def stop_reading(event):
        event.assoc.dul.socket.recv = lambda nr_bytes: gate.wait(30) and bytearray()

    ae = AE(ae_title="PACS")
    ae.add_supported_context(MRImageStorage, [ExplicitVRLittleEndian])
    server = transport.listen(ae, ("127.0.0.1", 0), [(evt.EVT_ESTABLISHED, stop_reading)])
    started = time.monotonic()
    [outcome] = send(
        [item], destination(server.server_address[1], "PACS"), "SRNODE", timeouts=HASTY
    )
    elapsed = time.monotonic() - started
    gate.set()
    transport.close(server, 0.0)

    assert outcome.verdict is Verdict.TRANSIENT
    assert elapsed < 100


def test_proceed_ends_the_sending_between_two_instances(items):
    answers = iter([True, True, True, False, False])

    with pacs() as peer:
        outcomes = list(send(items, peer, "SRNODE", proceed=lambda: next(answers)))

    assert faults(outcomes) == [0, 0]


def test_socket_of_ours_sends_at_once(items):
    options = []

    def look(event):
        raw = event.assoc.dul.socket.socket
        options.append(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with pacs(requested=look) as peer:
        association = scu.associate(peer, "SRNODE", [scu.build_context(Verification)], HASTY)
        ours = association.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        scu.part(association)

    assert ours and all(options)


def test_echo_says_why_there_is_no_answer():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(AssociationFault, match="unreachable: 127.0.0.1"):
            scu.echo(destination(probe.getsockname()[1]), "SRNODE")


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
            scu.associate(
                destination(server.getsockname()[1]),
                "SRNODE",
                [scu.build_context(Verification)],
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
        handlers.append((evt.EVT_CONN_OPEN, scu.keep_replies))
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
    assert scu.CURE_FITS, "read keep_replies against the new pynetdicom, then renew its fingerprint"


def test_other_pynetdicom_is_noticed(monkeypatch):
    monkeypatch.setattr(scu, "KNOWN_PYNETDICOM", "another")

    with pytest.warns(RuntimeWarning, match="lost replies"):
        assert not scu._cure_fits()


def test_without_the_cure_lost_replies_are_resumed(items, monkeypatch):
    monkeypatch.setattr(scu, "CURE_FITS", False)
    monkeypatch.setattr(scu, "UNCURED_REPLY_S", 0.5)

    with pacs() as peer:
        assert faults(send(items, peer, "SRNODE")) == [0] * 4


def test_roles_that_are_asked_for_are_negotiated():
    ae = AE(ae_title="PACS")
    ae.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    server = transport.listen(ae, ("127.0.0.1", 0), [])
    try:
        association = scu.associate(
            destination(server.server_address[1], "PACS"),
            "SRNODE",
            [scu.build_context(MRImageStorage)],
            HASTY,
            roles=[build_role(MRImageStorage, scp_role=True)],
        )
        [context] = association.accepted_contexts
        scu.part(association)
    finally:
        transport.close(server, 0.0)

    assert (context.as_scu, context.as_scp) == (False, True)
