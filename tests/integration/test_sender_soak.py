"""Many series over parallel associations on a machine that is busy: the lost-reply soak.

pynetdicom's sender lost a good part of the replies here (3.0.4): each cost a time limit, an aborted
association and a second C-STORE of the same instance. `python -m benchmarks.send --soak` is longer.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_node.network import scu
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.parcels import Item, Outcome
from dicom_node.settings import PeerSettings
from tests.integration.partners import ENVIRONMENT, free_port, listens, wait_for
from tests.rigs import dcmtk, destination, write_series

ASSOCIATIONS = 4


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Keep every core busy with somebody else's work."""
    idlers = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(len(os.sched_getaffinity(0)))
    ]
    yield
    for process in idlers:
        process.kill()
        process.wait()


def real_series(source: Path, folder: Path) -> list[Item]:
    """Return a copy of a real series under new UIDs."""
    folder.mkdir(parents=True)
    series_uid, items = generate_uid(), []
    for number, path in enumerate(sorted(source.iterdir())):
        dataset = dcmread(path)
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), series_uid
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        target = folder / f"{number:04d}.dcm"
        dataset.save_as(target)
        items.append(Item(key=number, sop_uid=str(dataset.SOPInstanceUID), path=target))
    return items


def soak(
    peer: PeerSettings, make: Callable[[Path], list[Item]], folder: Path, sends: int
) -> tuple[list[str], list[Outcome]]:
    """Return the UIDs that were sent and what became of them."""

    def send_one(number: int) -> tuple[list[Item], list[Outcome]]:
        items = make(folder / f"{number}")
        outcomes = list(scu.send(items, peer, "SRNODE"))
        shutil.rmtree(folder / f"{number}")
        return items, outcomes

    with ThreadPoolExecutor(ASSOCIATIONS) as pool:
        done = list(pool.map(send_one, range(sends)))
    uids = [item.sop_uid for items, _ in done for item in items]
    return uids, [outcome for _, outcomes in done for outcome in outcomes]


def hanging() -> list[str]:
    """Return the associations that the archive, in this process, has still open."""
    kinds = ("host", "AcceptorThread")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(kinds)]


def check_soak(uids, outcomes, received):
    assert Counter(outcome.fault for outcome in outcomes) == {0x0000: len(uids)}
    assert Counter(received) == Counter(uids)  # every instance, and none twice
    wait_for("the end of all associations", lambda: not hanging(), 10)


def test_short_soak_delivers_every_instance_once(busy_machine, tmp_path):
    with LoopbackArchive(tmp_path / "archive") as archive:
        peer = destination(archive.port, "ARCHIVE")
        uids, outcomes = soak(peer, lambda to: write_series(to, 12), tmp_path / "out", sends=8)

    check_soak(uids, outcomes, archive.received)


@pytest.mark.slow
def test_twenty_real_series_reach_the_archive_once(busy_machine, shared_series, tmp_path):
    source = shared_series("p03")
    with LoopbackArchive(tmp_path / "archive") as archive:
        peer = destination(archive.port, "ARCHIVE")
        uids, outcomes = soak(peer, lambda to: real_series(source, to), tmp_path / "out", sends=20)

    assert len(uids) == 700
    check_soak(uids, outcomes, archive.received)


@pytest.mark.slow
def test_twenty_real_series_reach_dcmtk_once(busy_machine, shared_series, tmp_path):
    program = dcmtk("storescp")
    if program is None:
        pytest.skip("dcmtk is not installed")
    source, port, kept = shared_series("p03"), free_port(), tmp_path / "archive"
    kept.mkdir()
    # A file name of its own for every C-STORE: an instance that comes twice is two files.
    command = [program, "--fork", "+uf", "-aet", "DCMTK", "-od", str(kept), str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        wait_for("storescp", lambda: listens(port), 10)
        uids, outcomes = soak(
            destination(port, "DCMTK"), lambda to: real_series(source, to), tmp_path / "out", 20
        )
        time.sleep(1.0)
    finally:
        process.terminate()
        process.wait(10)

    stored = [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in kept.iterdir()]
    assert len(uids) == 700
    check_soak(uids, outcomes, stored)
