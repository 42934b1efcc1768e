"""A real SQLite file for every test, and the smallest things to put into it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.store import DerivedInstance, DerivedSeries, NewInstance, Store, open_store

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state' / 'node.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


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
