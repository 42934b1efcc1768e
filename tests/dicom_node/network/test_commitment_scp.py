"""Scanners ask the node for storage commitment: only the truth is answered, and it arrives."""

import time
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from dicom_node import assembly
from dicom_node.network import commitment_scp, pynetdicom_scu, scu
from dicom_node.sender import Sender
from dicom_node.store import open_store, schema
from tests.dicom_node.committers import IMPLICIT, Archive, Scanner, item, wait_for
from tests.rigs import MR, SOURCE, running_node, write_series

QUICK = {"timeout_s": 2.0, "backoff_first_s": 0.05, "backoff_last_s": 0.05}
UNKNOWN = "1.2.840.4711"


@contextmanager
def node_for(tmp_path, *, custody: bool, port: int = 0, **changes):
    """Yield a node that knows the scanner at `port`."""
    scanner = SOURCE | {"port": port} | changes
    sections = {"files": {"custody": custody}, "peers": [scanner], "sending": QUICK}
    with running_node(tmp_path / "state", **sections) as node:
        yield node


def send(node, folder, count: int = 3) -> list[str]:
    """Return the UIDs of instances that the node has acknowledged."""
    items = write_series(folder, count)
    assert {outcome.fault for outcome in scu.send(items, node.peer, "MR1")} == {0}
    return [each.sop_uid for each in items]


def verdicts(report) -> dict[str, int]:
    """Return what a report says of each instance."""
    good = {
        str(each.ReferencedSOPInstanceUID): 0 for each in report.get("ReferencedSOPSequence", [])
    }
    bad = {
        str(each.ReferencedSOPInstanceUID): each.FailureReason
        for each in report.get("FailedSOPSequence", [])
    }
    return good | bad


def open_debts(node) -> int:
    return node.store.commitments.open_transactions()["scp"]


def test_held_here_in_custody_is_committed_on_the_same_association(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        uids = send(node, tmp_path / "a")
        association = scanner.associate(node.scp.port)
        status, transaction = scanner.ask(association, [item(uid) for uid in uids])
        wait_for("the report", lambda: scanner.reports)
        association.release()
        wait_for("the end", lambda: not open_debts(node))

    [(event_type, report)] = scanner.reports
    assert (status, event_type) == (0x0000, 1)
    assert report.TransactionUID == transaction
    assert verdicts(report) == dict.fromkeys(uids, 0)


def test_report_comes_on_a_new_association_when_the_scanner_has_gone(tmp_path):
    with (
        Scanner().listening() as scanner,
        node_for(tmp_path, custody=True, port=scanner.port) as node,
    ):
        [uid] = send(node, tmp_path / "a", 1)
        association = scanner.associate(node.scp.port)
        scanner.ask(association, [item(uid)])
        association.release()
        wait_for("the report", lambda: scanner.reports)

    assert verdicts(scanner.reports[0][1]) == {uid: 0}


def test_without_custody_nothing_is_promised_that_no_destination_keeps(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=False) as node:
        uids = send(node, tmp_path / "a", 2)
        association = scanner.associate(node.scp.port)
        scanner.ask(association, [*map(item, uids), item(UNKNOWN)])
        wait_for("the report", lambda: scanner.reports)
        association.release()

    [(event_type, report)] = scanner.reports
    assert event_type == 2
    assert verdicts(report) == {uids[0]: 0x0110, uids[1]: 0x0110, UNKNOWN: 0x0112}
    assert "ReferencedSOPSequence" not in report


def test_what_a_destination_has_committed_is_committed(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=False) as node:
        uids = send(node, tmp_path / "a", 2)
        forwarded_and_committed(node.store, uids[0])
        association = scanner.associate(node.scp.port)
        scanner.ask(association, [item(uid) for uid in uids])
        wait_for("the report", lambda: scanner.reports)
        association.release()

    [(event_type, report)] = scanner.reports
    assert event_type == 2 and verdicts(report) == {uids[0]: 0, uids[1]: 0x0110}


def forwarded_and_committed(store, sop_uid: str) -> None:
    """Put on record that a destination keeps an original."""
    now = datetime.now(UTC)
    with store.database.transaction() as work:
        job_id = work.execute(sa.select(schema.job.c.id)).scalars().first()
        row = {"job_id": job_id, "sop_uid": sop_uid, "sop_class": MR, "path": "x", "sha256": "a"}
        sent = sa.insert(schema.derived_instance).values(**row, bytes=1)
        instance = work.execute(sent.returning(schema.derived_instance.c.id)).scalar_one()
        row = {"job_id": job_id, "destination": "pacs", "state": "COMMITTED", "attempts": 1}
        made = sa.insert(schema.delivery).values(**row, reason="")
        number = work.execute(made.returning(schema.delivery.c.id)).scalar_one()
        part = {"delivery_id": number, "derived_instance_id": instance, "committed_at": now}
        work.execute(sa.insert(schema.delivery_instance).values(**part))


@pytest.mark.parametrize("fault", ["altered", "gone"])
def test_custody_answers_for_what_the_disk_holds_now(tmp_path, fault):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        uids = send(node, tmp_path / "a", 2)
        path = node.store.series.find_instance(uids[0]).path
        if fault == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"\x07")
        association = scanner.associate(node.scp.port)
        scanner.ask(association, [item(uid) for uid in uids])
        wait_for("the report", lambda: scanner.reports)
        association.release()

    assert verdicts(scanner.reports[0][1]) == {uids[0]: 0x0110, uids[1]: 0}


