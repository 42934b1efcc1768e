"""One instance arrives: once, twice, changed, damaged, at the same time, or during a failure."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Barrier, Event, Thread

import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from dicom_node.errors import (
    ConflictingInstance,
    InstanceRejected,
    NotAnInstance,
    OutOfSpace,
    StoreUnavailable,
)
from dicom_node.intake import Taken, recover, submit_file, take_in, take_in_meanwhile
from dicom_node.pixel_files import PixelFiles
from dicom_node.store import open_store
from dicom_node.together import SharedWorkFailed
from tests.rigs import NOW, PATIENT, encoded, incoming, make_instance, write_instance


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'node.db'}")
    yield store
    store.close()


@pytest.fixture
def files(tmp_path):
    return PixelFiles(tmp_path / "in", min_free_bytes=0)


def and_wait(given, files, store, now):
    """Return or raise what `take_in_meanwhile` tells, once."""
    told: Queue[Taken | Exception] = Queue()
    take_in_meanwhile(given, files, store, now, told.put)
    taken = told.get(timeout=60)
    assert told.empty()
    if isinstance(taken, Exception):
        raise taken
    return taken


@pytest.fixture(params=[take_in, and_wait], ids=["waiting", "meanwhile"])
def way(request):
    """One of the two ways to take in an instance: what becomes of it is the same."""
    return request.param


@pytest.fixture
def take(way, tmp_path, files, store):
    """Take in a DICOM file as if a C-STORE had brought it."""

    def take(file, **values):
        try:
            return way(incoming(file, tmp_path, **values), files, store, NOW)
        finally:  # nobody else is kept out any more
            assert not any(turn._among_threads.locked() for turn in files._turns.values())

    return take


def events(store):
    return [row.event for row in store.audit.listing()]


def test_new_instance_is_file_and_row(take, files, store):
    dataset = make_instance()

    taken = take(encoded(dataset))

    row = store.series.find_instance(dataset.SOPInstanceUID)
    assert (taken.status, taken.outcome) == (0x0000, "new")
    assert files.paths() == [row.path]
    assert row.path.name == f"{dataset.SOPInstanceUID}.dcm"
    assert row.path.parent.name == dataset.SeriesInstanceUID
    assert row.calling_ae == "MR1" and row.header["MagneticFieldStrength"] == 1.5
    assert store.ledger().acknowledged == 1


def test_data_set_is_kept_byte_by_byte(take, files, tmp_path):
    file = encoded(make_instance(), JPEG2000Lossless)

    take(file)

    assert files.paths()[0].read_bytes().endswith(incoming(file, tmp_path).encoded)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_second_copy_in_any_encoding_succeeds_and_changes_nothing(take, files, store, syntax):
    take(encoded(make_instance()))
    before = files.paths()[0].read_bytes()

    assert take(encoded(make_instance())).outcome == "duplicate"
    again = take(encoded(make_instance(), syntax))

    assert (again.status, again.outcome) == (0x0000, "duplicate")
    assert [path.read_bytes() for path in files.paths()] == [before]
    assert store.ledger().acknowledged == 1


def changed_pixels():
    dataset = make_instance()
    dataset.PixelData = b"\x07" + dataset.PixelData[1:]
    return dataset


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (changed_pixels(), "other pixels"),
        (make_instance(EchoTime="9"), "other attributes"),
        (make_instance(SeriesInstanceUID="1.2.826.0.99"), "other attributes"),
    ],
)
def test_other_content_under_a_known_uid_is_a_conflict(take, files, store, other, reason):
    take(encoded(make_instance()))
    before = files.paths()[0].read_bytes()

    with pytest.raises(ConflictingInstance, match=reason) as refused:
        take(encoded(other))

    assert refused.value.status == 0x0111
    assert "instance.conflict" in events(store)
    assert [path.read_bytes() for path in files.paths()] == [before]


def test_copy_in_another_encoding_needs_the_kept_file_to_compare(take, files):
    take(encoded(make_instance()))
    [path] = files.paths()
    path.unlink()

    with pytest.raises(ConflictingInstance, match="its file is gone"):
        take(encoded(make_instance(), RLELossless))
    assert files.paths() == []
    assert take(encoded(make_instance())).outcome == "duplicate"
    assert files.paths() == [path]
    assert take(encoded(make_instance(), RLELossless)).outcome == "duplicate"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sop_uid": "1.2.3"}, "SOP instance 1.2.3 was announced"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.2"}, "SOP class 1.2.840.10008.5.1.4.1.1.2 was"),
        ({"encoded": b"GET / HTTP/1.1\r\n\r\n" * 9}, "."),
    ],
)
def test_what_was_not_announced_is_refused_and_audited(take, files, store, values, reason):
    with pytest.raises(InstanceRejected, match=reason) as refused:
        take(encoded(make_instance()), **values)

    assert refused.value.status in (0xA900, 0xC000)
    assert files.paths() == [] and events(store) == ["instance.rejected"]


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID"])
def test_missing_uid_is_named(take, keyword):
    dataset = make_instance()
    delattr(dataset, keyword)

    with pytest.raises(NotAnInstance, match=f"no {keyword}") as refused:
        take(encoded(dataset))
    assert refused.value.status == 0xA900


def test_uid_that_is_a_path_is_refused(take, files, tmp_path):
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        dataset = make_instance(SeriesInstanceUID="../../escape")
        with pytest.raises(NotAnInstance, match="not a UID"):
            take(encoded(dataset))
    assert not list(tmp_path.rglob("*escape*"))


def test_short_pixels_are_refused_with_the_figures(take, files, store):
    with pytest.raises(InstanceRejected, match="3071 of 3072 bytes") as refused:
        take(encoded(make_instance())[:-1])

    assert refused.value.status == 0xC000
    assert files.paths() == [] and events(store) == ["instance.rejected"]


def test_full_disk_asks_the_sender_to_try_again(way, tmp_path, store):
    files = PixelFiles(tmp_path / "in", min_free_bytes=2**62)

    with pytest.raises(OutOfSpace) as refused:
        way(incoming(encoded(make_instance()), tmp_path), files, store, NOW)

    assert refused.value.status == 0xA700 and refused.value.retryable
    assert store.series.find_instance("1.2.826.0.1.1") is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ETIMEDOUT])
def test_what_the_system_refuses_for_now_may_be_sent_again(take, files, store, monkeypatch, number):
    def refuse(path):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("dicom_node.brief_calls.open_for_lock", refuse)
        with pytest.raises(OutOfSpace, match=os.strerror(number)) as refused:
            take(encoded(make_instance()))

    assert refused.value.status == 0xA700 and refused.value.retryable
    assert take(encoded(make_instance())).outcome == "new"


def lock_database(tmp_path):
    """Return a connection that keeps every writer out until it is closed."""
    import sqlite3

    connection = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_database_that_does_not_commit_is_no_success(
    way, take, files, store, tmp_path, monkeypatch
):
    monkeypatch.setattr("dicom_node.store.engines.BUSY_TIMEOUT_S", 0.2)
    impatient = open_store(f"sqlite:///{tmp_path / 'node.db'}")
    arriving = incoming(encoded(make_instance()), tmp_path)
    blocker = lock_database(tmp_path)

    with pytest.raises(StoreUnavailable) as refused:
        way(arriving, files, impatient, NOW)
    blocker.close()
    impatient.close()

    assert refused.value.status == 0xA700
    assert store.series.find_instance(arriving.sop_uid) is None
    assert take(encoded(make_instance())).outcome == "new"  # the sender tries again
    assert len(files.paths()) == 1


def test_crash_between_file_and_row_leaves_nothing_behind(take, files, store):
    take(encoded(make_instance(1)))
    orphan = files.write("1.2.826.0.3", "1.2.826.0.1.2", [encoded(make_instance(2))])
    part = orphan.with_name("1.2.826.0.1.3.dcm.1-1.part")
    part.write_bytes(b"half")

    assert set(recover(files, store)) == {orphan, part}
    assert len(files.paths()) == 1


def test_an_image_that_an_older_database_does_not_know_can_be_taken_in_again(
    take, files, store, tmp_path
):
    take(encoded(make_instance(1)))
    backup = open_store(f"sqlite:///{tmp_path / 'backup.db'}")
    with (
        sqlite3.connect(tmp_path / "node.db") as source,
        sqlite3.connect(tmp_path / "backup.db") as copy,
    ):
        source.backup(copy)
    take(encoded(make_instance(2)))  # acknowledged after the backup
    [known, later] = files.paths()
    content = later.read_bytes()

    assert recover(files, backup) == [later]

    aside = files.root.with_name("unclaimed") / later.parent.name / later.name
    assert aside.read_bytes() == content and known.exists()
    assert submit_file(aside, files, backup, NOW).outcome == "new"
    assert later.exists()
    backup.close()


def test_a_piece_that_a_crash_has_left_is_no_image(take, files, store, tmp_path):
    """It lies under the image's own name: the sender's next try is taken, before and after."""
    take(encoded(make_instance(1)))
    [whole] = files.paths()
    piece = whole.with_name("1.2.826.0.1.2.dcm")
    content = whole.read_bytes()
    piece.write_bytes(content[:-100])

    assert recover(files, store) == [piece]
    aside = files.root.with_name("unclaimed") / piece.parent.name / piece.name
    with pytest.raises(InstanceRejected, match="cut short|pixel"):
        submit_file(aside, files, store, NOW)

    piece.write_bytes(content[:-100])
    assert take(encoded(make_instance(2))).outcome == "new"
    assert piece.stat().st_size == whole.stat().st_size


@pytest.mark.parametrize("rest", [b"", b"\xa5" * 100])
def test_a_piece_of_a_known_image_is_made_whole_by_the_sender(take, files, rest):
    """Its file was lost, and a crash came while the sender's next try put it back."""
    take(encoded(make_instance()))
    [kept] = files.paths()
    content = kept.read_bytes()
    kept.write_bytes(content[:-100] + rest)

    assert take(encoded(make_instance())).outcome == "duplicate"
    assert kept.read_bytes() == content


