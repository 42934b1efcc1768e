"""Asking archives for storage commitment, over real sockets, from delivery to DELIVERED."""

import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from pydicom import Dataset

from dicom_node.network.commitment import CommitmentRefused, read_report, read_request
from dicom_node.sender import Sender
from dicom_node.store import open_store
from tests.dicom_node.committers import Archive, call_back, item, report_of, wait_for
from tests.dicom_node.test_sender import delivery, publish
from tests.rigs import NOW, SOURCE, Rig, due_at, running_node

QUICK = {"interval_s": 0.05, "timeout_s": 2.0, "backoff_first_s": 0.05, "backoff_last_s": 0.05}


@contextmanager
def node_with(tmp_path, archive: Archive, *, sending=None, commitment=None, **peer):
    """Yield a node whose only destination is `archive`, and a sender that runs."""
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
    pacs |= {"roles": ["destination"], "commitment": True} | peer
    sections = {
        "sending": QUICK | (sending or {}),
        "commitment": {"wait_s": 0.3} | (commitment or {}),
    }
    with running_node(tmp_path / "state", peers=[SOURCE, pacs], **sections) as node:
        archive.node_port = node.scp.port
        sender = Sender(node.store, node.settings)
        sender.start()
        try:
            yield node
        finally:
            sender.stop()


def wait_state(node: Rig, job_id: int, state: str, seconds: float = 20.0) -> None:
    try:
        wait_for(state, lambda: node.store.jobs.get(job_id).state == state, seconds)
    except AssertionError:
        job = node.store.jobs.get(job_id)
        rows = node.store.deliveries.of_job(job_id)
        raise AssertionError(f"{job.state}: {job.reason} {rows}") from None


def events(node: Rig) -> Counter:
    return Counter(row.event for row in node.store.audit.listing())


@pytest.mark.parametrize("how", ["new", "same", "before"])
def test_job_is_delivered_when_the_archive_has_committed(tmp_path, how):
    # On the same association the archive reports after a moment, a busy one after a longer moment.
    patience = {"wait_s": 20.0 if how == "same" else 0.3}
    with (
        Archive(how).listening() as archive,
        node_with(tmp_path, archive, commitment=patience) as node,
    ):
        job_id = publish(node.store, tmp_path / "a")
        wait_state(node, job_id, "DELIVERED")
        wait_for("the response", lambda: archive.responses)

        assert archive.responses == [0x0000] and len(archive.asked) == 1
        assert delivery(node.store, job_id)["state"] == "COMMITTED"
        counts = {"sent": 4, "warned": 0, "failed": 0, "committed": 4}
        assert node.store.series.listing()[0]["deliveries"] == [
            {"destination": "pacs", "state": "COMMITTED"} | counts
        ]
        assert "pacs (committed)" in node.store.jobs.get(job_id).reason
        assert node.store.commitments.open_transactions() == {"scu": 0, "scp": 0}


def test_sent_is_not_delivered_while_commitment_is_awaited(tmp_path):
    with Archive("never").listening() as archive, node_with(tmp_path, archive) as node:
        job_id = publish(node.store, tmp_path / "a")
        wait_for("the request", lambda: archive.asked)

        assert delivery(node.store, job_id)["state"] == "SENT"
        assert node.store.jobs.get(job_id).state == "DERIVED"
        assert node.store.commitments.open_transactions() == {"scu": 1, "scp": 0}


def test_only_what_failed_is_sent_again(tmp_path):
    archive = Archive()
    with archive.listening(), node_with(tmp_path, archive, sending={"enabled": False}) as node:
        job_id = publish(node.store, tmp_path / "a")
        task = due_at(node.store, NOW)[0]
        lost = task.instances[2].sop_uid
        archive.loses = {lost}
        node.store.switches.set("sending", True, NOW)
        wait_for("the first report", lambda: archive.responses)
        archive.loses = set()
        wait_state(node, job_id, "DELIVERED")

    assert archive.received == Counter({each.sop_uid: 1 for each in task.instances}) + Counter(
        [lost]
    )
    again = [str(each.ReferencedSOPInstanceUID) for each in archive.asked[-1].ReferencedSOPSequence]
    assert again == [lost]


def test_what_is_in_the_index_and_not_in_the_storage_is_sent_again(tmp_path):
    archive = Archive()
    archive.verdict = lambda uid: 0 if archive.received[uid] > 1 else 0x0112
    with archive.listening(), node_with(tmp_path, archive, query=True) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_state(node, job_id, "DELIVERED")

    assert set(archive.received.values()) == {2}


