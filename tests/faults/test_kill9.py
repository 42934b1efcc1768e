"""A short kill -9 campaign; `make faults` runs the long one."""

import random

from tests.faults.kill9 import PLAN, Tally, campaign


def test_nothing_is_lost_by_kill_9_of_service_and_workers(programs, tmp_path):
    row = campaign(tmp_path, kills=12, seed=3, nodes=1, cold=False)

    assert row.count >= 12 and row.account.instances > 0
    assert row.violations == 0, row.document()


def test_every_process_dies_in_every_state_by_its_share():
    tally = Tally(wanted=1000)
    for _ in range(1000):
        cell = tally.next_aim(random.Random(1))
        tally.give_up(cell)
        tally.count(*cell, cold=False)

    shares = {(who, where): n for who, row in PLAN.items() for where, n in row.items()}
    whole = sum(shares.values())
    assert all(abs(tally.kills[c] - 1000 * n / whole) <= 2 for c, n in shares.items())
