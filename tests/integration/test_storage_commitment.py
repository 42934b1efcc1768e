"""Storage commitment with Orthanc, both ways: it commits to us, and it asks us."""

import json
import urllib.request
from contextlib import contextmanager

import pytest

from dicom_node.network import scu
from dicom_node.sender import Sender
from tests.dicom_node.test_sender import delivery, publish
from tests.integration.partners import wait_for
from tests.rigs import MR, NOW, SOURCE, due_at, running_node, write_series

QUICK = {"interval_s": 0.1, "timeout_s": 10.0, "backoff_first_s": 0.1, "backoff_last_s": 0.5}


@contextmanager
def node_beside(tmp_path, archive, **files):
    """Yield a node that Orthanc knows, and that knows Orthanc as source and destination."""
    orthanc = {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.port}
    orthanc |= {"roles": ["source", "destination"], "commitment": True}
    sections = {
        "node": {"port": archive.node_port},
        "peers": [SOURCE, orthanc],
        "sending": QUICK | {"enabled": False},
        "files": files,
    }
    with running_node(tmp_path / "state", **sections) as node:
        sender = Sender(node.store, node.settings)
        sender.start()
        yield node
        sender.stop()


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_orthanc_commits_and_what_it_never_had_is_sent_again(archive, tmp_path, lost):
    with node_beside(tmp_path, archive) as node:
        job_id = publish(node.store, tmp_path / "a")
        [task] = due_at(node.store, NOW)
        uids = [each.sop_uid for each in task.instances]
        # As if Orthanc had answered Success for them and stored nothing.
        node.store.deliveries.record_present(task.delivery_id, uids[:lost], NOW)
        node.store.switches.set("sending", True, NOW)
        state = lambda: node.store.jobs.get(job_id).state  # noqa: E731
        wait_for("the job ends", lambda: state() in ("DELIVERED", "DEAD"), 40)

        assert state() == "DELIVERED", delivery(node.store, job_id)
        assert delivery(node.store, job_id)["state"] == "COMMITTED"
        events = [row.event for row in node.store.audit.listing()]
        assert events.count("commitment.ask") == (2 if lost else 1)
        assert events.count("commitment.failed") == (1 if lost else 0)
    assert archive.get("/statistics")["CountInstances"] == 4


def test_orthanc_gets_the_truth_about_what_it_sent(archive, tmp_path):
    with node_beside(tmp_path, archive, custody=True) as node:
        items = write_series(tmp_path / "b", 2)
        assert {outcome.fault for outcome in scu.send(items, node.peer, "MR1")} == {0}
        node.store.series.find_instance(items[1].sop_uid).path.unlink()
        uids = [each.sop_uid for each in items] + ["1.2.3.4711"]

        transaction = request_commitment(archive, uids)
        report = wait_for("Orthanc has the report", lambda: reported(archive, transaction), 30)

    assert report["Status"] == "Failure"
    assert [each["SOPInstanceUID"] for each in report["Success"]] == uids[:1]
    reasons = {each["SOPInstanceUID"]: each["FailureReason"] for each in report["Failures"]}
    assert reasons == {uids[1]: 0x0110, uids[2]: 0x0112}


def request_commitment(archive, uids: list[str]) -> str:
    """Let Orthanc ask the node; return the transaction UID."""
    body = json.dumps({"DicomInstances": [[MR, uid] for uid in uids]}).encode()
    url = f"http://127.0.0.1:{archive.http}/modalities/node/storage-commitment"
    with urllib.request.urlopen(url, data=body, timeout=20) as reply:
        return json.loads(reply.read())["ID"]


def reported(archive, transaction: str) -> dict | None:
    """Return what Orthanc knows of a transaction, None while it waits."""
    report = archive.get(f"/storage-commitment/{transaction}")
    return None if report["Status"] == "Pending" else report
