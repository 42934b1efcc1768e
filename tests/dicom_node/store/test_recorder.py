"""What arrives for a series under way: one statement, and the same rows as in the usual way."""

import sqlite3
from datetime import timedelta

import pytest
import sqlalchemy as sa

from dicom_node.errors import ConflictingInstance, StoreUnavailable
from dicom_node.store import open_store, recorder, schema
from dicom_node.store.arrivals import record_all
from dicom_node.store.recorder import Recorder
from tests.dicom_node.store.conftest import SQLITE


def rows(store, table):
    with store.database.reading() as connection:
        return [
            dict(row._mapping) for row in connection.execute(sa.select(table).order_by(table.c.id))
        ]


@pytest.fixture
def usual(monkeypatch):
    """Note the batches that are recorded in the usual way."""
    batches = []

    def noted(database, batch):
        batches.append([new.sop_uid for new, _ in batch])
        return record_all(database, batch)

    monkeypatch.setattr(recorder, "record_all", noted)
    return batches


def outcomes(found):
    return [one.outcome for one in found]


def test_whatever_the_way_the_rows_are_the_same(databases, new_instance, now, usual):
    batches = [
        [new_instance(1), new_instance(1, "1.4")],
        [new_instance(3, "1.4"), new_instance(2), new_instance(2, "1.4", header={"Rows": 7})],
        [new_instance(3)],
    ]
    found = []
    for way in (True, False):
        with databases.database() as url:
            store = open_store(url)
            record = Recorder(store.database).record_all if way else None
            for second, batch in enumerate(batches):
                at = now + timedelta(seconds=second)
                arrivals = [(new, at - timedelta(milliseconds=i)) for i, new in enumerate(batch)]
                told = record(arrivals) if record else record_all(store.database, arrivals)
                assert outcomes(told) == ["new"] * len(batch)
                found.append([one.job_id for one in told])
            found.append([rows(store, each) for each in (schema.series, schema.job)])
            instances = rows(store, schema.instance)
            for row in instances:
                del row["id"]  # in the order of the series in one, of the times in the other
            found.append(sorted(instances, key=lambda row: row["sop_uid"]))
            assert (store.ledger().acknowledged, store.ledger().balanced) == (6, True)
            is_sqlite = store.database.is_sqlite
            store.close()

    assert found[: len(found) // 2] == found[len(found) // 2 :]
    assert len(usual) == (1 if is_sqlite else 3)


def test_a_series_that_was_done_is_reopened(store, new_instance, now):
    record = Recorder(store.database).record_all
    [first] = record([(new_instance(1), now)])
    store.jobs.transition(first.job_id, "skip", now, reason="Skipped: too small.")

    [late] = record([(new_instance(2), now)])

    assert late.job_id == first.job_id
    assert store.jobs.get(first.job_id).state == "RECEIVING"
    assert store.ledger().balanced


def test_a_series_that_another_process_began_anew_is_joined_there(store, url, new_instance, now):
    record = Recorder(store.database).record_all
    [first] = record([(new_instance(1), now)])
    store.jobs.transition(first.job_id, "enqueue", now)
    store.jobs.claim("worker", now, timedelta(minutes=1))
    other = open_store(url)
    second = other.series.record_instance(new_instance(2), now)
    other.close()
    with store.database.transaction() as work:  # as if a person had cancelled the older one
        this = schema.job.c.id == first.job_id
        work.execute(sa.update(schema.job).where(this).values(state="CANCELLED"))

    [third] = record([(new_instance(3), now)])

    assert third.job_id == second.job_id != first.job_id


def test_a_cancelled_series_counts_what_comes_and_stays_so(store, new_instance, now, usual):
    record = Recorder(store.database).record_all
    [first] = record([(new_instance(1), now)])
    store.jobs.transition(first.job_id, "cancel", now, reason="Cancelled.")

    [late] = record([(new_instance(2), now)])

    assert late.job_id == first.job_id
    assert store.jobs.get(first.job_id).state == "CANCELLED"
    assert store.ledger().acknowledged == 2
    assert len(usual) == (1 if store.database.is_sqlite else 2)


def test_one_that_is_known_hurts_no_other(store, new_instance, now):
    record = Recorder(store.database).record_all
    record([(new_instance(1), now)])

    found = record([
        (new_instance(2), now),
        (new_instance(1), now),
        (new_instance(3), now),
    ])  # fmt: skip
    again = record([(new_instance(3, attributes_sha256="e" * 64), now), (new_instance(4), now)])

    assert outcomes(found) == ["new", "duplicate", "new"]
    assert isinstance(again[0], ConflictingInstance) and again[1].outcome == "new"
    assert (store.ledger().acknowledged, store.ledger().balanced) == (4, True)


def test_the_same_one_twice_at_once_is_one_row(store, new_instance, now):
    record = Recorder(store.database).record_all
    record([(new_instance(1), now)])

    found = record([(new_instance(2), now), (new_instance(2), now)])

    assert outcomes(found) == ["new", "duplicate"]
    assert store.ledger().acknowledged == 2


def test_a_value_that_cannot_be_kept_hurts_no_other(store, new_instance, now):
    record = Recorder(store.database).record_all
    record([(new_instance(1), now), (new_instance(1, "1.4"), now)])

    refused, kept = record([
        (new_instance(2, "1.4"), now.replace(tzinfo=None)),
        (new_instance(3), now),
    ])  # fmt: skip
    missing, also = record([(new_instance(4, calling_ae=None), now), (new_instance(5), now)])

    assert isinstance(refused, sa.exc.StatementError) and kept.outcome == "new"
    assert isinstance(missing, StoreUnavailable) and also.outcome == "new"
    assert store.ledger().acknowledged == 4


def test_a_job_of_another_series_is_not_believed(store, new_instance, now):
    one = Recorder(store.database)
    [first] = one.record_all([(new_instance(1), now)])
    [other] = one.record_all([(new_instance(1, "1.4"), now)])
    one._jobs["1.2.3"], one._jobs["1.4"] = other.job_id, first.job_id

    found = one.record_all([(new_instance(2), now), (new_instance(2, "1.4"), now)])

    assert [each.job_id for each in found] == [first.job_id, other.job_id]


def test_what_is_remembered_has_an_end(store, new_instance, now, monkeypatch):
    monkeypatch.setattr(recorder, "MOST_SERIES", 3)
    one = Recorder(store.database)

    for number in range(9):
        one.record_all([(new_instance(1, f"1.{number}"), now)])

    assert list(one._jobs) == ["1.6", "1.7", "1.8"]


@SQLITE
def test_a_locked_database_is_waited_for_once_and_keeps_nothing(
    url, new_instance, now, monkeypatch, usual
):
    monkeypatch.setattr("dicom_node.store.engines.BUSY_TIMEOUT_S", 0.05)
    store = open_store(url)
    record = Recorder(store.database).record_all
    record([(new_instance(1), now)])
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    found = record([(new_instance(2), now), (new_instance(3), now)])
    other.execute("ROLLBACK")

    assert [type(one) for one in found] == [StoreUnavailable] * 2
    assert "did not commit" in str(found[0]) and len(usual) == 1
    assert store.ledger().acknowledged == 1
    assert outcomes(record([(new_instance(2), now)])) == ["new"]
    store.close()
    other.close()


@SQLITE
def test_without_a_connection_the_sender_is_asked_to_try_again(
    store, new_instance, now, monkeypatch
):
    record = Recorder(store.database).record_all
    record([(new_instance(1), now)])
    monkeypatch.setattr(store.database.engine.pool, "_timeout", 0.05)
    taken = []
    while True:
        try:
            taken.append(store.database.engine.connect())
        except sa.exc.TimeoutError:
            break
    store.database._writer.close()
    taken.append(store.database.engine.connect())
    store.database._writer = None  # as a failed transaction leaves it

    [found] = record([(new_instance(2), now)])
    for connection in taken:
        connection.close()

    assert isinstance(found, StoreUnavailable)
    assert outcomes(record([(new_instance(2), now)])) == ["new"]


@SQLITE
def test_a_full_disk_keeps_nothing_and_is_told(store, new_instance, now):
    record = Recorder(store.database).record_all
    record([(new_instance(1), now)])
    writer = store.database._writer
    driver = writer.connection.driver_connection
    pages = driver.execute("PRAGMA page_count").fetchone()[0]
    driver.execute(f"PRAGMA max_page_count={pages}")

    found = record([(new_instance(2, header={"Words": "x" * 100_000}), now)])

    assert isinstance(found[0], StoreUnavailable)
    assert store.ledger().acknowledged == 1 and store.ledger().balanced


@SQLITE
def test_nothing_of_the_way_is_in_the_file(url, store, new_instance, now):
    record = Recorder(store.database).record_all
    record([(new_instance(1), now)])
    record([(new_instance(2), now)])

    with sqlite3.connect(url.removeprefix("sqlite:///")) as other:
        names = {row[0] for row in other.execute("SELECT name FROM sqlite_master")}
    assert "instance" in names and names.isdisjoint({"arriving", "arrive"})


def test_a_refusal_does_not_cost_the_connection(store, new_instance, now, usual):
    record = Recorder(store.database).record_all
    for number in (1, 2):
        record([(new_instance(number), now)])
    writer = store.database._writer

    [again] = record([(new_instance(2), now)])

    assert again.outcome == "duplicate"
    assert store.database._writer is writer
    assert len(usual) == (2 if store.database.is_sqlite else 3)
    assert outcomes(record([(new_instance(3), now)])) == ["new"]
    assert store.ledger().balanced
