"""The student at every position of all three axes of a volume."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_engine.errors import EngineError
from sr_engine.model.autoencoder import FACTOR, LATENT_CHANNELS
from sr_engine.model.bundle import Bundle
from sr_engine.model.diffusion import Condition, SuperResolver
from sr_engine.model.sampler import noise_levels, sample_few_step, start
from sr_engine.slices import AxisSlices, NetworkInput, fade, head_box
from sr_engine.threads import cores, in_pieces

__all__ = [
    "NetworkInput",
    "choose_device",
    "computes_in_half",
    "predict_slices",
    "predict_triaxial",
]

AXES = ("slice", "row", "column")  # array axes 0, 1, 2
MEMORY_MIB = 1024
BYTES_PER_PIXEL = 1000  # of a slice on its way through the network
Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the sampler is run; `seed` counts up from slice to slice."""

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
    return device


def computes_in_half(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 numbers itself; emulated, they are slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def predict_triaxial(
    given: NetworkInput,
    bundle: Bundle,
    *,
    steps: int,
    axes: tuple[int, ...] = (0, 1, 2),
    device: str = "auto",
    seed: int = 0,
    temperature: float = 0.0,
    memory_mib: int = MEMORY_MIB,
    progress: Progress = lambda share: None,
) -> list[np.ndarray]:
    """Return one volume (K, J, I), float32, for each axis of `axes`.

    Beyond a margin around the head the interpolated volume stands. Air needs no network.

    Parameters
    ----------
    memory_mib
        What the network may take beside the volumes: where it is short, fewer slices run at once.

    Raises
    ------
    EngineError
        If the device is missing or the network gives a value that is no number.
    """
    place = choose_device(device)
    model = bundle.model.to(place, memory_format=torch.channels_last)
    sampling = Sampling(steps=steps, temperature=temperature, seed=seed)
    box = head_box(given.mask)
    share = fade(given.mask[box])
    total = sum(share.shape[axis] for axis in axes)
    stacks, before = [], 0
    for axis in axes:
        slices = AxisSlices(given, box, share, axis, model.config, place)

        def done(count: int, before: int = before) -> None:
            progress((before + count) / total)

        _run(model, slices, sampling, memory_mib << 20, done)
        stacks.append(given.volume.copy())
        slices.result(stacks[-1][box])
        if not np.isfinite(stacks[-1]).all():
            raise EngineError(f"the network gave values that are no numbers along {AXES[axis]}")
        before += len(slices)
    return stacks


def _run(
    model: SuperResolver,
    slices: AxisSlices,
    sampling: Sampling,
    memory_bytes: int,
    done: Callable[[int], None],
) -> None:
    """Send all slices of one axis through the network."""
    at_once = max(1, memory_bytes // (BYTES_PER_PIXEL * slices.whole.pixels))
    if slices.plain.is_cuda:
        _run_batches(model, slices, sampling, at_once, done)
    else:
        _run_threads(model, slices, sampling, at_once, done)


def _run_threads(
    model: SuperResolver,
    slices: AxisSlices,
    sampling: Sampling,
    at_once: int,
    done: Callable[[int], None],
) -> None:
    """Run one slice a core, each in one thread and no larger than the head in it."""
    windows = slices.windows()
    before = torch.get_num_threads()

    def one(rows: slice) -> None:
        torch.set_num_threads(1)  # of this thread
        window = windows[rows.start]
        if window is not None:
            x = _predict(model, slices.condition(rows, window), sampling, rows.start)
            slices.put(rows, window, x)

    try:
        in_pieces(one, len(slices), threads=min(cores(), at_once), done=done)
    finally:
        torch.set_num_threads(before)


def _run_batches(
    model: SuperResolver,
    slices: AxisSlices,
    sampling: Sampling,
    at_once: int,
    done: Callable[[int], None],
) -> None:
    """Run batches of whole slices."""
    for first in range(0, len(slices), at_once):
        rows = slice(first, min(first + at_once, len(slices)))
        x = _predict(model, slices.condition(rows, slices.whole), sampling, first)
        slices.put(rows, slices.whole, x)
        done(rows.stop)


def _predict(model: SuperResolver, condition: Condition, sampling: Sampling, first: int) -> Tensor:
    return predict_slices(
        model,
        condition,
        steps=sampling.steps,
        temperature=sampling.temperature,
        seed=sampling.seed + first,
        half=True,
    )


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
    count, _, height, width = condition.slices.shape
    shape = (count, LATENT_CHANNELS, height // FACTOR, width // FACTOR)
    device = condition.slices.device
    with torch.autocast(device.type, torch.bfloat16, enabled=half and computes_in_half(device)):
        latent = model.condition(condition.slices)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return model.denoise(x, sigma, latent, condition).float()

        x = start(shape, model.config.sigma_max, temperature, seed).to(device)
        levels = noise_levels(model.config, steps).to(device)
        residual = sample_few_step(denoise, x, levels)
    return model.decode(residual, condition.slices)
