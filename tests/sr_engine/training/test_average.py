"""The mean of weight files, and what it says of where it came from."""

import pytest
import torch

from sr_engine.cli import main
from sr_engine.errors import RecipeError
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.training.average import average

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)


def constant(path, value, config=SMALL):
    """Return a weight file in which every number is `value`."""
    model = SuperResolver(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    bundle.save(path, model, {"steps": value})
    return path


def test_the_command_writes_the_mean_and_both_records(tmp_path, capsys):
    first, second = (
        constant(tmp_path / "a.safetensors", 1.0),
        constant(tmp_path / "b.safetensors", 5),
    )
    out = tmp_path / "mean.safetensors"

    assert main(["average", str(out), f"{first}=3", f"{second}=1"]) == 0

    made = bundle.load(out)
    assert made.sha256 in capsys.readouterr().out
    assert all(torch.allclose(each, torch.tensor(2.0)) for each in made.model.state_dict().values())
    parts = made.record["average"]
    assert [part["share"] for part in parts] == [0.75, 0.25]
    assert [part["record"]["steps"] for part in parts] == [1.0, 5]
    assert parts[0]["sha256"] == bundle.load(first).sha256


def test_other_networks_and_wrong_shares_are_refused(tmp_path):
    one = constant(tmp_path / "a.safetensors", 1.0)
    other = constant(tmp_path / "b.safetensors", 1.0, ModelConfig(widths=(8, 24)))

    with pytest.raises(RecipeError, match="one configuration"):
        average([one, other], [1, 1], tmp_path / "out.safetensors")
    with pytest.raises(RecipeError, match="above zero"):
        average([one, one], [1, 0], tmp_path / "out.safetensors")
    assert main(["average", str(tmp_path / "out.safetensors"), str(one)]) == 2
    assert main(["average", str(tmp_path / "out.safetensors"), f"{one}=x", f"{one}"]) == 1
    assert not (tmp_path / "out.safetensors").exists()
