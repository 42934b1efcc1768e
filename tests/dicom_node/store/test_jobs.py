"""The queue: claims, leases, results, and what a person may do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from dicom_node.errors import IllegalTransition, LeaseLost, UnknownJob
from dicom_node.states import HeldBy, JobState
from dicom_node.store import open_store
from dicom_node.store.moves import locked_job
from tests.dicom_node.store.conftest import POSTGRESQL, claim_all, queue_many
from tests.rigs import due_at

LEASE = timedelta(seconds=60)
LATER = timedelta(seconds=61)


def test_eight_workers_claim_two_hundred_jobs_once_each(store, url, now):
    jobs = queue_many(store, 200)
    start = threading.Barrier(8)

    def work(name: str) -> list[int]:
        own = open_store(url)
        start.wait()
        mine = claim_all(own, name)
        own.close()
        return mine

    with ThreadPoolExecutor(8) as pool:
        claimed = [job for mine in pool.map(work, "abcdefgh") for job in mine]

    assert len(claimed) == 200
    assert set(claimed) == jobs


@POSTGRESQL
def test_a_claim_does_not_wait_for_another_ones_commit(store, now):
    first, second = sorted(queue_many(store, 2))
    with store.database.transaction() as work:
        locked_job(work, first)  # as a claim does until it has committed

        assert store.jobs.claim("w", now, LEASE).job_id == second


def test_urgent_jobs_come_first_and_old_ones_before_new_ones(store, queued, now):
    low, normal = queued("1.1", priority="low"), queued("1.2")
    urgent, second = queued("1.3", priority="urgent"), queued("1.4")

    order = [store.jobs.claim("w", now, LEASE).job_id for _ in range(4)]

    assert order == [urgent, normal, second, low]


def test_an_empty_queue_gives_nothing(store, now):
    assert store.jobs.claim("w", now, LEASE) is None


def test_a_claim_tells_the_worker_what_it_needs(store, queued, now):
    job_id = queued(priority="urgent", destinations=["pacs", "research"])

    claimed = store.jobs.claim("w", now, LEASE)

    assert (claimed.job_id, claimed.series_uid, claimed.generation) == (job_id, "1.2.3", 1)
    assert (claimed.attempt, claimed.priority) == (1, "urgent")
    assert claimed.destinations == ("pacs", "research")
    assert claimed.lease_until == now + LEASE


def test_a_job_waits_until_its_time(store, queued, now):
    queued(not_before=now + LEASE)

    assert store.jobs.claim("w", now, LEASE) is None
    assert store.jobs.claim("w", now + LEASE, LEASE) is not None


def test_expired_lease_returns_the_job_to_the_queue(store, queued, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)

    assert store.jobs.expire_leases(now + LEASE) == []
    assert store.jobs.expire_leases(now + LATER) == [job_id]

    job = store.jobs.get(job_id)
    assert (job.state, job.worker, job.lease_until) == (JobState.QUEUED, None, None)
    assert "Worker w stopped answering" in job.reason


def test_a_heartbeat_keeps_the_job(store, queued, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)

    assert store.jobs.heartbeat(job_id, "w", now + LEASE, LEASE)

    assert store.jobs.expire_leases(now + LATER) == []


def test_a_stranger_has_no_heartbeat(store, queued, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)

    assert not store.jobs.heartbeat(job_id, "other", now, LEASE)


def test_a_job_whose_workers_keep_dying_is_given_up(store, queued, now):
    job_id = queued()
    for attempt in range(3):
        store.jobs.claim("w", now + attempt * LATER, LEASE)
        store.jobs.expire_leases(now + (attempt + 1) * LATER, 3)

    job = store.jobs.get(job_id)
    assert (job.state, job.attempts) == (JobState.DEAD, 3)
    assert job.reason == "Worker w stopped answering in attempt 3; that was the last attempt."


def test_a_failed_attempt_is_tried_again_until_the_last(store, queued, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)

    first = store.jobs.fail_attempt(
        job_id, "w", "Out of memory.", now, max_attempts=2, not_before=now + LEASE
    )
    assert (first, store.jobs.get(job_id).not_before) == (JobState.QUEUED, now + LEASE)
    assert store.jobs.get(job_id).reason == "Out of memory; it will be tried again."
    store.jobs.claim("w", now + LEASE, LEASE)
    second = store.jobs.fail_attempt(job_id, "w", "Out of memory", now, max_attempts=2)

    assert second == JobState.DEAD


def test_publishing_is_one_step_to_derived_with_its_deliveries(store, published, now):
    job_id = published(destinations=("pacs", "research"))

    job = store.jobs.get(job_id)
    assert (job.state, job.derived_series_uid) == (JobState.DERIVED, "2.25.123")
    assert (job.recipe_digest, job.published_at, job.figures) == ("a" * 64, now, {"residual": 1.0})
    assert [task.destination for task in due_at(store, now)] == ["pacs", "research"]
    assert len(store.jobs.derived(job_id)) == 2


def test_without_a_destination_the_result_stays_and_the_job_is_done(store, published):
    job = store.jobs.get(published(destinations=()))

    assert job.state == JobState.DELIVERED
    assert "no destination is configured" in job.reason


def test_a_worker_that_lost_its_lease_publishes_nothing(store, queued, derived, now):
    job_id = queued()
    store.jobs.claim("slow", now, LEASE)
    store.jobs.expire_leases(now + LATER)
    store.jobs.claim("quick", now + LATER, LEASE)

    with pytest.raises(LeaseLost, match="slow"):
        store.jobs.publish(job_id, "slow", derived(), ["pacs"], now + LATER)
    with pytest.raises(LeaseLost):
        store.jobs.hold_result(job_id, "slow", derived(), HeldBy.GATE, "no", now)
    with pytest.raises(LeaseLost):
        store.jobs.fail_attempt(job_id, "slow", "no", now)
    with pytest.raises(LeaseLost):
        store.jobs.transition(job_id, "refuse", now, lessee="slow")

    assert store.jobs.derived(job_id) == []
    store.jobs.publish(job_id, "quick", derived(), ["pacs"], now + LATER)


def test_a_second_publication_is_refused(store, published, derived, now):
    job_id = published()

    with pytest.raises(LeaseLost):
        store.jobs.publish(job_id, "w", derived(), ["pacs"], now)
    assert len(due_at(store, now)) == 1


def test_a_result_without_an_instance_is_refused(derived):
    with pytest.raises(ValueError, match="no instance"):
        derived(slices=0)


def test_a_result_held_by_quality_is_published_on_release(store, queued, derived, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)
    store.jobs.hold_result(job_id, "w", derived(), HeldBy.QUALITY, "Held: residual 3.1.", now)
    assert store.jobs.get(job_id).held_by == HeldBy.QUALITY
    assert store.series.listing()[0]["derived_series_uid"] is None

    store.jobs.publish_held(job_id, ["pacs"], now)

    assert store.jobs.get(job_id).state == JobState.DERIVED
    assert len(due_at(store, now)[0].instances) == 2


def test_a_result_held_by_the_gate_is_never_released(store, queued, derived, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)
    store.jobs.hold_result(job_id, "w", derived(), HeldBy.GATE, "Held: geometry.", now)

    with pytest.raises(IllegalTransition, match="gate"):
        store.jobs.release(job_id, now)
    with pytest.raises(IllegalTransition, match="no result that quality holds"):
        store.jobs.publish_held(job_id, ["pacs"], now)


@pytest.mark.parametrize(("by", "incomplete"), [(HeldBy.COMPLETENESS, True), (HeldBy.RULE, False)])
def test_releasing_a_held_series_queues_it_and_remembers_a_hole(
    store, new_instance, now, by, incomplete
):
    job_id = store.series.record_instance(new_instance(), now).job_id
    store.jobs.transition(job_id, "hold", now, held_by=by.value)

    store.jobs.release(job_id, now)

    assert store.jobs.get(job_id).state == JobState.QUEUED
    assert store.jobs.claim("w", now, LEASE).incomplete_release is incomplete


def test_a_decision_on_an_outdated_look_is_void(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.series.record_instance(new_instance(2), now)

    assert not store.jobs.decide(job_id, "enqueue", now, 1, reason="Complete.")
    assert store.jobs.get(job_id).state == JobState.RECEIVING
    assert store.jobs.decide(job_id, "enqueue", now, 2, reason="Complete.")
    assert not store.jobs.decide(job_id, "enqueue", now, 2, reason="Complete.")


@pytest.mark.parametrize("event", ["skip", "cancel"])
def test_a_person_queues_a_skipped_or_cancelled_series(store, new_instance, now, event):
    job_id = store.series.record_instance(new_instance(), now).job_id
    store.jobs.transition(job_id, event, now)

    assert store.jobs.requeue(job_id, now, ("pacs",)) == job_id

    assert store.jobs.claim("w", now, LEASE).destinations == ("pacs",)


def test_requeueing_a_dead_job_gives_it_all_attempts_again(store, queued, now):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)
    store.jobs.transition(job_id, "refuse", now)

    store.jobs.requeue(job_id, now)

    assert store.jobs.claim("w", now, LEASE).attempt == 1


def test_requeueing_a_failed_delivery_only_sends_again(store, published, now):
    job_id = published()
    (task,) = due_at(store, now)
    store.deliveries.record_status(task.delivery_id, task.instances[0].derived_instance_id, 0, now)
    store.deliveries.finish(task.delivery_id, "permanent", "refused", now)

    assert store.jobs.requeue(job_id, now) == job_id

    (again,) = due_at(store, now)
    assert (again.attempts, len(again.instances)) == (0, 1)


@pytest.mark.parametrize("cancelled", [True, False])
def test_reprocessing_a_published_series_is_a_new_generation(store, published, now, cancelled):
    job_id = published()
    if cancelled:
        store.jobs.cancel(job_id, now)
    else:
        (task,) = due_at(store, now)
        for one in task.instances:
            store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
        store.deliveries.finish(task.delivery_id, "sent", "stored", now)

    again = store.jobs.requeue(job_id, now)

    assert store.jobs.get(job_id).state == JobState.SUPERSEDED
    claimed = store.jobs.claim("w", now, LEASE)
    assert (claimed.job_id, claimed.generation, claimed.destinations) == (again, 2, ("pacs",))


def test_cancelling_stops_the_deliveries(store, published, now):
    job_id = published()

    store.jobs.cancel(job_id, now)

    assert due_at(store, now) == []


def test_a_move_that_the_table_does_not_know_changes_nothing(store, queued, now):
    job_id = queued()

    with pytest.raises(IllegalTransition, match="'deliver' is not allowed in state QUEUED"):
        store.jobs.transition(job_id, "deliver", now)
    assert store.jobs.get(job_id).state == JobState.QUEUED


def test_an_unknown_job_is_said_to_be_unknown(store, now):
    with pytest.raises(UnknownJob, match="99"):
        store.jobs.get(99)
    with pytest.raises(UnknownJob, match="99"):
        store.jobs.transition(99, "cancel", now)


def test_the_trail_tells_the_story_of_a_job(store, published):
    job_id = published()

    trail = store.audit.listing(job_id=job_id)

    events = [row.event for row in trail]
    assert events == ["job.create", "job.enqueue", "job.claim", "job.derive"]
    assert [row.event for row in store.audit.listing(limit=2)] == ["job.claim", "job.derive"]


def test_an_audit_row_keeps_no_field_it_does_not_know(store, now):
    store.audit.record("instance.rejected", now, sop="1.2", patient_name="DOE^JOHN")

    (row,) = store.audit.listing()
    assert row.fields == {"sop": "1.2", "patient_name": "[withheld]"}


def test_a_switch_keeps_its_value_for_every_process(store, url, now):
    assert store.switches.get("sending", True) is True
    store.switches.set("sending", False, now)
    store.switches.set("sending", False, now)

    other = open_store(url)
    assert other.switches.get("sending", True) is False
    other.close()