def test_instance_of_another_class_is_a_conflict(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        [uid] = send(node, tmp_path / "a", 1)
        association = scanner.associate(node.scp.port)
        scanner.ask(association, [item(uid, "1.2.840.10008.5.1.4.1.1.2")])
        wait_for("the report", lambda: scanner.reports)
        association.release()

    assert verdicts(scanner.reports[0][1]) == {uid: 0x0119}


def test_report_waits_for_a_scanner_that_is_away_and_survives_a_restart(tmp_path):
    scanner = Scanner()
    with scanner.listening():
        port = scanner.port  # nobody listens there any more
    with node_for(tmp_path, custody=True, port=port) as node:
        [uid] = send(node, tmp_path / "a", 1)
        association = scanner.associate(node.scp.port)
        scanner.ask(association, [item(uid)])
        association.release()
        wait_for(
            "two attempts",
            lambda: sum(each.event == "commitment.unreported" for each in trail(node)) >= 2,
        )
        assert open_debts(node) == 1
        url = node.settings.database_url
    assert not scanner.reports
    again = open_store(url)
    assert again.commitments.open_transactions()["scp"] == 1
    again.close()
    with scanner.listening(port), node_for(tmp_path, custody=True, port=port):
        wait_for("the report", lambda: scanner.reports)

    assert verdicts(scanner.reports[0][1]) == {uid: 0}


def trail(node):
    return node.store.audit.listing()


def test_a_report_that_fails_unforeseen_holds_up_no_other_and_is_repeated(tmp_path, monkeypatch):
    associate, tried = pynetdicom_scu.associate, []

    def fail_at_first(*arguments, **options):
        tried.append(arguments)
        if len(tried) == 1:
            raise OSError(24, "Too many open files")
        return associate(*arguments, **options)

    with Scanner().listening() as scanner:
        with node_for(tmp_path, custody=True, port=scanner.port) as node:
            monkeypatch.setattr(pynetdicom_scu, "associate", fail_at_first)
            uids = send(node, tmp_path / "a", 2)
            association = scanner.associate(node.scp.port)
            for uid in uids:
                scanner.ask(association, [item(uid)])
            association.release()
            wait_for("both reports", lambda: len(scanner.reports) >= 2)
            wait_for("the end", lambda: not open_debts(node))
            assert node.scp.failing() == []

    told = [verdicts(report) for _, report in scanner.reports]
    assert {uid: 0 for each in told for uid in each} == dict.fromkeys(uids, 0)
    assert len(tried) >= 3


def test_a_thread_that_reports_no_more_is_seen(tmp_path, monkeypatch):
    with node_for(tmp_path, custody=True) as node:
        assert node.scp.failing() == []
        monkeypatch.setattr(node.store.debts, "due", lambda now: 1 / 0)
        wait_for("the failure", lambda: node.scp.failing() == ["commitment"])
        monkeypatch.undo()
        wait_for("its end", lambda: node.scp.failing() == [])


def test_report_that_the_scanner_refuses_is_repeated(tmp_path):
    with Scanner().listening() as scanner:
        scanner.answer = 0x0110
        with node_for(tmp_path, custody=True, port=scanner.port) as node:
            [uid] = send(node, tmp_path / "a", 1)
            association = scanner.associate(node.scp.port)
            scanner.ask(association, [item(uid)])
            association.release()
            wait_for(
                "attempts",
                lambda: sum(each.event == "commitment.unreported" for each in trail(node)) >= 2,
            )
            scanner.answer = 0x0000
            wait_for("the report", lambda: scanner.reports)
            wait_for("the end", lambda: not open_debts(node))


def test_request_that_is_repeated_is_one_transaction(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        [uid] = send(node, tmp_path / "a", 1)
        association = scanner.associate(node.scp.port)
        for _ in range(2):
            status, _ = scanner.ask(association, [item(uid)], "1.2.3.4")
            assert status == 0x0000
        wait_for("the end", lambda: scanner.reports and not open_debts(node))
        association.release()

    assert {str(report.TransactionUID) for _, report in scanner.reports} == {"1.2.3.4"}


def test_requests_of_two_series_on_one_association_are_both_answered(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        series = [send(node, tmp_path / name, 2) for name in ("a", "b")]
        association = scanner.associate(node.scp.port)
        asked = {scanner.ask(association, [*map(item, uids)])[1] for uids in series}
        wait_for("both reports", lambda: len(scanner.reports) == 2)
        pynetdicom_scu.part(association)

    assert {str(report.TransactionUID) for _, report in scanner.reports} == asked


@pytest.mark.parametrize("patience_s", [60.0, 1.5])
def test_forwarded_originals_are_committed_when_their_archive_has_committed(tmp_path, patience_s):
    archive = Archive("new" if patience_s > 10 else "never")
    with Scanner().listening() as scanner, archive.listening():
        pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
        pacs |= {"roles": ["destination"], "commitment": True}
        sections = {
            "peers": [SOURCE | {"port": scanner.port}, pacs],
            "rules": [{"name": "on", "action": "forward"}],
            "assembly": {"idle_s": 0.5},
            "commitment": {"wait_s": 0.0, "answer_within_s": patience_s},
            "sending": QUICK | {"interval_s": 0.05},
        }
        with running_node(tmp_path / "state", **sections) as node:
            archive.node_port = node.scp.port
            uids = send(node, tmp_path / "a", 2)
            association = scanner.associate(node.scp.port)
            scanner.ask(association, [item(uid) for uid in uids])
            association.release()
            time.sleep(1.0)  # the scanner asks before anything is forwarded
            assert not scanner.reports
            assembly.tick(node.store, node.settings, datetime.now(UTC))
            sender = Sender(node.store, node.settings)
            sender.start()
            wait_for("the report", lambda: scanner.reports)
            sender.stop()

    assert archive.kept == set(uids)
    kept = 0 if patience_s > 10 else 0x0110
    assert verdicts(scanner.reports[0][1]) == dict.fromkeys(uids, kept)


def test_who_is_no_source_is_not_answered_for(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True, roles=["destination"]) as node:
        association = scanner.associate(node.scp.port)

        assert scanner.ask(association, [item(UNKNOWN)])[0] == 0x0124
        association.release()
        assert open_debts(node) == 0


def test_request_without_an_instance_is_an_invalid_argument(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        association = scanner.associate(node.scp.port)

        assert scanner.ask(association, [])[0] == 0x0115
        association.release()


def test_request_for_too_much_is_refused_for_lack_of_resources(tmp_path, monkeypatch):
    monkeypatch.setattr(commitment_scp, "MOST_INSTANCES", 2)
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        association = scanner.associate(node.scp.port)

        assert scanner.ask(association, [item(f"1.2.{n}") for n in range(3)])[0] == 0x0213
        association.release()


def test_request_is_durable_before_its_response(tmp_path):
    scanner = Scanner()
    with node_for(tmp_path, custody=True) as node:
        association = scanner.associate(node.scp.port)
        node.scp._commitment.stop()  # nobody reports
        assert scanner.ask(association, [item(UNKNOWN)])[0] == 0x0000
        other = open_store(node.settings.database_url)
        assert other.commitments.open_transactions()["scp"] == 1
        other.close()
        association.release()


def test_implicit_little_endian_is_enough(tmp_path):
    with node_for(tmp_path, custody=True) as node:
        association = Scanner().associate(node.scp.port)
        [context] = association.accepted_contexts
        association.release()

    assert context.transfer_syntax == IMPLICIT
