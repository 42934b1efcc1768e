"""The diffusion model: what is denoised, under which condition, with which loss.

The diffused variable is the *residual* of the latents, E1(high) - E1(interpolated), in units of
its own standard deviation: the network is asked only for what interpolation does not know, and a
network that says nothing leaves the interpolated slice as it is.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from sr_engine.model.autoencoder import FACTOR, LATENT_CHANNELS, ConditionEncoder, LatentCodec
from sr_engine.model.unet import ConditionalUNet


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build the networks; travels inside the weight file."""

    widths: tuple[int, ...] = (32, 64, 128)
    condition_channels: int = 16
    condition_width: int = 32
    context: int = 2  # neighbouring slices on each side
    codec_width: int = 12
    residual_std: float = 0.05  # of the latent residual, in units of the normalised intensity
    sigma_max: float = 4.0  # in units of residual_std
    sigma_min: float = 0.1
    rho: float = 3.0

    @property
    def multiple(self) -> int:
        """Slice sides must be a multiple of this."""
        return FACTOR * 2 ** (len(self.widths) - 1)

    def to_dict(self) -> dict:
        """Return the configuration as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Return the configuration of `values`; unknown keys raise TypeError."""
        return cls(**{**values, "widths": tuple(values["widths"])})


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the model knows of one batch of slices.

    Attributes
    ----------
    slices : (B, 2 * context + 1, H, W)    interpolated slice in the middle, neighbours around it
    b : (B, 1, H/2, W/2)                   log bias field, 0 where unknown
    g : (B, 4, H/2, W/2)                   displacement in cm, validity flag
    acquisition : (B, 7)                   see unet.ACQUISITION_FIELDS
    """

    slices: Tensor
    b: Tensor
    g: Tensor
    acquisition: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Condition":
        return Condition(
            slices=self.slices[rows],
            b=self.b[rows],
            g=self.g[rows],
            acquisition=self.acquisition[rows],
        )


def encode_acquisition(
    ratio: tuple[float, ...], profile: tuple[str, ...], noise: float, order: list[int]
) -> Tensor:
    """Return unet.ACQUISITION_FIELDS, (7,), for a volume's acquisition.

    Parameters
    ----------
    ratio, profile
        Per volume axis, low over high voxel size and the name of the axis model.
    noise
        Sigma of one channel, in normalised units.
    order
        Volume axes that are through, row and column of the slice.
    """
    ratios = [math.log2(max(ratio[a], 1.0)) for a in order]
    box = [1.0 if profile[a] in ("box", "gaussian") else 0.0 for a in order]
    return torch.tensor([ratios[1], ratios[2], ratios[0], box[1], box[2], box[0], 20 * noise])


class SuperResolver(nn.Module):
    """E1, E2, the denoiser and D in one module; teacher and student differ in `config` only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.codec = LatentCodec(config.codec_width)
        self.condition = ConditionEncoder(
            2 * config.context + 1, config.condition_width, config.condition_channels
        )
        self.unet = ConditionalUNet(
            latent=LATENT_CHANNELS, condition=config.condition_channels, widths=config.widths
        )

    def residual(self, high: Tensor, slices: Tensor) -> Tensor:
        """Return the clean variable r (B, 4, H/2, W/2) of high-resolution slices (B, 1, H, W)."""
        middle = slices[:, self.config.context, None]
        return (self.codec.encode(high) - self.codec.encode(middle)) / self.config.residual_std

    def decode(self, residual: Tensor, slices: Tensor) -> Tensor:
        """Return the slices (B, 1, H, W) that the residual `residual` makes of the input."""
        middle = slices[:, self.config.context, None]
        return self.codec.decode(self.codec.encode(middle) + residual * self.config.residual_std)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        latent: Tensor,
        condition: Condition,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        """Return D(x, sigma), the expected clean residual.

        Parameters
        ----------
        x : (B, 4, h, w)         residual plus noise of standard deviation `sigma`
        sigma : (B,)
        latent : (B, C, h, w)    E2 of the condition's slices, computed once for all steps

        Source: Karras 2022 (arXiv 2206.00364), table 1, sigma_data = 1.
        """
        s = sigma[:, None, None, None]
        c_skip = 1 / (s * s + 1)
        c_out = s / (s * s + 1).sqrt()
        c_in = 1 / (s * s + 1).sqrt()
        raw = self.unet(
            c_in * x,
            sigma.log() / 4,
            latent,
            condition.b,
            condition.g,
            condition.acquisition,
            features,
        )
        return c_skip * x + c_out * raw


def parameter_count(module: nn.Module) -> int:
    """Return the number of trained scalars."""
    return sum(p.numel() for p in module.parameters())


def loss_weight(sigma: Tensor) -> Tensor:
    """Return the weight (B, 1, 1, 1) that gives the raw output unit variance at every sigma.

    Source: Karras 2022, table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
    """
    return ((sigma * sigma + 1) / (sigma * sigma))[:, None, None, None]


def sample_sigma(config: ModelConfig, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` noise levels: a third at sigma_max, the rest log-uniform.

    They lie on the generator's device. The first step of a few-step sampler decides most of the
    result, so its level gets its share.
    """
    device = generator.device
    u = torch.rand(count, generator=generator, device=device)
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    sigma = (low + u * (high - low)).exp()
    first = torch.rand(count, generator=generator, device=device) < 1 / 3
    return torch.where(first, torch.full_like(sigma, config.sigma_max), sigma)
