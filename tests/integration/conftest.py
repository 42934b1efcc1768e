"""Fixtures of the integration tests: what must be installed, the archive, small weights."""

from pathlib import Path

import pytest
import torch

from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from tests.integration.partners import Orthanc, find_program, free_port

PROGRAMS = ("Orthanc", "storescu", "dciodvfy", "dcentvfy", "dcm2niix")


@pytest.fixture(scope="session")
def programs():
    """Skip where a real partner is not installed."""
    missing = [name for name in PROGRAMS if find_program(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make test installs them when root)")


@pytest.fixture
def archive(programs, tmp_path):
    """A running Orthanc, and the port that it knows the node by."""
    node_port = free_port()
    orthanc = Orthanc(tmp_path / "orthanc", node_port).start()
    orthanc.node_port = node_port
    yield orthanc
    orthanc.stop()


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory) -> Path:
    """A tiny network: the way of a series without the cost of the real one."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    model = SuperResolver(ModelConfig(widths=(4, 8), condition_channels=4, condition_width=4))
    bundle.save(path, model, {"stage": "student", "note": "untrained, for tests"})
    return path
