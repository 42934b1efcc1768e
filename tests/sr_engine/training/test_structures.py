"""The stage whose data are the student's own results: scenes, training, resuming, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_engine.errors import RecipeError
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.model.structures import StructureConfig
from sr_engine.training.shards import write_shard
from sr_engine.training.structures import (
    Aim,
    StructuresConfig,
    StructureTrainer,
    cut,
    train_structures,
)

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)
AIM = Aim(lesion_weight=20, raised=1, noise_share=0.3)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structures")
    k, i, j = np.meshgrid(*[np.linspace(-1, 1, 56)] * 3, indexing="ij")
    radius = np.sqrt(k**2 + i**2 + j**2)
    volume = np.where(radius < 0.8, 0.6 + 0.2 * np.sin(9 * i) * np.cos(7 * j + 3 * k), 0)
    meta = {
        "name": "ball",
        "whole_head": False,
        "source_sha256": "ab" * 32,
        "voxel_mm": [1.0, 1.0, 1.0],
    }
    write_shard(folder / "train" / "ball.safetensors", volume, radius < 0.8, meta)
    torch.manual_seed(0)
    student = folder / "student.safetensors"
    bundle.save(student, SuperResolver(SMALL), {"stage": "student"}, half=True)
    return StructuresConfig(
        data=str(folder),
        out=str(folder / "both.safetensors"),
        student=str(student),
        scenes=2,
        minutes=2 / 60,
        batch=2,
        crop=16,
        thick=AIM,
        isotropic=AIM,
        model=StructureConfig(channels=4, layers=2),
    )


def quiet(line):
    pass


def test_the_file_holds_both_networks_and_both_records(config):
    sha256 = train_structures(config, report=quiet)
    both, student = bundle.load(config.out, expected_sha256=sha256), bundle.load(config.student)

    record = both.record["structures"]
    assert both.record["stage"] == "student"
    assert record["student_sha256"] == student.sha256
    assert record["data"] == {"ball": "ab" * 32}
    assert record["steps"] > 0 and record["scenes"] == 2
    for ours, theirs in zip(both.model.parameters(), student.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert any(part.any() for part in both.structures.last.parameters())


def test_it_goes_on_where_it_stopped_and_makes_no_scene_again(config):
    first = StructureTrainer(config, "cpu", quiet)
    first.run()
    said = []
    more = replace(config, minutes=first.seconds / 60 + 1 / 60)
    second = StructureTrainer(more, "cpu", said.append)
    second.resume()

    assert second.step == first.step and not any(line.startswith("scene") for line in said)
    second.run()
    assert second.step > first.step


def test_nothing_to_resume_is_said(config, tmp_path):
    elsewhere = replace(config, out=str(tmp_path / "out.safetensors"))
    with pytest.raises(RecipeError, match="nothing to resume"):
        train_structures(elsewhere, resume=True, report=quiet)


def test_the_target_is_what_noise_leaves_of_the_residual(config):
    asked = StructureTrainer(config, "cpu", quiet).scenes

    assert len(asked) == config.scenes
    for scene in asked:
        head = scene.counts
        noise = (scene.given[0] - scene.target)[head]
        assert float(scene.target[head].std()) > 0.1  # lesions and what the student lost
        assert 0.6 < float(noise.std()) < 1.3  # in units of the estimated noise
        assert 0 < float((scene.weight[head] > 0.5).float().mean()) < 0.2


def test_a_piece_is_turned_with_everything_that_belongs_to_it(config):
    scene = StructureTrainer(config, "cpu", quiet).scenes[0]
    rng = np.random.default_rng(0)
    for _ in range(8):
        given, told, target, *_, counts = cut(scene, 16, rng)
        assert given.shape[1:] == target.shape == counts.shape
        assert sorted(told.tolist()) == pytest.approx(sorted(scene.acquisition.tolist()))
        apart = (given[0] - target)[counts.bool()]
        assert float(apart.abs().mean()) < 2  # residual and target are still the same place's


@pytest.mark.parametrize("text", ["scenes = 3", "data = 'x'\nout = 'y'\nsteps = 3", "data = = 1"])
def test_a_configuration_that_says_too_little_or_too_much_is_refused(tmp_path, text):
    path = tmp_path / "structures.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="structures.toml"):
        StructuresConfig.read(path)
