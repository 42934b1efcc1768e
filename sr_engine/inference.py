"""The student at every position of all three axes of a volume."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from sr_engine.errors import EngineError
from sr_engine.model.autoencoder import FACTOR, LATENT_CHANNELS
from sr_engine.model.bundle import Bundle
from sr_engine.model.diffusion import Condition, SuperResolver, encode_acquisition
from sr_engine.model.sampler import noise_levels, sample_few_step, start

AXES = ("slice", "row", "column")  # array axes 0, 1, 2
MARGIN = 8  # voxels of air around the head that the network still sees
FADE = 3  # voxels over which its output gives way to the interpolated air, half the width
BATCH_PIXELS = 2 * 256 * 256  # a batch of this many pixels bounds memory to about 1 GiB
Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """What the network is given of one volume, all on the target grid.

    Attributes
    ----------
    volume : (K, J, I), float32           interpolated and normalised
    mask : (K, J, I), bool                head
    bias_log : (K, J, I) or None          log bias field; None is unknown
    displacement_mm : (3, K, J, I) or None    gradient nonlinearity along the array axes
    ratio : 3 floats                      acquired over target voxel size per axis
    profile : 3 strings                   name of the axis model per axis
    noise                                 sigma of one channel in normalised units
    """

    volume: np.ndarray
    mask: np.ndarray
    bias_log: np.ndarray | None
    displacement_mm: np.ndarray | None
    ratio: tuple[float, float, float]
    profile: tuple[str, str, str]
    noise: float


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


def head_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box around the head with its margin, as slices of the array axes."""
    if not mask.any():
        return (slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2]))
    box = []
    for axis, n in enumerate(mask.shape):
        where = np.nonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[0]
        box.append(slice(max(0, int(where[0]) - MARGIN), min(n, int(where[-1]) + 1 + MARGIN)))
    return box[0], box[1], box[2]


def _ramp(mask: np.ndarray) -> np.ndarray:
    """Return weights, float32: 1 in the head and just around it, falling to 0 within MARGIN.

    Denoised air in noisy air would show: as a rectangle if the whole box were replaced.
    """
    near = ndimage.maximum_filter(mask.astype(np.float32), 2 * (MARGIN - FADE) + 1)
    return ndimage.uniform_filter(near, 2 * FADE + 1)


def predict_triaxial(
    given: NetworkInput,
    bundle: Bundle,
    *,
    steps: int,
    axes: tuple[int, ...] = (0, 1, 2),
    device: str = "auto",
    seed: int = 0,
    temperature: float = 0.0,
    progress: Progress = lambda share: None,
) -> list[np.ndarray]:
    """Return one volume (K, J, I), float32, for each axis of `axes`.

    Beyond MARGIN around the head the interpolated volume stands. Air needs no network.

    Raises
    ------
    EngineError
        If the device is missing or the network gives a value that is no number.
    """
    place = choose_device(device)
    model = bundle.model.to(place, memory_format=torch.channels_last)
    box = head_box(given.mask)
    lengths = [given.volume[box].shape[a] for a in axes]
    ramp = _ramp(given.mask[box])
    done, stacks = 0, []
    for axis in axes:
        stack = given.volume.copy()
        view = np.moveaxis(stack[box], axis, 0)
        for rows, batch in _batches(given, box, axis, model.config.context, model.config.multiple):
            x = predict_slices(
                model,
                batch.to(place),
                steps=steps,
                temperature=temperature,
                seed=seed + rows.start,
                half=True,
            )
            view[rows] = x[:, 0, : view.shape[1], : view.shape[2]].float().cpu().numpy()
            done += rows.stop - rows.start
            progress(done / sum(lengths))
        if not np.isfinite(stack).all():
            raise EngineError(f"the network gave values that are no numbers along {AXES[axis]}")
        plain = given.volume[box]
        stack[box] = plain + ramp * (stack[box] - plain)
        stacks.append(stack)
    return stacks


@dataclass(frozen=True, kw_only=True)
class _SliceBatch:
    slices: Tensor  # (B, 2 * context + 1, H, W), H and W padded to the network's multiple
    b: Tensor
    g: Tensor
    acquisition: Tensor

    def to(self, device: torch.device) -> Condition:
        """Return the batch as the model's condition on `device`."""
        return Condition(
            slices=self.slices.to(device),
            b=self.b.to(device),
            g=self.g.to(device),
            acquisition=self.acquisition.to(device),
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
    """Return the slices (B, 1, H, W) that the model makes of its condition.

    Parameters
    ----------
    half
        Compute in bfloat16 where the device is a GPU; states stay float32.
    """
    count, _, height, width = condition.slices.shape
    shape = (count, LATENT_CHANNELS, height // FACTOR, width // FACTOR)
    device = condition.slices.device
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half and device.type == "cuda"):
        latent = model.condition(condition.slices)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return model.denoise(x, sigma, latent, condition).float()

        x = start(shape, model.config.sigma_max, temperature, seed).to(device)
        levels = noise_levels(model.config, steps).to(device)
        return model.decode(sample_few_step(denoise, x, levels), condition.slices)


def _batches(
    given: NetworkInput, box: tuple[slice, slice, slice], axis: int, context: int, multiple: int
) -> Iterator[tuple[slice, _SliceBatch]]:
    """Yield batches of slices along `axis`, with the rows of the box that they are."""
    order = [axis, *(a for a in range(3) if a != axis)]
    volume = torch.from_numpy(np.ascontiguousarray(given.volume[box].transpose(order)))
    count, height, width = volume.shape
    pad = (0, -width % multiple, 0, -height % multiple)
    acquisition = encode_acquisition(given.ratio, given.profile, given.noise, order)
    size = max(1, BATCH_PIXELS // ((height + pad[3]) * (width + pad[1])))
    maps = _guidance(given, box, order)
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        index = torch.arange(rows.start, rows.stop)[:, None] + torch.arange(-context, context + 1)
        slices = F.pad(volume[index.clamp(0, count - 1)], pad, mode="replicate")
        guide = F.avg_pool2d(F.pad(maps[rows], pad, mode="replicate"), FACTOR)
        yield (
            rows,
            _SliceBatch(
                slices=slices.contiguous(memory_format=torch.channels_last),
                b=guide[:, :1],
                g=guide[:, 1:],
                acquisition=acquisition.expand(len(slices), -1),
            ),
        )


def _guidance(given: NetworkInput, box: tuple[slice, slice, slice], order: list[int]) -> Tensor:
    """Return b, the displacement (row, column, through) in cm and its flag: (slices, 5, H, W)."""
    shape = [given.volume[box].shape[a] for a in order]
    maps = torch.zeros(shape[0], 5, *shape[1:])
    if given.bias_log is not None:
        maps[:, 0] = torch.from_numpy(given.bias_log[box].transpose(order).copy())
    if given.displacement_mm is not None:
        for channel, a in enumerate((order[1], order[2], order[0]), start=1):
            moved = given.displacement_mm[a][box].transpose(order)
            maps[:, channel] = torch.from_numpy(moved.copy()) / 10
        maps[:, 4] = 1
    return maps
