"""The database file: durable settings, migrations, refusals."""

import sqlite3
import threading
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dicom_node.errors import SettingsError, StoreUnavailable
from dicom_node.store import open_store, schema
from dicom_node.store.database import Database
from dicom_node.store.engines import MOST_LOG_BYTES, make_engine
from tests.dicom_node.store.conftest import SQLITE


@SQLITE
def test_a_new_database_is_durable_and_lets_readers_through(store):
    with store.database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2 is FULL


@SQLITE
def test_the_log_that_a_long_reader_has_kept_is_cut_when_it_has_ended(store, url, now):
    log = Path(f"{sa.make_url(url).database}-wal")
    with store.database.reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM switch").scalar()
        for number in range(20):
            store.switches.set("filler", f"{number}" + "x" * 2**21, now)
        assert log.stat().st_size > MOST_LOG_BYTES
    for number in range(3):
        store.switches.set("filler", number, now)

    assert log.stat().st_size <= MOST_LOG_BYTES


def test_the_migrations_build_exactly_the_tables_of_the_schema(store):
    with store.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, schema.metadata) == []


def test_opening_twice_keeps_what_is_there(store, url, new_instance, now):
    store.series.record_instance(new_instance(), now)

    again = open_store(url)

    assert again.series.find_instance("1.2.3.1") is not None
    again.close()


def test_a_database_of_a_newer_version_is_refused(store, url):
    with store.database.transaction() as work:
        work.execute(sa.text("UPDATE alembic_version SET version_num = 'from the future'"))

    with pytest.raises(SettingsError, match="newer version"):
        open_store(url)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("nonsense", "cannot be used"),
        ("oracle9://x/y", "cannot be used"),
        ("mysql+pymysql://user@host/name", "neither sqlite nor postgresql"),
        ("postgresql+asyncpg://user@host/name", "neither sqlite nor postgresql"),
        ("sqlite://", "memory"),
        ("sqlite:///:memory:", "memory"),
    ],
)
def test_an_unusable_url_is_refused(bad, words):
    with pytest.raises(SettingsError, match=words):
        open_store(bad)


def test_a_file_that_is_no_database_is_unavailable_not_a_crash(tmp_path):
    path = tmp_path / "node.db"
    path.mkdir()

    with pytest.raises(StoreUnavailable, match="database"):
        open_store(f"sqlite:///{path}")


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path):
    file = tmp_path / "node.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN IMMEDIATE")  # of a file without write-ahead log, as it is at first
    threading.Timer(0.5, lambda: other.execute("COMMIT")).start()

    engine = make_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
    other.close()


@SQLITE
def test_a_locked_database_answers_unavailable_and_keeps_nothing(
    url, new_instance, now, monkeypatch
):
    monkeypatch.setattr("dicom_node.store.engines.BUSY_TIMEOUT_S", 0.05)
    store = open_store(url)
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable, match="did not commit"):
        store.series.record_instance(new_instance(), now)
    other.execute("ROLLBACK")

    assert store.series.find_instance("1.2.3.1") is None
    assert store.series.record_instance(new_instance(), now).outcome == "new"
    store.close()


def test_a_reader_does_not_wait_for_a_writer(store, new_instance, now):
    store.series.record_instance(new_instance(), now)

    with store.database.transaction():
        assert store.ledger().acknowledged == 1


def test_a_time_without_a_zone_is_refused(store, new_instance):
    with pytest.raises(sa.exc.StatementError, match="zone"):
        store.series.record_instance(new_instance(), datetime(2026, 1, 5))


def test_a_failed_transaction_leaves_nothing_behind(url, now):
    database = Database(url)
    database.migrate()

    with pytest.raises(RuntimeError), database.transaction() as work:
        work.execute(sa.insert(schema.switch).values(name="a", value=1, changed_at=now))
        raise RuntimeError

    with database.reading() as connection:
        assert connection.execute(sa.select(schema.switch)).first() is None
    database.close()
