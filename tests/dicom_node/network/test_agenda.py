"""Parcels one behind the other over the same associations, to peers that take them or do not."""

import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from dicom_node.errors import StoreUnavailable
from dicom_node.network import agenda, scu
from dicom_node.network.connecting import Timeouts
from dicom_node.network.parcels import Item, Outcome, Parcel, Sendable
from dicom_node.network.scu import Terms, send_parcels
from dicom_node.retry import Fault
from tests.rigs import destination, make_instance, pacs, write_instance, write_series

HASTY = Timeouts(connect_s=2.0, association_s=2.0, reply_s=2.0)


def terms(peer, **values):
    return Terms(peer=peer, calling_ae="SRNODE", timeouts=HASTY, **values)


def parcels_in(folder: Path, *counts: int) -> list[Parcel]:
    return [Parcel(items=write_series(folder / f"{n}", count)) for n, count in enumerate(counts)]


def faults(parcel):
    return Counter(outcome.fault for outcome in parcel.outcomes)


def lanes_alive():
    return [thread for thread in threading.enumerate() if thread.name == "lane"]


class Archive:
    """Handlers of a peer that remembers what came over which association."""

    def __init__(self, pause_s=0.0, answers=None):
        self.pause_s = pause_s
        self.answers = answers or {}  # by SOP instance UID: a status, or None for an abort
        self.requested, self.seen = [], []
        self._lock = threading.Lock()

    def on_request(self, event):
        with self._lock:
            self.requested.append(event.assoc)

    def on_store(self, event):
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._lock:
            self.seen.append((uid, event.assoc))
        time.sleep(self.pause_s)
        status = self.answers.get(uid, 0x0000)
        if status is None:
            event.assoc.abort()
        return status or 0x0000

    @property
    def came(self):
        return Counter(uid for uid, _ in self.seen)

    def peer(self, **values):
        return pacs(self.on_store, requested=self.on_request, **values)


def uids(*parcels):
    return Counter(item.sop_uid for parcel in parcels for item in parcel.items)


def test_parcels_follow_each_other_over_the_same_associations(tmp_path):
    parcels, archive = parcels_in(tmp_path, 40, 5, 0, 30, 24), Archive(pause_s=0.005)

    with archive.peer() as peer:
        ended = list(send_parcels(parcels, terms(peer), 3))

    assert sorted(map(id, ended)) == sorted(map(id, parcels))
    assert [faults(each) for each in parcels] == [
        Counter({0: len(each.items)} if each.items else {}) for each in parcels
    ]
    assert archive.came == uids(*parcels)
    assert len(archive.requested) == 3
    assert not lanes_alive()


def test_lanes_are_added_when_more_waits(tmp_path):
    parcels, archive = parcels_in(tmp_path, 3, 40), Archive(pause_s=0.05)

    with archive.peer() as peer:
        list(send_parcels(parcels, terms(peer), 4))

    assert len({assoc for _, assoc in archive.seen}) == 4


@pytest.mark.parametrize("rejection", [(2, 3, 2), (1, 1, 3)])
def test_a_peer_that_takes_one_association_gets_every_parcel_over_it(tmp_path, rejection):
    """Whether it refuses the others for now or for good; none of the parcels fails for that."""
    parcels, archive = parcels_in(tmp_path, 40, 40, 40), Archive()

    def take_one(event):
        archive.on_request(event)
        if event.assoc is not archive.requested[0]:
            event.assoc.acse.send_reject(*rejection)
            event.assoc.kill()

    with pacs(archive.on_store, requested=take_one) as peer:
        list(send_parcels(parcels, terms(peer), 4))

    assert [faults(each) for each in parcels] == [Counter({0: 40})] * 3
    assert archive.came == uids(*parcels)
    assert len(archive.requested) == 4