def test_an_archive_that_denies_gets_time_before_it_is_sent_anything_again(tmp_path):
    archive, stored_at = Archive(), []
    archive.verdict = lambda uid: 0 if archive.received[uid] > 1 else 0x0112
    keep = archive.on_store
    archive.on_store = lambda event: (stored_at.append(time.monotonic()), keep(event))[1]
    with (
        archive.listening(),
        node_with(
            tmp_path,
            archive,
            sending={"backoff_last_s": 2.0},
            commitment={"resend_first_s": 2.0},
        ) as node,
    ):
        job_id = publish(node.store, tmp_path / "a", count=1)
        wait_state(node, job_id, "DELIVERED")

    first, second = stored_at
    assert second - first >= 1.0


def test_lying_archive_is_found_and_named(tmp_path):
    archive = Archive()
    with (
        archive.listening(),
        node_with(tmp_path, archive, commitment={"max_resends": 2}) as node,
    ):
        archive.store = lambda event: 0x0000  # Success, and nothing is kept
        archive.on_store = archive.store
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_state(node, job_id, "DEAD")
        row = delivery(node.store, job_id)

    assert row["state"] == "DEAD" and len(archive.asked) == 3
    assert "0x0112 (no such object instance)" in row["reason"]
    assert "sent again 2 times" in row["reason"]


@pytest.mark.parametrize(("failure", "words"), [(0x0122, "SOP class"), (0x0119, "conflict")])
def test_failure_that_sending_cannot_cure_ends_the_delivery(tmp_path, failure, words):
    archive = Archive()
    archive.verdict = lambda uid: failure
    with archive.listening(), node_with(tmp_path, archive) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_state(node, job_id, "DEAD")

        assert words in delivery(node.store, job_id)["reason"]
    assert max(archive.received.values()) == 1


def test_instance_that_no_report_names_is_asked_for_again(tmp_path):
    archive = Archive()
    with archive.listening(), node_with(tmp_path, archive) as node:
        archive.verdict = lambda uid: (
            0 if len(archive.asked) > 1 or uid == min(archive.kept) else None
        )
        job_id = publish(node.store, tmp_path / "a")
        wait_state(node, job_id, "DELIVERED")

    assert len(archive.asked[1].ReferencedSOPSequence) == 3
    assert max(archive.received.values()) == 1


def test_success_without_a_list_is_about_everything(tmp_path):
    archive = Archive()
    archive.verdict = lambda uid: None
    with archive.listening(), node_with(tmp_path, archive) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_state(node, job_id, "DELIVERED")

        assert len(archive.asked) == 1


def test_silence_is_asked_again_under_a_new_transaction(tmp_path):
    archive = Archive("never")
    patience = {"timeout_s": 0.3, "wait_s": 0.0}
    with archive.listening(), node_with(tmp_path, archive, commitment=patience) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_for("three requests", lambda: len(archive.asked) >= 3)
        archive.how = "new"
        wait_state(node, job_id, "DELIVERED")

    uids = [str(each.TransactionUID) for each in archive.asked]
    assert len(set(uids)) == len(uids)
    assert max(archive.received.values()) == 1


def test_answer_after_the_time_out_still_counts(tmp_path):
    archive = Archive("never")
    patience = {"timeout_s": 0.2, "wait_s": 0.0}
    with archive.listening(), node_with(tmp_path, archive, commitment=patience) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_for("a second request", lambda: len(archive.asked) >= 2)
        first = archive.asked[0]
        verdicts = {str(each.ReferencedSOPInstanceUID): 0 for each in first.ReferencedSOPSequence}
        assert call_back(node.scp.port, "PACS", *report_of(first.TransactionUID, verdicts)) == 0
        wait_state(node, job_id, "DELIVERED")


def test_refused_requests_end_at_last(tmp_path):
    archive = Archive("refuse")
    with archive.listening(), node_with(tmp_path, archive, sending={"max_attempts": 2}) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_state(node, job_id, "DEAD")

        reason = delivery(node.store, job_id)["reason"]
        assert "0x0213" in reason and "Given up after 2 requests in a row" in reason


def test_request_without_a_response_is_made_again(tmp_path):
    archive = Archive("mute")
    with archive.listening(), node_with(tmp_path, archive, sending={"timeout_s": 1.0}) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_for("the first request", lambda: archive.asked)
        archive.how = "new"
        wait_state(node, job_id, "DELIVERED")

        assert events(node)["commitment.refused"] >= 1
    assert max(archive.received.values()) == 1


