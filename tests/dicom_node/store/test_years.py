"""What is asked every other second, or with every look at the page, looks at no table of years."""

import pytest
import sqlalchemy as sa

from benchmarks.years import HOUR, QUESTIONS, add
from dicom_node.rejection_notes import SAFETY
from dicom_node.store import Grounds
from tests.dicom_node.store.conftest import SQLITE


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
@pytest.mark.parametrize("what", QUESTIONS)
def test_years_do_not_slow_down(store, published, now, what):
    """Statements take as many steps after ten thousand series as after some hundred."""
    published()
    store.withdrawals.recall("e" * 64, Grounds(title=SAFETY, reason="test"), now)

    def ask():
        QUESTIONS[what](store, now + 10 * HOUR)

    add(store, 1000, 400)
    before = steps(store, ask)
    add(store, 2000, 10_000)

    assert steps(store, ask) <= before + 20
