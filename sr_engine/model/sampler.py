"""Few-step sampling of the probability-flow ODE."""

from collections.abc import Callable

import torch
from torch import Tensor

from sr_engine.model.diffusion import ModelConfig

Denoise = Callable[[Tensor, Tensor], Tensor]


def noise_levels(config: ModelConfig, steps: int) -> Tensor:
    """Return the (steps + 1,) decreasing noise levels, the last one 0.

    Source: Karras 2022, equation 5.
    """
    if steps == 1:
        return torch.tensor([config.sigma_max, 0.0])
    ramp = torch.linspace(0, 1, steps)
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return torch.cat([(high + ramp * (low - high)) ** config.rho, torch.zeros(1)])


def sample_few_step(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Return one sample, drawn by Euler steps of the probability-flow ODE.

    Parameters
    ----------
    denoise
        D(x, sigma), the clean residual that the network sees in `x`; the condition is bound.
    x : (B, C, H, W), float32
        The start: noise of standard deviation ``sigmas[0]``, or zeros for the sampler's
        deterministic centre (temperature 0), which the product uses: a random sample of what the
        input does not determine would be invented anatomy.
    sigmas : (N + 1,), strictly decreasing, last element 0
        N is the number of network calls.

    Source: Karras 2022, Algorithm 1 without the second-order correction, sigma(t) = t, s(t) = 1.
    """
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoise(x, sigma.expand(len(x)))) / sigma  # dx/dsigma, (B, C, H, W)
        x = x + (sigma_next - sigma) * slope
    return x


def start(shape: tuple[int, ...], sigma_max: float, temperature: float, seed: int) -> Tensor:
    """Return the start of the sampler: noise scaled by `temperature`, zeros at 0."""
    if temperature == 0:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(seed)
    return temperature * sigma_max * torch.randn(shape, generator=generator)
