"""Deliveries to real associations on loopback: statuses, retries, the switch, a crash."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from pydicom import dcmread

from dicom_node.errors import StoreUnavailable
from dicom_node.network.agenda import AHEAD
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.scu import Lanes
from dicom_node.pixel_files import sha256_of
from dicom_node.rejection_notes import SAFETY
from dicom_node.sender import MOST_AHEAD, WANTED_S, Sender
from dicom_node.settings import Settings
from dicom_node.store import DerivedInstance, DerivedSeries, Grounds, NewInstance, open_store
from tests.rigs import MR, NOW, due_at, pacs, rig_settings, write_series
from tests.webserver import Told, web_server

LATER = NOW + timedelta(hours=2)


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'node.db'}")
    yield store
    store.close()


def publish(
    store,
    folder: Path,
    count: int = 4,
    destinations=("pacs",),
    number: int = 1,
    companions: int = 0,
) -> int:
    """Return a job whose derived series waits to be delivered.

    The last `companions` of its `count` instances belong to another series, ``2.25.<number>.1``.
    """
    items = write_series(folder, count)
    first = dcmread(items[0].path, stop_before_pixels=True)
    new = NewInstance(
        sop_uid=f"1.2.{number}", sop_class=MR, series_uid=f"1.{number}",
        study_uid=str(first.StudyInstanceUID),
        modality="MR", description="t1", path=folder / "x", bytes=1, sha256="0" * 64,
        attributes_sha256="0" * 64, transfer_syntax="1.2.840.10008.1.2.1", calling_ae="MR1",
        header={},
    )  # fmt: skip
    job_id = store.series.record_instance(new, NOW).job_id
    store.jobs.transition(job_id, "enqueue", NOW, destinations=list(destinations))
    store.jobs.claim("w", NOW, timedelta(seconds=60))
    instances = tuple(
        DerivedInstance(
            sop_uid=item.sop_uid,
            sop_class=MR,
            path=item.path,
            sha256=sha256_of(item.path),
            bytes=10,
            series_uid=f"2.25.{number}.1" if place >= count - companions else None,
        )
        for place, item in enumerate(items)
    )
    derived = DerivedSeries(
        series_uid=str(first.SeriesInstanceUID), instances=instances, recipe_digest="a" * 64,
        weights_sha256="b" * 64, figures={},
    )  # fmt: skip
    store.jobs.publish(job_id, "w", derived, destinations, NOW)
    return job_id


def settings_for(tmp_path, *peers, **sending) -> Settings:
    """Return settings with these destinations: (name, AE title, port)."""
    described = [
        {"name": name, "ae_title": ae, "host": "127.0.0.1", "port": port, "roles": ["destination"]}
        for name, ae, port in peers
    ]
    limits = {"timeout_s": 2.0, "backoff_first_s": 5.0} | sending
    return rig_settings(tmp_path, peers=described, sending=limits, node={"acse_timeout_s": 2.0})


def sender_for(store, tmp_path, *peers, now=NOW, **sending) -> Sender:
    settings = settings_for(tmp_path, *peers, **sending)
    return Sender(store, settings, clock=lambda: now, rng=Random(1))


def delivery(store, job_id, destination="pacs"):
    [row] = [row for row in store.deliveries.of_job(job_id) if row["destination"] == destination]
    return row


def test_due_delivery_is_sent_and_its_job_delivered(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    with LoopbackArchive(tmp_path / "archive") as archive:
        sender = sender_for(store, tmp_path, ("pacs", "ARCHIVE", archive.port))
        assert sender.run_once(NOW) == 1
        assert sender.run_once(LATER) == 0

    assert len(archive.received) == len(set(archive.received)) == 4
    assert delivery(store, job_id)["state"] == "SENT"
    assert store.jobs.get(job_id).state == "DELIVERED"


def test_what_was_confirmed_while_its_delivery_waited_for_its_turn_is_not_sent_again(
    store, tmp_path, monkeypatch
):
    job_id = publish(store, tmp_path / "a")
    due = store.deliveries.due

    def confirmed_meanwhile(now, busy=()):
        tasks = due(now, busy)
        for task in map(store.deliveries.with_unsent, tasks):
            one = task.instances[1]
            store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
            confirmed.append(one.sop_uid)
        return tasks

    confirmed = []
    monkeypatch.setattr(store.deliveries, "due", confirmed_meanwhile)
    with LoopbackArchive(tmp_path / "archive") as archive:
        sender_for(store, tmp_path, ("pacs", "ARCHIVE", archive.port)).run_once(NOW)

    assert len(archive.received) == 3 and not set(confirmed) & set(archive.received)
    assert store.jobs.get(job_id).state == "DELIVERED"


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_warning_counts_as_sent(store, tmp_path, status):
    job_id = publish(store, tmp_path / "a")
    with pacs(lambda event: status) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    assert store.jobs.get(job_id).state == "DELIVERED"
    assert f"4 with status 0x{status:04X}" in delivery(store, job_id)["reason"]
    assert store.series.listing()[0]["deliveries"][0]["warned"] == 4
    outcomes = [row.fields.get("outcome") for row in store.audit.listing(job_id=job_id)]
    assert "sent-with-warning" in outcomes


def test_a_file_that_is_not_the_published_one_any_more_is_not_sent(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    changed = due_at(store, NOW)[0].instances[1]
    changed.path.write_bytes(changed.path.read_bytes()[:-2] + b"\1\1")
    with LoopbackArchive(tmp_path / "archive") as archive:
        sender_for(store, tmp_path, ("pacs", "ARCHIVE", archive.port)).run_once(NOW)

    assert changed.sop_uid not in archive.received and len(archive.received) == 3
    assert delivery(store, job_id)["state"] == "DEAD"
    assert "not the one that was published" in delivery(store, job_id)["reason"]


def test_lasting_refusal_ends_the_delivery_with_a_reason(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    bad = due_at(store, NOW)[0].instances[1].sop_uid

    def answer(event):
        return 0xA900 if event.request.AffectedSOPInstanceUID == bad else 0x0000

    with pacs(answer) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    row = delivery(store, job_id)
    assert row["state"] == "DEAD" and store.jobs.get(job_id).state == "DEAD"
    for part in ("pacs", "PACS", "0xA900", bad):
        assert part in row["reason"]
    [listed] = store.series.listing()
    assert listed["deliveries"][0]["sent"] == 3


def test_passing_fault_is_tried_again_with_what_is_missing_only(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    attempts = Counter()

    def full_at_first(event):
        uid = event.request.AffectedSOPInstanceUID
        attempts[uid] += 1
        return 0xA700 if uid == bad and attempts[uid] == 1 else 0x0000

    bad = due_at(store, NOW)[0].instances[2].sop_uid
    with pacs(full_at_first) as peer:
        sender = sender_for(store, tmp_path, ("pacs", "PACS", peer.port))
        sender.run_once(NOW)
        between = delivery(store, job_id)
        assert sender.run_once(NOW - timedelta(seconds=1)) == 0
        assert sender.run_once(LATER) == 1

    assert between["state"] == "PENDING" and "0xA700" in between["reason"]
    assert NOW <= between["next_try_at"] <= NOW + timedelta(seconds=5)
    assert sorted(attempts.values()) == [1, 1, 1, 2]
    assert store.jobs.get(job_id).state == "DELIVERED"


def test_association_rejected_for_good_ends_the_delivery_at_once(store, tmp_path):
    job_id = publish(store, tmp_path / "a")

    def reject(event):
        event.assoc.acse.send_reject(1, 1, 3)
        event.assoc.kill()

    with pacs(requested=reject) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    row = delivery(store, job_id)
    assert row["state"] == "DEAD" and row["attempts"] == 1
    assert "association rejected" in row["reason"]


@pytest.mark.parametrize(
    ("status", "state"),
    [(0xA700, "PENDING"), (0xA7FF, "PENDING"), (0x0110, "PENDING"), (0x0122, "DEAD")],
)
def test_status_decides_whether_a_delivery_lives(store, tmp_path, status, state):
    job_id = publish(store, tmp_path / "a", count=1)
    with pacs(lambda event: status) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    assert delivery(store, job_id)["state"] == state


def test_nobody_there_is_tried_again_and_given_up_at_last(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = ("pacs", "PACS", probe.getsockname()[1])
        sender = sender_for(store, tmp_path, address, max_attempts=2)
        sender.run_once(NOW)
        assert delivery(store, job_id)["state"] == "PENDING"
        sender.run_once(LATER)

    row = delivery(store, job_id)
    assert row["state"] == "DEAD" and row["attempts"] == 2
    assert "no connection" in row["reason"] and "Given up after 2 attempts" in row["reason"]


def test_lost_file_is_named(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    gone = due_at(store, NOW)[0].instances[0]
    gone.path.unlink()
    with LoopbackArchive(tmp_path / "archive") as archive:
        sender_for(store, tmp_path, ("pacs", "ARCHIVE", archive.port)).run_once(NOW)

    assert gone.sop_uid in delivery(store, job_id)["reason"]
    assert len(archive.received) == 3


def test_destination_that_left_the_configuration_is_named(store, tmp_path):
    job_id = publish(store, tmp_path / "a", destinations=("old-pacs",))

    sender_for(store, tmp_path, ("pacs", "PACS", 104)).run_once(NOW)

    assert "old-pacs" in delivery(store, job_id, "old-pacs")["reason"]
    assert store.jobs.get(job_id).state == "DEAD"


def test_silent_destination_does_not_hold_up_the_others(store, tmp_path):
    job_id = publish(store, tmp_path / "a", destinations=("silent", "pacs"))
    with (
        LoopbackArchive(tmp_path / "archive") as archive,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        peers = ("pacs", "ARCHIVE", archive.port), ("silent", "SILENT", silent.getsockname()[1])
        sender_for(store, tmp_path, *peers).run_once(NOW)

    assert delivery(store, job_id, "pacs")["state"] == "SENT"
    assert delivery(store, job_id, "silent")["state"] == "PENDING"


def test_nothing_is_sent_in_shadow_mode_or_with_the_switch_off(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    with LoopbackArchive(tmp_path / "archive") as archive:
        peer = ("pacs", "ARCHIVE", archive.port)
        assert sender_for(store, tmp_path, peer, shadow=True).run_once(NOW) == 0
        assert sender_for(store, tmp_path, peer, enabled=False).run_once(NOW) == 0
        store.switches.set("sending", False, NOW)
        assert sender_for(store, tmp_path, peer).run_once(NOW) == 0
        assert archive.received == []
        store.switches.set("sending", True, NOW)
        assert sender_for(store, tmp_path, peer).run_once(NOW) == 1

    assert store.jobs.get(job_id).state == "DELIVERED"


def test_switch_stops_a_delivery_after_the_instance_under_way(store, tmp_path):
    job_id = publish(store, tmp_path / "a")

    def switch_off(event):
        store.switches.set("sending", False, NOW)
        time.sleep(2 * WANTED_S)
        return 0x0000

    with pacs(switch_off) as peer:
        sender = sender_for(store, tmp_path, ("pacs", "PACS", peer.port))
        sender.run_once(NOW)
        row = delivery(store, job_id)
        assert row["state"] == "PENDING" and row["attempts"] == 0
        assert len(due_at(store, NOW)[0].instances) == 3


def test_superseded_result_is_not_sent_on(store, tmp_path):
    job_id = publish(store, tmp_path / "a")

    def supersede(event):
        store.jobs.transition(job_id, "supersede", NOW)
        time.sleep(2 * WANTED_S)
        return 0x0000

    with pacs(supersede) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    assert store.jobs.get(job_id).state == "SUPERSEDED"
    assert store.series.listing()[0]["deliveries"][0]["sent"] == 1


def test_background_loop_sends_and_stops(store, tmp_path):
    with LoopbackArchive(tmp_path / "archive") as archive:
        settings = settings_for(tmp_path, ("pacs", "ARCHIVE", archive.port), interval_s=0.05)
        sender = Sender(store, settings)
        sender.start()
        job_id = publish(store, tmp_path / "a")
        deadline = time.monotonic() + 30
        while store.jobs.get(job_id).state != "DELIVERED" and time.monotonic() < deadline:
            time.sleep(0.05)
        sender.stop()

    assert store.jobs.get(job_id).state == "DELIVERED"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sender")]


def test_stop_finishes_the_instance_under_way(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    under_way = threading.Event()

    def slowly(event):
        under_way.set()
        time.sleep(0.5)
        return 0x0000

    with pacs(slowly) as peer:
        settings = settings_for(tmp_path, ("pacs", "PACS", peer.port), interval_s=0.05)
        sender = Sender(store, settings)
        sender.start()
        under_way.wait(20)
        sender.stop()
        [task] = due_at(store, LATER)

    assert len(task.instances) == 3
    assert store.jobs.get(job_id).state == "DERIVED"


def test_stopped_between_two_deliveries_it_does_not_touch_the_next_one(
    store, tmp_path, monkeypatch
):
    counts = (AHEAD + 20, 4, 4)
    jobs = [publish(store, tmp_path / f"{n}", count=c, number=n) for n, c in enumerate(counts, 1)]
    begun, begin = [], store.deliveries.begin
    monkeypatch.setattr(
        store.deliveries, "begin", lambda task: begun.append(task.job_id) or begin(task)
    )
    with pacs(lambda event: sender.stop(0.1) or 0x0000) as peer:
        sender = sender_for(store, tmp_path, ("pacs", "PACS", peer.port))
        sender.run_once(NOW)

    assert begun == jobs[:1]
    assert len(due_at(store, LATER)) == 3


def test_a_web_archive_whose_index_is_late_is_waited_for(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    rows = [
        {"00080018": {"vr": "UI", "Value": [each.sop_uid]}}
        for each in due_at(store, NOW)[0].instances
    ]
    now = NOW

    def answer(asked):
        if asked.method == "GET" and now - NOW < timedelta(minutes=20):
            return Told(status=204)
        return Told(body=json.dumps(rows if asked.method == "GET" else []).encode())

    with web_server(answer) as server:
        vna = {"name": "pacs", "protocol": "dicomweb", "url": server.url, "roles": ["destination"]}
        settings = rig_settings(tmp_path, peers=[vna])
        sender = Sender(store, settings, clock=lambda: now, rng=Random(1))
        while store.jobs.get(job_id).state == "DERIVED" and now - NOW < timedelta(days=1):
            sender.run_once(now)
            now += timedelta(seconds=20)

    assert store.jobs.get(job_id).state == "DELIVERED"
    assert now - NOW < timedelta(hours=1)


@pytest.mark.parametrize("method", ["_begun", "_log_outcome", "_may_go_on", "_end"])
def test_a_delivery_that_breaks_in_a_way_nobody_foresaw_holds_up_no_other(
    store, tmp_path, monkeypatch, method
):
    bad, good = publish(store, tmp_path / "a"), publish(store, tmp_path / "b", number=2)
    with LoopbackArchive(tmp_path / "archive") as archive:
        sender = sender_for(store, tmp_path, ("pacs", "ARCHIVE", archive.port))
        whole, failing = getattr(sender, method), [True]

        def fail(task, *arguments):
            if failing[0] and task.job_id == bad:
                raise ZeroDivisionError
            return whole(task, *arguments)

        monkeypatch.setattr(sender, method, fail)
        sender.run_once(NOW)
        row = delivery(store, bad)
        assert (row["state"], row["attempts"]) == ("PENDING", 1)
        assert "ZeroDivisionError" in row["reason"] and row["next_try_at"] is not None
        assert store.jobs.get(good).state == "DELIVERED"
        assert sender.failing() == ["sender-pacs"]
        failing[0] = False
        sender.run_once(LATER)

    assert store.jobs.get(bad).state == "DELIVERED"
    assert sender.failing() == []


CRASHING = """
import sys
from pathlib import Path
from dicom_node.sender import Sender
from dicom_node.settings import Settings
from dicom_node.store import open_store
settings = Settings.model_validate_json(sys.stdin.read())
sender = Sender(open_store(sys.argv[1]), settings)
sender.run_once(sender._clock())
"""


def test_killed_sender_leaves_only_the_unrecorded_instances_to_send_again(store, tmp_path):
    instances = MOST_AHEAD + 40
    publish(store, tmp_path / "a", count=instances)

    with LoopbackArchive(tmp_path / "archive") as archive:
        settings = settings_for(tmp_path, ("pacs", "ARCHIVE", archive.port))
        child = subprocess.Popen(
            [sys.executable, "-c", CRASHING, f"sqlite:///{tmp_path / 'node.db'}"],
            stdin=subprocess.PIPE,
        )
        child.stdin.write(settings.model_dump_json().encode())
        child.stdin.close()
        while len(archive.received) < MOST_AHEAD + 8 and child.poll() is None:
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        before = Counter(archive.received)
        left = {each.sop_uid for each in due_at(store, LATER)[0].instances}
        Sender(store, settings, clock=lambda: LATER).run_once(LATER)
        after = Counter(archive.received)

    assert set(after) >= set(before) and len(after) == instances
    assert set(after - before) == left
    assert max(after.values()) <= 2 and sum(after.values()) <= instances + MOST_AHEAD + 1


def test_answer_that_arrives_late_is_asked_for_again_under_the_same_uid(store, tmp_path):
    job_id = publish(store, tmp_path / "a", count=2)
    seen = []

    def dawdle_once(event):
        seen.append(event.request.AffectedSOPInstanceUID)
        if len(seen) == 1:
            time.sleep(3.5)
        return 0x0000

    with pacs(dawdle_once) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    assert seen[0] == seen[1]
    assert store.jobs.get(job_id).state == "DELIVERED"


def test_what_was_under_way_when_it_was_withdrawn_is_owed_a_note(store, tmp_path, monkeypatch):
    """No answer came, no attempt was counted, and the archive may have kept it."""
    # Four tries do not take as long on a quick machine.
    monkeypatch.setattr("dicom_node.sender.WANTED_S", 0)
    job_id = publish(store, tmp_path / "a", count=1)

    def keep_and_break(event):
        store.withdrawals.recall("b" * 64, Grounds(title=SAFETY, reason="it was wrong."), NOW)
        event.assoc.abort()
        return 0x0000

    with pacs(keep_and_break) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    assert delivery(store, job_id)["attempts"] == 0
    [line] = store.series.listing()[0]["deliveries"]
    assert (line["sent"], line["failed"]) == (0, 0)
    [owed] = store.withdrawals.owed()
    assert owed.destinations == ("pacs",)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("query", [True, False])
def test_the_older_version_of_a_corrected_original_is_not_taken_for_it(
    store, tmp_path, monkeypatch, corrected, query
):
    """An archive that knows the UID: by its answer, or because it shows it when it is queried."""
    job_id = publish(store, tmp_path / "a", count=1)
    there = {i.sop_uid for task in due_at(store, NOW) for i in task.instances}
    with_unsent = store.deliveries.with_unsent

    def forwarded(task):
        found = with_unsent(task).instances
        return replace(task, instances=tuple(replace(i, corrected=corrected) for i in found))

    monkeypatch.setattr(store.deliveries, "with_unsent", forwarded)
    with pacs(lambda event: 0x0111) as peer:
        sender = sender_for(store, tmp_path, ("pacs", "PACS", peer.port))
        if query:
            monkeypatch.setattr("dicom_node.sender.may_look", lambda task, peer: True)
            monkeypatch.setattr(sender, "_there", lambda task, peer: there)
        sender.run_once(NOW)

    assert store.jobs.get(job_id).state == ("DEAD" if corrected else "DELIVERED")
    assert ("before its correction" in delivery(store, job_id)["reason"]) == corrected


def test_transfer_syntax_that_is_not_accepted_is_final(store, tmp_path):
    job_id = publish(store, tmp_path / "a")
    with pacs(syntaxes=["1.2.840.10008.1.2.5"]) as peer:
        sender_for(store, tmp_path, ("pacs", "PACS", peer.port)).run_once(NOW)

    assert "not accepted" in delivery(store, job_id)["reason"]
    assert store.jobs.get(job_id).state == "DEAD"


def test_a_delivery_goes_over_as_many_associations_as_its_destination_takes(store, tmp_path):
    job_id = publish(store, tmp_path / "a", count=40)
    barrier, associations = threading.Barrier(3), set()

    def together(event):
        if event.assoc not in associations:
            associations.add(event.assoc)
            barrier.wait(20)
        return 0x0000

    with pacs(together) as peer:
        settings = settings_for(tmp_path, ("pacs", "PACS", peer.port), max_associations=3)
        wide = settings.peer("pacs").model_copy(update={"associations": 8})
        Sender(store, settings.model_copy(update={"peers": (wide,)}), clock=lambda: NOW).run_once(
            NOW
        )

    assert len(associations) == 3
    assert store.series.listing()[0]["deliveries"][0]["sent"] == 40
    assert store.jobs.get(job_id).state == "DELIVERED"


def queue_for(store, tmp_path, peer, *counts, **values) -> tuple[Sender, list[int]]:
    """Return a sender to `peer`, and the jobs that wait for it, of so many instances each."""
    jobs = [publish(store, tmp_path / f"{n}", count=c, number=n) for n, c in enumerate(counts, 1)]
    settings = settings_for(tmp_path, ("pacs", "PACS", peer.port))
    pacs_peer = settings.peer("pacs").model_copy(update=values)
    settings = settings.model_copy(update={"peers": (pacs_peer,)})
    return Sender(store, settings, clock=lambda: NOW, rng=Random(1)), jobs


def states(store, jobs):
    return [store.jobs.get(job_id).state for job_id in jobs]


def test_the_deliveries_of_a_queue_share_their_associations(store, tmp_path):
    requested = []
    with pacs(requested=lambda event: requested.append(event.assoc)) as peer:
        sender, jobs = queue_for(store, tmp_path, peer, 40, 20, 20, associations=2)
        sender.run_once(NOW)

    assert states(store, jobs) == ["DELIVERED"] * 3
    assert [delivery(store, job_id)["attempts"] for job_id in jobs] == [1, 1, 1]
    assert len(requested) == 2


@pytest.mark.parametrize("rejection", [(2, 3, 2), (1, 1, 3)])
def test_a_destination_that_takes_fewer_associations_has_every_delivery(store, tmp_path, rejection):
    requested = []

    def take_one(event):
        requested.append(event.assoc)
        if event.assoc is not requested[0]:
            event.assoc.acse.send_reject(*rejection)
            event.assoc.kill()

    with pacs(requested=take_one) as peer:
        sender, jobs = queue_for(store, tmp_path, peer, 40, 40, 40, associations=4)
        sender.run_once(NOW)

    assert states(store, jobs) == ["DELIVERED"] * 3
    assert [delivery(store, job_id)["attempts"] for job_id in jobs] == [1, 1, 1]


def test_associations_are_asked_for_anew_after_a_while(store, tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.sender.TOGETHER_S", 0.0)
    requested = []
    with pacs(requested=lambda event: requested.append(event.assoc)) as peer:
        sender, jobs = queue_for(store, tmp_path, peer, 4, 4, 4)
        sender.run_once(NOW)

    assert states(store, jobs) == ["DELIVERED"] * 3
    assert len(requested) == 3


def test_who_is_queried_is_queried_while_no_association_is_kept_waiting(
    store, tmp_path, monkeypatch
):
    requested, lanes = [], []

    def there(task, peer):
        lanes.extend(each for each in threading.enumerate() if each.name == "lane")
        return set()

    with pacs(requested=lambda event: requested.append(event.assoc)) as peer:
        sender, jobs = queue_for(store, tmp_path, peer, 4, 4, 4)
        monkeypatch.setattr("dicom_node.sender.may_look", lambda task, peer: True)
        monkeypatch.setattr(sender, "_there", there)
        sender.run_once(NOW)

    assert states(store, jobs) == ["DELIVERED"] * 3
    assert len(requested) == 3 and lanes == []


def test_a_store_that_fails_while_a_queue_is_sent_leaves_the_rest_due(store, tmp_path, monkeypatch):
    """Nothing is lost, and nothing goes on behind what cannot be put on record."""
    begin, begun = store.deliveries.begin, []

    def fail_at_the_second(task):
        begun.append(task.job_id)
        if len(begun) == 2:
            raise StoreUnavailable("the database is locked")
        begin(task)

    monkeypatch.setattr(store.deliveries, "begin", fail_at_the_second)
    with pacs() as peer:
        sender, jobs = queue_for(store, tmp_path, peer, 40, 4, 4)
        sender.run_once(NOW)
        assert store.jobs.get(jobs[0]).state in ("DELIVERED", "DERIVED")
        assert states(store, jobs[1:]) == ["DERIVED"] * 2
        assert begun == jobs[:2]
        sender.run_once(NOW)

    assert states(store, jobs) == ["DELIVERED"] * 3
    assert not [thread for thread in threading.enumerate() if thread.name in ("lane", "behind")]


def test_every_destination_has_an_association_and_what_is_left_is_shared():
    lanes = Lanes(4)
    with lanes.open(3) as first, lanes.open(3) as second, lanes.open(3) as third:
        assert (first, second, third) == (3, 1, 1)
    with lanes.open(9) as alone:
        assert alone == 4


def test_what_had_no_answer_is_counted_as_failed(store, tmp_path):
    publish(store, tmp_path / "a")
    tasks = due_at(store, NOW)
    tasks[0].instances[0].path.unlink()
    tasks[0].instances[1].path.write_bytes(b"altered")
    with LoopbackArchive(tmp_path / "archive") as archive:
        sender_for(store, tmp_path, ("pacs", "ARCHIVE", archive.port)).run_once(NOW)

    [figures] = store.series.listing()[0]["deliveries"]
    assert (figures["sent"], figures["failed"]) == (2, 2)


def test_each_destination_goes_its_own_way_whatever_its_protocol(store, tmp_path):
    """One is refused an instance for now, one for good, one has everything."""
    job_id = publish(store, tmp_path / "a", destinations=("pacs", "busy", "strict"))
    [task, *_] = due_at(store, NOW)
    uids = [each.sop_uid for each in task.instances]

    def refusing(reason):
        def answer(asked):
            if asked.method == "GET":
                return Told(status=404)
            failed = {"00081155": {"vr": "UI", "Value": uids[:1]}}
            failed["00081197"] = {"vr": "US", "Value": [reason]}
            stored = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids[1:]]
            document = {"00081198": {"vr": "SQ", "Value": [failed]}}
            document["00081199"] = {"vr": "SQ", "Value": stored}
            return Told(status=202, body=json.dumps([document]).encode())

        return answer

    with (
        LoopbackArchive(tmp_path / "archive") as archive,
        web_server(refusing(0xA700)) as busy,
        web_server(refusing(0xC000)) as strict,
    ):
        web = {"protocol": "dicomweb", "roles": ["destination"]}
        settings = settings_for(tmp_path, ("pacs", "ARCHIVE", archive.port))
        peers = [
            *(peer.model_dump(mode="json") for peer in settings.peers),
            web | {"name": "busy", "url": busy.url},
            web | {"name": "strict", "url": strict.url},
        ]
        settings = rig_settings(tmp_path, peers=peers)
        Sender(store, settings, clock=lambda: NOW, rng=Random(1)).run_once(NOW)

        states = {row["destination"]: row["state"] for row in store.deliveries.of_job(job_id)}
        assert states == {"pacs": "SENT", "busy": "PENDING", "strict": "DEAD"}
        again = {one.destination: one.instances for one in due_at(store, LATER)}
        assert [each.sop_uid for each in again["busy"]] == uids[:1]
        Sender(store, settings, clock=lambda: LATER, rng=Random(1)).run_once(LATER)
        posts = [asked for asked in busy.asked if asked.method == "POST"]

    assert len(posts) == 2
    assert posts[1].body.count(b"Content-Type: application/dicom") == 1
    assert "0xC000" in delivery(store, job_id, "strict")["reason"]
