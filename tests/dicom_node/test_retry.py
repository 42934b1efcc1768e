"""What faults mean, and how long to wait."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.retry import (
    COMMITMENT_FAILURES,
    FAULTS,
    Cure,
    Fault,
    Verdict,
    backoff_s,
    classify,
    cure,
    describe,
    describe_failure,
    statuses,
)

SENT, WARNED = Verdict.SENT, Verdict.SENT_WITH_WARNING
AGAIN, NEVER = Verdict.TRANSIENT, Verdict.PERMANENT


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (0x0000, SENT),
        (0xB000, WARNED),
        (0xBFFF, WARNED),
        (0xB006, WARNED),
        (0xB007, WARNED),
        (0x0111, WARNED),
        (0x0107, WARNED),
        (0x0001, WARNED),
        (0x0116, WARNED),
        (0x0105, NEVER),
        (0x0106, NEVER),
        (0x0110, AGAIN),
        (0x0210, AGAIN),
        (0x0213, AGAIN),
        (0xA700, AGAIN),
        (0xA7FF, AGAIN),
        (0x0112, NEVER),
        (0x0114, NEVER),
        (0x0115, NEVER),
        (0x0117, NEVER),
        (0x0118, NEVER),
        (0x0119, NEVER),
        (0x0120, NEVER),
        (0x0121, NEVER),
        (0x0122, NEVER),
        (0x0123, NEVER),
        (0x0124, NEVER),
        (0x0211, NEVER),
        (0x0212, NEVER),
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
        (Fault.UNREADABLE, AGAIN),
        (Fault.ALTERED, NEVER),
        (Fault.MOVED, NEVER),
        (Fault.BAD_REQUEST, NEVER),
        (Fault.UNAUTHENTICATED, AGAIN),
        (Fault.FORBIDDEN, NEVER),
        (Fault.NO_SERVICE, NEVER),
        (Fault.NOT_ACCEPTABLE, NEVER),
        (Fault.CONFLICT, NEVER),
        (Fault.TOO_LARGE, NEVER),
        (Fault.BUSY, AGAIN),
        (Fault.SERVER_ERROR, AGAIN),
        (Fault.NO_SECRET, AGAIN),
        (Fault.UNCONFIRMED, AGAIN),
        (Fault.OLDER_VERSION, NEVER),
        (Fault.UNDER_WAY, AGAIN),
    ],
)
def test_fault_has_its_verdict(fault, verdict):
    assert classify(fault).verdict is verdict


def test_every_row_of_the_table_is_tested():
    rows = test_fault_has_its_verdict.pytestmark[0].args[1]
    tested = [fault for fault, _ in rows]

    for row in FAULTS:
        first, last = row if isinstance(row, tuple) else (row, row)
        assert first in tested and last in tested, row


@pytest.mark.parametrize(
    ("reason", "helps"),
    [
        (0x0110, Cure.RESEND),
        (0x0112, Cure.RESEND),
        (0x0213, Cure.RESEND),
        (0x0131, Cure.ASK),
        (0x0119, Cure.NONE),
        (0x0122, Cure.NONE),
        (0x4711, Cure.RESEND),  # no Failure Reason of DICOM: resends are bounded
    ],
)
def test_failure_reason_has_its_cure(reason, helps):
    assert cure(reason) is helps
    assert f"0x{reason:04X}" in describe_failure(reason)


def test_every_failure_reason_is_tested():
    rows = test_failure_reason_has_its_cure.pytestmark[0].args[1]

    assert set(COMMITMENT_FAILURES) < {reason for reason, _ in rows}


@given(st.integers(0, 0xFFFF), st.sampled_from([SENT, WARNED, NEVER]))
def test_the_ranges_of_a_verdict_are_its_statuses(status, verdict):
    inside = any(first <= status <= last for first, last in statuses(verdict))

    assert inside == (classify(status).verdict is verdict)


def test_every_fault_without_status_has_a_row():
    assert set(Fault) <= set(FAULTS)


@given(st.integers(0, 0xFFFF))
def test_no_status_belongs_to_two_rows(status):
    rows = [key for key in FAULTS if isinstance(key, tuple) and key[0] <= status <= key[1]]

    assert len(rows) <= 1
    assert f"0x{status:04X}" in describe(status)


def test_fault_without_status_is_described_in_words():
    assert describe(Fault.TIMED_OUT) == "no answer in time"


@given(st.integers(1, 10_000), st.integers(), st.sampled_from([0.0, 0.5, 1.0]))
def test_wait_lies_between_the_least_and_the_ceiling(attempt, seed, least):
    wait_s = backoff_s(attempt, Random(seed), base_s=5.0, cap_s=900.0, least=least)

    ceiling_s = min(900.0, 5.0 * 2.0 ** min(attempt - 1, 32))
    assert least * ceiling_s <= wait_s <= ceiling_s


def test_waits_grow_on_average():
    rng = Random(1)
    means = [sum(backoff_s(n, rng, cap_s=1e6) for _ in range(500)) / 500 for n in (1, 4, 8)]

    assert means == sorted(means) and means[2] > 50 * means[0]


def test_attempts_count_from_one():
    with pytest.raises(ValueError, match="counts from 1"):
        backoff_s(0, Random())
