"""What is asked every other second, or with every look at the page, looks at no table of years."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from dicom_node.rejection_notes import SAFETY
from dicom_node.store import Grounds, overview, schema
from tests.dicom_node.store.conftest import SQLITE

HOUR = timedelta(hours=1)
ASKED = {
    "recalls": lambda store, now: store.withdrawals.catch_up(now),
    "notes owed": lambda store, now: store.withdrawals.owed(),
    "states of notes": lambda store, now: store.withdrawals.note_states(),
    "commitments to ask for": lambda store, now: store.commitments.due(now),
    "commitments promised": lambda store, now: store.debts.due(now),
    "deliveries": lambda store, now: store.deliveries.due(now),
    "silent series": lambda store, now: store.series.receiving(now, now),
    "queue": lambda store, now: store.jobs.queue(now),
    "leases": lambda store, now: store.jobs.expire_leases(now, 3),
    "oldest job": lambda store, now: overview.oldest_queued(store.database),
    "turnaround": lambda store, now: overview.turnaround(store.database, now, 3600.0),
    "the page": lambda store, now: overview.series_lines(store.database, limit=10),
    "one job's line": lambda store, now: overview.series_lines(store.database, job_id=1),
    "folders of results": lambda store, now: overview.result_folders(store.database, [1, 2]),
    "steps of the clock": lambda store, now: store.audit.clock_steps(now - HOUR),
}


COPIES = {  # what differs in the rows of one more series; all else is as in the first
    "series": {"id": "n", "series_uid": "'1.2.9.' || n"},
    "job": {"id": "n", "series_id": "n", "state": "'DELIVERED'", "weights_sha256": "'f'"},
    "instance": {"id": "n", "series_id": "n", "sop_uid": "'1.2.8.' || n"},
    "derived_instance": {"id": "n", "job_id": "n", "sop_uid": "'1.2.7.' || n"},
    "delivery": {"id": "n", "job_id": "n", "state": "'SENT'"},
    "delivery_instance": {"delivery_id": "n", "derived_instance_id": "n"},
    "audit": {"id": "n"},
}


def add(store, first: int, count: int) -> None:
    """Add the rows of so many series that are done with."""
    numbers = f"WITH RECURSIVE numbers(n) AS (VALUES ({first}) UNION ALL SELECT n + 1 FROM numbers "
    numbers += f"WHERE n < {first + count - 1})"
    with store.database.transaction() as work:
        for name, changes in COPIES.items():
            columns = [column.name for column in schema.metadata.tables[name].columns]
            values = ", ".join(changes.get(column, f"one.{column}") for column in columns)
            one = f"(SELECT * FROM {name} LIMIT 1) AS one"
            work.execute(
                sa.text(f"INSERT INTO {name} {numbers} SELECT {values} FROM numbers, {one}")
            )


def steps(store, ask) -> int:
    """Return how many tens of steps SQLite's machine takes for what `ask` asks for."""
    taken = []

    def watch(connection, record, proxy):
        connection.set_progress_handler(lambda: taken.append(1), 10)

    ask()  # what is made once is made
    store.database.close()
    sa.event.listen(store.database.engine, "checkout", watch)
    try:
        ask()
    finally:
        sa.event.remove(store.database.engine, "checkout", watch)
        store.database.close()
    return len(taken)


@SQLITE
@pytest.mark.parametrize("what", ASKED)
def test_years_do_not_slow_down(store, published, now, what):
    """Statements take as many steps after ten thousand series as after a hundred."""
    published()
    store.withdrawals.recall("e" * 64, Grounds(title=SAFETY, reason="test"), now)

    def ask():
        ASKED[what](store, now + 10 * HOUR)

    add(store, 1000, 100)
    before = steps(store, ask)
    add(store, 2000, 10_000)

    assert steps(store, ask) <= before + 20
