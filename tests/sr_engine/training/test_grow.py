"""A grown network says what the small one says, and its new channels can learn."""

import pytest
import torch

from sr_engine.errors import RecipeError
from sr_engine.model.diffusion import Condition, ModelConfig, SuperResolver
from sr_engine.training.grow import from_one_level, grow

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


def output(model, x=None, sigma=None):
    generator = torch.Generator().manual_seed(2)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    condition = Condition(
        slices=some(2, 5, 16, 16), b=some(2, 1, 8, 8), g=some(2, 4, 8, 8), acquisition=some(2, 7)
    )
    if x is None:
        x, sigma = some(2, 4, 8, 8), torch.tensor([4.0, 0.5])
    return model.denoise(x, sigma, model.condition(condition.slices), condition)


def test_grown_network_gives_what_the_small_one_gives(small):
    large = grow(small, LARGE)

    assert large.config == LARGE
    assert torch.allclose(output(large), output(small), atol=1e-5)


def test_every_level_starts_as_the_samplers_first(small):
    """Nothing changes for zero at sigma_max; elsewhere the network's part is the same."""
    zero, top = torch.zeros(2, 4, 8, 8), torch.full((2,), SMALL.sigma_max)
    before = output(small, zero, top)
    elsewhere = output(small)
    from_one_level(small)

    assert torch.allclose(output(small, zero, top), before, atol=1e-5)
    assert not torch.allclose(output(small), elsewhere, atol=1e-2)
    s = top[0]
    raw = before / (s / (s * s + 1).sqrt())
    x, sigma = torch.ones(2, 4, 8, 8), torch.full((2,), 0.5)
    expected = x / 1.25 + 0.5 / 1.25**0.5 * raw
    assert torch.allclose(output(small, x, sigma), expected, atol=1e-4)


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
