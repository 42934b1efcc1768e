"""Short versions of the fault campaigns, and the page that `make faults` writes."""

import ast
import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.network import scu
from dicom_node.store import open_store
from tests.dicom_node.test_service import Running
from tests.faults import clock, kill9, migration, network, pacs_down, sqlite_lock
from tests.faults.accounts import digest
from tests.faults.families import FAMILIES
from tests.faults.ledger import ROOT, together
from tests.faults.report import LEDGER, PAGE, render
from tests.integration.partners import wait_for
from tests.rigs import destination, write_series

DAY_S = 86400


def test_nothing_is_lost_by_kill_9_of_service_and_workers(programs, tmp_path):
    row = kill9.campaign(tmp_path, kills=10, seed=3, nodes=1, cold=False)

    assert row.count >= 10 and row.account.instances > 0
    assert row.violations == 0, row.document()


def test_an_instance_is_compared_however_it_was_encoded():
    dataset = Dataset()
    dataset.PatientID = "1"
    dataset.ReferencedImageSequence = [Dataset()]
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    as_sent = digest(dataset)
    dataset["ReferencedImageSequence"].is_undefined_length = True

    assert digest(dataset) == as_sent
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.4"
    assert digest(dataset) != as_sent


def test_every_process_dies_in_every_state_by_its_share():
    tally, rng = kill9.Tally(wanted=1000), random.Random(1)
    for _ in range(1000):
        cell = tally.next_aim(rng)
        tally.give_up(cell)
        tally.count(*cell, cold=False)

    shares = {(who, where): n for who, row in kill9.PLAN.items() for where, n in row.items()}
    whole = sum(shares.values())
    assert all(abs(tally.kills[c] - 1000 * n / whole) <= 2 for c, n in shares.items())


def test_a_killed_migration_is_done_or_not_begun(tmp_path):
    row = migration.campaign(tmp_path, kills=4, seed=1, rows=2000)

    assert row.count == 4
    assert row.violations == 0, row.document()


def test_a_bad_network_loses_and_doubles_nothing(programs, tmp_path):
    to_node, to_archive = network.SIDES

    row = network.campaign(tmp_path, [(to_node, "replies lost"), (to_archive, "reset")], seed=1)

    assert all(row.details["connections spoiled"].values()), row.document()
    assert row.violations == 0, row.document()


def test_a_locked_database_is_waited_for(programs, tmp_path):
    row = sqlite_lock.campaign(tmp_path, [0.5, 1.5], seed=1)

    assert row.account.instances > 0
    assert row.violations == 0, row.document()


def test_an_archive_that_was_away_gets_everything_once(programs, tmp_path):
    row = pacs_down.campaign(tmp_path, 2, seed=1, day_s=2.0)

    assert row.details["attempts without an archive"] > 0
    assert row.violations == 0, row.document()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the clock that can be set needs gcc")
@pytest.mark.parametrize("by_s", [-DAY_S, DAY_S])
def test_a_clock_that_is_set_holds_up_nothing(tmp_path, monkeypatch, by_s):
    library = clock.compile_clock(tmp_path)
    clock.write_offset(tmp_path / "offset", 0)
    monkeypatch.setenv("WALL_CLOCK", str(tmp_path / "offset"))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("DICOM_NODE__ASSEMBLY__IDLE_S", "3")
    node = Running(tmp_path / "node").addresses()
    monkeypatch.delenv("LD_PRELOAD")
    store = open_store(f"sqlite:///{tmp_path / 'node' / 'state' / 'node.db'}")
    try:
        list(scu.send(write_series(tmp_path / "scan", 2), destination(node.port), "MR1"))
        clock.write_offset(tmp_path / "offset", by_s)
        wait_for("it is noticed", lambda: "clock.set" in node.log.read_text(), 30)
        (early,) = store.series.listing()
        wait_for("it is decided", lambda: store.series.listing()[0]["state"] == "SKIPPED", 60)
    finally:
        store.close()
        node.end()

    assert early["state"] == "RECEIVING"


def test_the_page_is_what_the_ledger_says():
    if not LEDGER.is_file():
        pytest.skip("no campaign has been run yet")
    assert PAGE.read_text() == render(json.loads(LEDGER.read_text()))


def test_two_sittings_of_a_campaign_add_up():
    first = {
        "count": 3,
        "command": "a --seed 1",
        "account": {"lost": 0, "problems": ["x"]},
        "details": {"kills": {"serve": {"QUEUED": 1}}, "seconds": [1, 2]},
    }
    second = {
        "count": 4,
        "command": "a --seed 2",
        "account": {"lost": 2, "problems": ["y"]},
        "details": {"kills": {"serve": {"QUEUED": 2}, "worker": {"RUNNING": 5}}, "seconds": [2, 3]},
    }

    assert together(first, second) == {
        "count": 7,
        "command": "a --seed 1; a --seed 2",
        "account": {"lost": 2, "problems": ["x", "y"]},
        "details": {
            "kills": {"serve": {"QUEUED": 3}, "worker": {"RUNNING": 5}},
            "seconds": [1, 2, 3],
        },
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_short_version_that_exists(family):
    if find_spec(f"tests.faults.{family.name}") is None:
        pytest.skip("this campaign is not here")
    assert family.short
    for name in family.short:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_module_with_a_command_is_a_family():
    commands = {
        path.stem
        for path in Path(__file__).parent.glob("[!_]*.py")
        if not path.name.startswith("test_") and 'if __name__ == "__main__":' in path.read_text()
    }

    assert commands - {"report"} <= {family.name for family in FAMILIES}
