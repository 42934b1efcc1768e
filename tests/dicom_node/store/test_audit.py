"""The audit trail: nobody changes it, and nobody does so unnoticed."""

import json
import re
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from dicom_node.errors import StoreUnavailable
from dicom_node.store import chain, open_store
from tests.dicom_node.store.conftest import NOW, SQLITE, migrate_to


class Plain:
    """Somebody who reaches the database past the node; on PostgreSQL its owner."""

    def __init__(self, database):
        self._engine = database.engine
        self.is_sqlite = database.is_sqlite

    def execute(self, statement, rows=None):
        with self._engine.begin() as connection:
            result = connection.execute(sa.text(statement), rows)
            return result.fetchall() if result.returns_rows else []


@pytest.fixture
def plain(store):
    """Return somebody else's way to a trail of five rows."""
    for number in range(1, 6):
        store.audit.record("service.start", NOW + timedelta(seconds=number), port=number)
    return Plain(store.database)


@pytest.fixture
def unguarded(plain):
    """Return the same once somebody has taken the triggers' effect away."""
    if plain.is_sqlite:
        for (trigger,) in plain.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            plain.execute(f"DROP TRIGGER {trigger}")
    else:
        plain.execute("ALTER TABLE audit DISABLE TRIGGER USER")
        plain.execute("ALTER TABLE audit_head DISABLE TRIGGER USER")
    yield plain
    if not plain.is_sqlite:  # the database goes to the next test
        plain.execute("ALTER TABLE audit ENABLE TRIGGER USER")
        plain.execute("ALTER TABLE audit_head ENABLE TRIGGER USER")


def test_a_row_is_linked_to_the_one_before_it(store, plain):
    rows = plain.execute("SELECT at, event, fields, hash FROM audit ORDER BY id")

    previous = chain.GENESIS
    for at, event, fields, digest in rows:
        if plain.is_sqlite:
            at, fields = datetime.fromisoformat(at).replace(tzinfo=UTC), json.loads(fields)
        previous = chain.link(previous, at, event, fields)
        assert digest == previous
    proof = store.audit.prove()
    assert (proof.rows, proof.head, proof.broken) == (5, previous, "")


def test_a_link_is_what_it_has_always_been():
    digest = chain.link(chain.GENESIS, NOW, "job.claim", {"worker": "w", "job": 17})

    # SHA-256 of ["000...0","2026-01-05T09:00:00.000000+00:00","job.claim",{"job":17,"worker":"w"}]
    assert digest == "c52cfeb6080aee9d04eefb37497eff4a58f642a9980ed38e19b206de450594ca"


def test_the_trail_of_a_new_node_is_sound(store):
    assert (store.audit.prove().rows, store.audit.prove().broken) == (0, "")


@pytest.mark.parametrize(
    "fields",
    [
        {"counts": {10: "a", 9: "b"}},
        {"findings": ("a", "ü", "\U0001f600", '"\\')},
        {"value": 0.1 + 0.2, "old": None, "balanced": True, "bytes": 2**53 + 1},
        {"figures": {"nan": float("nan"), "nested": [{"b": 1, "a": [1.0, -0.0]}]}},
    ],
)
def test_what_json_changes_on_the_way_does_not_break_the_chain(store, fields):
    store.audit.record("service.start", NOW, **fields)

    assert store.audit.prove().broken == ""


CHANGES = [
    "UPDATE audit SET event = 'other' WHERE id = 3",
    "UPDATE audit SET hash = hash",
    "DELETE FROM audit WHERE id = 5",
    "DELETE FROM audit",
    "DELETE FROM audit_head",
]
CHANGES_OF_SQLITE = [
    "INSERT OR REPLACE INTO audit SELECT id, at, 'other', job_id, fields, hash FROM audit",
    "REPLACE INTO audit SELECT * FROM audit WHERE id = 5",
]
CHANGES_OF_POSTGRESQL = [
    "TRUNCATE audit",
    "TRUNCATE audit_head",
    "INSERT INTO audit SELECT * FROM audit ON CONFLICT (id) DO UPDATE SET event = 'other'",
]


@pytest.mark.parametrize(
    ("databases", "statement"),
    [("sqlite", statement) for statement in CHANGES + CHANGES_OF_SQLITE]
    + [("postgresql", statement) for statement in CHANGES + CHANGES_OF_POSTGRESQL],
    indirect=["databases"],
)
def test_the_database_refuses_to_change_the_trail(plain, store, statement):
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        plain.execute(statement)

    assert (store.audit.prove().rows, store.audit.prove().broken) == (5, "")


