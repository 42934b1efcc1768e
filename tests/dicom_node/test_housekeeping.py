"""Housekeeping: every periodic task on a real store."""

import os
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from dicom_node import housekeeping, telemetry
from dicom_node.housekeeping import PERIODIC, ClockGuard, Failures, Rhythm, Task, run_guarded
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.worker import Worker, attempts_dir
from tests.dicom_node.aged import LONG, aged_node
from tests.dicom_node.nodes import copying_engine, queued_node
from tests.rigs import NOW

FILES_GONE = ("dicom_node_retention_files_total", {"kind": "originals"})


@pytest.fixture
def node(tmp_path):
    made = queued_node(tmp_path)
    yield made
    made.store.close()


def age(folder, seconds):
    then = time.time() - seconds
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


def test_the_table_has_the_tasks_and_rhythms_of_the_operations_page():
    assert {task.name: task.every_s for task in PERIODIC} == {
        "assemble": 1,
        "leases": 5,
        "withdrawals": 2,
        "audit": 5,
        "disk": 30,
        "ledger": 60,
        "memory": 60,
        "attempts": 300,
        "retention": 300,
        "unclaimed": 3600,
        "certificates": 3600,
    }


@pytest.mark.parametrize("task", PERIODIC, ids=lambda task: task.name)
def test_every_task_runs_on_a_real_store(task, node):
    failures = Failures()

    run_guarded(task, node.store, node.settings, failures)

    assert failures.names() == []


def test_an_expired_lease_returns_the_job_to_the_queue(node):
    node.store.jobs.claim("w", datetime.now(UTC), timedelta(seconds=1))

    housekeeping.expire(node.store, node.settings, datetime.now(UTC) + timedelta(seconds=5))

    assert node.job.state is JobState.QUEUED


def test_the_folders_of_dead_attempts_are_swept_and_results_stay(node):
    Worker(node.settings, node.store, engine=copying_engine(passed=False)).run_once()
    (kept,) = attempts_dir(node.settings).glob("*/*")
    dead, young = (attempts_dir(node.settings) / "99" / name for name in ("1-dead", "2-young"))
    for folder in (dead, young):
        folder.mkdir(parents=True)
        (folder / "1.part").touch()
    for folder in (kept, dead):
        age(folder, 3 * node.settings.engine.lease_s)

    housekeeping.sweep_attempts(node.store, node.settings, datetime.now(UTC))

    assert (kept.exists(), dead.exists(), young.exists()) == (True, False, True)


def test_retention_leaves_the_folders_of_what_it_deletes_to_nobody(tmp_path):
    with aged_node(tmp_path) as node:
        node.delivered()
        node.received(1, "1.2.9")
        kept = node.published("1.2.9")
        before = telemetry.registry.get_sample_value(*FILES_GONE) or 0

        housekeeping.retain(node.store, node.settings, NOW + timedelta(days=15))
        housekeeping.sweep_attempts(node.store, node.settings, datetime.now(UTC) + LONG)

        assert {path.parent.parent.name for path in node.paths("out")} == {str(kept.id)}
        assert telemetry.registry.get_sample_value(*FILES_GONE) == before + 3
        assert telemetry.registry.get_sample_value("dicom_node_retention_unfinished") == 0


def test_the_folder_of_a_running_attempt_stays_however_old_it_looks(node):
    node.store.jobs.claim("w", datetime.now(UTC), timedelta(seconds=60))
    folder = attempts_dir(node.settings) / str(node.job.id) / "1-live"
    folder.mkdir(parents=True)
    (folder / "1.dcm").touch()

    tomorrow = datetime.now(UTC) + timedelta(days=1)  # the clock was set forward
    housekeeping.sweep_attempts(node.store, node.settings, tomorrow)
    assert folder.exists()

    node.store.jobs.transition(node.job.id, "cancel", tomorrow)
    housekeeping.sweep_attempts(node.store, node.settings, tomorrow)
    assert not folder.exists()


def test_the_folder_of_a_result_that_was_published_meanwhile_stays(node, monkeypatch):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()
    (published,) = attempts_dir(node.settings).glob("*/*")
    age(published, 3 * node.settings.engine.lease_s)
    # As if the sweep had read the rows before they were there; the campaign saw it happen.
    monkeypatch.setattr(housekeeping, "result_places", lambda database, job_ids: set())

    housekeeping.sweep_attempts(node.store, node.settings, datetime.now(UTC))

    assert list(published.iterdir())


