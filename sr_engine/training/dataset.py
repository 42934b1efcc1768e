"""Batches of slices cut from simulated scenes.

Simulating whole volumes keeps ringing, wrap and noise as a scan has them; cutting many crops from
each keeps that affordable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sr_engine.errors import InputRefused
from sr_engine.model.autoencoder import FACTOR
from sr_engine.model.diffusion import Condition, encode_acquisition
from sr_engine.model.unet import ACQUISITION_FIELDS, G_CHANNELS
from sr_engine.training.shards import Shard
from sr_engine.training.simulate import MONOMIALS, Draw, Scene, draw, monomials, simulate

WHOLE_HEAD_SHARE = 0.5  # of the scenes: clinical series show whole heads, the data mostly brains
POINTS = 4096  # voxels of the head that crops of one scene are centred on
ANYWHERE = 0.02  # share of the crops that are centred anywhere
ORDERS = np.array(list(permutations(range(3))))  # volume axes as through, row, column of a slice


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of slices: `high` (B, 1, H, W) and what the model may know of them."""

    high: Tensor
    condition: Condition
    error: Tensor  # (B,) mean squared error of interpolation in the scene that a crop is cut from
    planted: Tensor  # (B, 1, H/2, W/2) float32, what a planted lesion's samples weigh; else 0

    def first(self, count: int) -> "Batch":
        """Return the first `count` crops."""
        rows = slice(0, count)
        return Batch(
            high=self.high[rows],
            condition=self.condition[rows],
            error=self.error[rows],
            planted=self.planted[rows],
        )


@dataclass(frozen=True, kw_only=True)
class PoolScene:
    """A scene as the pool keeps it: flat, in half precision, with places to cut crops from.

    Attributes
    ----------
    high, low : (N,), float16
    planted : (N,), uint8
    points : (POINTS, 3), int16    voxels of the head
    """

    high: Tensor
    low: Tensor
    planted: Tensor
    points: np.ndarray
    shape: tuple[int, int, int]
    noise: float
    error: float
    draw: Draw


def random_scene(shards: Sequence[Shard], rng: np.random.Generator, crop: int) -> PoolScene:
    """Return the scene of a random volume under a random acquisition, large enough for crops."""
    heads = [s for s in shards if s.whole_head]
    brains = [s for s in shards if not s.whole_head]
    wants_head = rng.random() < WHOLE_HEAD_SHARE
    group = (heads if wants_head else brains) or shards
    shard = group[int(rng.integers(len(group)))]
    return pooled(simulate(shard.volume.float(), shard.mask, draw(rng), crop), rng)


def pooled(scene: Scene, rng: np.random.Generator) -> PoolScene:
    """Return a scene as the pool keeps it."""
    inside = torch.nonzero(scene.mask.flatten())[:, 0].numpy()
    k, j, i = scene.high.shape
    points = np.stack(np.unravel_index(rng.choice(inside, POINTS), (k, j, i)), axis=1)
    return PoolScene(
        high=scene.high.flatten().half(),
        low=scene.low.flatten().half(),
        planted=scene.planted.flatten(),
        points=points.astype(np.int16),
        shape=(k, j, i),
        noise=scene.noise,
        error=scene.error,
        draw=scene.draw,
    )