def test_a_file_that_is_not_ours_is_left_alone(take, files, store):
    take(encoded(make_instance(1)))
    foreign = files.paths()[0].with_name("something.dcm")
    foreign.write_bytes(b"somebody's")

    assert recover(files, store) == []
    assert foreign.exists() and len(files.paths()) == 1


def test_copy_under_another_series_leaves_no_file_not_even_after_a_crash(take, files, store):
    take(encoded(make_instance()))
    kept = files.paths()
    with pytest.raises(ConflictingInstance):
        take(encoded(make_instance(SeriesInstanceUID="1.2.826.0.99")))
    assert files.paths() == kept

    orphan = files.write("1.2.826.0.99", "1.2.826.0.1.1", [b"of a crash before it was removed"])

    assert recover(files, store) == [orphan]
    assert files.paths() == kept


def test_recovery_with_the_wrong_database_deletes_nothing(take, files, tmp_path):
    take(encoded(make_instance(1)))
    other = open_store(f"sqlite:///{tmp_path / 'other.db'}")

    assert recover(files, other) == []
    assert len(files.paths()) == 1
    other.close()


def test_orphan_is_replaced_when_the_sender_tries_again(take, files):
    files.write("1.2.826.0.3", "1.2.826.0.1.1", [b"of a crash"])

    assert take(encoded(make_instance())).outcome == "new"
    assert files.paths()[0].read_bytes()[128:132] == b"DICM"


