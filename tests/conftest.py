"""Fixtures: real series beside the checkout (skipped where absent), phantoms made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


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
