"""The demo: its node's configuration, its picture, and the whole of it with a tiny network."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from dicom_node.demo import DemoFailed, configuration, files_of, stack_affine
from dicom_node.demo.picture import PANEL_WIDTH, Pair, draw
from dicom_node.settings import load_settings, make_settings
from sr_engine.dicom.reader import read_series
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from tests import phantoms

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("any_mr", [False, True])
def test_the_demos_configuration_is_accepted(tmp_path, any_mr):
    given = make_settings({"engine": {"steps": 2, "device": "cpu"}})
    path = tmp_path / "node.toml"
    path.write_text(configuration(given, tmp_path, 4242, any_mr=any_mr))

    settings = load_settings(path, {})

    assert (settings.engine.steps, settings.engine.device) == (2, "cpu")
    assert (settings.node.port, settings.web.port) == (0, 0)
    assert settings.peer("archive").port == 4242
    assert settings.destinations() == ("archive",)
    assert (settings.rules[0].name == "any MR") == any_mr


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(DemoFailed, match="no such folder, or no file"):
        files_of(tmp_path)


def test_the_affine_of_the_picture_is_that_of_the_series(tmp_path):
    phantom = phantoms.corner_series(tmp_path, "double-oblique")
    slices = [pydicom.dcmread(path) for path in phantom.paths]

    assert stack_affine(slices) == pytest.approx(phantom.volume.affine, abs=1e-6)
    assert read_series(phantom.paths).volume.array.shape[0] == len(slices)


def test_the_picture_has_three_panels_in_true_proportions(tmp_path):
    before = np.full((50, 100), 200.0, np.float32)
    pair = Pair(before=before, after=before * 0.9, aspect=2.0)

    draw([pair], captions=["a", "b", "c"], path=tmp_path / "p.png")

    panels = pair.panels()
    assert {panel.size for panel in panels} == {(PANEL_WIDTH, PANEL_WIDTH)}
    assert [panel.getpixel((9, 9)) for panel in panels] == [255, 230, 102]
    assert Image.open(tmp_path / "p.png").width > 3 * PANEL_WIDTH


@pytest.mark.slow
def test_a_series_goes_through_a_whole_node_into_the_archive(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "small.safetensors"
    model = SuperResolver(ModelConfig(widths=(4, 8), condition_channels=4, condition_width=4))
    bundle.save(weights, model, {"stage": "student"})
    config = tmp_path / "demo.toml"
    config.write_text(f'[engine]\nweights = "{weights}"\nsteps = 1\nspacing_mm = 2.0\n')
    out = tmp_path / "out"

    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "demo", "--config", config, "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    derived = sorted((out / "archive").glob("*/*.dcm"))
    assert str(derived[0].parent) in done.stdout
    assert list(pydicom.dcmread(derived[0]).ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert Image.open(out / "before-after.png").width > 3 * PANEL_WIDTH
    assert "DELIVERED" in (out / "status.html").read_text()
    assert "DEMO^INVENTED" not in (out / "node.log").read_text()
