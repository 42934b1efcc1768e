"""Weight files: what is refused, and that the bundled ones are what they say."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sr_engine.errors import WeightsError
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    return path, bundle.save(path, SuperResolver(SMALL), {"stage": "student"})


def test_a_saved_bundle_comes_back_with_config_record_and_hash(weights):
    path, sha256 = weights
    loaded = bundle.load(path, expected_sha256=sha256)
    assert (loaded.name, loaded.sha256) == ("small", sha256)
    assert loaded.model.config == SMALL
    assert loaded.record == {"stage": "student"}
    assert not loaded.model.training


def test_half_precision_files_are_half_the_size(weights, tmp_path):
    path, _ = weights
    half = tmp_path / "half.safetensors"
    model = bundle.load(path).model
    bundle.save(half, model, {}, half=True)
    assert half.stat().st_size < 0.7 * path.stat().st_size
    for a, b in zip(model.parameters(), bundle.load(half).model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_a_wrong_hash_is_refused_and_both_are_named(weights):
    with pytest.raises(WeightsError, match="expects deadbeef"):
        bundle.load(weights[0], expected_sha256="deadbeef" * 8)


def test_a_flipped_byte_changes_the_hash(weights):
    path, sha256 = weights
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WeightsError, match="SHA-256"):
        bundle.load(path, expected_sha256=sha256)


def damage_text(path):
    path.write_bytes(b"no weights at all")


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:2000])


def damage_format(path):
    save_file({"x": torch.zeros(1)}, path, {"format": "somebody-else"})


def damage_tensors(path):
    metadata = {
        "format": bundle.FORMAT,
        "config": json.dumps(SMALL.to_dict()),
        "record": "{}",
    }
    save_file({"x": torch.zeros(1)}, path, metadata)


def damage_record(path):
    save_file({"x": torch.zeros(1)}, path, {"format": bundle.FORMAT, "config": "{}"})


def damage_nan(path):
    model = SuperResolver(SMALL)
    model.unet.first.bias.data[0] = float("nan")
    bundle.save(path, model, {})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_text, "no readable safetensors"),
        (damage_cut, "no readable safetensors"),
        (damage_format, "somebody-else"),
        (damage_tensors, "do not fit"),
        (damage_record, "no training record"),
        (damage_nan, "no number"),
    ],
)
def test_a_damaged_file_is_refused_with_its_reason(weights, damage, reason):
    damage(weights[0])
    with pytest.raises(WeightsError, match=reason):
        bundle.load(weights[0])


def test_a_missing_file_names_what_is_bundled():
    with pytest.raises(WeightsError, match="bundled: "):
        bundle.load("no-such-weights")


def test_the_default_student_is_small_and_holds_its_training_record():
    loaded = bundle.load("default")
    path = bundle.resolve("default")
    assert path.stat().st_size <= 16 * 2**20
    assert loaded.record["stage"] == "student"
    assert loaded.record["data"] and loaded.record["steps"] > 1000
    assert all(len(sha256) == 64 for sha256 in loaded.record["data"].values())
