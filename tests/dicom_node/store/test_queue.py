"""The claim follows the order of the queue; a time window, a quota and turns hold on record."""

from datetime import timedelta

import pytest

from dicom_node.order import Order, Quota
from dicom_node.store.overview import turnaround

LEASE = timedelta(seconds=60)


@pytest.fixture
def queue(store, new_instance, now):
    """Queue one more series and return its job."""

    def add(number: int, *, at=now, **columns) -> int:
        new = new_instance(1, series_uid=f"1.2.{number}")
        job_id = store.series.record_instance(new, at).job_id
        store.jobs.decide(job_id, "enqueue", at, 1, reason="Complete.", **columns)
        return job_id

    return add


def claim_all(store, now, order) -> list[int]:
    claimed = []
    while (job := store.jobs.claim("w", now, LEASE, order)) is not None:
        claimed.append(job.job_id)
        now += timedelta(microseconds=1)
    return claimed


def test_with_twenty_queued_an_urgent_series_starts_next(store, queue, now):
    first = [queue(number, priority="normal") for number in range(20)]
    urgent = queue(20, priority="urgent")

    assert claim_all(store, now, Order()) == [urgent, *first]


def test_pressing_and_urgent_series_take_turns_on_record(store, queue, now):
    order = Order(within_s={"normal": 600.0}, job_s=0.1)
    old = [queue(number, priority="normal") for number in range(3)]
    later = now + timedelta(seconds=600)
    urgent = [queue(number, at=later, priority="urgent") for number in (10, 11)]

    assert claim_all(store, later, order) == [urgent[0], old[0], urgent[1], *old[1:]]


def test_a_retry_keeps_its_age_and_a_requeue_begins_anew(store, queue, now):
    job_id = queue(1)
    store.jobs.claim("w", now, LEASE)
    store.jobs.fail_attempt(job_id, "w", "broke", now + timedelta(seconds=5))
    assert store.jobs.get(job_id).queued_at == now

    store.jobs.cancel(job_id, now)
    store.jobs.requeue(job_id, now + timedelta(seconds=9))
    assert store.jobs.get(job_id).queued_at == now + timedelta(seconds=9)


def test_a_quota_counts_what_runs_and_what_was_begun(store, queue, now):
    order = Order(quotas={"MR1": Quota(running=2, per_h=3)})
    jobs = [queue(number, source="MR1") for number in range(5)]

    assert claim_all(store, now, order) == jobs[:2]
    [place, *_] = store.jobs.queue(now, order)
    assert place.waits_for == "the quota of MR1: 2 series at a time"
    for job_id in jobs[:2]:
        store.jobs.transition(job_id, "refuse", now)
    assert claim_all(store, now, order) == jobs[2:3]
    assert claim_all(store, now + timedelta(hours=1, seconds=1), order) == jobs[3:4]


def test_a_series_outside_of_its_window_is_not_claimed(store, queue, now):
    local = now.astimezone()
    window = f"{(local + timedelta(hours=2)):%H}:00-{(local + timedelta(hours=4)):%H}:00"
    job_id = queue(1, windows=[window])

    assert claim_all(store, now, Order()) == []
    assert store.jobs.queue(now)[0].waits_for.startswith("its time window")
    assert claim_all(store, now + timedelta(hours=3), Order()) == [job_id]


def test_turnaround_counts_what_takes_too_long_and_leaves_out_what_waits_for_a_person(
    store, queue, now, derived
):
    late_one, held, done = (queue(number, destinations=[]) for number in range(3))
    store.jobs.transition(held, "cancel", now)
    store.jobs.claim("w", now, LEASE)
    store.jobs.transition(late_one, "expire", now)
    with store.database.transaction() as work:
        work.connection.exec_driver_sql(f"UPDATE job SET state = 'RUNNING' WHERE id = {done}")
        work.connection.exec_driver_sql(f"UPDATE job SET worker = 'w' WHERE id = {done}")
    store.jobs.publish(done, "w", derived(), [], now + timedelta(seconds=50))

    found = turnaround(store.database, now + timedelta(seconds=61), 60.0)

    assert (found.overdue, found.late, found.slowest_s) == (1, 0, 50.0)
    assert turnaround(store.database, now + timedelta(seconds=61), 49.0).late == 1
    assert turnaround(store.database, now + timedelta(hours=9), 0.0).overdue == 0
    assert turnaround(store.database, now + timedelta(hours=9), 60.0).slowest_s is None
