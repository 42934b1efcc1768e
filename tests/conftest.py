"""Fixtures for all tests: real series beside the checkout, a real PostgreSQL; else skipped."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

from dicom_node.telemetry import LibraryHandler

if TYPE_CHECKING:
    from tests.postgres import Cluster

settings.register_profile("busy", deadline=None)  # how long an example takes is the machine's
settings.load_profile("busy")

# The longest first, or the last of several processes works alone at the end.
LONGEST = ("test_main_line", "test_service", "test_campaign", "test_evaluate", "test_demo")
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest before the others, each in its own order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo `telemetry.configure_logging`: no test may depend on which ones ran before it."""
    hook = threading.excepthook
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    threading.excepthook = hook
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if not isinstance(one, LibraryHandler)]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of shared data, which is never part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the shared data (../shared) are not here")
    return SHARED


@pytest.fixture(scope="session")
def shared_series(shared_dir: Path) -> Callable[[str], Path]:
    """Return a function from the first characters of a series' name ("p01") to its folder."""

    def find(name: str) -> Path:
        found = sorted((shared_dir / "data" / "series").glob(f"{name}*"))
        if not found:
            pytest.skip(f"the shared series {name} (../shared/data/series) is not here")
        return found[0]

    return find


@pytest.fixture(scope="session")
def postgresql() -> "Iterator[Cluster]":
    """Return a running PostgreSQL of this test process."""
    from tests import postgres  # few tests need the driver

    if postgres.find_program("initdb") is None:
        pytest.skip("PostgreSQL (Debian: postgresql) is not installed")
    with postgres.running_cluster() as cluster:
        yield cluster