def test_where_nobody_answers_every_parcel_has_one_fault(tmp_path):
    parcels = parcels_in(tmp_path, 40, 40, 3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        peer = destination(probe.getsockname()[1])
        ended = list(send_parcels(parcels, terms(peer), 4))

    assert ended == parcels
    for parcel in parcels:
        assert faults(parcel) == Counter({Fault.UNREACHABLE: 1})
        assert parcel.outcomes[0].item is parcel.items[0]


@pytest.mark.parametrize("associations", [1, 4])
@pytest.mark.parametrize("resumes", [0, scu.RESUMES])
def test_an_instance_that_breaks_every_association_fails_its_own_parcel(
    tmp_path, resumes, associations
):
    parcels = parcels_in(tmp_path, 40, 40, 40)
    bad = parcels[1].items[7]
    archive = Archive(answers={bad.sop_uid: None}, pause_s=0.001)

    with archive.peer() as peer:
        list(send_parcels(parcels, terms(peer, resumes=resumes), associations))

    assert faults(parcels[0]) == faults(parcels[2]) == Counter({0: 40})
    [failed] = [each for each in parcels[1].outcomes if each.fault]
    assert failed.item is bad and failed.fault is Fault.ABORTED
    assert archive.came[bad.sop_uid] == resumes + 1
    # One lane has nobody who would send the rest.
    assert len(parcels[1].outcomes) == (8 if associations == 1 else 40)


def test_a_parcel_that_is_not_wanted_any_more_is_left_out(tmp_path):
    parcels, archive = parcels_in(tmp_path, 20, 20, 20), Archive()
    asked = iter([True] * 5)
    parcels[1].proceed = lambda: next(asked, False)

    with archive.peer() as peer:
        ended = list(send_parcels(parcels, terms(peer), 1))

    assert ended == parcels
    assert faults(parcels[0]) == faults(parcels[2]) == Counter({0: 20})
    assert faults(parcels[1]) == Counter({0: 5}) and parcels[1].error is None
    assert len(archive.seen) == 45


def test_what_is_not_wanted_at_all_costs_no_association(tmp_path):
    parcels, archive = parcels_in(tmp_path, 20, 20), Archive()
    for parcel in parcels:
        parcel.proceed = lambda: False

    with archive.peer() as peer:
        assert list(send_parcels(parcels, terms(peer), 4)) == parcels

    assert archive.requested == []
    assert [each.outcomes for each in parcels] == [[], []]


@pytest.mark.parametrize("associations", [1, 4])
@pytest.mark.parametrize("asked", ["note", "proceed"])
def test_what_a_parcel_raises_ends_this_parcel_alone(tmp_path, asked, associations):
    parcels, archive, calls = parcels_in(tmp_path, 40, 40, 40), Archive(pause_s=0.002), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 10:
            raise StoreUnavailable("the disk is full")
        return True

    setattr(parcels[1], asked, fail)
    with archive.peer() as peer:
        list(send_parcels(parcels, terms(peer), associations))

    assert faults(parcels[0]) == faults(parcels[2]) == Counter({0: 40})
    assert parcels[0].error is parcels[2].error is None
    assert isinstance(parcels[1].error, StoreUnavailable)
    assert len(parcels[1].outcomes) < 10 + associations


def test_a_lane_that_breaks_in_a_way_nobody_foresaw_fails_what_it_had_at_hand(
    tmp_path, monkeypatch
):
    parcels, archive = parcels_in(tmp_path, 40, 40, 40), Archive()
    bad, whole = parcels[1].items[3], scu._store

    def store(association, reader, each):
        if each.item is bad:
            raise ZeroDivisionError
        return whole(association, reader, each)

    monkeypatch.setattr(scu, "_store", store)
    with archive.peer() as peer:
        list(send_parcels(parcels, terms(peer), 2))

    assert faults(parcels[0]) == faults(parcels[2]) == Counter({0: 40})
    assert isinstance(parcels[1].error, ZeroDivisionError)
    assert bad.sop_uid not in archive.came


def test_a_lane_that_breaks_between_two_associations_has_nothing_at_hand(tmp_path, monkeypatch):
    """The instance whose association broke waits again: it must not be taken back twice."""
    parcels, calls, whole = parcels_in(tmp_path, 10, 10), [], scu.call
    archive = Archive(answers={parcels[0].items[3].sop_uid: None})

    def crash_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return whole(*arguments)

    at_hand, crash = [], agenda.Agenda.crash

    def note(self, each, error):
        at_hand.append(each)
        crash(self, each, error)

    monkeypatch.setattr(scu, "call", crash_at_the_second)
    monkeypatch.setattr(agenda.Agenda, "crash", note)
    with archive.peer() as peer:
        ended = list(send_parcels(parcels, terms(peer), 1))

    assert ended == parcels and at_hand == [None]
    assert isinstance(parcels[0].error, ZeroDivisionError)
    assert faults(parcels[0]) == Counter({0: 3}) and faults(parcels[1]) == Counter({0: 10})


def test_a_lane_that_cannot_even_begin_fails_one_parcel_after_the_other(tmp_path, monkeypatch):
    def crash(*_):
        raise ZeroDivisionError

    parcels = parcels_in(tmp_path, 10, 10)
    monkeypatch.setattr(scu, "call", crash)
    assert list(send_parcels(parcels, terms(destination(1)), 1)) == parcels

    assert [type(each.error) for each in parcels] == [ZeroDivisionError] * 2
    assert not any(each.outcomes for each in parcels)


def test_who_stops_listening_leaves_nothing_behind(tmp_path):
    parcels, archive = parcels_in(tmp_path, 5, 200), Archive(pause_s=0.01)

    with archive.peer() as peer:
        sending = send_parcels(parcels, terms(peer), 2)
        assert next(sending) is parcels[0]
        sending.close()
        assert not lanes_alive()

    assert len(archive.seen) == sum(len(each.outcomes) for each in parcels) < 100


def test_where_the_next_parcel_cannot_be_had_what_is_under_way_is_finished(tmp_path):
    first, archive = parcels_in(tmp_path, 40)[0], Archive(pause_s=0.01)

    def parcels():
        yield first
        while not first.outcomes:
            time.sleep(0.01)
        raise StoreUnavailable("the database is locked")

    with archive.peer() as peer, pytest.raises(StoreUnavailable):
        list(send_parcels(parcels(), terms(peer), 2))

    assert not lanes_alive()
    assert 0 < len(first.outcomes) == len(archive.seen) < 40


def test_what_needs_another_association_is_not_overtaken_by_what_comes_behind(
    tmp_path, monkeypatch
):
    """One context an association: the second syntax of the first parcel needs a fresh one."""
    monkeypatch.setattr(agenda, "MOST_CONTEXTS", 1)
    dataset = make_instance(99)
    path = write_instance(tmp_path, dataset, ImplicitVRLittleEndian)
    other = Item(key=99, sop_uid=str(dataset.SOPInstanceUID), path=path)
    parcels, archive = parcels_in(tmp_path, 10, 100), Archive()
    parcels[0].items = [*parcels[0].items, other]

    with archive.peer(syntaxes=[ExplicitVRLittleEndian, ImplicitVRLittleEndian]) as peer:
        list(send_parcels(parcels, terms(peer), 1))

    assert [uid for uid, _ in archive.seen][10] == other.sop_uid
    assert archive.came == uids(*parcels)
    assert len(archive.requested) == 3


def test_files_in_several_syntaxes_are_asked_for_together(tmp_path):
    [parcel], archive = parcels_in(tmp_path, 20), Archive()
    others = []
    for number in range(100, 110):
        dataset = make_instance(number, SOPInstanceUID=generate_uid())
        path = write_instance(tmp_path, dataset, ImplicitVRLittleEndian)
        others.append(Item(key=number, sop_uid=str(dataset.SOPInstanceUID), path=path))
    parcel.items = [each for pair in zip(parcel.items, others, strict=False) for each in pair]

    with archive.peer(syntaxes=[ExplicitVRLittleEndian, ImplicitVRLittleEndian]) as peer:
        list(send_parcels([parcel], terms(peer), 2))

    assert faults(parcel) == Counter({0: 20})
    assert archive.came == uids(parcel)
    assert len(archive.requested) == 2


@pytest.mark.parametrize("place", [0, 10])
def test_a_syntax_that_the_peer_does_not_take_fails_the_instance_that_has_it(tmp_path, place):
    """And keeps no other back, even where it is the first."""
    [parcel], archive = parcels_in(tmp_path, 10), Archive()
    dataset = make_instance(99)
    path = write_instance(tmp_path, dataset, ImplicitVRLittleEndian)
    uid = str(dataset.SOPInstanceUID)
    parcel.items.insert(place, Item(key=99, sop_uid=uid, path=path))
    parcel.items += write_series(tmp_path / "more", 10)

    with archive.peer() as peer:
        list(send_parcels([parcel], terms(peer), 1))

    assert faults(parcel) == Counter({0: 20, Fault.NO_CONTEXT: 1})
    assert [each.item.key for each in parcel.outcomes if each.fault] == [99]
    assert len(archive.requested) == 1


def test_a_file_that_holds_another_instance_is_not_sent(tmp_path):
    [parcel], archive = parcels_in(tmp_path, 10), Archive()
    first, wrong = parcel.items[0], parcel.items[5]
    wrong.path.write_bytes(first.path.read_bytes())

    with archive.peer() as peer:
        list(send_parcels([parcel], terms(peer), 1))

    [failed] = [each for each in parcel.outcomes if each.fault]
    assert failed.item is wrong and failed.fault is Fault.NO_FILE
    assert f"the file holds {first.sop_uid}" in failed.comment
    assert set(archive.came.values()) == {1} and len(archive.came) == 9


def test_what_a_neighbour_needs_is_not_asked_for_on_behalf_of_others(tmp_path):
    """A peer may reject the whole association because of one class or syntax in it."""
    parcels, archive = parcels_in(tmp_path, 20, 0, 20), Archive()
    dataset = make_instance(99)
    path = write_instance(tmp_path, dataset, ImplicitVRLittleEndian)
    parcels[1].items = [Item(key=99, sop_uid=str(dataset.SOPInstanceUID), path=path)]

    def break_the_first(event):
        if not archive.seen:  # the second association is asked for when the neighbours are there
            time.sleep(0.3)
            archive.answers[event.request.AffectedSOPInstanceUID] = None
        status = archive.on_store(event)
        archive.answers.clear()
        return status

    def choosy(event):
        archive.on_request(event)
        for context in event.assoc.requestor.requested_contexts:
            if ImplicitVRLittleEndian in context.transfer_syntax:
                event.assoc.acse.send_reject(1, 1, 1)
                event.assoc.kill()

    with pacs(break_the_first, requested=choosy) as peer:
        list(send_parcels(parcels, terms(peer), 1))

    assert faults(parcels[0]) == faults(parcels[2]) == Counter({0: 20})
    assert faults(parcels[1]) == Counter({Fault.REJECTED_PERMANENT: 1})


def test_an_association_is_given_back_while_nothing_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(agenda, "PATIENCE_S", 0.1)
    archive, (first, second) = Archive(), parcels_in(tmp_path, 5, 5)

    def kept():
        return not archive.requested or archive.requested[0].is_alive()

    def parcels():
        yield first
        end = time.monotonic() + 10  # the peer's own patience is longer
        while kept() and time.monotonic() < end:
            time.sleep(0.01)
        assert not kept()
        yield second

    with archive.peer() as peer:
        assert list(send_parcels(parcels(), terms(peer), 1)) == [first, second]

    assert len(archive.requested) == 2
    assert archive.came == uids(first, second)


def test_files_that_cannot_be_sent_are_outcomes_of_their_parcel(tmp_path):
    parcels, archive = parcels_in(tmp_path, 4, 4), Archive()
    noted = []
    parcels[0].note = noted.append
    for item in parcels[0].items[:3]:
        item.path.unlink()

    with archive.peer() as peer:
        list(send_parcels(parcels, terms(peer), 1))

    assert faults(parcels[0]) == Counter({Fault.NO_FILE: 3, 0: 1}) and len(noted) == 4
    assert faults(parcels[1]) == Counter({0: 4})


@pytest.mark.parametrize("broken", ["sort_out", "note"])
def test_a_parcel_that_cannot_be_looked_through_fails_alone(tmp_path, monkeypatch, broken):
    parcels, archive, whole = parcels_in(tmp_path, 10, 10, 10), Archive(), scu.sort_out

    def crash(parcel):
        if parcel is parcels[1]:
            raise ZeroDivisionError
        return whole(parcel)

    if broken == "sort_out":
        monkeypatch.setattr(scu, "sort_out", crash)
    else:
        parcels[1].items[0].path.unlink()
        parcels[1].note = lambda outcome: 1 / 0
    with archive.peer() as peer:
        list(send_parcels(parcels, terms(peer), 1))

    assert faults(parcels[0]) == faults(parcels[2]) == Counter({0: 10})
    assert isinstance(parcels[1].error, ZeroDivisionError) and not parcels[1].outcomes
    assert len(archive.seen) == 20


def test_no_more_is_prepared_than_keeps_the_associations_busy(tmp_path):
    parcels, archive = parcels_in(tmp_path, agenda.AHEAD + 5, agenda.AHEAD, 1), Archive()
    sent_at = []

    def prepared():
        for parcel in parcels:
            sent_at.append(len(archive.seen))
            yield parcel

    with archive.peer() as peer:
        list(send_parcels(prepared(), terms(peer), 1))

    assert sent_at[0] == 0 < 5 <= sent_at[1]
    assert sent_at[2] >= agenda.AHEAD + 5


CONTEXT = ("1.2.3", "1.2.4")


def with_one_at_hand() -> tuple[agenda.Agenda, Parcel, Sendable]:
    """Return an agenda whose only instance is with a lane."""
    item = Item(key=1, sop_uid="1.2", path=Path("none"))
    parcel, book = Parcel(items=[item]), agenda.Agenda()
    book.add(parcel, [Sendable(item=item, parcel=parcel, context=CONTEXT, at=0)])
    book.join()
    return book, parcel, book.take([CONTEXT])


def test_what_breaks_when_its_parcel_is_withdrawn_is_not_sent_again():
    book, parcel, each = with_one_at_hand()
    book.withdraw(parcel, error := StoreUnavailable("the disk is full"))
    assert book.collect(wait=False) == []  # one is under way

    assert book.put_back(each, resumes=3)

    assert book.collect(wait=False) == [parcel]
    assert (parcel.error, parcel.outcomes, book.waiting) == (error, [], 0)


def test_a_parcel_that_has_ended_does_not_fail_any_more():
    book, parcel, each = with_one_at_hand()
    book.settle(each, outcome := Outcome(item=each.item, fault=0x0000))
    assert book.collect(wait=False) == [parcel]

    book.withdraw(parcel, StoreUnavailable("the disk is full"))

    assert (parcel.error, parcel.outcomes) == (None, [outcome])
    assert book.collect(wait=False) == []


def test_a_lane_without_association_is_no_word_about_what_it_did_not_ask_for():
    """Another parcel came to the front while it waited for the peer's answer."""
    book, first, each = with_one_at_hand()
    other = Item(key=2, sop_uid="1.3", path=Path("none"))
    second, context = Parcel(items=[other]), ("1.2.5", "1.2.4")
    book.add(second, [Sendable(item=other, parcel=second, context=context, at=0)])
    book.settle(each, Outcome(item=each.item, fault=0x0000))

    assert book.leave_without([CONTEXT]) is None

    assert book.collect(wait=False) == [first] and book.waiting == 1
    book.join()
    assert book.leave_without([context]).item is other
