"""What faults mean, and how long to wait."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.retry import FAULTS, Fault, Verdict, backoff_s, classify, describe

SENT, WARNED = Verdict.SENT, Verdict.SENT_WITH_WARNING
AGAIN, NEVER = Verdict.TRANSIENT, Verdict.PERMANENT


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (0x0000, SENT),
        (0xB000, WARNED),
        (0xB006, WARNED),
        (0xB007, WARNED),
        (0x0111, WARNED),
        (0x0107, WARNED),
        (0x0110, AGAIN),
        (0x0210, AGAIN),
        (0x0213, AGAIN),
        (0xA700, AGAIN),
        (0xA7FF, AGAIN),
        (0x0122, NEVER),
        (0x0124, NEVER),
        (0x0117, NEVER),
        (0xA900, NEVER),
        (0xA9FF, NEVER),
        (0xC000, NEVER),
        (0xC211, NEVER),
        (0xCFFF, NEVER),
        (0x1234, AGAIN),  # no status of DICOM
        (Fault.UNREACHABLE, AGAIN),
        (Fault.REJECTED_TRANSIENT, AGAIN),
        (Fault.ABORTED, AGAIN),
        (Fault.TIMED_OUT, AGAIN),
        (Fault.REJECTED_PERMANENT, NEVER),
        (Fault.NO_CONTEXT, NEVER),
        (Fault.NO_FILE, NEVER),
    ],
)
def test_fault_has_its_verdict(fault, verdict):
    assert classify(fault).verdict is verdict


def test_every_fault_without_status_has_a_row():
    assert set(Fault) <= set(FAULTS)


@given(st.integers(0, 0xFFFF))
def test_no_status_belongs_to_two_rows(status):
    rows = [key for key in FAULTS if isinstance(key, tuple) and key[0] <= status <= key[1]]

    assert len(rows) <= 1
    assert f"0x{status:04X}" in describe(status)


def test_fault_without_status_is_described_in_words():
    assert describe(Fault.TIMED_OUT) == "no answer in time"


@given(st.integers(1, 10_000), st.integers())
def test_wait_lies_between_nothing_and_the_ceiling(attempt, seed):
    wait_s = backoff_s(attempt, Random(seed), base_s=5.0, cap_s=900.0)

    assert 0.0 <= wait_s <= min(900.0, 5.0 * 2.0 ** min(attempt - 1, 32))


def test_waits_grow_on_average():
    rng = Random(1)
    means = [sum(backoff_s(n, rng, cap_s=1e6) for _ in range(500)) / 500 for n in (1, 4, 8)]

    assert means == sorted(means) and means[2] > 50 * means[0]


def test_attempts_count_from_one():
    with pytest.raises(ValueError, match="counts from 1"):
        backoff_s(0, Random())