def test_one_instance_over_many_associations_at_once_is_one_instance(way, tmp_path, files, store):
    arriving = [
        incoming(encoded(make_instance(), syntax), tmp_path)
        for syntax in (ImplicitVRLittleEndian, RLELossless) * 4
    ]
    together = Barrier(len(arriving))

    def take_one(each):
        together.wait()
        return way(each, files, store, NOW).outcome

    with ThreadPoolExecutor(len(arriving)) as pool:
        outcomes = sorted(pool.map(take_one, arriving))

    assert outcomes == ["duplicate"] * 7 + ["new"]
    assert len(files.paths()) == 1 and store.ledger().acknowledged == 1


def test_one_uid_with_two_contents_at_once_is_kept_once_and_whole(way, tmp_path, files, store):
    arriving = [
        incoming(encoded(make_instance(EchoTime=str(number))), tmp_path) for number in range(6)
    ]
    together = Barrier(len(arriving))

    def take_one(each):
        together.wait()
        try:
            return way(each, files, store, NOW).outcome
        except ConflictingInstance:
            return "conflict"

    with ThreadPoolExecutor(len(arriving)) as pool:
        outcomes = sorted(pool.map(take_one, arriving))

    row = store.series.find_instance(arriving[0].sop_uid)
    winner = [each for each in arriving if row.path.read_bytes().endswith(each.encoded)]
    assert outcomes == ["conflict"] * 5 + ["new"]
    assert len(winner) == 1 and row.bytes == row.path.stat().st_size