class SlicePool:
    """Simulated scenes on the device, one of them replaced now and then; crops are gathered there.

    Parameters
    ----------
    context
        Neighbouring slices on each side.
    crop
        Side of a crop, even.
    scenes
        How many the pool holds.

    Raises
    ------
    InputRefused
        If a volume is smaller than a crop.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        context: int,
        crop: int,
        scenes: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        for shard in shards:
            if min(shard.volume.shape) < crop:
                raise InputRefused(
                    f"shard {shard.name}: {tuple(shard.volume.shape)} voxels hold no crop of {crop}"
                )
        self.shards, self.context, self.crop = shards, context, crop
        self.device = torch.device(device)
        self.rng = np.random.default_rng(seed)
        self.capacity = max(shard.volume.numel() for shard in shards)
        size = (scenes * self.capacity,)
        self.high = torch.zeros(size, dtype=torch.float16, device=self.device)
        self.low = torch.zeros(size, dtype=torch.float16, device=self.device)
        self.planted = torch.zeros(size, dtype=torch.uint8, device=self.device)
        # Of each scene, and of each order of its axes, so that a batch is a matter of look-ups.
        orders = len(ORDERS)
        self.shapes = np.ones((scenes, 3), int)
        self.points = np.zeros((scenes, POINTS, 3), np.int16)
        self.errors = np.zeros(scenes, np.float32)
        self.acquisitions = np.zeros((scenes, orders, len(ACQUISITION_FIELDS)), np.float32)
        self.fields = np.zeros((scenes, orders, 1 + G_CHANNELS, MONOMIALS), np.float32)
        self.replaced = 0
        for _ in range(scenes):
            self.put(self._new())

    def _new(self) -> PoolScene:
        """Return the next scene; a pool that is fed from elsewhere waits for it."""
        return random_scene(self.shards, self.rng, self.crop)

    def refresh(self) -> None:
        """Replace the oldest scene by a new one."""
        self.put(self._new())

    def close(self) -> None:
        """End what the pool keeps running: nothing."""

    def put(self, scene: PoolScene) -> None:
        """Take a scene in place of the oldest one."""
        slot = self.replaced % len(self.shapes)
        start, count = slot * self.capacity, scene.high.numel()
        for mine, new in (
            (self.high, scene.high),
            (self.low, scene.low),
            (self.planted, scene.planted),
        ):
            mine[start : start + count].copy_(new, non_blocking=True)
            if new.is_cuda:  # it was made on another stream: not to be used again too early
                new.record_stream(torch.cuda.current_stream(self.device))
        self.shapes[slot], self.points[slot] = scene.shape, scene.points
        self.errors[slot] = scene.error
        for n, order in enumerate(ORDERS.tolist()):
            self.acquisitions[slot, n] = encode_acquisition(
                scene.draw.ratio, scene.draw.profile, scene.noise, order
            ).numpy()
            self.fields[slot, n] = guidance_fields(scene.draw, order)
        self.replaced += 1

    def batch(self, count: int) -> Batch:
        """Return `count` random crops, drawn from all scenes and all three axes."""
        slots = self.rng.integers(len(self.shapes), size=count)
        which = self.rng.integers(len(ORDERS), size=count)
        orders, shapes = ORDERS[which], self.shapes[slots]
        turned = np.take_along_axis(shapes, orders, axis=1)
        centres = np.take_along_axis(self._centres(slots), orders, axis=1)
        corners = np.clip(centres[:, 1:] - self.crop // 2, 0, turned[:, 1:] - self.crop)
        strides = np.stack([shapes[:, 1] * shapes[:, 2], shapes[:, 2], np.ones(count, int)], axis=1)
        strides = np.take_along_axis(strides, orders, axis=1)
        near = np.arange(-self.context, self.context + 1)
        through = np.clip(centres[:, :1] + near, 0, turned[:, :1] - 1)
        base = (slots * self.capacity)[:, None] + through * strides[:, :1]  # (B, 2 context + 1)
        base += (corners * strides[:, 1:]).sum(axis=1)[:, None]
        step = torch.arange(self.crop, device=self.device)
        strides_there, base_there = self._there(strides), self._there(base)
        plane = (strides_there[:, 1, None] * step)[:, :, None] + (strides_there[:, 2, None] * step)[
            :, None, :
        ]
        index = base_there[:, :, None, None] + plane[:, None]
        middle = index[:, self.context, None]
        planted = self.planted[middle].float()
        fields = self._guidance(self.fields[slots, which], orders, turned, centres[:, 0], corners)
        return Batch(
            high=self.high[middle].float(),
            condition=Condition(
                slices=self.low[index].float(),
                b=fields[:, :1],
                g=fields[:, 1:],
                acquisition=self._there(self.acquisitions[slots, which]),
            ),
            error=self._there(self.errors[slots]),
            planted=F.max_pool2d(planted, FACTOR),
        )

    def _there(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _centres(self, slots: np.ndarray) -> np.ndarray:
        """Return a voxel (B, 3) of each scene, nearly always one of the head."""
        inside = self.points[slots, self.rng.integers(POINTS, size=len(slots))].astype(int)
        shapes = self.shapes[slots]
        anywhere = (self.rng.random(shapes.shape) * shapes).astype(int)
        lost = self.rng.random(len(slots)) < ANYWHERE
        return np.where(lost[:, None], anywhere, inside)

    def _guidance(
        self,
        fields: np.ndarray,
        orders: np.ndarray,
        turned: np.ndarray,
        through: np.ndarray,
        corners: np.ndarray,
    ) -> Tensor:
        """Return b and g of the crops, (B, 1 + 4, h, w), at the latent's resolution."""
        half = self.crop // 2
        longest = np.maximum(turned - 1, 1)
        first = np.concatenate([through[:, None], corners + 0.5], axis=1)  # voxels
        place = self._there((2.0 * first / longest - 1).astype(np.float32))  # (B, 3), -1 .. 1
        pace = self._there((4.0 / longest[:, 1:]).astype(np.float32))  # a step of the latent
        step = torch.arange(half, device=self.device)
        shape = (len(fields), half, half)
        cut = torch.stack(
            [
                place[:, 0, None, None].expand(shape),
                (place[:, 1, None] + pace[:, 0, None] * step)[:, :, None].expand(shape),
                (place[:, 2, None] + pace[:, 1, None] * step)[:, None, :].expand(shape),
            ],
            dim=1,
        )  # in the order of the slice
        volume_order = self._there(np.argsort(orders, axis=1))[:, :, None, None]
        along_volume = torch.gather(cut, 1, volume_order.expand_as(cut))
        terms = monomials(along_volume.transpose(0, 1))  # (20, B, h, w)
        return torch.einsum("bct,tbhw->bchw", self._there(fields), terms)


def guidance_fields(d: Draw, order: Sequence[int]) -> np.ndarray:
    """Return what b and g are of a scene, (1 + 4, MONOMIALS), for slices cut in `order`.

    0 where they are not known; the flag of g is the constant term.
    """
    through, row, column = order
    flag = np.zeros((1, MONOMIALS))
    flag[0, 0] = 1.0
    g = np.concatenate([d.warp[[row, column, through]], flag])
    return np.concatenate([d.bias[None] * d.bias_known, g * d.warp_known])
