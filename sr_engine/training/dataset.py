"""Shards on disk, and batches of slices cut from simulated scenes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from sr_engine.model.autoencoder import FACTOR
from sr_engine.model.diffusion import Condition, encode_acquisition
from sr_engine.training.simulate import Scene, draw, monomials, simulate

PIXEL_SCALE = 20000.0  # stored value of the head's 99.9th percentile in a shard
WHOLE_HEAD_SHARE = 0.5  # of the scenes: clinical series show whole heads, the data mostly brains


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One training volume in memory: float16 intensities, head mask, and where it came from."""

    name: str
    volume: Tensor
    mask: Tensor
    whole_head: bool
    source_sha256: str


def read_shard(path: Path) -> Shard:
    """Return the shard of a file that `training.pack` wrote."""
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["shard"])
        volume = (file.get_tensor("volume").to(torch.float32) / PIXEL_SCALE).half()
        mask = file.get_tensor("mask").bool()
    return Shard(
        name=meta["name"],
        volume=volume,
        mask=mask,
        whole_head=meta["whole_head"],
        source_sha256=meta["source_sha256"],
    )


def read_shards(folder: Path, use: str = "train") -> list[Shard]:
    """Return all shards of `folder` for one use, in the order of their names.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    paths = sorted((folder / use).glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no shards in {folder / use}: run `sr-engine pack` first")
    return [read_shard(path) for path in paths]


def has_shards(folder: Path | str, use: str) -> bool:
    """Return whether `folder` holds shards for `use`."""
    return any((Path(folder) / use).glob("*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of slices: `high` (B, 1, H, W) and what the model may know of them."""

    high: Tensor
    condition: Condition
    mask: Tensor  # (B, 1, H, W) bool
    error: Tensor  # (B,) mean squared error of interpolation in the scene that a crop is cut from
    planted: Tensor  # (B, 1, H/2, W/2) float32, 1 where a lesion was planted


class SlicePool:
    """A few simulated scenes in memory, one of them replaced now and then.

    Simulating whole volumes keeps ringing, wrap and noise as a scan has them; cutting many crops
    from each keeps that affordable.
    """

    def __init__(
        self, shards: list[Shard], *, context: int, crop: int, scenes: int, seed: int
    ) -> None:
        self.shards, self.context, self.crop = shards, context, crop
        self.rng = np.random.default_rng(seed)
        self.scenes = [self._scene() for _ in range(scenes)]

    def _scene(self) -> Scene:
        heads = [s for s in self.shards if s.whole_head]
        brains = [s for s in self.shards if not s.whole_head]
        wants_head = self.rng.random() < WHOLE_HEAD_SHARE
        group = (heads if wants_head else brains) or self.shards
        shard = group[self.rng.integers(len(group))]
        return simulate(shard.volume.float(), shard.mask, draw(self.rng))

    def refresh(self) -> None:
        """Replace the oldest scene by a new one."""
        self.scenes = [*self.scenes[1:], self._scene()]

    def batch(self, count: int) -> Batch:
        """Return `count` random crops, drawn from all scenes and all three axes."""
        rows = [self._crop(self.scenes[self.rng.integers(len(self.scenes))]) for _ in range(count)]
        high, slices, b, g, acquisition, mask, error, planted = (
            torch.stack(part) for part in zip(*rows, strict=True)
        )
        return Batch(
            high=high,
            condition=Condition(slices=slices, b=b, g=g, acquisition=acquisition),
            mask=mask,
            error=error,
            planted=F.max_pool2d(planted.float(), FACTOR),
        )

    def _crop(self, scene: Scene) -> tuple[Tensor, ...]:
        axis = int(self.rng.integers(3))
        plane = [a for a in range(3) if a != axis]
        if self.rng.random() < 0.5:
            plane.reverse()
        order = [axis, *plane]
        shape = [scene.high.shape[a] for a in order]
        centre = self._centre(scene, order)
        corner = [
            int(np.clip(c - self.crop // 2, 0, n - self.crop))
            for c, n in zip(centre[1:], shape[1:], strict=True)
        ]
        window = tuple(slice(c, c + self.crop) for c in corner)
        through = np.clip(
            np.arange(centre[0] - self.context, centre[0] + self.context + 1), 0, shape[0] - 1
        )
        low = scene.low.permute(order)[torch.as_tensor(through)][:, window[0], window[1]]
        high = scene.high.permute(order)[centre[0], window[0], window[1]]
        mask = scene.mask.permute(order)[centre[0], window[0], window[1]]
        b, g = self._guidance(scene, order, centre[0], corner)
        planted = scene.planted.permute(order)[centre[0], window[0], window[1]]
        acquisition = acquisition_vector(scene, order)
        error = torch.tensor(scene.error)
        return high[None], low, b, g, acquisition, mask[None], error, planted[None]

    def _centre(self, scene: Scene, order: list[int]) -> list[int]:
        for _ in range(20):
            point = [int(self.rng.integers(n)) for n in scene.mask.shape]
            if scene.mask[tuple(point)] or self.rng.random() < 0.02:
                break
        return [point[a] for a in order]

    def _guidance(
        self, scene: Scene, order: list[int], index: int, corner: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return b (1, h, w) and g (4, h, w) of a crop, at the latent's resolution."""
        shape = [scene.high.shape[a] for a in order]
        half = self.crop // 2
        axes = [torch.full((1,), 2.0 * index / max(shape[0] - 1, 1) - 1)]
        for start, n in zip(corner, shape[1:], strict=True):
            axes.append(2 * (start + 0.5 + 2 * torch.arange(half)) / (n - 1) - 1)
        cut = torch.stack(torch.meshgrid(*axes, indexing="ij"))[:, 0]  # (3, h, w) in slice order
        inverse = [order.index(a) for a in range(3)]
        draw_ = scene.draw
        fields = np.stack([draw_.bias, *draw_.warp[[order[1], order[2], order[0]]]])
        weights = torch.as_tensor(fields, dtype=torch.float32)
        values = torch.tensordot(weights, monomials(cut[inverse]), dims=1)  # (4, h, w)
        b = values[:1] * float(draw_.bias_known)
        g = torch.cat([values[1:], torch.ones(1, half, half)]) * float(draw_.warp_known)
        return b, g


def acquisition_vector(scene: Scene, order: list[int]) -> Tensor:
    """Return the (7,) acquisition condition of slices cut in `order` (through, row, column)."""
    return encode_acquisition(scene.draw.ratio, scene.draw.profile, scene.noise, order)
