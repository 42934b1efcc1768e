"""Several processes on one database: a node, its workers, and commands of people."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from dicom_node.store import Store, open_store
from tests.dicom_node.store.conftest import NOW, claim_all, queue_many

PROCESSES = 3


@pytest.fixture(scope="module")
def everywhere() -> Iterator[Callable]:
    """Return what runs a function of (url, number) in all processes at once."""
    context = get_context("spawn")
    start = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, context, initializer=remember, initargs=(start,)) as pool:
        yield lambda run, url: list(pool.map(partial(at_once, run, url), range(PROCESSES)))


def remember(barrier) -> None:
    global start
    start = barrier


def at_once(run, url, number):
    start.wait(120)
    store = open_store(url)
    try:
        return run(store, number)
    finally:
        store.close()


def claim(store: Store, number: int) -> list[int]:
    return claim_all(store, f"worker {number}")


def write_rows(store: Store, number: int) -> None:
    for _ in range(25):
        with store.database.transaction() as work:
            work.record("service.start", NOW, pid=number)
            work.record("service.stop", NOW, pid=number)


def look(store: Store, number: int) -> int:
    return store.ledger().acknowledged


def test_processes_claim_every_job_once(everywhere, store, url):
    jobs = queue_many(store, 60)

    claimed = [job for mine in everywhere(claim, url) for job in mine]

    assert sorted(claimed) == sorted(jobs)


def test_processes_make_one_chain(everywhere, store, url):
    everywhere(write_rows, url)

    assert (store.audit.prove().rows, store.audit.prove().broken) == (150, "")


def test_processes_that_start_at_once_make_the_tables_once(everywhere, empty_url):
    assert everywhere(look, empty_url) == [0, 0, 0]

    store = open_store(empty_url)
    assert (store.audit.prove().rows, store.audit.prove().broken) == (0, "")
    store.close()
