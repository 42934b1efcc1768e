"""Received instances: duplicates, conflicts, late slices, the list, the ledger."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from dicom_node.errors import ConflictingInstance, InstanceRejected, StoreUnavailable
from dicom_node.states import HeldBy, JobState
from dicom_node.store import DerivedSeries, schema
from dicom_node.store.arrivals import record_all
from dicom_node.store.overview import series_lines
from tests.rigs import due_at

LEASE = timedelta(seconds=60)


def test_the_first_instance_opens_a_receiving_job(store, new_instance, now):
    recorded = store.series.record_instance(new_instance(), now)

    job = store.jobs.get(recorded.job_id)
    assert recorded.outcome == "new"
    assert (job.state, job.generation, job.series_uid) == (JobState.RECEIVING, 1, "1.2.3")


def test_an_instance_comes_back_as_it_was_recorded(store, new_instance, now):
    new = new_instance(7, pixels_sha256="c" * 64)
    store.series.record_instance(new, now)

    found = store.series.find_instance(new.sop_uid)

    assert {name: getattr(found, name) for name in ("path", "bytes", "header", "sop_class")} == {
        name: getattr(new, name) for name in ("path", "bytes", "header", "sop_class")
    }
    assert found.received_at == now
    assert store.series.instances(found.series_id) == store.series.all_instances() == [found]


def test_the_same_instance_twice_is_one_row(store, new_instance, now):
    first = store.series.record_instance(new_instance(), now)

    second = store.series.record_instance(new_instance(), now)

    assert (second.outcome, second.job_id) == ("duplicate", first.job_id)
    assert store.ledger().acknowledged == 1


@pytest.mark.parametrize(
    "change",
    [
        {"attributes_sha256": "e" * 64},
        {"sha256": "e" * 64},
        {"sha256": "e" * 64, "pixels_sha256": "e" * 64},
    ],
)
def test_the_same_uid_with_other_content_is_a_conflict(store, new_instance, now, change):
    store.series.record_instance(new_instance(pixels_sha256="c" * 64), now)

    with pytest.raises(ConflictingInstance, match="1.2.3.1"):
        store.series.record_instance(new_instance(**change), now)
    assert store.ledger().acknowledged == 1


def test_the_same_pixels_in_another_encoding_are_a_duplicate(store, new_instance, now):
    store.series.record_instance(new_instance(pixels_sha256="c" * 64), now)

    again = new_instance(sha256="e" * 64, pixels_sha256="c" * 64)

    assert store.series.record_instance(again, now).outcome == "duplicate"


def test_many_associations_sending_the_same_instances_make_one_row_each(store, new_instance, now):
    def send(_: int) -> list[str]:
        slices = [new_instance(i, f"1.2.{i % 5}") for i in range(30)]
        return [store.series.record_instance(one, now).outcome for one in slices]

    with ThreadPoolExecutor(4) as pool:
        outcomes = [outcome for sent in pool.map(send, range(4)) for outcome in sent]

    assert (outcomes.count("new"), outcomes.count("duplicate")) == (30, 90)
    assert (store.ledger().acknowledged, store.ledger().balanced) == (30, True)


def test_a_batch_tells_each_what_became_of_it(store, new_instance, now):
    first = store.series.record_instance(new_instance(1, "1.2.9"), now)
    batch = [
        new_instance(2, "1.2.9"),
        new_instance(4, "1.2.3"),
        new_instance(1, "1.2.9", attributes_sha256="e" * 64),
        new_instance(5, "1.2.3"),
    ]

    found = record_all(store.database, [(new, now) for new in batch])
    again = record_all(store.database, [(new_instance(1, "1.2.9"), now), (batch[0], now)])

    assert isinstance(found[2], ConflictingInstance)
    assert [one.outcome for one in (*found[:2], found[3])] == ["new"] * 3
    assert [one.outcome for one in again] == ["duplicate"] * 2
    assert found[0].job_id == first.job_id
    assert found[1].job_id == found[3].job_id != first.job_id
    assert store.ledger().acknowledged == 4


def test_a_batch_joins_new_series_series_under_way_and_series_that_were_done(
    store, new_instance, now
):
    going, done = (
        store.series.record_instance(new_instance(1, uid), now) for uid in ("1.3", "1.2")
    )
    store.jobs.transition(done.job_id, "skip", now, reason="Skipped: too small.")
    later = now + timedelta(seconds=5)
    batch = [new_instance(i, uid) for i in (2, 3, 4) for uid in ("1.3", "1.4", "1.2")]

    found = record_all(store.database, [(new, later) for new in batch])

    jobs = {new.series_uid: {one.job_id} for new, one in zip(batch, found, strict=True)}
    assert all({one.job_id} == jobs[new.series_uid] for new, one in zip(batch, found, strict=True))
    assert (jobs["1.3"], jobs["1.2"]) == ({going.job_id}, {done.job_id})  # reopened, not made anew
    assert store.series.states()["RECEIVING"] == 3
    counts = [len(store.series.instances(each)) for _, each in store.series.receiving(later)]
    assert sorted(counts) == [3, 4, 4]
    assert store.series.receiving(later - timedelta(seconds=1)) == []
    assert (store.ledger().acknowledged, store.ledger().balanced) == (11, True)


def test_header_values_that_json_does_not_know_are_kept_as_nothing(store, new_instance, now):
    header = {"EchoTime": float("nan"), "ImageType": ("ORIGINAL", "PRIMARY"), 1: 2}

    store.series.record_instance(new_instance(header=header), now)

    kept = store.series.find_instance(new_instance().sop_uid).header
    assert kept == {"EchoTime": None, "ImageType": ["ORIGINAL", "PRIMARY"], "1": 2}


@pytest.fixture
def short_values(store):
    """Let SQLite refuse long values, as PostgreSQL does: an UID of 100 digits is one."""

    def limit(connection, _):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 20_000)

    if store.database.is_sqlite:
        sa.event.listen(store.database.engine, "connect", limit)
        store.database.close()


def test_one_instance_that_no_row_can_hold_hurts_no_other_of_its_batch(
    store, new_instance, now, short_values
):
    batch = [new_instance(1), new_instance(2, transfer_syntax="1" * 30_000), new_instance(3)]

    found = record_all(store.database, [(new, now) for new in batch])

    refusal = found[1]
    assert isinstance(refusal, InstanceRejected) and refusal.status == 0xC000
    assert batch[1].sop_uid in str(refusal) and "\n" not in str(refusal)
    assert isinstance(refusal.__cause__, sa.exc.SQLAlchemyError)
    assert [found[0].outcome, found[2].outcome] == ["new"] * 2
    assert store.ledger().acknowledged == 2


def test_a_time_without_a_zone_hurts_no_other_of_its_batch(store, new_instance, now):
    store.series.record_instance(new_instance(1, "1.2.9"), now)
    wrong = (new_instance(2, "1.2.9"), now.replace(tzinfo=None))

    refused, kept = record_all(store.database, [wrong, (new_instance(1), now)])

    assert isinstance(refused, sa.exc.StatementError) and kept.outcome == "new"
    assert store.ledger().acknowledged == 2


def test_what_the_database_will_not_do_is_not_blamed_on_the_image(store, new_instance, now):
    """A column that the row lacks stands for a table that is gone, or a right that was revoked."""
    [refusal] = record_all(store.database, [(new_instance(1, calling_ae=None), now)])

    assert isinstance(refusal, StoreUnavailable) and refusal.status == 0xA700
    assert isinstance(refusal.__cause__, sa.exc.IntegrityError) and "\n" not in str(refusal)


def test_the_same_instance_twice_in_a_batch_is_one_row(store, new_instance, now):
    found = record_all(store.database, [(new_instance(), now), (new_instance(), now)])

    assert [one.outcome for one in found] == ["new", "duplicate"]
    assert store.ledger().acknowledged == 1


def test_a_series_is_silent_once_its_last_instance_is_old(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.series.record_instance(new_instance(2), now + timedelta(seconds=30))

    assert store.series.receiving(now + timedelta(seconds=29)) == []
    assert [job for job, _ in store.series.receiving(now + timedelta(seconds=30))] == [job_id]


def to_held(store, job_id, now):
    store.jobs.transition(job_id, "hold", now, held_by=HeldBy.COMPLETENESS.value)


def to_skipped(store, job_id, now):
    store.jobs.transition(job_id, "skip", now, reason="Skipped: too small.")


def to_queued(store, job_id, now):
    store.jobs.transition(job_id, "enqueue", now, rule="r", priority="urgent")


def to_refused(store, job_id, now):
    to_running(store, job_id, now)
    store.jobs.transition(job_id, "refuse", now)


def to_running(store, job_id, now):
    to_queued(store, job_id, now)
    store.jobs.claim("w", now, LEASE)


@pytest.mark.parametrize("before", [to_held, to_skipped, to_queued, to_refused])
def test_a_late_slice_before_work_reopens_the_same_generation(store, new_instance, now, before):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    before(store, job_id, now)

    late = store.series.record_instance(new_instance(2), now + LEASE)

    job = store.jobs.get(job_id)
    assert late.job_id == job_id
    assert (job.state, job.generation) == (JobState.RECEIVING, 1)
    assert (job.rule, job.priority, job.held_by, job.attempts) == (None, "normal", None, 0)
    assert store.jobs.claim("w", now, LEASE) is None


def test_a_late_slice_after_the_claim_makes_a_new_generation(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    to_running(store, job_id, now)

    late = store.series.record_instance(new_instance(2), now)

    assert store.jobs.get(job_id).state == JobState.SUPERSEDED
    assert not store.jobs.heartbeat(job_id, "w", now, LEASE)
    new = store.jobs.get(late.job_id)
    assert (new.state, new.generation) == (JobState.RECEIVING, 2)


def test_a_late_slice_after_publication_stops_the_pending_deliveries(
    store, new_instance, published, now
):
    job_id = published()

    late = store.series.record_instance(new_instance(2), now)

    assert store.jobs.get(job_id).state == JobState.SUPERSEDED
    assert due_at(store, now) == []
    assert [d["state"] for d in store.deliveries.of_job(job_id)] == ["STOPPED"]
    assert store.jobs.get(late.job_id).generation == 2


def test_a_late_slice_after_delivery_makes_a_new_generation(store, new_instance, published, now):
    job_id = published()
    (task,) = due_at(store, now)
    for one in task.instances:
        store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
    store.deliveries.finish(task.delivery_id, "sent", "stored", now)
    assert store.jobs.get(job_id).state == JobState.DELIVERED

    late = store.series.record_instance(new_instance(2), now)

    assert store.jobs.get(job_id).state == JobState.SUPERSEDED
    assert [j.generation for j in store.jobs.of_series("1.2.3")] == [1, 2]
    assert store.jobs.get(late.job_id).state == JobState.RECEIVING


@pytest.mark.parametrize("by", [HeldBy.QUALITY, HeldBy.GATE])
def test_a_late_slice_after_a_held_result_makes_a_new_generation(
    store, new_instance, queued, derived, now, by
):
    job_id = queued()
    store.jobs.claim("w", now, LEASE)
    store.jobs.hold_result(job_id, "w", derived(), by, "Held: look.", now)

    late = store.series.record_instance(new_instance(2), now)

    assert late.job_id != job_id
    assert store.jobs.get(job_id).state == JobState.SUPERSEDED


def test_a_late_slice_of_a_dead_delivery_makes_a_new_generation(
    store, new_instance, published, now
):
    job_id = published()
    (task,) = due_at(store, now)
    store.deliveries.finish(task.delivery_id, "permanent", "refused", now)
    assert store.jobs.get(job_id).state == JobState.DEAD

    late = store.series.record_instance(new_instance(2), now)

    assert late.job_id != job_id


def test_a_late_slice_does_not_undo_a_persons_cancel(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    store.jobs.cancel(job_id, now)

    late = store.series.record_instance(new_instance(2), now)

    assert late.job_id == job_id
    assert store.jobs.get(job_id).state == JobState.CANCELLED
    assert (store.ledger().cancelled, store.ledger().balanced) == (2, True)


def test_the_listing_has_the_shape_that_scripts_rely_on(store, new_instance, published, now):
    published()
    store.series.record_instance(new_instance(1, "1.2.4", description="t2"), now)
    (task,) = due_at(store, now)
    first = task.instances[0].derived_instance_id
    store.deliveries.record_status(task.delivery_id, first, 0, now)

    assert store.series.listing() == [
        {
            "series_uid": "1.2.3",
            "modality": "MR",
            "description": "t1",
            "instances": 1,
            "state": "DERIVED",
            "reason": "The derived series is made; it is being sent to pacs.",
            "derived_series_uid": "2.25.123",
            "deliveries": [
                {
                    **{"destination": "pacs", "state": "PENDING"},
                    **{"sent": 1, "warned": 0, "failed": 0, "committed": 0},
                }
            ],
        },
        {
            "series_uid": "1.2.4",
            "modality": "MR",
            "description": "t2",
            "instances": 1,
            "state": "RECEIVING",
            "reason": "Slices are arriving.",
            "derived_series_uid": None,
            "deliveries": [],
        },
    ]


def of_two_volumes(derived) -> DerivedSeries:
    """Return a result of two images and a report of the second one."""
    first, second, report = (derived(1, f"2.25.{number}").instances[0] for number in range(3))
    return replace(
        derived(series_uid="2.25.0"),
        instances=(
            replace(first, kind="classic", series_uid="2.25.0"),
            replace(second, kind="classic", series_uid="2.25.1"),
            replace(report, kind="classic+report", series_uid="2.25.2"),
        ),
    )


def test_every_series_of_a_result_is_listed_where_there_are_several(store, queued, derived, now):
    job_id = queued()
    store.jobs.claim("w", now, timedelta(seconds=60))
    store.jobs.publish(job_id, "w", of_two_volumes(derived), ["pacs"], now)

    (line,) = store.series.listing()
    assert line["derived_series_uid"] == "2.25.0"
    assert line["derived_series_uids"] == ["2.25.0", "2.25.1", "2.25.2"]
    (line,) = series_lines(store.database)
    assert line["derived_series_uids"] == ["2.25.0", "2.25.1", "2.25.2"]
    again = store.jobs.get(store.jobs.requeue(job_id, now))
    assert store.jobs.replaced_by(again) == ("2.25.0", "2.25.1")


def test_a_result_of_one_series_replaces_one(store, published, now):
    again = store.jobs.get(store.jobs.requeue(published(), now))

    assert store.jobs.replaced_by(again) == ("2.25.123",)


def test_the_listing_shows_the_newest_generation_only(store, new_instance, published, now):
    published()
    store.series.record_instance(new_instance(2), now)

    (line,) = store.series.listing()

    assert (line["state"], line["instances"], line["derived_series_uid"]) == ("RECEIVING", 2, None)


def test_the_states_are_counted_with_the_empty_ones(store, new_instance, now):
    store.series.record_instance(new_instance(), now)

    states = store.series.states()

    assert states["RECEIVING"] == 1 and set(states) == set(JobState)
    assert sum(states.values()) == 1


def test_a_lost_row_unbalances_the_ledger(store, new_instance, now):
    store.series.record_instance(new_instance(1), now)
    store.series.record_instance(new_instance(2), now)
    with store.database.transaction() as work:
        work.execute(sa.delete(schema.instance).where(schema.instance.c.sop_uid == "1.2.3.1"))

    assert not store.ledger().balanced
