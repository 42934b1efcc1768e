"""How long the node takes for what it is asked all the time, after years of series.

python -m benchmarks.years [--series 100000] [--images 5]

A SQLite database is filled with series that are done with (received, derived, sent), and each
question that a task asks every few seconds, or a look at the page, is asked of it: the least of
five times in ms, beside that of a database with a hundredth of the series.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node import telemetry
from dicom_node.store import (
    DerivedInstance,
    DerivedSeries,
    NewInstance,
    Store,
    open_store,
    overview,
    schema,
)

HOUR = timedelta(hours=1)
MR = "1.2.840.10008.5.1.4.1.1.4"
TRIES = 5
Question = Callable[[Store, datetime], Any]

QUESTIONS: dict[str, Question] = {  # what takes no longer for that there are more series
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
    "the page's lines": lambda store, now: overview.series_lines(store.database, limit=300),
    "one job's line": lambda store, now: overview.series_lines(store.database, job_id=1),
    "places of results": lambda store, now: overview.result_places(store.database, [1, 2]),
    "steps of the clock": lambda store, now: store.audit.clock_steps(now - HOUR),
}
COUNTS: dict[str, Question] = {  # what counts everything: pages use an answer for a while
    "ledger": lambda store, now: store.ledger(),
    "states": lambda store, now: store.series.states(),
}
OF_SERIES = {  # what differs in the rows of one more series; all else is as in the first row
    "series": {"id": "n", "series_uid": "'1.2.9.' || n"},
    "job": {"id": "n", "series_id": "n", "state": "'DELIVERED'", "weights_sha256": "'f'"},
    "delivery": {"id": "n", "job_id": "n", "state": "'SENT'"},
    "audit": {"id": "n"},
}
OF_IMAGE = {  # and in those of each of its images
    "instance": {"id": "i", "series_id": "n", "sop_uid": "'1.2.8.' || i"},
    "derived_instance": {"id": "i", "job_id": "n", "sop_uid": "'1.2.7.' || i"},
    "delivery_instance": {"delivery_id": "n", "derived_instance_id": "i"},
}


def add(store: Store, first: int, count: int, images: int = 1) -> None:
    """Add the rows of `count` series that are done with, numbered from `first`.

    There must be a series in every table already: its rows are copied.
    """
    numbers = f"""WITH RECURSIVE
        new(n) AS (VALUES ({first}) UNION ALL SELECT n + 1 FROM new WHERE n < {first + count - 1}),
        image(k) AS (VALUES (0) UNION ALL SELECT k + 1 FROM image WHERE k < {images - 1}),
        numbers AS (SELECT n, k, n * {images} + k AS i FROM new, image)"""
    with store.database.transaction() as work:
        for name, changes in (OF_SERIES | OF_IMAGE).items():
            columns = [column.name for column in schema.metadata.tables[name].columns]
            values = ", ".join(changes.get(column, f"one.{column}") for column in columns)
            rows = f"SELECT {values} FROM numbers, (SELECT * FROM {name} LIMIT 1) AS one"
            some = "" if name in OF_IMAGE else " WHERE k = 0"
            work.execute(sa.text(f"INSERT INTO {name} {numbers} {rows}{some}"))


def begin(store: Store, now: datetime) -> None:
    """Let one series go all the way."""
    received = NewInstance(
        sop_uid="1.2.3.1", sop_class=MR, series_uid="1.2.3", study_uid="1.2", modality="MR",
        description="", path=Path("/in/1.2.3/1.dcm"), bytes=131000, sha256="a" * 64,
        attributes_sha256="b" * 64, transfer_syntax="1.2.840.10008.1.2.1", calling_ae="SCANNER",
        header={"Modality": "MR"},
    )  # fmt: skip
    made = DerivedInstance(
        sop_uid="2.25.1.1", sop_class=MR, path=Path("/out/1/1.dcm"), sha256="c" * 64, bytes=1
    )
    result = DerivedSeries(
        series_uid="2.25.1", instances=(made,), recipe_digest="d" * 64, weights_sha256="f"
    )
    job_id = store.series.record_instance(received, now).job_id
    store.jobs.transition(job_id, "enqueue", now, destinations=["pacs"])
    store.jobs.claim("worker", now, HOUR)
    store.jobs.publish(job_id, "worker", result, ("pacs",), now)
    for task in map(store.deliveries.with_unsent, store.deliveries.due(now)):
        for one in task.instances:
            store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
        store.deliveries.finish(task.delivery_id, "sent", "stored", now, commitment=False)


def asked(folder: Path, series: int, images: int) -> dict[str, float]:
    """Return the least time of each question, in ms."""
    store, now = open_store(f"sqlite:///{folder}/{series}.db"), datetime.now(UTC)
    try:
        begin(store, now)
        add(store, 1000, series, images)
        return {name: least(store, now, ask) for name, ask in (QUESTIONS | COUNTS).items()}
    finally:
        store.close()


def least(store: Store, now: datetime, ask: Question) -> float:
    """Return the least of a few times, in ms: the evening after the last series."""
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        ask(store, now + 10 * HOUR)
        times.append(1e3 * (time.perf_counter() - started))
    return min(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=5, help="of each series")
    arguments = parser.parse_args(argv)
    telemetry.configure_logging(level=logging.WARNING)
    sizes = (max(1, arguments.series // 100), arguments.series)
    with tempfile.TemporaryDirectory(prefix="years-") as name:
        few, many = (asked(Path(name), size, arguments.images) for size in sizes)
    print(f"| question, ms | {sizes[0]} series | {sizes[1]} series |\n|---|---|---|")
    for question, time_ms in few.items():
        print(f"| {question} | {time_ms:.1f} | {many[question]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
