"""Hints and claims on record, on both databases."""

import pytest

from dicom_node.store.hints import COMPLETED, IAN, MPPS, StepRefused


def test_a_series_is_whole_when_all_that_was_named_is_here(store, new_instance, now):
    job_id = store.series.record_instance(new_instance(), now).job_id
    [(_, series_id)] = store.series.receiving(now)
    first = new_instance()
    store.hints.begin("1.9", "mr", now)
    with pytest.raises(StepRefused):
        store.hints.begin("1.9", "mr", now)
    assert store.hints.whole() == []

    store.hints.update("1.9", "mr", COMPLETED, {first.series_uid: [first.sop_uid]}, now)

    assert store.hints.whole() == [(job_id, series_id)]
    store.hints.notify("1.10", "pacs", {first.series_uid: [first.sop_uid, "1.2.99"]}, now)
    assert store.hints.whole() == []
    assert [one.source for one in store.hints.about(series_id)] == [MPPS, IAN]
    with pytest.raises(StepRefused):
        store.hints.update("1.9", "mr", COMPLETED, {}, now)
    with pytest.raises(StepRefused):
        store.hints.update("1.8", "mr", COMPLETED, {}, now)


def test_a_claim_is_open_until_it_has_ended(store, now):
    one = store.workitems.begin("manager", "1.2", "2.25.1", [{"series_uid": "1.3"}], now)

    assert store.workitems.open_ones("manager") == [one]
    assert store.workitems.open_ones("other") == []
    store.workitems.move(one, "COMPLETED", now, progress=100, reason="done\0")
    assert store.workitems.open_ones("manager") == []
    [ended] = store.workitems.listing()
    assert (ended.state, ended.progress, ended.series) == ("COMPLETED", 100, one.series)
    assert store.workitems.known("manager") == {"1.2"}


def test_what_is_here_is_told_from_what_is_not(store, new_instance, now):
    store.series.record_instance(new_instance(), now)
    known = new_instance().sop_uid

    many = [f"1.2.826.{number}" for number in range(1200)]
    assert store.series.here([*many, known]) == {known}
    assert store.series.here([]) == set()
