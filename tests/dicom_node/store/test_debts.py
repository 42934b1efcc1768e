"""Requests for storage commitment that the node owes a report on."""

from datetime import timedelta

import pytest

from dicom_node.states import JobState
from dicom_node.store import Limits, Reference, open_store

MINUTE = timedelta(minutes=1)
MR = "1.2.840.10008.5.1.4.1.1.4"


def references(*uids):
    return [Reference(sop_uid=uid, sop_class=MR) for uid in uids]


def test_a_peers_request_stays_due_until_it_is_paid(store, url, now):
    store.debts.accept("scanner", "1.9", references("1.1", "1.2", "1.1"), now)
    again = open_store(url)
    [debt] = again.debts.due(now)
    assert [one.sop_uid for one in debt.instances] == ["1.1", "1.2"]

    again.debts.postpone(debt, "not reached", now, now + MINUTE)
    assert store.debts.due(now) == []
    [debt] = store.debts.due(now + MINUTE)
    assert debt.attempts == 1
    store.debts.paid(debt, {"1.1": 0, "1.2": 0x0112}, now)

    assert store.commitments.open_transactions() == {"scu": 0, "scp": 0}
    again.close()


def test_two_peers_may_use_one_transaction_uid_and_a_repeated_one_is_asked_afresh(store, now):
    first = store.debts.accept("scanner", "1.9", references("1.1"), now)
    other = store.debts.accept("other", "1.9", references("1.1"), now)
    store.debts.paid(store.debts.due(now)[0], {"1.1": 0x0110}, now)
    again = store.debts.accept("scanner", "1.9", references("1.1", "1.2"), now)

    assert first == again != other
    assert [len(debt.instances) for debt in store.debts.due(now)] == [2, 1]


@pytest.mark.parametrize("heard", [True, False])
def test_a_promise_outlives_the_next_request_under_its_uid(store, new_instance, now, heard):
    kept = store.series.record_instance(new_instance(1), now)
    store.jobs.transition(kept.job_id, "skip", now, reason="Skipped.")
    limits = Limits(before={JobState.SKIPPED: now + MINUTE}, committers=set(), originals=True)
    assert len(list(store.removals.lots(limits))) == 1
    first = store.debts.accept("scanner", "1.9", references("1.2.3.1"), now)
    [debt] = store.debts.due(now)
    (store.debts.paid if heard else store.debts.promise)(debt, {"1.2.3.1": 0}, *[now] * heard)

    again = store.debts.accept("scanner", "1.9", references("1.2.3.7"), now)
    [debt] = store.debts.due(now)
    store.debts.paid(debt, {"1.2.3.7": 0x0112}, now)

    assert again != first and debt.transaction_uid == "1.9"
    assert [one.sop_uid for one in debt.instances] == ["1.2.3.7"]
    assert list(store.removals.lots(limits)) == []
    assert store.debts.due(now + 99 * MINUTE) == []


def test_report_that_never_gets_through_is_given_up(store, now):
    store.debts.accept("scanner", "1.9", references("1.1"), now)
    [debt] = store.debts.due(now)
    store.debts.postpone(debt, "not reached", now, None)

    assert store.debts.due(now + 99 * MINUTE) == []


def test_what_is_received_or_forwarded_is_under_way(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(1), now).job_id
    assert store.debts.under_way(["1.2.3.1"]) and not store.debts.under_way(["1.2.3.2"])

    store.jobs.decide(job_id, "forward", now, 1, reason="Forwarded.", destinations=["pacs"])
    assert store.debts.under_way(["1.2.3.1"])
    store.jobs.cancel(job_id, now)

    assert not store.debts.under_way(["1.2.3.1"])
