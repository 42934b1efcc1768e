"""The stages run, resume, distil, and leave their record in the weight file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_engine.errors import InputRefused, RecipeError
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig
from sr_engine.training.distill import halve, two_step_target
from sr_engine.training.shards import write_shard
from sr_engine.training.train import TrainConfig, Trainer, train

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)
SECONDS = 1.5 / 60


@pytest.fixture
def data(tmp_path):
    k, i, j = np.meshgrid(*[np.linspace(-1, 1, 40)] * 3, indexing="ij")
    radius = np.sqrt(k**2 + i**2 + j**2)
    volume = np.where(radius < 0.9, 0.6 + 0.3 * np.sin(12 * i) * np.cos(9 * j), 0)
    meta = {"name": "ball", "whole_head": False, "source_sha256": "ab" * 32}
    path = tmp_path / "shards" / "train" / "ball.safetensors"
    write_shard(path, volume, radius < 0.9, meta)
    return tmp_path


def config(data, stage, **changes):
    base = TrainConfig(
        stage=stage,
        data=str(data / "shards"),
        out=str(data / f"{stage}.safetensors"),
        minutes=SECONDS,
        batch=2,
        crop=32,
        scenes=2,
        warm_up_steps=5,
        model=SMALL,
    )
    return replace(base, **changes)


def quiet(line):
    pass


def test_a_student_learns_from_data_and_its_file_tells_how(data):
    sha256 = train(config(data, "student"), report=quiet)

    loaded = bundle.load(data / "student.safetensors", expected_sha256=sha256)
    assert loaded.record["stage"] == "student"
    assert loaded.record["data"] == {"ball": "ab" * 32}
    assert loaded.record["steps"] > 0
    assert loaded.record["seconds"] >= 60 * SECONDS
    assert "threads" in loaded.record["device"]


def test_scenes_that_other_processes_simulate_train_a_student_too(data):
    train(config(data, "student", workers=1), report=quiet)

    record = bundle.load(data / "student.safetensors").record
    assert record["steps"] > 0
    assert record["scenes"] >= 2


def test_training_goes_on_where_it_stopped(data):
    first = Trainer(config(data, "student"), "cpu", quiet)
    first.run()

    more = first.seconds / 60 + SECONDS  # a busy machine overruns its budget
    second = Trainer(config(data, "student", minutes=more), "cpu", quiet)
    second.resume()

    assert second.step == first.step
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for ours, theirs in zip(second.optimisers, first.optimisers, strict=True):
        assert theirs.state
        for one, other in zip(
            ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True
        ):
            assert ours.state[one].keys() == theirs.state[other].keys()
            for key, value in theirs.state[other].items():
                assert torch.equal(torch.as_tensor(ours.state[one][key]), torch.as_tensor(value))
    second.run()
    assert second.step > first.step


def test_weights_that_are_no_numbers_overwrite_nothing(data):
    trainer = Trainer(config(data, "student"), "cpu", quiet)
    sha256 = trainer.run()
    state = trainer.state_path.read_bytes()
    with torch.no_grad():
        next(trainer.average.parameters()).fill_(float("nan"))

    for save in (trainer.write, trainer._save_state):
        with pytest.raises(FloatingPointError, match="no numbers at step"):
            save()

    assert bundle.load(data / "student.safetensors").sha256 == sha256
    assert trainer.state_path.read_bytes() == state


def test_a_volume_that_holds_no_crop_is_named(data):
    with pytest.raises(InputRefused, match="shard ball: .* no crop of 48"):
        Trainer(config(data, "student", crop=48), "cpu", quiet).run()


def test_the_autoencoder_stage_trains_the_codec_and_nothing_else(data):
    trainer = Trainer(config(data, "autoencoder"), "cpu", quiet)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    changed = {
        name.split(".")[0]
        for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"codec"}


def test_a_student_is_distilled_from_a_wider_teacher(data):
    wide = replace(SMALL, widths=(16, 32))
    teacher_sha256 = train(config(data, "teacher", model=wide), report=quiet)

    teacher = str(data / "teacher.safetensors")
    trainer = Trainer(config(data, "student", teacher=teacher), "cpu", quiet)
    assert [trainer.distiller.steps_at(p) for p in (0.0, 0.4, 0.99)] == [4, 2, 1]
    trainer.run()

    record = bundle.load(data / "student.safetensors").record
    assert record["teacher_sha256"] == teacher_sha256
    codec = bundle.load(data / "student.safetensors").model.codec.state_dict()
    theirs = bundle.load(teacher).model.codec.state_dict()
    assert all(torch.equal(codec[key], theirs[key]) for key in codec)


def test_the_weights_of_a_stage_of_the_distillation_are_kept_when_it_ends(data):
    teacher_sha256 = train(config(data, "teacher"), report=quiet)
    trainer = Trainer(
        config(data, "student", teacher=str(data / "teacher.safetensors")), "cpu", quiet
    )
    stage = None
    for share in (0.1, 0.2, 0.4, 0.5, 0.9, 1.0):
        trainer.seconds, trainer.step = 60 * SECONDS * share, int(10 * share)
        stage = trainer._keep_stage(stage)

    kept = [bundle.load(data / f"student.steps{steps}.safetensors").record for steps in (4, 2)]
    assert [record["steps"] for record in kept] == [4, 9]
    assert {record["teacher_sha256"] for record in kept} == {teacher_sha256}
    assert not (data / "student.steps1.safetensors").exists()


def test_one_student_step_to_the_target_lands_where_two_teacher_steps_do():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    high, low = torch.full((2,), 4.0), torch.full((2,), 0.6)
    mid = halve(torch.tensor([4.0, 0.6])).expand(2)

    def teacher(state, sigma):
        return torch.tanh(state / (1 + sigma[:, None, None, None]))

    target = two_step_target(teacher, x, high, mid, low)

    halfway = x + (mid[0] - 4.0) * (x - teacher(x, high)) / 4.0
    end = halfway + (0.6 - mid[0]) * (halfway - teacher(halfway, mid)) / mid[0]
    student = x + (0.6 - 4.0) * (x - target) / 4.0
    assert torch.allclose(student, end, atol=1e-5)


@pytest.mark.parametrize("name", ["autoencoder", "base", "teacher", "student", "regression"])
def test_the_shipped_configurations_can_be_read(name, request):
    path = request.config.rootpath / "config" / "training" / f"{name}.toml"
    assert TrainConfig.read(path).stage == {"regression": "student", "base": "student"}.get(
        name, name
    )


def test_an_unknown_key_of_a_configuration_is_named(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('stage = "student"\ndata = "a"\nout = "b"\nlearning_rat = 1\n')
    with pytest.raises(RecipeError, match="learning_rat"):
        TrainConfig.read(path)
