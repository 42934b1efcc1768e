"""Fixtures that several of these files use."""

import pytest

from dicom_node.network.archive import LoopbackArchive


@pytest.fixture
def archive(tmp_path):
    with LoopbackArchive(tmp_path / "archive", ae_title="PACS") as running:
        yield running
