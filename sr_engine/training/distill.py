"""Progressive distillation: one student step learns what two teacher steps do.

Source: Salimans & Ho 2022 (arXiv 2202.00512), Algorithm 2, with the feature matching of
arXiv 2501.18736, section 2.3.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_engine.model import bundle
from sr_engine.model.diffusion import Condition, SuperResolver, loss_weight
from sr_engine.model.sampler import noise_levels

if TYPE_CHECKING:
    from sr_engine.training.dataset import Batch
    from sr_engine.training.train import TrainConfig

Denoise = Callable[[Tensor, Tensor], Tensor]


def halve(levels: Tensor) -> Tensor:
    """Return the middle of each interval of `levels` (N + 1,), on the ramp of the cube roots."""
    return ((levels[:-1] ** (1 / 3) + levels[1:] ** (1 / 3)) / 2) ** 3


def two_step_target(denoise: Denoise, x: Tensor, high: Tensor, mid: Tensor, low: Tensor) -> Tensor:
    """Return the clean estimate with which one Euler step lands where two of the teacher do.

    Parameters
    ----------
    denoise
        The teacher's D(x, sigma) under its condition.
    x : (B, C, h, w)
        State at noise level `high`.
    high, mid, low : (B,)
        Decreasing noise levels; `low` may be 0.
    """
    a, m, z = (s[:, None, None, None] for s in (high, mid, low))
    halfway = x + (m - a) * (x - denoise(x, high)) / a
    end = halfway + (z - m) * (halfway - denoise(halfway, mid)) / m
    return (end - (z / a) * x) / (1 - z / a)


class Distiller:
    """The teacher, the projections of its features, and the schedule of step counts."""

    def __init__(
        self,
        config: "TrainConfig",
        student: SuperResolver,
        teacher: bundle.Bundle,
        device: torch.device,
    ) -> None:
        self.config = config
        self.teacher = teacher.model.to(device).requires_grad_(False)
        self.teacher_sha256 = teacher.sha256
        pairs = zip(
            reversed(student.config.widths), reversed(self.teacher.config.widths), strict=True
        )
        # Fixed random projections: learnt ones could make the features agree by forgetting both.
        generator = torch.Generator().manual_seed(config.seed)
        self.project = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in pairs).to(device)
        for conv in self.project:
            weight = torch.randn(conv.weight.shape, generator=generator)
            conv.weight.data.copy_(weight / conv.weight.shape[1] ** 0.5)
        self.project.requires_grad_(False)

    @classmethod
    def build(
        cls, config: "TrainConfig", student: SuperResolver, device: torch.device
    ) -> "Distiller | None":
        """Return the distiller of a student stage that names a teacher, else None."""
        if config.stage != "student" or not config.teacher:
            return None
        teacher = bundle.load(config.teacher)
        student.codec.load_state_dict(teacher.model.codec.state_dict())
        return cls(config, student, teacher, device)

    def steps_at(self, progress: float) -> int:
        """Return the student's step count at `progress` (0 .. 1): 4, then 2, then 1."""
        counts = self.config.distill_steps
        return counts[min(int(progress * len(counts)), len(counts) - 1)]

    def loss(
        self, student: SuperResolver, batch: "Batch", progress: float, generator: torch.Generator
    ) -> Tensor:
        """Return the loss of one batch: the data's own, the teacher's targets, its features."""
        from sr_engine.training.train import denoising_loss, hardness

        own = denoising_loss(student, batch, self.config, generator)
        batch = batch.first(max(1, int(self.config.distill_share * len(batch.high))))
        device = batch.high.device
        steps = self.steps_at(progress)
        levels = noise_levels(student.config, steps).to(device)
        index = torch.randint(steps, (len(batch.high),), generator=generator, device=device)
        high, low = levels[index], levels[index + 1]
        mid = halve(levels)[index]
        target, taught, x = self._teach(student, batch, (high, mid, low), index == 0, generator)
        features: list[Tensor] = []
        latent = student.condition(batch.condition.slices)
        estimate = student.denoise(x, high, latent, batch.condition, features)
        hard = hardness(student, batch)
        emphasis = 1 + self.config.lesion_weight * batch.planted
        match = (loss_weight(high) * emphasis * (estimate - target).square() / hard).mean()
        feature = self._feature_distance(features, taught)
        weight = self.config.distill_weight
        return (1 - weight) * own + weight * match + self.config.feature_weight * feature

    def _teach(
        self,
        student: SuperResolver,
        batch: "Batch",
        levels: tuple[Tensor, Tensor, Tensor],
        first: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the two-step target, the teacher's features at the first step, and the state.

        Rows that are at the `first` step start at zero, as the product's sampler does.
        """
        condition: Condition = batch.condition
        with torch.no_grad():
            with torch.autocast(batch.high.device.type, enabled=False):
                clean = student.residual(batch.high, condition.slices)
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            x = clean + levels[0][:, None, None, None] * noise
            x = torch.where(first[:, None, None, None], 0, x)
            # One variable for both: the teacher's unit is its own residual_std.
            unit = student.config.residual_std / self.teacher.config.residual_std
            latent = self.teacher.condition(condition.slices)
            features: list[Tensor] = []
            self.teacher.denoise(x * unit, levels[0] * unit, latent, condition, features)

            def denoise(state: Tensor, sigma: Tensor) -> Tensor:
                return self.teacher.denoise(state * unit, sigma * unit, latent, condition) / unit

            return two_step_target(denoise, x, *levels), features, x

    def _feature_distance(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Return the mean distance of the directions of projected features, level by level."""
        distances = [
            (F.normalize(project(a), dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
            for project, a, b in zip(self.project, ours, theirs, strict=True)
        ]
        return torch.stack(distances).mean()
