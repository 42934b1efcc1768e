"""Waits on record after the wall clock was set: none is longer than it was meant to be."""

from datetime import timedelta

import pytest

from dicom_node.states import JobState
from dicom_node.store import Reference
from tests.rigs import due_at

LEASE = timedelta(seconds=60)
DAY = timedelta(days=1)


def test_a_series_waits_for_its_slices_anew(store, new_instance, now):
    store.series.record_instance(new_instance(1), now)
    earlier = now - DAY

    store.waits.restart(earlier, LEASE, not_after=earlier)

    assert store.series.receiving(earlier - timedelta(seconds=1)) == []
    assert len(store.series.receiving(earlier)) == 1


def test_a_series_that_was_decided_keeps_its_time(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.jobs.transition(job_id, "skip", now)
    before = store.series.listing()

    store.waits.restart(now - DAY, LEASE, not_after=now - DAY)

    assert store.series.listing() == before


def test_a_dead_workers_lease_ends_in_its_time(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.jobs.transition(job_id, "enqueue", now)
    store.jobs.claim("elsewhere", now, LEASE)
    earlier = now - DAY

    store.waits.restart(earlier, LEASE, not_after=earlier)

    assert store.jobs.expire_leases(earlier + LEASE) == []
    assert store.jobs.expire_leases(earlier + LEASE * 2) == [job_id]


def test_a_living_workers_lease_does_not_end_when_the_clock_is_set_forward(
    store, new_instance, now
):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.jobs.transition(job_id, "enqueue", now)
    store.jobs.claim("w", now, LEASE)
    later = now + DAY

    store.waits.restart(later, LEASE, not_after=later)

    assert store.jobs.expire_leases(later) == []
    assert store.jobs.get(job_id).state is JobState.RUNNING


@pytest.mark.parametrize("longest", [timedelta(0), timedelta(hours=1)])
def test_long_pauses_end_and_others_go_on(store, published, new_instance, now, longest):
    job_id = published()
    (task,) = due_at(store, now)
    earlier = now - DAY
    store.deliveries.finish(task.delivery_id, "transient", "no", now, now + timedelta(minutes=5))
    assert due_at(store, earlier) == []

    store.waits.restart(earlier, LEASE, not_after=earlier + longest)
    assert [each.job_id for each in due_at(store, earlier)] == [job_id]

    store.deliveries.finish(
        task.delivery_id, "transient", "no", earlier, earlier + timedelta(minutes=5)
    )
    store.waits.restart(earlier, LEASE, not_after=earlier + longest)
    assert bool(due_at(store, earlier)) == (not longest)


def test_a_failed_attempt_is_tried_again(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.jobs.transition(job_id, "enqueue", now)
    store.jobs.claim("w", now, LEASE)
    store.jobs.fail_attempt(job_id, "w", "no", now, not_before=now + timedelta(minutes=1))
    earlier = now - DAY

    store.waits.restart(earlier, LEASE, not_after=earlier)

    assert store.jobs.claim("w2", earlier, LEASE).job_id == job_id


def test_a_scanner_gets_its_answer(store, now):
    number = store.debts.accept("mr", "1.2.9", [Reference(sop_uid="1.2", sop_class="1.3")], now)
    (debt,) = store.debts.due(now)
    store.debts.wait(debt, now + timedelta(minutes=1))
    earlier = now - DAY

    store.waits.restart(earlier, LEASE, not_after=earlier)

    (debt,) = store.debts.due(earlier)
    assert (debt.commitment_id, debt.asked_at) == (number, earlier)


def test_the_trail_says_by_how_much_the_clock_was_set(store, now):
    store.waits.restart(now, LEASE, not_after=now, step_s=-86400.04)
    store.waits.restart(now, LEASE, not_after=now)

    found = [row.fields for row in store.audit.listing() if row.event == "clock.set"]
    assert found == [{"seconds": -86400.0}]
