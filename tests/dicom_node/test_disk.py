"""A full disk: receiving stops first, accepted work goes on, and nothing has to be restarted."""

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest

from dicom_node import housekeeping, pixel_files, telemetry
from dicom_node.errors import InstanceRejected, OutOfSpace
from dicom_node.states import JobState
from dicom_node.worker import Worker, attempts_dir
from sr_engine.errors import WriteError
from tests.dicom_node.aged import aged_node, image
from tests.rigs import NOW, SOURCE

MB = 1_000_000
FILES = {"min_free_bytes": 9 * MB, "results_reserve_bytes": 5 * MB}
DAY = timedelta(days=1)


@contextmanager
def tmpfs(folder, size_bytes):
    """Mount a small file system on `folder`; skip where that is not allowed."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def node(tmp_path):
    with (
        tmpfs(tmp_path / "small", 16 * MB) as folder,
        aged_node(folder, tmp_path, files=FILES, engine={"max_attempts": 1}) as made,
    ):
        yield made


def leave(node, free_bytes):
    """Fill the disk, or make room, until `free_bytes` are free."""
    ballast = node.settings.node.state_dir / "ballast"
    ballast.unlink(missing_ok=True)
    excess = shutil.disk_usage(node.settings.node.state_dir).free - free_bytes
    ballast.write_bytes(bytes(max(0, excess)))


def queued(node):
    job = node.received()
    node.store.jobs.transition(job.id, "enqueue", NOW, destinations=["pacs"])
    return job


def refusing(order, settings, progress):
    """The series is refused: the cheapest way to see that a worker has begun."""
    order.folder.joinpath("begun").write_bytes(bytes(1000))
    raise WriteError("begun")


def test_receiving_stops_first_then_workers_wait_and_room_is_all_it_takes(node):
    job = queued(node)
    worker = Worker(node.settings, node.store, engine=refusing)

    leave(node, 3 * MB)
    assert not worker.run_once()
    assert node.store.jobs.get(job.id).state is JobState.QUEUED
    with pytest.raises(OutOfSpace) as refused:
        node.take(image(7))
    assert refused.value.status == 0xA700

    leave(node, 8 * MB)  # still nothing is received, but accepted work goes on
    with pytest.raises(OutOfSpace):
        node.take(image(7))
    assert worker.run_once()
    assert "begun" in node.store.jobs.get(job.id).reason

    leave(node, 12 * MB)
    assert node.take(image(7)).outcome == "new"
    assert node.store.ledger().balanced


def filling(order, settings, progress):
    order.folder.joinpath("1.part").write_bytes(bytes(20 * MB))


def wrapping(order, settings, progress):
    try:
        filling(order, settings, progress)
    except OSError as error:
        raise WriteError(f"1.dcm cannot be written: {error.strerror}") from None


@pytest.mark.parametrize("engine", [filling, wrapping])
def test_a_job_that_finds_no_room_for_its_result_is_tried_again_and_never_dead(node, engine):
    job_id = queued(node).id
    worker = Worker(node.settings, node.store, engine=engine)

    for _ in range(3):  # more often than engine.max_attempts
        with node.store.database.transaction() as work:  # the pause is over
            work.connection.exec_driver_sql("UPDATE job SET not_before = NULL")
        assert worker.run_once()

    job = node.store.jobs.get(job_id)
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert job.not_before > datetime.now(UTC)
    assert "no room on the disk" in job.reason
    assert not list(attempts_dir(node.settings).glob("*/*"))


def test_a_disk_that_is_full_to_the_last_byte_acknowledges_nothing_and_loses_nothing(node):
    before = node.received(2)
    careless = pixel_files.PixelFiles(node.files.root, min_free_bytes=0)
    unguarded = aged_copy(node, careless)

    leave(node, 0)
    refused = 0
    for number in range(3, 40):
        with suppress(InstanceRejected):
            unguarded.take(image(number))
            continue
        refused += 1
    kept = node.store.ledger().acknowledged

    assert refused > 0
    assert len(node.store.series.all_instances()) == kept
    leave(node, 12 * MB)
    for number in range(3, 40):
        unguarded.take(image(number))
    assert (node.store.ledger().acknowledged, node.store.ledger().balanced) == (39, True)
    assert node.job().id == before.id
    assert all(row.path.is_file() for row in node.store.series.all_instances())


def aged_copy(node, files):
    """Return `node` with other files."""
    return type(node)(scratch=node.scratch, settings=node.settings, store=node.store, files=files)


def test_what_may_go_goes_at_once_when_images_are_refused_and_nothing_earlier(tmp_path):
    with aged_node(tmp_path, peers=[SOURCE], files={"min_free_bytes": 2**60}) as node:
        room = pixel_files.PixelFiles(node.files.root, min_free_bytes=0)
        filled = aged_copy(node, room)
        for uid, day in (("1.2.1", NOW), ("1.2.2", NOW + 20 * DAY)):
            job = filled.received(2, uid, day)
            node.store.jobs.transition(job.id, "skip", day)

        housekeeping.check_disk(node.store, node.settings, NOW + 31 * DAY)

        assert {path.parent.name for path in node.paths("in")} == {"1.2.2"}
        value = telemetry.registry.get_sample_value
        assert value("dicom_node_disk_room_bytes", {"use": "incoming"}) < 0


def test_room_is_counted_for_each_use(tmp_path):
    with aged_node(tmp_path, files=FILES) as node:
        room = pixel_files.room(node.settings)

    assert room.free_bytes - room.incoming_bytes == 9 * MB
    assert room.free_bytes - room.results_bytes == 4 * MB
