"""The denoiser's algebra, and what an untrained network does: nothing."""

import pytest
import torch

from sr_engine.model.diffusion import (
    Condition,
    ModelConfig,
    SuperResolver,
    encode_acquisition,
    loss_weight,
    sample_sigma,
)
from sr_engine.model.sampler import noise_levels, sample_few_step, start
from sr_engine.model.unet import ACQUISITION_FIELDS

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)


def condition(count: int = 2, side: int = 32) -> Condition:
    generator = torch.Generator().manual_seed(5)
    return Condition(
        slices=torch.rand(count, 5, side, side, generator=generator),
        b=0.1 * torch.randn(count, 1, side // 2, side // 2, generator=generator),
        g=torch.randn(count, 4, side // 2, side // 2, generator=generator),
        acquisition=torch.rand(count, len(ACQUISITION_FIELDS), generator=generator),
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_untrained_network_leaves_the_interpolated_slice_as_it_is(steps):
    model, given = SuperResolver(SMALL), condition()
    with torch.inference_mode():
        latent = model.condition(given.slices)
        x = sample_few_step(
            lambda x, sigma: model.denoise(x, sigma, latent, given),
            start((2, 4, 16, 16), SMALL.sigma_max, temperature=0.0, seed=1),
            noise_levels(SMALL, steps),
        )
        result = model.decode(x, given.slices)

    assert torch.allclose(result[:, 0], given.slices[:, 2], atol=1e-5)


def test_the_residual_of_the_truth_decodes_to_the_truth():
    model, given = SuperResolver(SMALL), condition()
    high = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(6))

    with torch.inference_mode():
        result = model.decode(model.residual(high, given.slices), given.slices)

    assert torch.allclose(result, high, atol=1e-5)


def test_noise_levels_fall_from_sigma_max_to_zero():
    for steps in (1, 2, 4, 8):
        levels = noise_levels(SMALL, steps)
        assert len(levels) == steps + 1
        assert levels[0] == pytest.approx(SMALL.sigma_max)
        assert levels[-1] == 0
        assert (levels[:-1] > levels[1:]).all()


def test_a_perfect_denoiser_is_sampled_exactly_in_any_number_of_steps():
    truth = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))

    for steps in (1, 3, 8):
        x = start(truth.shape, SMALL.sigma_max, temperature=1.0, seed=9)
        x = sample_few_step(lambda x, sigma: truth, x, noise_levels(SMALL, steps))
        assert torch.allclose(x, truth, atol=1e-4)


def test_the_start_is_the_same_for_the_same_seed_and_silent_at_temperature_zero():
    shape = (1, 4, 8, 8)
    assert torch.equal(start(shape, 4.0, 1.0, seed=3), start(shape, 4.0, 1.0, seed=3))
    assert not torch.equal(start(shape, 4.0, 1.0, seed=3), start(shape, 4.0, 1.0, seed=4))
    assert not start(shape, 4.0, 0.0, seed=3).any()


def test_every_guidance_and_the_acquisition_can_change_the_output():
    torch.manual_seed(1)
    model, given = SuperResolver(SMALL), condition()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)

    def run(**changes) -> torch.Tensor:
        other = Condition(**{**vars(given), **changes})
        with torch.inference_mode():
            latent = model.condition(other.slices)
            return model.denoise(torch.zeros(2, 4, 16, 16), torch.ones(2), latent, other)

    plain = run()
    for name in ("b", "g", "acquisition", "slices"):
        assert not torch.allclose(run(**{name: 0.5 * getattr(given, name)}), plain), name


def test_the_loss_weight_gives_the_raw_output_unit_variance():
    sigma = torch.tensor([0.1, 1.0, 4.0])
    c_out = sigma / (sigma**2 + 1).sqrt()
    assert torch.allclose(loss_weight(sigma).flatten() * c_out**2, torch.ones(3))


def test_a_third_of_the_noise_levels_is_the_first_step():
    sigma = sample_sigma(SMALL, 3000, torch.Generator().manual_seed(1))
    assert 0.28 < (sigma == SMALL.sigma_max).float().mean() < 0.39
    assert sigma.min() >= SMALL.sigma_min * 0.999


def test_the_acquisition_is_given_in_the_order_of_the_slice():
    vector = encode_acquisition((4.0, 1.0, 2.0), ("box", "kspace", "kspace"), 0.05, [1, 0, 2])
    assert dict(zip(ACQUISITION_FIELDS, vector.tolist(), strict=True)) == pytest.approx(
        {
            "log2_ratio_row": 2.0,
            "log2_ratio_column": 1.0,
            "log2_ratio_through": 0.0,
            "box_row": 1.0,
            "box_column": 0.0,
            "box_through": 0.0,
            "noise": 1.0,
        }
    )