@pytest.mark.parametrize("quickly", [True, False])
def test_results_stay_when_the_state_folder_was_moved(node, monkeypatch, quickly):
    """Their rows speak of the old place then."""
    Worker(node.settings, node.store, engine=copying_engine()).run_once()
    (published,) = attempts_dir(node.settings).glob("*/*")
    age(published, 3 * node.settings.engine.lease_s)
    table = schema.derived_instance
    with node.store.database.transaction() as work:
        old = str(attempts_dir(node.settings))
        path = sa.func.replace(table.c.path, old, "/elsewhere/out")
        work.execute(sa.update(table).values(path=path))
    if not quickly:
        monkeypatch.setattr(housekeeping, "result_places", lambda database, job_ids: set())

    housekeeping.sweep_attempts(node.store, node.settings, datetime.now(UTC))

    assert list(published.iterdir())


def test_a_task_that_fails_is_remembered_until_it_works_again(node):
    broken = [True]

    def moody(store, settings, now):
        if broken:
            raise RuntimeError("no")

    task, failures = Task(name="moody", every_s=1, run=moody), Failures()
    run_guarded(task, node.store, node.settings, failures)
    assert failures.names() == ["moody"]

    broken.clear()
    run_guarded(task, node.store, node.settings, failures)
    assert failures.names() == []


def test_the_ledger_is_exported(node):
    housekeeping.check_ledger(node.store, node.settings, datetime.now(UTC))

    value = telemetry.registry.get_sample_value(
        "dicom_node_ledger_instances", {"part": "in_flight"}
    )
    assert value == len(node.paths)
    assert telemetry.registry.get_sample_value("dicom_node_ledger_balanced") == 1


def test_the_scheduler_assembles_by_itself(tmp_path):
    node = queued_node(tmp_path, assembly={"idle_s": 0.2, "min_slices": 2}, leave_out=1)
    scheduler = housekeeping.start(node.store, node.settings, Failures())
    try:
        node.submit(node.paths[len(node.paths) // 2 - 1])
        assert node.job.state is JobState.RECEIVING
        deadline = time.monotonic() + 10
        while node.job.state is JobState.RECEIVING and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        scheduler.shutdown()

    assert node.job.state is JobState.QUEUED
    node.store.close()


@pytest.mark.parametrize(
    ("wall_s", "monotonic_s", "noticed"),
    [
        (10.0, 10.0, []),
        (11.9, 10.0, []),  # a clock that is being disciplined
        (10.0 - 86400, 10.0, [-86400.0]),
        (10.0 + 3600, 10.0, [3600.0]),
        (10.0, 10.0 - 86400, [86400.0]),  # the machine slept
    ],
)
def test_a_clock_that_is_set_restarts_what_waits(tmp_path, wall_s, monotonic_s, noticed):
    node = queued_node(tmp_path)
    times = {"wall": 0.0, "monotonic": 0.0}
    woken = []
    guard = ClockGuard(
        node.store,
        node.settings,
        wall=lambda: 1e9 + times["wall"],
        monotonic=lambda: times["monotonic"],
    )
    guard.wake = lambda: woken.append(1)

    for _ in range(2):
        times |= {"wall": times["wall"] + wall_s, "monotonic": times["monotonic"] + monotonic_s}
        guard.check()
        wall_s = monotonic_s = 1.0  # only the first one is a step

    rows = node.store.audit.listing()
    assert [row.fields["seconds"] for row in rows if row.event == "clock.set"] == noticed
    assert len(woken) == len(noticed)
    node.store.close()


@pytest.mark.parametrize("away", [timedelta(days=3650), timedelta(seconds=90)])
def test_runs_that_a_clock_has_leapt_over_are_not_counted(away):
    trigger, now = Rhythm(seconds=30, timezone="UTC"), datetime.now(UTC)

    assert trigger.get_next_fire_time(now - away, now) == now + timedelta(seconds=30)
    late = now - timedelta(seconds=40)
    assert trigger.get_next_fire_time(late, now) == late + timedelta(seconds=30)


def test_a_clock_is_not_judged_by_a_look_that_was_interrupted(node):
    monotonic = iter([0.0, 1.0, 9.0])  # the processor was away between the second and the third
    guard = ClockGuard(
        node.store, node.settings, wall=lambda: 1e9, monotonic=lambda: next(monotonic)
    )

    guard.check()

    assert "clock.set" not in {row.event for row in node.store.audit.listing()}
