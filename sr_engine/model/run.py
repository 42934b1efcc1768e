"""The network on a device: batches of slices in, slices out.

torch alone: it runs where the rest of the engine's libraries are missing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sr_engine.errors import EngineError
from sr_engine.model.autoencoder import FACTOR, LATENT_CHANNELS
from sr_engine.model.diffusion import Condition, SuperResolver
from sr_engine.model.sampler import noise_levels, sample_few_step, start

WARM_UP = 3  # runs before a graph is recorded: libraries choose their kernels in the first


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the sampler is run; at temperature 0 the seed does not matter."""

    steps: int
    temperature: float = 0.0
    seed: int = 0


def choose_device(name: str) -> torch.device:
    """Return the device that `name` ("auto", "cpu", "cuda:0" ...) stands for.

    Raises
    ------
    EngineError
        If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"unknown device {name!r}: auto, cpu or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {name!r} was asked for, but this machine has no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"device {name!r} was asked for, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return device


def computes_in_half(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 numbers itself; emulated, they are slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@torch.inference_mode()
def predict_slices(
    model: SuperResolver,
    condition: Condition,
    *,
    steps: int,
    temperature: float = 0.0,
    seed: int = 0,
    half: bool = False,
) -> Tensor:
    """Return the slices (B, 1, H, W), float32, that the model makes of its condition.

    Parameters
    ----------
    half
        Compute in bfloat16 where the device can; the sampler's states and the codec stay float32.
    """
    sampling = Sampling(steps=steps, temperature=temperature, seed=seed)
    return _sampled(model, condition, *_start(model, condition, sampling), half)


def _start(model: SuperResolver, condition: Condition, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the sampler's first state and its noise levels."""
    count, _, height, width = condition.slices.shape
    shape = (count, LATENT_CHANNELS, height // FACTOR, width // FACTOR)
    x = start(shape, model.config.sigma_max, sampling.temperature, sampling.seed)
    levels = noise_levels(model.config, sampling.steps)
    return x.to(condition.slices.device), levels.to(condition.slices.device)


def _sampled(
    model: SuperResolver, condition: Condition, x: Tensor, levels: Tensor, half: bool
) -> Tensor:
    """Return what the network makes of its condition; every tensor is on the device."""
    device = condition.slices.device
    enabled = half and computes_in_half(device)
    # No cache of cast weights: a recorded graph would keep pointing into it.
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False):
        latent = model.condition(condition.slices)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return model.denoise(x, sigma, latent, condition).float()

        residual = sample_few_step(denoise, x, levels)
    return model.decode(residual, condition.slices)


class Replayed:
    """The network at one batch size as a recorded CUDA graph: one launch instead of hundreds.

    Parameters
    ----------
    condition
        Of a first batch; those that follow must have its shape.
    """

    @torch.inference_mode()
    def __init__(self, model: SuperResolver, condition: Condition, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        self.given = Condition(**{name: part.clone() for name, part in vars(condition).items()})
        self.x, self.levels = _start(model, condition, sampling)
        aside = torch.cuda.Stream(condition.slices.device)
        aside.wait_stream(torch.cuda.current_stream(condition.slices.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream(condition.slices.device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.made = self._run()

    def _run(self) -> Tensor:
        return _sampled(self.model, self.given, self.x, self.levels, half=True)

    @torch.inference_mode()
    def __call__(self, condition: Condition, seed: int) -> Tensor:
        """Return the slices (B, 1, H, W); the next call overwrites them."""
        for name, part in vars(condition).items():
            getattr(self.given, name).copy_(part, non_blocking=True)
        if self.sampling.temperature > 0:
            again = Sampling(
                steps=self.sampling.steps, temperature=self.sampling.temperature, seed=seed
            )
            self.x.copy_(_start(self.model, condition, again)[0])
        self.graph.replay()
        return self.made


def can_replay(device: torch.device) -> bool:
    """Return whether the device records graphs."""
    return device.type == "cuda" and torch.version.cuda is not None
