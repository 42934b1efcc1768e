"""Whatever a scanner sends ends in a clear state, with a reason, and nothing of it is lost."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node import assembly
from dicom_node.errors import InstanceRejected, OutOfSpace
from dicom_node.intake import submit_file
from dicom_node.pixel_files import PixelFiles
from dicom_node.store import open_store
from dicom_node.worker import Worker
from dicom_node.worker.weights import load_bundle
from sr_engine.dicom.scanner import PATIENT_NAME
from tests import phantoms
from tests.rigs import rig_settings

ANY_MR = {"name": "any MR", "when": {"modality": ["MR"]}, "action": "enhance"}
# Faults that only a choice of the engine's own reader sees as such: the node makes two series of
# them, or finds one instance where the reader was given two files, or gives each volume a result.
NO_FAULT_FOR_A_NODE = {"two series", "same instance twice", "multi-volume by EchoTime"}


@pytest.fixture
def node(tmp_path, small_weights):
    settings = rig_settings(
        tmp_path / "node",
        assembly={"idle_s": 1.0, "min_slices": 4},
        engine={"weights": str(small_weights), "steps": 1, "device": "cpu", "spacing_mm": 1.0},
        rules=[ANY_MR],
    )
    store = open_store(settings.database_url)
    yield settings, store, PixelFiles(settings.node.state_dir / "in", 0)
    store.close()


def work_off(settings, store) -> None:
    """Let the idle time pass and the worker do what is queued."""
    assembly.tick(store, settings, datetime.now(UTC) + timedelta(seconds=5))
    worker = Worker(settings, store)
    while worker.run_once():
        pass


@pytest.mark.parametrize("name", sorted(set(phantoms.FAULTS) - NO_FAULT_FOR_A_NODE))
def test_every_faulty_series_is_refused_skipped_held_or_dead_with_its_reason(name, node, tmp_path):
    settings, store, files = node
    folder = phantoms.faulty_series(tmp_path / "in", name)
    taken, refused = 0, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            submit_file(path, files, store, datetime.now(UTC))
            taken += 1
        except InstanceRejected as error:
            refused.append(str(error))

    work_off(settings, store)

    rows = store.series.listing()
    assert rows or refused
    assert all(refused), "a refusal without words"
    for row in rows:
        assert row["state"] in ("SKIPPED", "HELD", "DEAD") or refused, row
        assert len(row["reason"]) > 15 and row["reason"][0].isupper(), row["reason"]
        assert PATIENT_NAME not in row["reason"]
    ledger = store.ledger()
    assert ledger.balanced and ledger.acknowledged == taken
    assert all(row.path.is_file() for row in store.series.all_instances())


def test_a_weight_file_with_the_wrong_hash_keeps_the_job_waiting_and_names_both(node, tmp_path):
    settings, store, files = node
    engine = settings.engine.model_copy(update={"weights_sha256": "0" * 64, "max_attempts": 1})
    settings = settings.model_copy(update={"engine": engine})
    for path in phantoms.corner_series(tmp_path / "in").paths:
        submit_file(path, files, store, datetime.now(UTC))
    load_bundle.cache_clear()

    work_off(settings, store)

    (row,) = store.series.listing()
    assert row["state"] == "QUEUED"
    assert "SHA-256" in row["reason"] and "00000000" in row["reason"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_refuses_with_a700_and_recovers_by_itself(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        files = PixelFiles(disk / "in", 0)
        written: list[Path] = []
        with pytest.raises(OutOfSpace) as refused:
            for number in range(1, 100):
                written.append(files.write("1.2.3", f"1.2.3.{number}", [bytes(20_000)]))
        assert refused.value.status == 0xA700
        assert not list(disk.rglob("*.part"))
        assert written and all(path.stat().st_size == 20_000 for path in written)

        written.pop().unlink()

        assert files.write("1.2.3", "1.2.3.200", [bytes(20_000)]).is_file()
        del files, refused  # and with them the folders that are held open
    finally:
        subprocess.run(["umount", str(disk)], check=True)
