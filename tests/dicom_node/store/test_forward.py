"""Forwarded originals: a delivery of what was received, in one transaction with the decision."""

from dataclasses import replace

import pytest

from dicom_node.states import JobState
from tests.rigs import due_at


def decide(store, job_id, now, received, destinations=("pacs",)):
    return store.jobs.decide(
        job_id, "forward", now, received, reason="Forwarded.", destinations=list(destinations)
    )


@pytest.fixture
def received(store, new_instance, now):
    """A series of two instances; return its job."""
    store.series.record_instance(new_instance(1), now)
    return store.series.record_instance(new_instance(2), now).job_id


def send_all(store, now):
    for task in due_at(store, now):
        for one in task.instances:
            store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
        store.deliveries.finish(task.delivery_id, "sent", "stored", now)


def test_originals_are_due_for_every_destination(store, received, now):
    assert decide(store, received, now, 2, ("pacs", "research"))

    tasks = due_at(store, now)
    assert [task.destination for task in tasks] == ["pacs", "research"]
    for task in tasks:
        assert [one.sop_uid for one in task.instances] == ["1.2.3.1", "1.2.3.2"]
        assert [one.sha256 for one in task.instances] == [f"{n:064x}" for n in (1, 2)]
        assert (task.study_uid, task.series_uid) == ("1.2", "1.2.3")
    assert store.jobs.get(received).state == JobState.DERIVED


def test_forwarded_series_is_delivered_and_says_what_was_sent(store, received, now):
    decide(store, received, now, 2)
    send_all(store, now)

    job = store.jobs.get(received)
    assert (job.state, job.reason) == ("DELIVERED", "The originals were sent to pacs.")
    assert store.series.listing()[0]["derived_series_uid"] is None
    assert store.ledger().balanced


def test_slice_that_arrives_meanwhile_makes_the_decision_void(store, received, now):
    assert not decide(store, received, now, 1)
    assert due_at(store, now) == []


@pytest.mark.parametrize("sent", [False, True])
def test_late_slice_is_forwarded_by_a_new_generation(store, received, new_instance, now, sent):
    decide(store, received, now, 2)
    if sent:
        send_all(store, now)
    again = store.series.record_instance(new_instance(3), now).job_id
    assert decide(store, again, now, 3)

    [task] = due_at(store, now)
    assert task.job_id == again and len(task.instances) == 3
    send_all(store, now)
    assert store.jobs.get(received).state == JobState.SUPERSEDED
    assert store.jobs.get(again).state == JobState.DELIVERED
    assert store.ledger().balanced


@pytest.mark.parametrize("end", ["delivered", "cancelled"])
def test_requeue_of_a_forwarded_series_forwards_it_again(store, received, now, end):
    decide(store, received, now, 2)
    if end == "delivered":
        send_all(store, now)
    else:
        store.jobs.cancel(received, now)

    again = store.jobs.requeue(received, now, ["elsewhere"])

    assert store.jobs.get(again).state == JobState.DERIVED  # the engine has no use for it
    [task] = due_at(store, now)
    assert (task.job_id, task.destination, len(task.instances)) == (again, "pacs", 2)
    send_all(store, now)
    assert store.jobs.get(again).reason == "The originals were sent to pacs."
    assert store.ledger().balanced


def test_an_original_that_was_corrected_is_known_as_such(store, received, now, new_instance):
    decide(store, received, now, 2)
    send_all(store, now)
    old = store.series.find_instance("1.2.3.2")
    new = replace(new_instance(2), corrects=old.sha256, sha256="7" * 64, attributes_sha256="8" * 64)

    again = store.series.record_instance(new, now)

    assert again.outcome == "corrected" and again.job_id != received
    assert decide(store, again.job_id, now, 2)
    [task] = due_at(store, now)
    assert [one.corrected for one in task.instances] == [False, True]
