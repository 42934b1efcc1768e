"""Sending to peers that answer well, badly, late or not at all."""

import os
import socket
import threading
import time
from collections import Counter

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage

from dicom_node.content import as_file, split_file
from dicom_node.errors import StoreUnavailable
from dicom_node.network import scu, transport
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.parcels import Item, Parcel
from dicom_node.network.scu import Terms, send, send_parcels
from dicom_node.pixel_files import sha256_of
from dicom_node.retry import Fault, Verdict
from tests.rigs import MR, destination, make_instance, pacs, write_instance, write_series

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


def test_instances_of_every_length_arrive_over_one_association(tmp_path):
    """Within one part of what is sent at once, in several, and longer than the memory for it."""
    items = []
    for number, frames in enumerate((1, 200, 800, 1), 1):
        dataset = make_instance(number, NumberOfFrames=frames)
        dataset.PixelData = os.urandom(32 * 48 * 2 * frames)
        path = write_instance(tmp_path, dataset)
        uid = str(dataset.SOPInstanceUID)
        items.append(Item(key=number, sop_uid=uid, path=path, sha256=sha256_of(path)))

    with LoopbackArchive(tmp_path / "archive") as archive:
        outcomes = list(send(items, destination(archive.port, "ARCHIVE"), "SRNODE"))

    assert faults(outcomes) == [0x0000] * 4
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

    found = {outcome.item.key: outcome.fault for outcome in outcomes}
    assert found == {items[0].key: 0, 9: Fault.NO_CONTEXT, items[1].key: 0}


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


def test_echo_says_why_there_is_no_answer():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(AssociationFault, match="unreachable: 127.0.0.1"):
            scu.echo(destination(probe.getsockname()[1]), "SRNODE")


def terms(peer, **values):
    return Terms(peer=peer, calling_ae="SRNODE", timeouts=HASTY, **values)


def send_side_by_side(items, terms, associations, note):
    """Return the outcomes of one parcel; raise what went wrong with it."""
    [parcel] = send_parcels([Parcel(items=items, note=note)], terms, associations)
    if parcel.error:
        raise parcel.error
    return parcel.outcomes


class Company:
    """Handlers of a peer that waits until so many associations have something to say."""

    def __init__(self, count):
        self._barrier = threading.Barrier(count)
        self.associations, self.seen = set(), []

    def on_store(self, event):
        self.seen.append(event.request.AffectedSOPInstanceUID)
        if event.assoc not in self.associations:
            self.associations.add(event.assoc)
            self._barrier.wait(20)
        return 0x0000


def test_several_associations_share_a_series_and_each_instance_goes_once(tmp_path):
    items, noted, company = write_series(tmp_path / "b", 40), [], Company(4)

    with pacs(company.on_store) as peer:
        outcomes = send_side_by_side(items, terms(peer), 4, noted.append)

    assert len(company.associations) == 4
    assert Counter(company.seen) == Counter(item.sop_uid for item in items)
    assert Counter(each.item.key for each in outcomes) == Counter(item.key for item in items)
    assert {each.fault for each in outcomes} == {0} and len(noted) == 40


def test_few_instances_go_over_one_association(items):
    associations = set()

    with pacs(lambda event: associations.add(event.assoc) or 0) as peer:
        assert len(send_side_by_side(items, terms(peer), 8, lambda outcome: None)) == 4

    assert len(associations) == 1


def test_archive_that_takes_one_association_gets_everything_over_it(tmp_path):
    items, calls, lock = write_series(tmp_path / "b", 40), [], threading.Lock()

    def reject_all_but_one(event):
        with lock:
            calls.append(event.assoc)
        if event.assoc is not calls[0]:
            event.assoc.acse.send_reject(2, 3, 2)
            event.assoc.kill()

    with pacs(requested=reject_all_but_one) as peer:
        outcomes = send_side_by_side(items, terms(peer), 4, lambda outcome: None)

    assert len(calls) == 4
    assert {each.item.key for each in outcomes} == {item.key for item in items}
    assert {each.fault for each in outcomes} == {0}


def test_archive_that_takes_none_is_one_fault(tmp_path):
    items = write_series(tmp_path / "b", 40)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        peer = destination(probe.getsockname()[1])
        [outcome] = send_side_by_side(items, terms(peer), 4, lambda outcome: None)

    assert outcome.fault is Fault.UNREACHABLE


def no_more_threads(monkeypatch, lanes):
    """Let the system start so many lanes and no more."""
    left = iter(range(lanes))

    class Thread(threading.Thread):
        def start(self):
            if self.name == "lane" and next(left, None) is None:
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(threading, "Thread", Thread)


def test_where_one_thread_can_be_started_one_lane_does_it_all(tmp_path, monkeypatch):
    items = write_series(tmp_path / "b", 40)
    with pacs() as peer:
        no_more_threads(monkeypatch, 1)
        outcomes = send_side_by_side(items, terms(peer), 4, lambda outcome: None)

    assert faults(outcomes) == [0x0000] * 40


def test_where_no_thread_can_be_started_each_parcel_says_so(tmp_path, monkeypatch):
    parcels = [Parcel(items=write_series(tmp_path / name, 10)) for name in "abc"]
    with pacs() as peer:
        no_more_threads(monkeypatch, 0)
        ended = list(send_parcels(parcels, terms(peer), 4))

    assert ended == parcels
    assert [(str(each.error), each.outcomes) for each in ended] == [
        ("can't start new thread", [])
    ] * 3


@pytest.mark.parametrize("resumes", [0, scu.RESUMES])
def test_instance_that_breaks_every_association_is_tried_so_often_by_all_lanes(tmp_path, resumes):
    items, tries = write_series(tmp_path / "b", 40), []

    def break_at_one(event):
        if event.request.AffectedSOPInstanceUID == items[7].sop_uid:
            tries.append(event.assoc)
            event.assoc.abort()
        return 0x0000

    with pacs(break_at_one) as peer:
        outcomes = send_side_by_side(items, terms(peer, resumes=resumes), 4, lambda outcome: None)

    [failed] = [each for each in outcomes if each.fault]
    assert failed.item is items[7] and failed.fault is Fault.ABORTED
    assert len({each.item.key for each in outcomes}) == len(outcomes) == 40
    assert len(tries) == resumes + 1


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), KeyError("full")])
def test_what_cannot_be_put_on_record_ends_the_sending(tmp_path, error):
    items, noted = write_series(tmp_path / "b", 40), []

    def full(outcome):
        noted.append(outcome)
        if len(noted) == 10:
            raise error

    with pacs() as peer, pytest.raises(type(error), match="full"):
        send_side_by_side(items, terms(peer), 4, full)

    assert len(noted) < 20  # each association had one more under way


def test_empty_data_set_is_no_instance(tmp_path):
    path = tmp_path / "one.dcm"
    path.write_bytes(as_file(MR, "1.2.3", ExplicitVRLittleEndian, b""))

    with pacs() as peer:
        [outcome] = send([Item(key=1, sop_uid="1.2.3", path=path)], peer, "SRNODE")

    assert outcome.fault is Fault.NO_FILE
