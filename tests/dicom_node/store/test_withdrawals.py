"""Withdrawals on record, on both databases: who is owed a note, and that it is owed once."""

from pathlib import Path

import pytest

from dicom_node.rejection_notes import SAFETY
from dicom_node.states import JobState
from dicom_node.store import DerivedInstance, Grounds

GROUNDS = Grounds(title=SAFETY, reason="it was wrong.")
WEIGHTS = "b" * 64


def note(job_id: int) -> DerivedInstance:
    return DerivedInstance(
        sop_uid=f"2.25.77{job_id}", sop_class="1.2.840.10008.5.1.4.1.1.88.59",
        path=Path(f"out/notes/{job_id}/note.dcm"), sha256="e" * 64, bytes=5,
    )  # fmt: skip


def send_all(store, now, *destinations) -> None:
    for task in store.deliveries.due(now):
        if task.destination in destinations:
            for one in task.instances:
                store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
            store.deliveries.finish(task.delivery_id, "sent", "stored", now)


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
    assert store.deliveries.due(now) == []
    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",) and len(owed.instances) == 2
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)
    store.withdrawals.announce(owed, note(sent), "2.25.78", now)  # somebody was faster
    assert store.withdrawals.owed() == []
    [task] = store.deliveries.due(now)
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

    assert [task.destination for task in store.deliveries.due(now)] == ["pacs"]
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
    [task] = store.deliveries.due(now)
    store.withdrawals.recall(WEIGHTS, GROUNDS, now)
    assert store.withdrawals.owed() == []

    store.deliveries.finish(task.delivery_id, "transient", "association aborted", now)

    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",)
