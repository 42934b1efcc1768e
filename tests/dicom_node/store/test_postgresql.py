"""What only a server does: rows that wait for each other, a restart, refusals."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from dicom_node.errors import DatabaseTaken, SettingsError, StoreUnavailable
from dicom_node.states import JobState
from dicom_node.store import Report, Resends, open_store, schema
from dicom_node.store.arrivals import upsert_series
from dicom_node.store.database import Database
from dicom_node.store.moves import create_job, locked_job, move, new_generation
from dicom_node.store.occupancy import Occupancy
from dicom_node.store.withdrawals import withdraw_results
from tests.rigs import due_at

MINUTE = timedelta(minutes=1)
SECRET = "geheim-4711"
WAITING = sa.text(
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def wait_until_somebody_waits(store):
    """Return when another transaction waits for a lock."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with store.database.reading() as connection:
            if connection.scalar(WAITING):
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits")


@pytest.fixture
def databases(postgresql):
    return postgresql


@pytest.fixture
def beside():
    """Return a function that runs something in another thread."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def finish(store, delivery, now):
    store.deliveries.finish(delivery.delivery_id, "sent", "stored", now, commitment=True)


def ask(store, delivery, now):
    (wanted,) = store.commitments.due(now + MINUTE)
    store.commitments.ask(wanted, "2.25.2", now, now + MINUTE)


def refuse(store, delivery, now):
    store.commitments.refuse("2.25.1", "no", now, now + MINUTE)


def waive(store, delivery, now):
    store.commitments.waive(delivery.delivery_id, now)


def report(store, delivery, now):
    everything = Report(transaction_uid="2.25.1", everything=True)
    resends = Resends(most=3, pause=lambda count: MINUTE)
    store.commitments.record_report(everything, now, again_at=now + MINUTE, resends=resends)


@pytest.mark.parametrize("deed", [finish, ask, refuse, waive, report])
def test_who_waits_for_a_job_holds_nothing_that_its_holder_may_want(
    store, published, now, beside, deed
):
    job_id = published()
    (delivery,) = due_at(store, now)
    for one in delivery.instances:
        store.deliveries.record_status(delivery.delivery_id, one.derived_instance_id, 0, now)
    finish(store, delivery, now)
    (wanted,) = store.commitments.due(now)
    store.commitments.ask(wanted, "2.25.1", now, now + MINUTE)

    with store.database.transaction() as work:
        locked_job(work, job_id)
        under_way = beside(deed, store, delivery, now)
        wait_until_somebody_waits(store)
        for table in (schema.delivery, schema.commitment):
            free = work.execute(sa.select(table.c.id).with_for_update(skip_locked=True))
            assert len(free.all()) == 1, table.name

    under_way.result()


def test_two_destinations_that_end_at_once_end_the_job(store, published, now, beside):
    job_id = published(destinations=("pacs", "research"))
    both = due_at(store, now)
    for task in both:
        for one in task.instances:
            store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)

    with store.database.transaction() as work:
        locked_job(work, job_id)
        ends = [
            beside(store.deliveries.finish, task.delivery_id, "sent", "stored", now)
            for task in both
        ]
        wait_until_somebody_waits(store)

    assert [end.result() for end in ends] == ["SENT", "SENT"]
    assert store.jobs.get(job_id).state == JobState.DELIVERED


def test_a_result_that_is_published_while_its_images_are_corrected_is_withdrawn(
    store, url, queued, derived, new_instance, now, monkeypatch
):
    """Between the look for results and the lock of the newest job."""
    job_id, worker = queued(), open_store(url)
    assert worker.jobs.claim("w", now, MINUTE).job_id == job_id
    looked = []

    def look(work, *arguments):
        withdraw_results(work, *arguments)
        if not looked:
            worker.jobs.publish(job_id, "w", derived(), ("pacs",), now)
        looked.append(arguments)

    monkeypatch.setattr("dicom_node.store.arrivals.withdraw_results", look)
    known = store.series.find_instance("1.2.3.1")
    changes = {"sha256": "7" * 64, "attributes_sha256": "8" * 64, "corrects": known.sha256}

    again = store.series.record_instance(new_instance(1, **changes), now)

    assert again.outcome == "corrected" and again.job_id != job_id
    assert [one.job_id for one in store.withdrawals.all()] == [job_id]
    worker.close()


def test_the_first_instances_of_one_series_may_come_at_once(store, new_instance, now, beside):
    with store.database.transaction() as work:
        series_id = upsert_series(work, new_instance(1), now, 1)
        job_id = create_job(work, series_id, "1.2.3", now, generation=1)
        second = beside(store.series.record_instance, new_instance(2), now)
        wait_until_somebody_waits(store)

    assert (second.result().outcome, second.result().job_id) == ("new", job_id)


def test_a_slice_that_waited_for_a_new_generation_joins_it(
    store, new_instance, published, now, beside
):
    old = published()
    with store.database.transaction() as work:
        row = locked_job(work, old)
        late = beside(store.series.record_instance, new_instance(2), now)
        wait_until_somebody_waits(store)
        new = new_generation(work, row, now, reason="A person asked for it.")

    assert late.result().job_id == new


def test_a_decision_and_a_new_generation_do_not_wait_for_each_other(
    store, new_instance, now, beside
):
    job_id = store.series.record_instance(new_instance(), now).job_id
    with store.database.transaction() as work:
        row = locked_job(work, job_id)
        decision = beside(store.jobs.decide, job_id, "enqueue", now, 1, reason="Complete.")
        wait_until_somebody_waits(store)
        move(work, job_id, "cancel", now)
        create_job(work, row.series_id, "1.2.3", now, generation=2)

    assert decision.result() is False


def test_text_that_postgresql_cannot_keep_is_kept_as_far_as_possible(store, new_instance, now):
    store.series.record_instance(new_instance(description="t1\0 \ud800ä"), now)
    store.audit.record("service.start", now, reason="a\0b")

    assert store.series.listing()[0]["description"] == "t1\N{REPLACEMENT CHARACTER} ?ä"
    assert store.audit.prove().broken == ""


def test_a_session_is_durable_and_does_not_wait_for_ever(url):
    store = open_store(f"{url}&options=-csynchronous_commit%3Doff")
    names = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout")

    with store.database.reading() as connection:
        found = [connection.scalar(sa.text(f"SHOW {name}")) for name in names]
    store.close()

    assert found == ["on", "30s", "1min"]


def test_a_server_that_forgets_is_named_at_the_start(url):
    with capture_logs() as lines:
        open_store(url).close()

    reasons = [line["reason"] for line in lines if line["event"] == "database.not_durable"]
    assert "fsync = off" in reasons[0]


def test_a_restart_of_the_server_is_survived(store, postgresql, new_instance, now):
    store.series.record_instance(new_instance(1), now)
    postgresql.stop()

    with pytest.raises(StoreUnavailable, match="did not commit"):
        store.series.record_instance(new_instance(2), now)
    with pytest.raises(StoreUnavailable, match="did not answer"):
        store.ledger()
    postgresql.start()

    assert store.series.record_instance(new_instance(2), now).outcome == "new"
    assert store.ledger().acknowledged == 2


def test_a_transaction_that_the_server_cuts_is_unavailable_and_keeps_nothing(
    store, new_instance, now
):
    cut = sa.text("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreUnavailable) as caught, store.database.transaction() as work:
        work.record("service.start", now)
        work.execute(cut)

    assert "\n" not in str(caught.value)
    assert store.audit.listing() == []


@pytest.mark.parametrize(
    "bad",
    [
        f"postgresql+psycopg://node:{SECRET}@127.0.0.1:1/node",
        f"postgresql+psycopg://node:{SECRET}@/node?host=/nowhere",
    ],
)
def test_a_server_that_cannot_be_reached_is_said_in_one_line(bad):
    with pytest.raises(StoreUnavailable, match="did not answer: .*conn") as caught:
        open_store(bad)

    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        f"postgresql+psycopg//node:{SECRET}@127.0.0.1/node",
        f"postgresql+psycopg://node@127.0.0.1:{SECRET}/node",
        f"mysql://node:{SECRET}@127.0.0.1/node",
    ],
)
def test_a_refused_url_is_not_quoted(bad):
    with pytest.raises(SettingsError, match="node.database") as caught:
        open_store(bad)

    assert SECRET not in str(caught.value)


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(SettingsError, match=r"pip install 'psycopg\[binary\]'"):
        open_store("postgresql+psycopg://node@127.0.0.1/node")


def test_a_role_that_may_make_no_tables_is_told_so(empty_url, postgresql):
    postgresql.execute("CREATE ROLE guest LOGIN")

    with pytest.raises(SettingsError, match="permission denied"):
        open_store(empty_url.replace("node@", "guest@"))


def test_a_database_in_another_encoding_is_refused(postgresql):
    postgresql.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")

    with pytest.raises(SettingsError, match="UTF8, not LATIN1"):
        open_store(postgresql.url("latin"))


def test_a_second_node_on_the_database_is_refused_until_the_first_has_ended(url):
    first, second = open_store(url), open_store(url)
    refused = "another node is running on this database, from this machine since 2"
    with first.occupancy, pytest.raises(DatabaseTaken, match=refused), second.occupancy:
        pytest.fail("it started")
    with second.occupancy:
        pass
    first.close()
    second.close()


def test_another_node_in_another_role_is_told_though_the_server_hides_its_session(
    store, url, postgresql
):
    """Its watching thread died of that, and two nodes would have run on."""
    postgresql.execute("CREATE ROLE tenant LOGIN")
    tenant = Database(url.replace("node@", "tenant@"))
    occupancy = Occupancy(tenant, look_s=0.01)
    with store.occupancy:
        with pytest.raises(DatabaseTaken, match="another node .* as another database role"):
            occupancy.look()
        occupancy._watch()
    tenant.close()

    assert "another node is running on this database" in occupancy.lost


def test_a_node_takes_its_database_again_after_a_restart_of_the_server(store, url, postgresql):
    with store.occupancy as occupancy:
        postgresql.stop()
        with pytest.raises(StoreUnavailable, match="did not answer"):
            occupancy.look()
        postgresql.start()
        occupancy.look()
        other = open_store(url)
        with pytest.raises(DatabaseTaken):
            other.occupancy.look()
        other.close()


def test_a_node_whose_database_another_one_took_meanwhile_is_told(store, url):
    other = open_store(url)
    with other.occupancy:
        occupancy = Occupancy(store.database, look_s=0.01)
        occupancy._watch()
    other.close()

    assert "another node is running on this database" in occupancy.lost


def test_a_session_of_ours_that_the_server_has_not_missed_yet_is_no_other_node(store):
    store.occupancy.look()
    again = Occupancy(store.database)
    again._session = store.occupancy._session

    with pytest.raises(StoreUnavailable, match="about to let go of our last session"):
        again.look()
    store.occupancy.__exit__()
    again.look()
    again.__exit__()