def test_archive_without_the_service_is_named_and_the_switch_cures_it(tmp_path):
    archive = Archive()
    with archive.listening(commitment=False):
        with node_with(tmp_path, archive) as node:
            job_id = publish(node.store, tmp_path / "a", count=2)
            wait_state(node, job_id, "DEAD")
            assert "storage commitment was asked for" in delivery(node.store, job_id)["reason"]
        with without_commitment(tmp_path, archive) as node:
            node.store.jobs.requeue(job_id, datetime.now(UTC))
            wait_state(node, job_id, "DELIVERED")

    assert max(archive.received.values()) == 1


@contextmanager
def without_commitment(tmp_path, archive):
    """The same node after its configuration says commitment = false."""
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
    peers = [SOURCE, pacs | {"roles": ["destination"], "commitment": False}]
    with running_node(tmp_path / "state", peers=peers, sending=QUICK) as node:
        sender = Sender(node.store, node.settings)
        sender.start()
        yield node
        sender.stop()


def test_commitment_that_is_switched_off_is_no_longer_awaited(tmp_path):
    archive = Archive("never")
    with archive.listening():
        with node_with(tmp_path, archive, commitment={"timeout_s": 0.2, "wait_s": 0.0}) as node:
            job_id = publish(node.store, tmp_path / "a", count=2)
            wait_for("a request", lambda: archive.asked)
        with without_commitment(tmp_path, archive) as node:
            wait_state(node, job_id, "DELIVERED")
            assert delivery(node.store, job_id)["state"] == "SENT"


def test_restart_between_request_and_report_loses_nothing(tmp_path):
    archive = Archive("never")
    with archive.listening():
        with node_with(tmp_path, archive, commitment={"wait_s": 0.0}) as node:
            job_id = publish(node.store, tmp_path / "a", count=2)
            wait_for("the request", lambda: archive.asked)
        with node_with(tmp_path, archive) as again:
            archive.how, archive.node_port = "new", again.scp.port
            archive.report(None, archive.asked[0])
            wait_state(again, job_id, "DELIVERED")

    assert len(archive.asked) == 1 and max(archive.received.values()) == 1


@pytest.mark.parametrize("role", [True, False])
def test_report_on_an_unknown_transaction_is_answered_and_changes_nothing(tmp_path, role):
    archive = Archive("never")
    with archive.listening(), node_with(tmp_path, archive) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_for("the request", lambda: archive.asked)
        uids = [each.ReferencedSOPInstanceUID for each in archive.asked[0].ReferencedSOPSequence]
        report = report_of("2.25.4711", dict.fromkeys(uids, 0))

        assert call_back(node.scp.port, "PACS", *report, role=role) == 0x0115
        assert node.store.jobs.get(job_id).state == "DERIVED"
        assert node.store.series.listing()[0]["deliveries"][0]["committed"] == 0


def test_report_that_comes_twice_is_taken_once_and_answered_twice(tmp_path):
    with Archive().listening() as archive, node_with(tmp_path, archive) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_state(node, job_id, "DELIVERED")
        archive.report(None, archive.asked[0])
        wait_for("the second response", lambda: len(archive.responses) == 2)

        assert archive.responses == [0, 0]
        assert events(node)["job.deliver"] == 1


def test_cancelled_job_is_not_asked_for_and_its_report_moves_nothing(tmp_path):
    archive = Archive("never")
    with archive.listening(), node_with(tmp_path, archive, commitment={"wait_s": 0.0}) as node:
        job_id = publish(node.store, tmp_path / "a", count=2)
        wait_for("the request", lambda: archive.asked)
        node.store.jobs.cancel(job_id, datetime.now(UTC))
        archive.how = "new"
        archive.report(None, archive.asked[0])
        wait_for("the response", lambda: archive.responses)

        assert node.store.jobs.get(job_id).state == "CANCELLED"
        assert delivery(node.store, job_id)["state"] == "COMMITTED"


def test_peer_that_can_be_queried_gets_nothing_twice(tmp_path):
    archive = Archive()

    def lose_the_answer(event):
        archive.store(event)
        if sum(archive.received.values()) == 2:
            event.assoc.abort()
        return 0x0000

    archive.on_store = lose_the_answer
    with archive.listening(), node_with(tmp_path, archive, query=True) as node:
        job_id = publish(node.store, tmp_path / "a")
        wait_state(node, job_id, "DELIVERED")

    assert sorted(archive.received.values()) == [1, 1, 1, 1]


