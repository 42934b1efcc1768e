"""The worker: what becomes of a job, whatever happens to it on the way."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pydicom
import pytest
from structlog.testing import capture_logs

from dicom_node import signing, withdrawal
from dicom_node.errors import GateRefused, IllegalTransition, StoreUnavailable
from dicom_node.retry import Verdict
from dicom_node.states import HeldBy, JobState
from dicom_node.store.audit_export import AuditExport
from dicom_node.worker import Worker, attempts_dir, release
from dicom_node.worker.decisions import requeue_job
from dicom_node.worker.processes import expire_gone_workers, home, is_gone, return_jobs, worker_name
from dicom_node.worker.watch import Shutdown, Watch
from sr_engine.errors import GeometryError, WeightsError
from tests import phantoms
from tests.dicom_node.nodes import ANY_MR, PACS, copying_engine, queued_node
from tests.rigs import SOURCE, due_at, rig_settings

FAST = {"lease_s": 1.0, "heartbeat_s": 0.1}


@pytest.fixture
def node(tmp_path):
    made = queued_node(tmp_path, engine=FAST)
    yield made
    made.store.close()


def work(node, engine, **options):
    worker = Worker(node.settings, node.store, engine=engine, **options)
    assert worker.run_once()
    return node.store.jobs.get(node.job.id)


def raising(error):
    def run(order, settings, progress):
        (order.folder / "half.part").touch()
        raise error

    return run


def folders(node):
    return sorted(attempts_dir(node.settings).glob("*/*"))


def test_a_good_result_is_published_with_one_delivery_per_destination(node):
    job = work(node, copying_engine())

    assert job.state is JobState.DERIVED
    assert job.figures["quality"] == {"residual": 2.0}
    (delivery,) = node.store.deliveries.of_job(job.id)
    assert (delivery["destination"], delivery["state"]) == ("pacs", "PENDING")
    derived = node.store.jobs.derived(job.id)
    assert len(derived) == len(node.paths)
    assert {one.path.parent for one in derived} == set(folders(node))
    assert job.derived_series_uid == pydicom.dcmread(derived[0].path).SeriesInstanceUID


def test_an_empty_queue_gives_the_worker_nothing_to_do(node):
    work(node, copying_engine())

    assert not Worker(node.settings, node.store, engine=copying_engine()).run_once()


def test_a_doubtful_result_is_held_and_kept(node):
    job = work(node, copying_engine(passed=False))

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.QUALITY)
    assert "The residual is twice the noise." in job.reason
    assert len(node.store.jobs.derived(job.id)) == len(node.paths)
    assert not node.store.deliveries.of_job(job.id)


def test_release_publishes_a_doubtful_result_without_computing_again(node):
    job = work(node, copying_engine(passed=False))
    before = [one.path.read_bytes() for one in node.store.jobs.derived(job.id)]

    assert release(node.store, job.id, datetime.now(UTC)) is JobState.DERIVED

    assert [one.path.read_bytes() for one in node.store.jobs.derived(job.id)] == before
    assert len(node.store.deliveries.of_job(job.id)) == 1


def test_release_refuses_a_kept_result_that_was_changed(node):
    job = work(node, copying_engine(passed=False))
    path = node.store.jobs.derived(job.id)[0].path
    path.write_bytes(path.read_bytes()[:-2])

    with pytest.raises(GateRefused, match="was changed"):
        release(node.store, job.id, datetime.now(UTC))

    assert node.store.jobs.get(job.id).state is JobState.HELD


def spoil_thickness(paths):
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        dataset.save_as(path)


def test_what_the_gate_holds_is_never_released(node):
    job = work(node, copying_engine(spoil=spoil_thickness))

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.GATE)
    assert "release gate" in job.reason
    assert "Nothing was sent. This is a defect of ours" in job.reason
    with pytest.raises(GateRefused, match="cannot be released"):
        release(node.store, job.id, datetime.now(UTC))


def test_release_of_an_incomplete_series_queues_it_as_incomplete(tmp_path):
    node = queued_node(tmp_path, leave_out=1)
    assert node.job.held_by is HeldBy.COMPLETENESS

    assert release(node.store, node.job.id, datetime.now(UTC)) is JobState.QUEUED

    assert node.job.incomplete_release
    node.store.close()


def test_only_a_held_job_is_released(node):
    with pytest.raises(IllegalTransition, match="QUEUED, not HELD"):
        release(node.store, node.job.id, datetime.now(UTC))


def test_a_refused_input_ends_the_job_with_the_engines_words(node):
    job = work(node, raising(GeometryError("slices 3 and 4 are one in series 1.2.3")))

    assert job.state is JobState.DEAD
    assert "slices 3 and 4 are one in series 1.2.3" in job.reason
    assert not folders(node)


def test_a_failure_is_tried_again_later_and_given_up_at_last(node):
    states = []
    for _ in range(node.settings.engine.max_attempts):
        job = work(node, raising(WeightsError("no weight file w")))
        states.append(job.state)
        if job.state is JobState.QUEUED:
            assert job.not_before is not None
            node.store.jobs.transition(job.id, "cancel", datetime.now(UTC))
            node.store.jobs.transition(job.id, "requeue", datetime.now(UTC), not_before=None)

    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.DEAD]
    assert "no weight file w" in job.reason


def open_to_others(node):
    key = node.settings.node.state_dir / signing.FILE
    signing.own_key(key.parent)
    key.chmod(0o644)
    return node.settings, lambda: key.chmod(0o600)


def foreign_weights(node):
    engine = node.settings.engine.model_copy(update={"weights_sha256": "0" * 64})
    return node.settings.model_copy(update={"engine": engine}), lambda: None


def missing_device(node):
    engine = node.settings.engine.model_copy(update={"device": "cuda:99"})
    return node.settings.model_copy(update={"engine": engine}), lambda: None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (open_to_others, "signing key cannot be used: .*chmod 0600"),
        (foreign_weights, "engine cannot be used: .*the configuration expects 0000"),
        (missing_device, "engine cannot be used: .*CUDA device"),
    ],
)
def test_a_fault_of_the_node_uses_up_no_attempt_of_any_job(node, spoil, words):
    """The jobs died one after another; after a recall the process did, too, at each start."""
    withdrawal.recall(node.store, "f" * 64, "of other weights", datetime.now(UTC))
    own_reason = node.job.reason
    settings, mend = spoil(node)
    worker = Worker(settings, node.store, engine=raising(AssertionError("it was begun")))

    with capture_logs() as logs:
        assert not worker.run_once() and not worker.run_once()

    waiting = node.store.jobs.get(node.job.id)
    assert (waiting.state, waiting.attempts) == (JobState.QUEUED, 0)
    assert waiting.reason.startswith(own_reason) and re.search(words, waiting.reason)
    assert [one["event"] for one in logs].count("worker.not_ready") == 1
    mend()
    later = Worker(node.settings, node.store, engine=raising(GeometryError("no stack")))
    assert later.run_once() and node.store.jobs.get(node.job.id).state is JobState.DEAD


def test_what_queued_jobs_say_of_an_obstacle_goes_with_it(node):
    own_reason = node.job.reason
    for why in ("the key is gone.", "the weights are gone.", "the weights are gone."):
        node.store.jobs.explain_wait(why)
        assert node.job.reason == f"{own_reason} No worker takes it: {why}"

    node.store.jobs.explain_wait("")

    assert node.job.reason == own_reason


def test_a_librarys_words_are_withheld_because_they_may_quote_a_patient(node):
    job = work(node, raising(ValueError("invalid value for PN: Doe^Jane")))

    assert "ValueError" in job.reason
    assert "Doe" not in job.reason


def test_the_lease_lives_as_long_as_the_engine_works(node):
    def slow(order, settings, progress):
        for step in range(25):
            time.sleep(0.1)
            progress("student", step / 25)
            assert not node.store.jobs.expire_leases(datetime.now(UTC))
        return copying_engine()(order, settings, progress)

    assert work(node, slow).state is JobState.DERIVED


def test_progress_stands_in_the_store_while_the_engine_works(node):
    seen = []

    def slow(order, settings, progress):
        progress("student", 0.5)
        time.sleep(0.5)
        seen.append(node.store.jobs.get(order.job.id))
        return copying_engine()(order, settings, progress)

    work(node, slow)

    assert (seen[0].stage, seen[0].progress) == ("student", 0.5)


def test_an_attempt_whose_lease_is_lost_is_dropped(node):
    def overtaken(order, settings, progress):
        far = datetime.now(UTC) + timedelta(hours=1)
        assert node.store.jobs.expire_leases(far) == [order.job.id]
        time.sleep(0.3)  # a heartbeat passes
        progress("student", 0.5)
        raise AssertionError("the attempt went on")

    job = work(node, overtaken)

    assert job.state is JobState.QUEUED
    assert not folders(node)


def test_a_result_that_comes_after_the_lease_is_lost_is_not_published(node):
    def overtaken_at_the_end(order, settings, progress):
        result = copying_engine()(order, settings, progress)
        node.store.jobs.expire_leases(datetime.now(UTC) + timedelta(hours=1))
        return result

    job = work(node, overtaken_at_the_end)

    assert job.state is JobState.QUEUED
    assert not node.store.jobs.derived(job.id)


def test_a_late_slice_supersedes_the_running_attempt(tmp_path):
    node = queued_node(tmp_path, leave_out=1, engine=FAST)
    first = node.job.id
    release(node.store, first, datetime.now(UTC))

    def interrupted(order, settings, progress):
        node.submit(node.paths[len(node.paths) // 2 - 1])
        return copying_engine()(order, settings, progress)

    Worker(node.settings, node.store, engine=interrupted).run_once()
    node.assemble()

    assert node.store.jobs.get(first).state is JobState.SUPERSEDED
    assert (node.job.generation, node.job.state) == (2, JobState.QUEUED)
    assert not node.store.jobs.derived(first)
    node.store.close()


def test_a_cancelled_job_ends_without_a_result(node):
    def cancelled(order, settings, progress):
        node.store.jobs.cancel(order.job.id, datetime.now(UTC))
        return copying_engine()(order, settings, progress)

    assert work(node, cancelled).state is JobState.CANCELLED


def test_a_worker_that_must_end_gives_its_job_back_without_counting_the_attempt(node):
    shutdown = Shutdown()

    def long_job(order, settings, progress):
        shutdown.request(grace_s=0.0)
        progress("student", 0.5)
        raise AssertionError("the attempt went on")

    job = work(node, long_job, shutdown=shutdown)

    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_a_running_job_may_finish_within_the_grace(node):
    shutdown = Shutdown()

    def short_job(order, settings, progress):
        shutdown.request(grace_s=30.0)
        return copying_engine()(order, settings, progress)

    Worker(node.settings, node.store, engine=short_job, shutdown=shutdown).run()

    assert node.job.state is JobState.DERIVED


def test_a_worker_asked_to_end_claims_nothing(node):
    shutdown = Shutdown()
    shutdown.request(grace_s=30.0)

    Worker(node.settings, node.store, engine=copying_engine(), shutdown=shutdown).run()

    assert node.job.state is JobState.QUEUED


def test_a_repeated_attempt_writes_the_same_bytes(node):
    written = []

    def fails_at_the_end(order, settings, progress):
        result = copying_engine()(order, settings, progress)
        written.append([path.read_bytes() for path in result.written.paths])
        node.store.jobs.expire_leases(datetime.now(UTC) + timedelta(hours=1))
        return result

    work(node, fails_at_the_end)
    time.sleep(1.1)
    job = work(node, copying_engine())

    assert [one.path.read_bytes() for one in node.store.jobs.derived(job.id)] == written[0]


def test_the_folders_of_earlier_attempts_go_when_a_result_is_published(node):
    old = attempts_dir(node.settings) / str(node.job.id) / "1-dead"
    old.mkdir(parents=True)

    work(node, copying_engine())

    assert len(folders(node)) == 1
    assert not old.exists()


@pytest.mark.parametrize("lost_answers", [1, 10**6])
def test_a_result_whose_publication_was_not_confirmed_keeps_its_files(
    node, monkeypatch, lost_answers
):
    publish, calls = node.store.jobs.publish, []

    def lose_the_answer(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            publish(*arguments)
        if len(calls) <= lost_answers:
            raise StoreUnavailable("the connection was lost")
        publish(*arguments)

    monkeypatch.setattr(node.store.jobs, "publish", lose_the_answer)

    job = work(node, copying_engine())

    assert (job.state, job.attempts) == (JobState.DERIVED, 1)
    assert all(one.path.is_file() for one in node.store.jobs.derived(job.id))


def test_a_result_waits_for_a_database_that_is_restarted(postgresql, tmp_path):
    computed, stopped = threading.Event(), threading.Event()

    def engine(order, settings, progress):
        result = copying_engine()(order, settings, progress)
        computed.set()
        assert stopped.wait(60)
        return result

    with postgresql.database() as url, capture_logs() as lines, ThreadPoolExecutor() as pool:
        node = queued_node(tmp_path, node={"database": url}, engine={"lease_s": 600.0})
        done = pool.submit(Worker(node.settings, node.store, engine=engine).run_once)
        assert computed.wait(60)
        postgresql.stop()
        stopped.set()
        while "worker.store_unavailable" not in {line["event"] for line in lines}:
            assert not done.done()
            time.sleep(0.05)
        postgresql.start()

        assert done.result(60)
        assert (node.job.state, node.job.attempts) == (JobState.DERIVED, 1)
        node.store.close()


def test_a_heartbeat_says_when_the_job_is_somebody_elses(node):
    job = node.store.jobs.claim("a", datetime.now(UTC), timedelta(seconds=1))
    with Watch(node.store, job, "a", node.settings, Shutdown()) as watch:
        assert not watch.lost
        node.store.jobs.expire_leases(datetime.now(UTC) + timedelta(hours=1))
        time.sleep(0.4)
        assert watch.lost


def test_the_job_of_a_killed_worker_is_queued_again_at_once(node):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{home()}/{process.pid}/0000"
    node.store.jobs.claim(name, datetime.now(UTC), timedelta(hours=1))
    assert expire_gone_workers(node.store, datetime.now(UTC), 3) == []

    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert expire_gone_workers(node.store, datetime.now(UTC), 3) == [node.job.id]
    assert node.job.state is JobState.QUEUED


def test_an_attempt_that_the_service_itself_ended_does_not_count(node):
    process = subprocess.Popen(["true"])
    process.wait()
    node.store.jobs.claim(f"{home()}/{process.pid}/0000", datetime.now(UTC), timedelta(hours=1))

    assert return_jobs(node.store, datetime.now(UTC)) == [node.job.id]
    assert (node.job.state, node.job.attempts) == (JobState.QUEUED, 0)


@pytest.mark.parametrize(
    "name",
    ["elsewhere/4026/1/ab", "", "w1", "a/b/c/d", worker_name()],
    ids=["elsewhere", "nobody", "one part", "no number", "ourselves"],
)
def test_only_a_worker_of_this_host_is_known_to_be_gone(name):
    assert not is_gone(name)


def test_many_workers_process_each_job_once(node):
    claimed = []

    def counted(order, settings, progress):
        claimed.append(order.job.id)
        return copying_engine()(order, settings, progress)

    workers = [Worker(node.settings, node.store, engine=counted) for _ in range(3)]
    threads = [threading.Thread(target=worker.run_once) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert claimed == [node.job.id]


ENHANCED = PACS | {"name": "research", "ae_title": "RESEARCH", "form": "enhanced"}


@pytest.fixture
def two_forms(tmp_path):
    made = queued_node(tmp_path, peers=[SOURCE, PACS, ENHANCED])
    yield made
    made.store.close()


def sent_to(node):
    """Return for each destination the kinds of what it is to get."""
    kinds = {one.sop_uid: one.kind for one in node.store.jobs.derived(node.job.id)}
    return {
        task.destination: [kinds[each.sop_uid] for each in task.instances]
        for task in due_at(node.store, datetime.now(UTC))
    }


def test_every_destination_gets_its_own_form(two_forms):
    work(two_forms, copying_engine())

    assert sent_to(two_forms) == {"pacs": ["classic"] * 12, "research": ["enhanced"]}
    kept = two_forms.store.jobs.derived(two_forms.job.id)
    assert two_forms.job.derived_series_uid == kept[0].series_uid != kept[-1].series_uid


def test_a_fault_in_one_form_holds_the_job(two_forms):
    def spoil(paths):
        phantoms.edit(paths[-1], lambda d: setattr(d, "MagneticFieldStrength", 7))

    job = work(two_forms, copying_engine(spoil=spoil))

    assert (job.state, job.held_by) == (JobState.HELD, HeldBy.GATE)
    assert "magnetic_field_strength" in job.reason


def test_a_released_result_goes_out_in_every_form(two_forms):
    work(two_forms, copying_engine(passed=False))

    release(two_forms.store, two_forms.job.id, datetime.now(UTC))

    assert sent_to(two_forms) == {"pacs": ["classic"] * 12, "research": ["enhanced"]}


def test_a_form_nobody_wants_is_not_written(tmp_path):
    node = queued_node(tmp_path, peers=[SOURCE, ENHANCED])

    work(node, copying_engine())

    (only,) = node.store.jobs.derived(node.job.id)
    assert (only.kind, only.series_uid) == ("enhanced", node.job.derived_series_uid)
    node.store.close()


def test_the_audit_trail_counts_what_a_destination_gets(two_forms):
    work(two_forms, copying_engine())

    counted = {
        name: dict(AuditExport(two_forms.store.database).sent(two_forms.job.id, name).instances)
        for name in ("pacs", "research", "nobody")
    }

    assert counted == {
        "pacs": {"1.2.840.10008.5.1.4.1.1.4": 12},
        "research": {"1.2.840.10008.5.1.4.1.1.4.1": 1},
        "nobody": {},
    }


def test_a_companion_that_is_switched_off_is_not_sent_again(tmp_path):
    report = {"companions": ["report"]}
    node = queued_node(tmp_path, peers=[SOURCE, PACS | report])
    work(node, copying_engine())
    now = datetime.now(UTC)
    [task] = due_at(node.store, now)
    for one in task.instances[:-1]:
        node.store.deliveries.record_status(task.delivery_id, one.derived_instance_id, 0, now)
    node.store.deliveries.finish(task.delivery_id, Verdict.PERMANENT, "no such SOP class", now)
    assert node.job.state is JobState.DEAD

    requeue_job(node.settings, node.store, node.job.id, now)
    [again] = due_at(node.store, now)
    assert [one.sop_uid for one in again.instances] == [task.instances[-1].sop_uid]

    node.store.deliveries.finish(task.delivery_id, Verdict.PERMANENT, "no such SOP class", now)
    without = rig_settings(tmp_path / "state", peers=[SOURCE, PACS], rules=[ANY_MR])
    requeue_job(without, node.store, node.job.id, now)
    [again] = due_at(node.store, now)
    assert again.instances == ()

    node.store.deliveries.finish(task.delivery_id, Verdict.SENT, "there", now)
    assert node.job.state is JobState.DELIVERED
    node.store.close()