FORGED = chain.link(chain.GENESIS, NOW, "service.start", {})
SLIPPED_IN = "INSERT INTO audit (id, at, event, fields, hash) VALUES"
MOMENT = "'2026-01-05 09:00:00.000000+00:00', 'service.start', '{}'"


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (["UPDATE audit SET event = 'other' WHERE id = 3"], 3),
        (["UPDATE audit SET at = '2026-01-05 09:00:03.000001+00:00' WHERE id = 3"], 3),
        (["""UPDATE audit SET fields = '{"port": 4}' WHERE id = 3"""], 3),
        (["UPDATE audit SET fields = '[]' WHERE id = 3"], 3),
        (["UPDATE audit SET job_id = 7 WHERE id = 3"], 3),
        (["UPDATE audit SET hash = '' WHERE id = 5"], 5),
        (["DELETE FROM audit WHERE id = 3"], 4),
        (["DELETE FROM audit WHERE id = 1"], 2),
        (["UPDATE audit SET id = 0 WHERE id = 5"], 0),
        (
            [
                "UPDATE audit SET id = 30 WHERE id = 3",
                "UPDATE audit SET id = 3 WHERE id = 4",
                "UPDATE audit SET id = 4 WHERE id = 30",
            ],
            3,
        ),
        (
            [
                "UPDATE audit SET id = 40 WHERE id = 4",
                "UPDATE audit SET id = 50 WHERE id = 5",
                f"{SLIPPED_IN} (4, {MOMENT}, '{FORGED}')",
            ],
            4,
        ),
        ([f"{SLIPPED_IN} (6, {MOMENT}, '')"], 6),
        (["DELETE FROM audit WHERE id = 5"], "ends with row 4, but the last one written was row 5"),
        (["DELETE FROM audit WHERE id > 2"], "ends with row 2"),
        (["DELETE FROM audit"], "ends with row 0"),
        (["DELETE FROM audit_head"], "no head"),
    ],
)
def test_verify_names_the_first_row_that_was_touched(unguarded, store, statements, named):
    for statement in statements:
        unguarded.execute(statement)

    broken = store.audit.prove().broken

    assert (f"audit row {named} (" if isinstance(named, int) else named) in broken


@SQLITE
@pytest.mark.parametrize("value", ["at = 'yesterday'", "fields = '{'"])
def test_verify_names_a_row_that_holds_no_value_any_more(unguarded, store, value):
    unguarded.execute(f"UPDATE audit SET {value} WHERE id = 3")

    assert "audit row 3 (" in store.audit.prove().broken


def test_a_row_with_the_right_hash_that_the_node_did_not_write_shows(unguarded, store):
    digest = chain.link(store.audit.prove().head, NOW, "service.start", {})
    unguarded.execute(f"{SLIPPED_IN} (6, {MOMENT}, '{digest}')")

    assert "the last one written was row 5" in store.audit.prove().broken


def test_a_tail_that_was_removed_shows_when_the_trail_has_gone_on(unguarded, store):
    unguarded.execute("DELETE FROM audit WHERE id = 5")
    store.audit.record("service.stop", NOW)

    # SQLite gives the number again, PostgreSQL does not.
    assert re.search(r"audit row [56] \(", store.audit.prove().broken)


def test_a_named_row_says_time_and_event(unguarded, store):
    unguarded.execute("UPDATE audit SET job_id = 7 WHERE id = 3")

    broken = store.audit.prove().broken

    assert re.search(r"audit row 3 \(2026-01-05 09:00:03(.000000)?, service.start\)", broken)


def test_nothing_is_recorded_without_a_head(unguarded, store):
    unguarded.execute("DELETE FROM audit_head")

    with pytest.raises(StoreUnavailable, match="no head"):
        store.switches.set("sending", False, NOW)
    assert store.switches.get("sending", True) is True


def test_a_transaction_that_fails_leaves_the_chain_as_it_was(store, plain):
    with pytest.raises(RuntimeError), store.database.transaction() as work:
        work.record("service.stop", NOW)
        raise RuntimeError

    assert (store.audit.prove().rows, store.audit.prove().broken) == (5, "")


def test_the_trail_of_an_older_version_is_linked_as_it_is(empty_url):
    database = migrate_to(empty_url, "0002")
    with database.transaction() as work:
        row = "INSERT INTO audit (at, event, job_id, fields) VALUES (:at, 'job.claim', 7, :fields)"
        values = {"at": "2026-01-05 09:00:00.000000", "fields": '{"job": 7}'}
        work.connection.execute(sa.text(row), [values] * 2500)
    database.close()

    store = open_store(empty_url)
    store.audit.record("service.start", NOW)

    assert (store.audit.prove().rows, store.audit.prove().broken) == (2501, "")
    store.close()


@SQLITE
def test_a_long_trail_is_proved_quickly(store, url):
    rows, newest = [], chain.GENESIS
    for number in range(20000):
        newest = chain.link(newest, NOW, "job.claim", {"job": number, "worker": "w"})
        fields = json.dumps({"worker": "w", "job": number})
        rows.append(("2026-01-05 09:00:00.000000", "job.claim", number, fields, newest))
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as plain:
        insert = "INSERT INTO audit (at, event, job_id, fields, hash) VALUES (?, ?, ?, ?, ?)"
        plain.executemany(insert, rows)
        plain.execute("UPDATE audit_head SET audit_id = 20000, hash = ?", (newest,))
        plain.commit()

    began = time.monotonic()
    proof = store.audit.prove()

    assert (proof.rows, proof.broken) == (20000, "")
    assert time.monotonic() - began < 5
