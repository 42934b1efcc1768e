"""Decisions of retention on record, in every database."""

import threading
from collections.abc import Iterator

import pytest

from dicom_node import retention
from dicom_node.errors import FilesGone
from dicom_node.states import JobState
from dicom_node.store.lots import DERIVED, ORIGINALS
from tests.dicom_node.aged import LONG, SERIES, AgedNode, aged_node, image
from tests.rigs import NOW

LATER = NOW + LONG


@pytest.fixture
def node(tmp_path, url) -> Iterator[AgedNode]:
    with aged_node(tmp_path, node={"database": url}) as made:
        yield made


def test_a_delivered_series_goes_and_comes_back(node):
    job = node.delivered()

    gone = node.purge()
    assert sorted(one.lot.kind for one in gone) == [DERIVED, ORIGINALS]
    assert sorted(one.lot.files for one in gone) == [2, 3]
    assert [one.kind for one in node.store.removals.of_job(job.id)] == [DERIVED, ORIGINALS]
    assert node.store.removals.gone_originals(job.series_id) == 3
    with pytest.raises(FilesGone, match="3 of its 3"):
        node.store.jobs.requeue(job.id, LATER)

    assert [node.take(image(number), LATER).outcome for number in (1, 2, 3)] == ["restored"] * 3
    again = node.store.jobs.requeue(job.id, LATER)

    assert node.store.jobs.get(again).state is JobState.QUEUED
    assert node.store.removals.gone_originals(job.series_id) == 0
    assert node.store.audit.prove().broken == ""
    assert node.store.ledger().balanced


def test_a_forwarded_series_takes_its_deliveries_rows_along(node):
    job = node.received()
    node.store.jobs.decide(job.id, "forward", NOW, 3, reason="on", destinations=["pacs"])
    node.committed(node.sent(job))

    (one,) = node.purge()

    assert (one.lot.kind, one.lot.files) == (ORIGINALS, 3)
    assert node.take(image(2), LATER).outcome == "restored"
    rows = {row.sop_uid: row for row in node.store.jobs.derived(job.id)}
    assert rows[f"{SERIES}.2"].path == node.store.series.find_instance(f"{SERIES}.2").path


def test_a_late_slice_and_a_decision_at_once_never_both_win(node):
    node.store.jobs.transition(node.received().id, "skip", NOW)
    limits = retention.limits_of(node.settings, LATER)
    (lot,) = node.store.removals.lots(limits)
    decisions = []
    gate = threading.Barrier(2)

    def decide() -> None:
        gate.wait()
        decisions.append(node.store.removals.decide(lot, limits, "test", LATER))

    thread = threading.Thread(target=decide)
    thread.start()
    gate.wait()
    node.take(image(4), LATER)
    thread.join()

    gone = node.store.removals.gone_originals(lot.series_id)
    assert gone == (0 if decisions == [None] else 3)  # the late slice is never among them
    assert node.job().state is JobState.RECEIVING
