"""Networks to start from: wider ones that compute what a narrower does, and can learn more.

Source: Chen et al. 2016 (arXiv 1511.05641, Net2Net), with silent instead of copied channels: what
is new is random on its way in and zero on its way out.
"""

import math
import re

import torch
from torch import Tensor

from sr_engine.errors import RecipeError
from sr_engine.model.autoencoder import LATENT_CHANNELS
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.model.unet import sinusoids

TWO_HALVES_IN = re.compile(r"unet\.up\.\d+\.(conv1|skip)\.weight")  # of features and skips
TWO_HALVES_OUT = re.compile(r"\.film\.(weight|bias)$")  # scales and shifts


def grow(small: SuperResolver, config: ModelConfig) -> SuperResolver:
    """Return a model of `config` that gives what `small` gives; `small` if it is one already.

    Raises
    ------
    RecipeError
        If `config` is narrower somewhere, or differs in more than widths.
    """
    if small.config == config:
        return small
    large = SuperResolver(config)
    state, known = large.state_dict(), small.state_dict()
    if state.keys() != known.keys():
        raise RecipeError(f"{small.config} cannot grow into {config}: other layers")
    for name, tensor in state.items():
        if any(old > new for old, new in zip(known[name].shape, tensor.shape, strict=True)):
            raise RecipeError(f"{name}: {tuple(known[name].shape)} into {tuple(tensor.shape)}")
        _embed(name, known[name], tensor)
    large.load_state_dict(state)
    return large


@torch.no_grad()
def from_one_level(model: SuperResolver) -> None:
    """Have every noise level and state start as the sampler's first does: zero at sigma_max.

    A regression network never met another; what it would answer there is arbitrary, and learning
    that away costs a student what it already knew. For the first state nothing changes.
    """
    unet = model.unet
    top = torch.tensor([math.log(model.config.sigma_max) / 4])
    first, levels = unet.embed[0], unet.embedding
    first.bias += first.weight[:, :levels] @ sinusoids(top, levels)[0]
    first.weight[:, :levels] = 0
    unet.first.weight[:, :LATENT_CHANNELS] = 0


def _embed(name: str, small: Tensor, large: Tensor) -> None:
    """Write `small` into `large`; its outputs hear nothing of the new inputs."""
    transposed = ".grow." in name  # a transposed convolution holds its inputs first
    out_axis, in_axis = (1, 0) if transposed and small.ndim > 1 else (0, 1)
    rows = _places(small.shape[out_axis], large.shape[out_axis], bool(TWO_HALVES_OUT.search(name)))
    if small.ndim == 1:
        large[rows] = small
        return
    columns = _places(
        small.shape[in_axis], large.shape[in_axis], bool(TWO_HALVES_IN.fullmatch(name))
    )
    view = large.transpose(0, 1) if transposed else large
    part = small.transpose(0, 1) if transposed else small
    view[rows] = 0
    view[rows[:, None], columns[None, :]] = part


def _places(small: int, large: int, two_halves: bool) -> Tensor:
    """Return where the channels of the small layer stand among those of the large one."""
    if not two_halves:
        return torch.arange(small)
    half = torch.arange(small // 2)
    return torch.cat([half, large // 2 + half])
