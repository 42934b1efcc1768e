"""A grown network says what the small one says, and its new channels can learn."""

import pytest
import torch

from sr_engine.errors import RecipeError
from sr_engine.model.diffusion import Condition, ModelConfig, SuperResolver
from sr_engine.training.grow import grow

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)
LARGE = ModelConfig(widths=(12, 28), condition_channels=10, condition_width=18)


@pytest.fixture
def small():
    torch.manual_seed(1)
    model = SuperResolver(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():  # the layers that start at zero, too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def output(model):
    generator = torch.Generator().manual_seed(2)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    condition = Condition(
        slices=some(2, 5, 16, 16), b=some(2, 1, 8, 8), g=some(2, 4, 8, 8), acquisition=some(2, 7)
    )
    x, sigma = some(2, 4, 8, 8), torch.tensor([4.0, 0.5])
    return model.denoise(x, sigma, model.condition(condition.slices), condition)


def test_grown_network_gives_what_the_small_one_gives(small):
    large = grow(small, LARGE)

    assert large.config == LARGE
    assert torch.allclose(output(large), output(small), atol=1e-5)


def test_new_channels_learn(small):
    large = grow(small, LARGE)
    output(large).square().mean().backward()

    last = large.unet.last.weight.grad
    assert last[:, 8:].abs().max() > 0  # what reads the new channels, which are silent so far


def test_network_of_the_same_shape_is_taken_as_it_is(small):
    assert grow(small, SMALL) is small


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(widths=(8, 12), condition_channels=4, condition_width=8),
        ModelConfig(widths=(8, 16, 32), condition_channels=4, condition_width=8),
    ],
    ids=["narrower", "another depth"],
)
def test_network_that_cannot_hold_the_small_one_is_refused(small, config):
    with pytest.raises(RecipeError):
        grow(small, config)
