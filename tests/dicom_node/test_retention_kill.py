"""kill -9 of retention between any two steps: what was decided goes, nothing else ever does."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.cli.operations import wrong
from dicom_node.store.lots import ORIGINALS
from dicom_node.store.overview import KEPT, stored_files
from tests.dicom_node.aged import aged_node
from tests.rigs import NOW

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 3
# Where the kill comes, how often that place is passed first, and whether a decision is left.
PLACES = [
    ("INSERT INTO removal", 0, False),
    ("UPDATE instance SET removal_id", 0, False),
    ("UPDATE audit_head", 0, False),  # all is written, nothing committed
    ("SELECT instance.id", 0, True),  # committed, nothing touched
    ("os.remove", 0, True),
    ("os.remove", 1, True),
    ("os.remove", IMAGES - 1, True),
    ("os.rmdir", 0, True),
    ("UPDATE removal SET ended_at", 0, True),  # nothing is left of the files
    ("UPDATE audit_head", 1, True),
]


@pytest.fixture(scope="module")
def reaper():
    """Return a function that runs retention in children and returns their exit codes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.dicom_node.dying"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def order(node, place: str, passed: int = 0, children: int = 1) -> list[int]:
        settings = node.settings.model_dump_json()
        orders = {"settings": settings, "place": place, "passed": passed, "children": children}
        print(json.dumps(orders), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    with process:
        yield order


@pytest.fixture
def node(tmp_path):
    with aged_node(tmp_path) as made:
        made.store.jobs.transition(made.received(IMAGES).id, "skip", NOW)
        yield made


def known_to_go(node) -> set[Path]:
    return {one.path for one in stored_files(node.store.database) if one.fate != KEPT}


@pytest.mark.parametrize(("place", "passed", "decided"), PLACES)
def test_a_kill_leaves_what_the_next_run_brings_to_its_end(node, reaper, place, passed, decided):
    before = set(node.paths("in"))

    assert reaper(node, place, passed) == [-signal.SIGKILL]

    gone = before - set(node.paths("in"))
    assert gone <= known_to_go(node)
    assert bool(node.store.removals.unfinished()) == decided
    assert bool(known_to_go(node)) == decided
    assert node.store.audit.prove().broken == ""

    node.purge()

    assert node.paths("in") == []
    assert node.store.removals.unfinished() == []
    assert [event for event in node.events() if event.startswith("retention.")] == [
        "retention.decided",
        "retention.study_deleted",
    ]
    assert not any(wrong(one) for one in stored_files(node.store.database))
    assert node.store.ledger().balanced
    digests = [row.pixels_sha256 for row in node.store.series.all_instances()]
    assert None not in digests  # they are known again without their files


def test_two_runs_at_once_decide_and_count_once(node, reaper):
    assert reaper(node, "nowhere", children=2) == [0, 0]

    assert node.paths("in") == []
    (removal,) = node.store.removals.of_job(node.job().id)
    assert removal.kind == ORIGINALS and removal.ended_at is not None
    assert node.events().count("retention.study_deleted") == 1
