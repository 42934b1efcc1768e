"""A node whose state is in PostgreSQL, from the scanner to the archive."""

from dataclasses import dataclass
from urllib.error import HTTPError

import pydicom
import pytest

from dicom_node import cli
from dicom_node.network import scu
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.parcels import Item
from tests.integration import marks
from tests.integration.partners import Node, wait_for
from tests.rigs import destination

SECRET = "geheim-4711"
OUT_OF_RESOURCES = 0xA700
ANY_MR = """
[[rules]]
name = "any MR"
when = { modality = ["MR"] }
action = "enhance"
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The archive as the node knows it."""

    port: int
    ae_title: str = "ARCHIVE"


@pytest.fixture
def archive(tmp_path):
    kept = LoopbackArchive(tmp_path / "archive").start()
    yield kept
    kept.stop()


def send(node, paths):
    """Return the faults of sending the files as the scanner does."""
    items = [
        Item(key=number, sop_uid=pydicom.dcmread(path).SOPInstanceUID, path=path)
        for number, path in enumerate(paths)
    ]
    return {outcome.fault for outcome in scu.send(items, destination(node.port), "SCANNER")}


def is_healthy(node):
    """Return whether the node says so; one that does not answers 503."""
    try:
        return '"ok":true' in node.page("/healthz")
    except HTTPError as answer:
        assert answer.code == 503
        return False


def test_a_series_reaches_the_archive_although_the_server_is_restarted_on_the_way(
    postgresql, archive, small_weights, tmp_path, capsys
):
    sources = marks.write_marked(tmp_path / "scan", marks.marked_volume("axial")[0])
    series_uid = pydicom.dcmread(sources[0], stop_before_pixels=True).SeriesInstanceUID
    with postgresql.database() as url:
        node = Node(
            tmp_path / "node",
            archives=[Peer(port=archive.port)],
            rules=ANY_MR,
            engine=f'weights = "{small_weights}"\nsteps = 1\ndevice = "cpu"\nspacing_mm = 2.0',
            assembly="idle_s = 3.0",
            database=url.replace("node@", f"node:{SECRET}@"),
        ).start()
        try:
            assert send(node, sources[:3]) == {0}
            postgresql.stop()
            assert send(node, sources[3:4]) == {OUT_OF_RESOURCES}
            postgresql.start()
            assert send(node, sources[3:]) == {0}
            job = node.wait_state(series_uid, ["DELIVERED", "HELD", "DEAD"], 300)
            assert job["state"] == "DELIVERED", job["reason"]
            wait_for("healthy again", lambda: is_healthy(node), 60)
            assert cli.main(["verify", "--config", str(node.config)]) == 0
            assert cli.main(["check-config", str(node.config)]) == 0
        finally:
            assert node.stop() == 0

    derived = [path for path in archive.paths() if job["derived_series_uid"] in str(path)]
    assert len(derived) == job["deliveries"][0]["sent"] > len(sources) / 2
    said = capsys.readouterr()
    assert f"{len(sources) + len(derived)} files as recorded" in said.out
    assert SECRET not in node.log.read_text() + said.out + said.err
    assert not (tmp_path / "node" / "state" / "node.db").exists()
