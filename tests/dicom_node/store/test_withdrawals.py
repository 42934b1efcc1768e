"""Withdrawals on record, on both databases: who is owed a note, and that it is owed once."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import withdrawal
from dicom_node.rejection_notes import SAFETY
from dicom_node.retry import Fault
from dicom_node.states import JobState
from dicom_node.store import DerivedInstance, Grounds, Limits, Report, Resends
from dicom_node.withdrawal import to_note
from tests.dicom_node.store.conftest import SQLITE
from tests.rigs import due_at

GROUNDS = Grounds(title=SAFETY, reason="it was wrong.")
WEIGHTS = "b" * 64


def note(job_id: int) -> DerivedInstance:
    return DerivedInstance(
        sop_uid=f"2.25.77{job_id}", sop_class="1.2.840.10008.5.1.4.1.1.88.59",
        path=Path(f"out/notes/{job_id}/note.dcm"), sha256="e" * 64, bytes=5,
    )  # fmt: skip


def send_all(store, now, *destinations) -> None:
    for task in due_at(store, now):
        if task.destination in destinations:
            for one in task.instances:
                store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
            store.deliveries.finish(task.delivery_id, "sent", "stored", now)


def forward(store, job_id: int, now, received: int, *destinations: str) -> None:
    assert store.jobs.decide(
        job_id, "forward", now, received, reason="Forwarded.", destinations=list(destinations)
    )


@pytest.fixture
def sent(store, published, now):
    """A result that one of two destinations has."""
    job_id = published(destinations=["pacs", "research"])
    send_all(store, now, "pacs")
    return job_id


def test_a_recall_stops_what_is_pending_and_owes_a_note_to_who_has_it(store, sent, now):
    [found] = store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    assert (found.job_id, found.destinations) == (sent, ("pacs",))
    assert store.jobs.get(sent).state is JobState.CANCELLED
    assert due_at(store, now) == []
    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",) and len(owed.instances) == 2
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)  # somebody was faster
    assert store.withdrawals.owed() == []
    [task] = due_at(store, now)
    assert [one.sop_uid for one in task.instances] == [note(sent).sop_uid]
    send_all(store, now, "pacs")
    assert store.withdrawals.note_states()["DELIVERED"] == 1
    assert [row["destination"] for row in store.series.listing()[0]["deliveries"]] == [
        "pacs", "research", "pacs",
    ]  # fmt: skip
    assert store.ledger().balanced


def test_a_recall_twice_is_one(store, sent, now):
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    [again] = store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    assert again.job_id == sent
    events = [row.event for row in store.audit.listing()]
    assert events.count("weights.recalled") == events.count("job.withdraw") == 1
    assert store.withdrawals.recalled() == {WEIGHTS: "it was wrong."}


def test_a_note_that_a_person_cancels_is_not_made_again(store, sent, now):
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    [owed] = store.withdrawals.owed()
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)
    [made] = store.jobs.notes(store.jobs.get(sent).series_id)

    store.jobs.cancel(made.id, now)

    assert store.withdrawals.owed() == []


def test_a_late_slice_does_not_stop_a_note(store, sent, new_instance, now):
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    [owed] = store.withdrawals.owed()
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)
    series_uid = store.jobs.get(sent).series_uid

    store.series.record_instance(new_instance(99, series_uid=series_uid), now)

    assert [task.destination for task in due_at(store, now)] == ["pacs"]
    assert store.jobs.of_series(series_uid)[-1].generation == 1


def test_rejected_images_are_remembered_once(store, sent, new_instance, now):
    series = store.jobs.get(sent)
    uids = [row.sop_uid for row in store.series.instances(series.series_id)] + ["1.2.9"]

    [gone] = store.withdrawals.reject(uids, "MR1", GROUNDS, now)
    assert gone.job_id == sent
    assert store.withdrawals.reject(uids, "MR1", GROUNDS, now) == []
    assert set(store.withdrawals.rejected_among(series.series_id)) == {(SAFETY, "MR1")}


def test_who_may_have_got_something_while_it_was_withdrawn_is_told_too(store, published, now):
    """An association that breaks leaves no status: the archive may have the instance."""
    published(destinations=["pacs"])
    [task] = due_at(store, now)
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    assert store.withdrawals.owed() == []

    store.deliveries.finish(task.delivery_id, "transient", "association aborted", now)

    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",)


def test_notes_that_cannot_be_made_do_not_stand_before_the_others(
    store, published, now, monkeypatch
):
    monkeypatch.setattr("dicom_node.store.withdrawals.AT_ONCE", 1)
    jobs = [published(f"1.2.{number}") for number in range(3)]
    send_all(store, now, "pacs")
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    tried = []

    def queue(store, settings, owed, now):
        tried.append(owed.job_id)
        if owed.job_id != jobs[2]:
            raise OSError(5, "Input/output error")
        return True

    monkeypatch.setattr(withdrawal, "queue_note", queue)

    with pytest.raises(OSError, match="Input/output"):
        withdrawal.send_notes(store, None, now)

    assert tried == jobs


@pytest.mark.parametrize("commitment", [False, True])
def test_what_a_person_asked_to_be_sent_again_may_still_be_there(store, published, now, commitment):
    """Attempts count anew then, but what went before may have left something at the archive."""
    job_id = published(destinations=["pacs"])
    [task] = due_at(store, now)
    for one in task.instances:
        fault = 0 if commitment else Fault.TIMED_OUT
        store.deliveries.record_status(task.delivery_id, one.derived_instance_id, fault, now)
    if commitment:
        store.deliveries.finish(task.delivery_id, "sent", "stored", now, commitment=True)
        [wanted] = store.commitments.due(now)
        store.commitments.ask(wanted, "2.25.1", now, now)
        lost = dict.fromkeys([one.sop_uid for one in task.instances], 0x0112)
        report = Report(transaction_uid="2.25.1", failed=lost)
        resends = Resends(most=0, pause=lambda count: timedelta())
        store.commitments.record_report(report, now, again_at=now, resends=resends)
    else:
        store.deliveries.finish(task.delivery_id, "permanent", "rejected", now)
    store.jobs.requeue(job_id, now)

    store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",)


@SQLITE
def test_a_recall_stands_whatever_becomes_of_what_it_withdraws(store, published, now):
    first, second = published("1.2.3"), published("1.2.4")
    with store.database.transaction() as work:
        work.connection.exec_driver_sql(
            f"CREATE TRIGGER stuck BEFORE UPDATE ON job WHEN new.id = {second} "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )

    with pytest.raises(sa.exc.IntegrityError):
        store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    assert store.withdrawals.recalled() == {WEIGHTS: GROUNDS.reason}
    assert [one.job_id for one in store.withdrawals.all()] == [first]
    with store.database.transaction() as work:
        work.connection.exec_driver_sql("DROP TRIGGER stuck")
    store.withdrawals.catch_up(now, 1)
    assert [one.job_id for one in store.withdrawals.all()] == [first, second]


@SQLITE
def test_a_recall_of_more_results_than_a_statement_has_variables(store, published, now):
    jobs = [published(f"1.2.{number}") for number in range(70)]
    sa.event.listen(
        store.database.engine,
        "connect",
        lambda connection, _: connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 60),
    )
    store.database.close()

    found = store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    assert [one.job_id for one in found] == jobs


def test_a_run_makes_some_notes_and_the_next_one_the_others(store, published, now, monkeypatch):
    monkeypatch.setattr("dicom_node.store.withdrawals.AT_ONCE", 2)
    jobs = [published(f"1.2.{number}") for number in range(3)]
    send_all(store, now, "pacs")
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    told = []
    while owed := store.withdrawals.owed():
        told.append([one.job_id for one in owed])
        for one in owed:
            store.withdrawals.announce(one, note(one.job_id), f"2.25.78{one.job_id}", now)

    assert told == [jobs[:2], jobs[2:]]


def test_who_has_an_older_forwarding_is_told_of_its_rejection(store, new_instance, now):
    """A late slice is forwarded by a new generation, to other destinations by now."""
    first = store.series.record_instance(new_instance(1), now).job_id
    forward(store, first, now, 1, "pacs")
    send_all(store, now, "pacs")
    second = store.series.record_instance(new_instance(2), now).job_id
    forward(store, second, now, 2, "research")
    send_all(store, now, "research")

    store.withdrawals.reject(["1.2.3.1"], "MR1", GROUNDS, now)

    owed = store.withdrawals.owed()
    assert [(one.job_id, one.destinations) for one in owed] == [
        (first, ("pacs",)), (second, ("research",)),
    ]  # fmt: skip
    assert [len(one.instances) for one in owed] == [1, 2]
    uids = {to_note(one).sop_uid for one in owed}
    assert len(uids) == 2  # of one series, for one reason, at one time


def test_a_note_whose_file_retention_took_is_sent_to_one_destination_more(store, sent, now):
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    [owed] = store.withdrawals.owed()
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)
    send_all(store, now, "pacs")
    [made] = store.jobs.notes(store.jobs.get(sent).series_id)
    limits = Limits(
        before={JobState.DELIVERED: now + timedelta(days=1)}, committers=(), originals=False
    )
    [lot] = [lot for lot in store.removals.lots(limits) if lot.job_id == made.id]
    removal = store.removals.decide(lot, limits, "old", now)
    store.removals.end(removal, now)
    [_, late] = store.deliveries.of_job(sent)
    store.deliveries.record_present(late["id"], ["2.25.123.0"], now)

    [owed] = store.withdrawals.owed()
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)

    [task] = due_at(store, now)
    assert [one.sop_uid for one in task.instances] == [note(sent).sop_uid]


def test_what_is_withdrawn_before_its_turn_to_be_sent_needs_no_note_there(store, published, now):
    """It stands in the sender's queue, which may be long, and is looked at when its turn comes."""
    published(destinations=["pacs", "research"])
    queue = {task.destination: task for task in due_at(store, now)}
    send_all(store, now, "pacs")
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)

    store.deliveries.begin(queue["research"])

    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",)