def test_two_processes_take_in_one_instance_once(tmp_path, files, store):
    path = write_instance(tmp_path, make_instance())
    code = (
        "import sys; from datetime import datetime, UTC; from pathlib import Path\n"
        "from dicom_node.intake import submit_file; from dicom_node.store import open_store\n"
        "from dicom_node.pixel_files import PixelFiles\n"
        "files, store = PixelFiles(Path(sys.argv[2]), 0), open_store(sys.argv[3])\n"
        "print(submit_file(Path(sys.argv[1]), files, store, datetime.now(UTC)).outcome)\n"
    )
    arguments = [str(path), str(files.root), f"sqlite:///{tmp_path / 'node.db'}"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    outcomes = sorted(process.communicate(timeout=60)[0].split()[-1] for process in processes)

    assert outcomes == ["duplicate", "new"]
    assert store.ledger().acknowledged == 1


def test_submitted_file_is_as_good_as_received(take, files, store, tmp_path):
    path = write_instance(tmp_path, make_instance())

    assert submit_file(path, files, store, NOW).outcome == "new"
    assert take(path.read_bytes()).outcome == "duplicate"


@pytest.mark.parametrize("name", ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm", "0005.dcm"])
def test_submitted_junk_is_refused_in_one_line(shared_series, files, store, name):
    with pytest.raises(InstanceRejected) as refused:
        submit_file(shared_series("p39") / name, files, store, NOW)
    assert "\n" not in str(refused.value) and files.paths() == []


@pytest.mark.parametrize("name", ["p02", "p06", "p21", "p28", "p31", "p33"])
def test_real_instances_are_taken(shared_series, files, store, name):
    path = sorted(shared_series(name).iterdir())[0]

    assert submit_file(path, files, store, NOW).outcome == "new"
    assert submit_file(path, files, store, NOW).outcome == "duplicate"


def test_no_patient_attribute_reaches_the_store(take, store, capsys):
    take(encoded(make_instance()))
    with pytest.raises(ConflictingInstance):
        take(encoded(make_instance(PatientID="OTHER", EchoTime="4711")))
    take(encoded(make_instance(PatientID="OTHER")))  # a correction

    rows = [row.header for row in store.series.all_instances()]
    audit = [row.fields for row in store.audit.listing()]
    everything = json.dumps([rows, audit, store.series.listing()]) + "".join(capsys.readouterr())
    assert not [text for text in (PATIENT, "RIG-4711", "OTHER") if text in everything]


def test_a_file_in_a_syntax_that_nobody_here_can_decode_is_refused(take, store):
    file = encoded(make_instance()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0")

    with pytest.raises(InstanceRejected, match="cannot be decoded here"):
        take(file)
    assert not store.series.all_instances()


def test_who_brings_an_instance_goes_on_while_another_ones_row_is_committed(tmp_path, files, store):
    """The first one's thread records both, and tells of both."""
    begun, go_on, told = Event(), Event(), []
    record = store.series._recording._work

    def slowly(batch):
        begun.set()
        go_on.wait(60)
        return record(batch)

    store.series._recording._work = slowly
    given = [incoming(encoded(make_instance(number)), tmp_path) for number in (1, 2)]
    first = Thread(target=take_in_meanwhile, args=(given[0], files, store, NOW, told.append))
    first.start()
    assert begun.wait(60)

    take_in_meanwhile(given[1], files, store, NOW, told.append)  # returns at once

    assert told == [] and len(files.paths()) == 2
    go_on.set()
    first.join(60)
    assert [(each.sop_uid, each.outcome) for each in told] == [
        ("1.2.826.0.1.1", "new"),
        ("1.2.826.0.1.2", "new"),
    ]
    assert store.ledger().acknowledged == 2


@pytest.mark.parametrize("fails", ["the database", "our code"])
def test_what_fails_for_all_who_record_together_is_told_to_each(tmp_path, files, store, fails):
    begun, go_on, told = Event(), Event(), []

    def broken(batch):
        begun.set()
        go_on.wait(60)
        if fails == "the database":
            return [StoreUnavailable("it does not answer") for _ in batch]
        raise ZeroDivisionError

    record, store.series._recording._work = store.series._recording._work, broken
    given = [incoming(encoded(make_instance(number)), tmp_path) for number in (1, 2, 3)]
    queue: Queue[Taken | Exception] = Queue()
    first = Thread(target=take_in_meanwhile, args=(given[0], files, store, NOW, queue.put))
    first.start()
    assert begun.wait(60)
    for each in given[1:]:
        take_in_meanwhile(each, files, store, NOW, queue.put)
    go_on.set()
    told = [queue.get(timeout=60) for _ in given]

    assert {type(each) for each in told} == {
        StoreUnavailable if fails == "the database" else SharedWorkFailed
    }
    store.series._recording._work = record
    for each in given:  # nobody holds anything any more
        assert and_wait(each, files, store, NOW).outcome == "new"


def test_who_records_for_others_is_not_held_up_by_what_takes_time(tmp_path, files, store):
    """The second one conflicts with what is known: a thread of its own looks into that."""
    begun, go_on, looked, may_end = Event(), Event(), Event(), Event()
    told: Queue[Taken | Exception] = Queue()
    take_in(incoming(encoded(make_instance(2)), tmp_path), files, store, NOW)
    files.discard(files.paths()[0])
    record, find = store.series._recording._work, store.series.find_instance

    def slowly(batch):
        begun.set()
        assert go_on.wait(60)
        return record(batch)

    def find_slowly(uid):
        looked.set()
        assert may_end.wait(60)
        return find(uid)

    store.series._recording._work, store.series.find_instance = slowly, find_slowly
    conflicting = make_instance(2, EchoTime="7")
    given = [incoming(encoded(each), tmp_path) for each in (make_instance(1), conflicting)]
    first = Thread(target=take_in_meanwhile, args=(given[0], files, store, NOW, told.put))
    first.start()
    assert begun.wait(60)
    take_in_meanwhile(given[1], files, store, NOW, told.put)
    go_on.set()

    assert looked.wait(60)
    first.join(60)
    assert not first.is_alive() and told.get(timeout=60).sop_uid == "1.2.826.0.1.1"
    may_end.set()
    assert isinstance(told.get(timeout=60), ConflictingInstance)


def test_of_one_instance_is_told_once_whatever_breaks(tmp_path, files, store):
    told = []
    hand_in = store.series.hand_in_instance

    def break_afterwards(*given):
        hand_in(*given)
        raise ZeroDivisionError

    store.series.hand_in_instance = break_afterwards
    take_in_meanwhile(incoming(encoded(make_instance()), tmp_path), files, store, NOW, told.append)

    assert [each.outcome for each in told] == ["new"]


def test_where_no_thread_is_to_be_had_what_takes_time_is_asked_for_again(
    tmp_path, files, store, monkeypatch
):
    take_in(incoming(encoded(make_instance()), tmp_path), files, store, NOW)
    files.discard(files.paths()[0])
    other = incoming(encoded(make_instance(EchoTime="7")), tmp_path)

    def none(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("dicom_node.intake.Thread.start", none)
        with pytest.raises(OutOfSpace, match="starts no more threads") as refused:
            and_wait(other, files, store, NOW)
    assert refused.value.status == 0xA700 and files.paths() == []
    with pytest.raises(ConflictingInstance):
        and_wait(other, files, store, NOW)
    assert not any(turn._among_threads.locked() for turn in files._turns.values())
