"""Transactions of storage commitment: what a report changes, and what survives."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from dicom_node.states import JobState
from dicom_node.store import Report, Resends, open_store, schema
from tests.dicom_node.store.conftest import migrate_to
from tests.rigs import due_at

MINUTE = timedelta(minutes=1)


def send_all(store, now, *, commitment=True) -> None:
    for task in due_at(store, now):
        for one in task.instances:
            store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
        store.deliveries.finish(task.delivery_id, "sent", "stored", now, commitment=commitment)


def ask(store, now, uid="2.25.1", deadline=MINUTE):
    """Return what one request is about."""
    [wanted] = store.commitments.due(now)
    assert store.commitments.ask(wanted, uid, now, now + deadline)
    return [one.sop_uid for one in wanted.instances]


def take(store, now, uid="2.25.1", committed=(), failed=None, max_resends=3, **more):
    report = Report(
        transaction_uid=uid, committed=frozenset(committed), failed=failed or {}, **more
    )
    resends = Resends(most=max_resends, pause=lambda count: count * MINUTE)
    return store.commitments.record_report(report, now, again_at=now + MINUTE, resends=resends)


@pytest.fixture
def asked(store, published, now):
    """A job whose delivery is asked about; return its number and the UIDs."""
    job_id = published()
    send_all(store, now)
    return job_id, ask(store, now)


def figures(store):
    [line] = store.series.listing()[0]["deliveries"]
    return line["state"], line["sent"], line["committed"]


def test_a_delivery_without_commitment_is_never_asked_about(store, published, now):
    job_id = published()
    send_all(store, now, commitment=False)

    assert store.commitments.due(now) == []
    assert store.jobs.get(job_id).state == JobState.DELIVERED


def test_a_request_is_not_due_again_before_its_deadline(store, asked, now):
    assert store.commitments.due(now + MINUTE / 2) == []
    [again] = store.commitments.due(now + MINUTE)
    assert again.requests == 1


def test_everything_committed_delivers_the_job(store, asked, now):
    job_id, uids = asked

    done = take(store, now, committed=uids)

    assert (done.state, done.committed, done.failed) == ("COMMITTED", 2, 0)
    assert figures(store) == ("COMMITTED", 2, 2)
    assert store.jobs.get(job_id).state == JobState.DELIVERED
    assert store.commitments.due(now + 10 * MINUTE) == []


def test_every_destination_that_owes_commitment_must_give_it(store, published, now):
    job_id = published(destinations=("pacs", "research"))
    send_all(store, now)
    pacs, research = store.commitments.due(now)
    for number, wanted in enumerate((pacs, research)):
        store.commitments.ask(wanted, f"2.25.{number}", now, now + MINUTE)

    take(store, now, "2.25.0", everything=True)
    assert store.jobs.get(job_id).state == JobState.DERIVED
    take(store, now, "2.25.1", everything=True)

    job = store.jobs.get(job_id)
    assert job.state == JobState.DELIVERED and "research (committed)" in job.reason


def test_what_failed_is_due_again_and_what_is_committed_stays(store, asked, now):
    _, (kept, lost) = asked

    assert take(store, now, committed=[kept], failed={lost: 0x0112}).state == "PENDING"

    assert figures(store) == ("PENDING", 1, 1)
    assert due_at(store, now) == []  # after a pause only
    [task] = due_at(store, now + MINUTE)
    assert [one.sop_uid for one in task.instances] == [lost]
    send_all(store, now + MINUTE)
    assert ask(store, now + MINUTE, "2.25.2") == [lost]


def test_resends_are_bounded_and_a_person_can_start_afresh(store, asked, now):
    job_id, (kept, lost) = asked
    for number in range(2, 4):
        take(store, now, f"2.25.{number - 1}", [kept], {lost: 0x0110}, max_resends=2)
        pause = (number - 1) * MINUTE
        assert due_at(store, now + 0.9 * pause) == []
        now += pause
        send_all(store, now)
        ask(store, now, f"2.25.{number}")

    assert take(store, now, "2.25.3", failed={lost: 0x0110}, max_resends=2).state == "DEAD"
    job = store.jobs.get(job_id)
    assert job.state == JobState.DEAD and "sent again 2 times" in job.reason

    store.jobs.requeue(job_id, now)
    send_all(store, now)
    ask(store, now, "2.25.4")
    assert take(store, now, "2.25.4", failed={lost: 0x0110}, max_resends=2).state == "PENDING"


@pytest.mark.parametrize(("most", "other"), [(0, 0x0110), (0, 0x0122), (3, 0x0122)])
def test_what_was_lost_is_sent_when_a_person_asks_for_it(store, asked, now, most, other):
    """Also beside an instance of a class that the archive does not keep."""
    job_id, (lost, refused) = asked
    failed = {lost: 0x0112, refused: other}
    assert take(store, now, failed=failed, max_resends=most).state == "DEAD"

    store.jobs.requeue(job_id, now)

    [task] = due_at(store, now)
    due = {one.sop_uid for one in task.instances}
    assert due == ({lost, refused} if other == 0x0110 else {lost})


def test_duplicate_transaction_is_only_asked_again(store, asked, now):
    _, uids = asked

    assert take(store, now, failed=dict.fromkeys(uids, 0x0131)).state == "SENT"

    assert figures(store) == ("SENT", 2, 0)
    assert len(store.commitments.due(now + MINUTE)) == 1


def test_failures_of_an_older_request_are_void_and_its_commitments_count(store, asked, now):
    _, (first, second) = asked
    ask(store, now + MINUTE, "2.25.2")

    assert take(store, now, "2.25.1", [first], {second: 0x0112}).state == "SENT"

    assert figures(store) == ("SENT", 2, 1)


def test_late_commitment_ends_a_resend_that_is_under_way(store, asked, now):
    job_id, uids = asked
    ask(store, now + MINUTE, "2.25.2")
    take(store, now, "2.25.2", failed=dict.fromkeys(uids, 0x0112))
    [task] = due_at(store, now + 2 * MINUTE)

    assert take(store, now, "2.25.1", everything=True).state == "COMMITTED"

    assert store.jobs.get(job_id).state == JobState.DELIVERED
    assert (
        store.deliveries.finish(task.delivery_id, "sent", "x", now, commitment=True) == "COMMITTED"
    )
    assert due_at(store, now + 9 * MINUTE) == []


def sent_times(store):
    with store.database.reading() as connection:
        return list(connection.execute(sa.select(schema.delivery_instance.c.sent_at)).scalars())


def test_instances_that_are_committed_need_no_word_of_the_sender(store, asked, now):
    job_id, (kept, lost) = asked
    take(store, now, committed=[kept], failed={lost: 0x0112})
    forgotten = sent_times(store)
    take(store, now, committed=[lost])  # the same transaction, reported once more

    assert forgotten.count(None) == 1 and None not in sent_times(store)
    assert store.jobs.get(job_id).state == JobState.DELIVERED


def test_report_about_foreign_instances_changes_nothing(store, asked, now):
    assert take(store, now, committed=["1.2.3.4"], failed={"1.2.3.5": 0x0112}).state == "SENT"

    assert figures(store) == ("SENT", 2, 0)


def test_unknown_transaction_is_nobodys(store, asked, now):
    assert take(store, now, "2.25.999", everything=True) is None
    assert figures(store) == ("SENT", 2, 0)


def test_refused_request_waits_or_ends_the_delivery(store, asked, now):
    job_id, _ = asked
    store.commitments.refuse("2.25.1", "no connection", now, now + MINUTE / 2)
    assert len(store.commitments.due(now + MINUTE / 2)) == 1
    ask(store, now + MINUTE / 2, "2.25.2")
    store.commitments.refuse("2.25.2", "not supported", now, None)

    assert store.jobs.get(job_id).state == JobState.DEAD
    assert "not supported" in store.jobs.get(job_id).reason


def test_refusals_are_counted_in_a_row_and_since_the_last_requeue(store, asked, now):
    """An archive that accepts for days and answers late is not given up for one bad minute."""

    def due(after):
        [wanted] = store.commitments.due(now + after)
        return wanted

    store.commitments.refuse("2.25.1", "no connection", now, now + MINUTE)
    assert (due(MINUTE).requests, due(MINUTE).refusals) == (1, 1)

    ask(store, now + MINUTE, "2.25.2")  # accepted, and never answered
    assert due(2 * MINUTE).refusals == 0
    for number in (3, 4):
        at = now + (number - 1) * MINUTE
        ask(store, at, f"2.25.{number}")
        store.commitments.refuse(f"2.25.{number}", "no connection", at, at + MINUTE)
    assert (due(4 * MINUTE).requests, due(4 * MINUTE).refusals) == (4, 2)

    ask(store, now + 4 * MINUTE, "2.25.5")
    store.commitments.refuse("2.25.5", "not supported", now + 4 * MINUTE, None)
    store.jobs.requeue(asked[0], now + 5 * MINUTE)
    send_all(store, now + 5 * MINUTE)
    assert due(6 * MINUTE).refusals == 0


def test_refusal_that_comes_after_the_report_is_void(store, asked, now):
    job_id, uids = asked
    take(store, now, committed=uids)
    store.commitments.refuse("2.25.1", "aborted", now, None)
    store.commitments.refuse("2.25.77", "never asked", now, None)

    assert store.jobs.get(job_id).state == JobState.DELIVERED


def test_cancelled_delivery_is_asked_about_no_more(store, published, now):
    job_id = published()
    send_all(store, now)
    [wanted] = store.commitments.due(now)
    store.jobs.cancel(job_id, now)

    assert not store.commitments.ask(wanted, "2.25.1", now, now + MINUTE)
    assert store.commitments.due(now) == []


def test_waived_commitment_delivers_with_what_was_sent(store, asked, now):
    job_id, _ = asked
    [row] = store.deliveries.of_job(job_id)
    store.commitments.waive(row["id"], now)
    store.commitments.waive(row["id"], now)

    assert store.jobs.get(job_id).state == JobState.DELIVERED
    assert figures(store) == ("SENT", 2, 0)


def test_a_database_of_the_first_release_keeps_its_deliveries(empty_url, now):
    database = migrate_to(empty_url, "0001")
    with database.transaction() as work:
        for row in (
            "series (id, series_uid, study_uid, modality, description, acknowledged, created_at, "
            "last_received_at) VALUES (1, '1.2', '1.1', 'MR', '', 0, :now, :now)",
            "job (id, series_id, generation, state, reason, priority, destinations, attempts, "
            "created_at, updated_at, incomplete_release, figures) "
            "VALUES (1, 1, 1, 'DERIVED', '', 'normal', '[]', 0, :now, :now, false, '{}')",
            "delivery (id, job_id, destination, state, attempts, reason) "
            "VALUES (7, 1, 'pacs', 'SENT', 2, 'stored')",
        ):
            moment = {"now": "2026-01-05 09:00:00.000000"} if ":now" in row else {}
            work.connection.execute(sa.text(f"INSERT INTO {row}"), moment)
    database.close()
    store = open_store(empty_url)

    [row] = store.deliveries.of_job(1)
    assert (row["id"], row["attempts"], row["awaits_commitment"]) == (7, 2, False)
    assert store.commitments.due(now) == []
    store.close()
