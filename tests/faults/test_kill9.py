"""A short kill -9 campaign; `make faults` runs the long one."""

import pytest

from tests.faults.kill9 import run


@pytest.mark.slow
def test_nothing_is_lost_by_kill_9_of_service_and_worker(programs, shared_series, tmp_path):
    sources = sorted(shared_series("p01").iterdir())

    tally = run(tmp_path, sources, kills=4, per_round=4, seed=3)

    assert tally.total_kills >= 4
    assert tally.acknowledged >= len(sources)
    assert tally.clean, vars(tally)
