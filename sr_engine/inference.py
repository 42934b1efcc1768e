"""The student at every position of all three axes of a volume."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sr_engine.errors import EngineError
from sr_engine.model.bundle import Bundle
from sr_engine.model.diffusion import Condition, SuperResolver
from sr_engine.model.run import Replayed, Sampling, can_replay, choose_device, predict_slices
from sr_engine.slices import AxisSlices, NetworkInput, fade, head_box
from sr_engine.threads import cores, in_pieces

__all__ = ["MEMORY_MIB", "NetworkInput", "choose_device", "predict_triaxial"]

AXES = ("slice", "row", "column")  # array axes 0, 1, 2
MEMORY_MIB = 1024
BYTES_PER_CHANNEL = 16  # and pixel: float32 took 392 bytes a pixel at a width of 32, bfloat16 216
Progress = Callable[[float], None]


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
    slice_bytes = BYTES_PER_CHANNEL * model.config.widths[0] * slices.whole.pixels
    at_once = max(1, memory_bytes // slice_bytes)
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
    """Run batches of whole slices, all of one size: the last begins earlier where it is short."""
    size = min(at_once, len(slices))
    replayed = None
    for begin in range(0, len(slices), size):
        first = min(begin, len(slices) - size)
        rows = slice(first, first + size)
        condition = slices.condition(rows, slices.whole)
        if can_replay(slices.plain.device):
            replayed = replayed or Replayed(model, condition, sampling)
            x = replayed(condition, sampling.seed + first)
        else:
            x = _predict(model, condition, sampling, first)
        slices.put(rows, slices.whole, x)
        done(rows.stop)


def _predict(model: SuperResolver, condition: Condition, sampling: Sampling, first: int) -> Tensor:
    """Return the slices of a batch; the seed counts up from slice to slice."""
    return predict_slices(
        model,
        condition,
        steps=sampling.steps,
        temperature=sampling.temperature,
        seed=sampling.seed + first,
        half=True,
    )
