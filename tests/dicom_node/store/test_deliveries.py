"""Deliveries: what is due, what is sent, when a job is delivered or dead."""

from datetime import timedelta

import pytest

from dicom_node.errors import UnknownJob
from dicom_node.retry import Fault
from dicom_node.states import JobState
from tests.rigs import due_at

MINUTE = timedelta(minutes=1)


def test_a_delivery_is_due_without_what_a_long_queue_would_have_to_read(store, published, now):
    published()
    (task,) = store.deliveries.due(now)
    assert task.instances == ()

    first, second = store.deliveries.with_unsent(task).instances

    store.deliveries.record_status(task.delivery_id, first.derived_instance_id, 0, now)
    assert store.deliveries.with_unsent(task).instances == (second,)


def send_all(store, task, now, status=0):
    for one in task.instances:
        store.deliveries.record_status(task.delivery_id, one.derived_instance_id, status, now)


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007])
def test_a_job_is_delivered_when_every_instance_is_stored(store, published, now, status):
    job_id = published()
    (task,) = due_at(store, now)

    send_all(store, task, now, status)
    assert store.deliveries.finish(task.delivery_id, "sent", "stored", now) == "SENT"

    assert store.jobs.get(job_id).state == JobState.DELIVERED
    assert store.series.listing()[0]["deliveries"] == [
        {
            **{"destination": "pacs", "state": "SENT"},
            **{"sent": 2, "warned": 2 * (status != 0), "failed": 0, "committed": 0},
        }
    ]


def test_only_what_is_not_yet_sent_is_due(store, published, now):
    published()
    (task,) = due_at(store, now)
    store.deliveries.record_status(task.delivery_id, task.instances[0].derived_instance_id, 0, now)

    (again,) = due_at(store, now)

    assert [one.sop_uid for one in again.instances] == [task.instances[1].sop_uid]


def test_what_is_due_to_a_busy_destination_is_not_read(store, published, now):
    published()

    assert due_at(store, now, busy={"pacs"}) == []
    assert len(due_at(store, now, busy={"other"})) == 1


@pytest.mark.parametrize("status", [0xA700, 0xC000, 0x0110])
def test_a_failure_status_is_kept_and_the_instance_stays_due(store, published, now, status):
    published()
    (task,) = due_at(store, now)

    send_all(store, task, now, status)

    assert len(due_at(store, now)[0].instances) == 2


def test_a_transient_failure_waits_for_its_next_try(store, published, now):
    job_id = published()
    (task,) = due_at(store, now)

    state = store.deliveries.finish(
        task.delivery_id, "transient", "no connection", now, next_try_at=now + MINUTE
    )

    assert state == "PENDING"
    assert due_at(store, now) == []
    assert due_at(store, now + MINUTE)[0].attempts == 1
    assert store.jobs.get(job_id).state == JobState.DERIVED


def test_a_permanent_failure_ends_the_job_with_the_reason(store, published, now):
    job_id = published()
    (task,) = due_at(store, now)

    store.deliveries.finish(task.delivery_id, "permanent", "SOP class not supported", now)

    job = store.jobs.get(job_id)
    assert job.state == JobState.DEAD
    assert job.reason == "Sending failed for good: pacs: SOP class not supported"


def test_one_dead_destination_does_not_keep_the_other_from_its_images(store, published, now):
    job_id = published(destinations=("pacs", "research"))
    pacs, research = due_at(store, now)

    store.deliveries.finish(pacs.delivery_id, "permanent", "refused", now)
    assert store.jobs.get(job_id).state == JobState.DERIVED
    assert [task.destination for task in due_at(store, now)] == ["research"]
    send_all(store, research, now)
    store.deliveries.finish(research.delivery_id, "sent", "stored", now)

    job = store.jobs.get(job_id)
    assert (job.state, "pacs: refused" in job.reason) == (JobState.DEAD, True)


def test_sent_is_not_believed_without_a_success_for_every_instance(store, published, now):
    job_id = published()
    (task,) = due_at(store, now)
    store.deliveries.record_status(task.delivery_id, task.instances[0].derived_instance_id, 0, now)

    assert store.deliveries.finish(task.delivery_id, "sent", "stored", now) == "PENDING"

    assert store.jobs.get(job_id).state == JobState.DERIVED


def test_the_end_of_a_stopped_delivery_changes_nothing(store, published, now):
    job_id = published()
    (task,) = due_at(store, now)
    store.jobs.cancel(job_id, now)
    send_all(store, task, now)

    assert store.deliveries.finish(task.delivery_id, "sent", "stored", now) == "STOPPED"
    assert store.jobs.get(job_id).state == JobState.CANCELLED


def test_an_unknown_delivery_is_refused(store, published, now):
    published()
    (task,) = due_at(store, now)

    with pytest.raises(UnknownJob):
        store.deliveries.finish(99, "sent", "stored", now)
    with pytest.raises(UnknownJob):
        store.deliveries.record_status(task.delivery_id, 99, 0, now)


def test_what_was_warned_about_and_what_failed_is_counted_apart(store, published, now):
    published()
    (task,) = due_at(store, now)
    first, second = (one.derived_instance_id for one in task.instances)
    store.deliveries.record_status(task.delivery_id, first, 0xB007, now)
    store.deliveries.record_status(task.delivery_id, second, 0xA700, now)

    [figures] = store.series.listing()[0]["deliveries"]

    assert (figures["sent"], figures["warned"], figures["failed"]) == (1, 1, 1)
    assert store.deliveries.warnings(task.delivery_id) == {0xB007: 1}
    store.deliveries.record_status(task.delivery_id, second, 0, now)
    [figures] = store.series.listing()[0]["deliveries"]
    assert (figures["sent"], figures["warned"], figures["failed"]) == (2, 1, 0)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.UNDER_WAY])
def test_an_instance_without_a_status_counts_as_failed_until_it_has_one(
    store, published, now, fault
):
    published()
    (task,) = due_at(store, now)
    first, _ = (one.derived_instance_id for one in task.instances)

    store.deliveries.record_status(task.delivery_id, first, fault, now)
    [figures] = store.series.listing()[0]["deliveries"]
    assert (figures["sent"], figures["failed"]) == (0, 1)
    assert len(due_at(store, now)[0].instances) == 2

    store.deliveries.record_status(task.delivery_id, first, 0, now)
    [figures] = store.series.listing()[0]["deliveries"]
    assert (figures["sent"], figures["failed"]) == (1, 0)


def test_an_instance_that_is_under_way_has_not_failed_and_is_still_due(store, published, now):
    published()
    (task,) = due_at(store, now)

    store.deliveries.begin(task)

    [figures] = store.series.listing()[0]["deliveries"]
    assert (figures["sent"], figures["failed"]) == (0, 0)
    assert len(due_at(store, now)[0].instances) == 2


def test_answers_that_come_together_are_each_on_record(store, published, now):
    published()
    (task,) = due_at(store, now)
    keys = [one.derived_instance_id for one in task.instances]
    answers = [(task.delivery_id, key, 0, now) for key in keys]

    unknown = (task.delivery_id, 99, 0, now)
    *kept, refused = store.deliveries.record_all([*answers, unknown])

    assert kept == [None] * len(keys) and isinstance(refused, UnknownJob)
    assert due_at(store, now)[0].instances == ()
