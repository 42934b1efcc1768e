"""For every test a fresh database, SQLite and PostgreSQL, and the smallest things to put in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from dicom_node.store import DerivedInstance, DerivedSeries, NewInstance, Store, open_store, schema
from dicom_node.store.database import Database, alembic
from dicom_node.store.moves import create_job, move
from tests.postgres import Cluster

SQLITE = pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOW


class SqliteFiles:
    """Databases in a folder; a new file has no table yet."""

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / f"state{number}" / "node.db" for number in count(1))

    def database(self) -> AbstractContextManager[str]:
        return nullcontext(f"sqlite:///{next(self._paths)}")

    empty_database = database


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteFiles | Cluster:
    """Return what gives the URLs of new databases."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")
    return SqliteFiles(tmp_path)


@pytest.fixture
def url(databases: SqliteFiles | Cluster) -> Iterator[str]:
    with databases.database() as url:
        yield url


@pytest.fixture
def empty_url(databases: SqliteFiles | Cluster) -> Iterator[str]:
    """Return the URL of a database without any table."""
    with databases.empty_database() as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def migrate_to(url: str, revision: str) -> Database:
    """Return a database as an older version left it."""
    database, config = Database(url), alembic()
    with database.transaction() as work:
        config.attributes["connection"] = work.connection
        command.upgrade(config, revision)
    return database


@pytest.fixture
def new_instance() -> Callable[..., NewInstance]:
    def make(number: int = 1, series_uid: str = "1.2.3", **changes: object) -> NewInstance:
        values: dict = {
            "sop_uid": f"{series_uid}.{number}",
            "sop_class": "1.2.840.10008.5.1.4.1.1.4",
            "series_uid": series_uid,
            "study_uid": "1.2",
            "modality": "MR",
            "description": "t1",
            "path": Path(f"in/{series_uid}/{number}.dcm"),
            "bytes": 1000 + number,
            "sha256": f"{number:064x}",
            "attributes_sha256": f"{number:064x}",
            "transfer_syntax": "1.2.840.10008.1.2.1",
            "calling_ae": "SCANNER",
            "header": {"Modality": "MR", "InstanceNumber": number},
        }
        return NewInstance(**values | changes)

    return make


@pytest.fixture
def derived() -> Callable[..., DerivedSeries]:
    def make(slices: int = 2, series_uid: str = "2.25.9") -> DerivedSeries:
        return DerivedSeries(
            series_uid=series_uid,
            instances=tuple(
                DerivedInstance(
                    sop_uid=f"{series_uid}.{i}",
                    sop_class="1.2.840.10008.5.1.4.1.1.4",
                    path=Path(f"out/{series_uid}/{i}.dcm"),
                    sha256="d" * 64,
                    bytes=10,
                )
                for i in range(slices)
            ),
            recipe_digest="a" * 64,
            weights_sha256="b" * 64,
            figures={"residual": 1.0},
        )

    return make


@pytest.fixture
def queued(store: Store, new_instance: Callable[..., NewInstance]) -> Callable[..., int]:
    """Return a maker of queued jobs: one instance each, its own series."""

    def make(series_uid: str = "1.2.3", **columns: object) -> int:
        job_id = store.series.record_instance(new_instance(1, series_uid), NOW).job_id
        store.jobs.transition(job_id, "enqueue", NOW, **{"destinations": ["pacs"]} | columns)
        return job_id

    return make


@pytest.fixture
def published(
    store: Store, queued: Callable[..., int], derived: Callable[..., DerivedSeries]
) -> Callable[..., int]:
    """Return a maker of jobs in the state DERIVED, claimed by worker "w"."""

    def make(series_uid: str = "1.2.3", destinations: tuple[str, ...] = ("pacs",)) -> int:
        job_id = queued(series_uid)
        claimed = store.jobs.claim("w", NOW, timedelta(seconds=60))
        assert claimed is not None and claimed.job_id == job_id
        result = derived(series_uid=f"2.25.{series_uid.replace('.', '')}")
        store.jobs.publish(job_id, "w", result, destinations, NOW)
        return job_id

    return make


def queue_many(store: Store, number: int) -> set[int]:
    """Return the ids of many queued jobs, made in one transaction."""
    rows = [
        {
            **{"series_uid": f"1.2.{i}", "study_uid": "1", "modality": "MR", "description": ""},
            **{"acknowledged": 0, "created_at": NOW, "last_received_at": NOW},
        }
        for i in range(number)
    ]
    with store.database.transaction() as work:
        series = work.connection.execute(
            sa.insert(schema.series).returning(schema.series.c.id), rows
        )
        ids = series.scalars().all()
        jobs = [create_job(work, series_id, "1.2", NOW, generation=1) for series_id in ids]
        for job_id in jobs:
            move(work, job_id, "enqueue", NOW, destinations=["pacs"])
    return set(jobs)


def claim_all(store: Store, worker: str) -> list[int]:
    """Return what `worker` claims until nothing is left."""
    mine = []
    while (claimed := store.jobs.claim(worker, NOW, timedelta(seconds=60))) is not None:
        mine.append(claimed.job_id)
    return mine