def test_every_series_of_a_delivery_is_queried(tmp_path):
    archive, series = Archive(), {}

    def of_the_series(event):
        for uid in sorted(archive.kept):
            if series.get(uid) == event.identifier.SeriesInstanceUID:
                found = Dataset()
                found.SOPInstanceUID = uid
                yield 0xFF00, found

    def lose_the_answers(event):
        archive.store(event)
        if sum(archive.received.values()) in (2, 4):
            event.assoc.abort()
        return 0x0000

    archive.on_find, archive.on_store = of_the_series, lose_the_answers
    with archive.listening(), node_with(tmp_path, archive, query=True) as node:
        node.store.switches.set("sending", False, NOW)
        job_id = publish(node.store, tmp_path / "a", companions=1)
        [task] = due_at(node.store, NOW)
        series |= {one.sop_uid: one.series_uid or task.series_uid for one in task.instances}
        node.store.switches.set("sending", True, NOW)
        wait_state(node, job_id, "DELIVERED")

    assert len(set(series.values())) == 2
    assert sorted(archive.received.values()) == [1, 1, 1, 1]


@pytest.mark.parametrize("fault", ["no context", "refused"])
def test_peer_that_does_not_answer_the_query_gets_everything(tmp_path, fault):
    archive = Archive()

    def refuse(event):
        yield 0xA700, None

    archive.on_find = refuse
    with archive.listening(query=fault != "no context"):
        with node_with(tmp_path, archive, query=True) as node:
            job_id = publish(node.store, tmp_path / "a", count=2)
            wait_state(node, job_id, "DELIVERED")

    assert sorted(archive.received.values()) == [1, 1]


def test_altered_file_is_not_sent(tmp_path):
    archive = Archive()
    with archive.listening(), node_with(tmp_path, archive, sending={"enabled": False}) as node:
        job_id = publish(node.store, tmp_path / "a")
        bad = due_at(node.store, NOW)[0].instances[1]
        bad.path.write_bytes(bad.path.read_bytes()[:-1] + b"\x07")
        node.store.switches.set("sending", True, NOW)
        wait_state(node, job_id, "DEAD")

        assert bad.sop_uid in delivery(node.store, job_id)["reason"]
    assert bad.sop_uid not in archive.received and len(archive.received) == 3


def test_request_is_on_record_before_it_leaves(tmp_path):
    archive = Archive()
    url = f"sqlite:///{tmp_path / 'state' / 'node.db'}"
    known = []

    def look(uid):
        other = open_store(url)
        known.append(other.commitments.open_transactions()["scu"])
        other.close()
        return 0

    archive.verdict, archive.how = look, "before"
    with archive.listening(), node_with(tmp_path, archive) as node:
        wait_state(node, publish(node.store, tmp_path / "a", count=1), "DELIVERED")

    assert known == [1]


def dataset(**values) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


@pytest.mark.parametrize(
    ("event_type", "content", "status"),
    [
        (3, {"TransactionUID": "1.2"}, 0x0113),
        (None, {"TransactionUID": "1.2"}, 0x0113),
        (1, {}, 0x0115),
        (1, {"TransactionUID": ""}, 0x0115),
        (1, {"TransactionUID": "1.2", "ReferencedSOPSequence": [Dataset()]}, 0x0115),
        (2, {"TransactionUID": "1.2", "FailedSOPSequence": [Dataset()]}, 0x0115),
    ],
)
def test_report_that_cannot_be_used_is_refused_with_its_status(event_type, content, status):
    with pytest.raises(CommitmentRefused) as refusal:
        read_report(event_type, dataset(**content))

    assert refusal.value.status == status


def test_failure_without_a_reason_and_an_instance_in_both_lists_are_failures():
    content = {
        "TransactionUID": "1.2",
        "ReferencedSOPSequence": [item("1.1"), item("1.2")],
        "FailedSOPSequence": [item("1.2"), item("1.3", failure=0x0213)],
    }

    report = read_report(1, dataset(**content))

    assert report.committed == {"1.1"} and report.failed == {"1.2": 0x0110, "1.3": 0x0213}
    assert not report.everything


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize(
    "content",
    [
        {"TransactionUID": "1.2"},
        {"TransactionUID": "1.2", "ReferencedSOPSequence": []},
        {"ReferencedSOPSequence": [item("1.1")]},
        {"TransactionUID": "1." + "2" * 64, "ReferencedSOPSequence": [item("1.1")]},
    ],
)
def test_request_that_cannot_be_used_is_refused(content):
    with pytest.raises(CommitmentRefused):
        read_request(dataset(**content))
