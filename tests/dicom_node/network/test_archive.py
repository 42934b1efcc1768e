"""The archive that one has at hand."""

import pytest

from dicom_node.errors import NodeError
from dicom_node.network import scu
from dicom_node.network.archive import LoopbackArchive
from tests.rigs import destination, write_series


def test_archive_keeps_what_it_gets_and_says_nothing(tmp_path, capfd):
    items = write_series(tmp_path / "a", 3)
    with LoopbackArchive(tmp_path / "archive") as archive:
        peer = destination(archive.port, "ARCHIVE")
        scu.echo(peer, "SRNODE")
        outcomes = list(scu.send(items, peer, "SRNODE"))

    assert [outcome.fault for outcome in outcomes] == [0, 0, 0]
    assert archive.received == [item.sop_uid for item in items]
    assert sorted(path.stem for path in archive.paths()) == sorted(archive.received)
    assert capfd.readouterr() == ("", "")


def test_taken_port_is_named(tmp_path):
    with LoopbackArchive(tmp_path / "a") as archive:
        with pytest.raises(NodeError, match=f"127.0.0.1:{archive.port}"):
            LoopbackArchive(tmp_path / "b", port=archive.port).start()
