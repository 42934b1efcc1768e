"""E1, D and E2: the latent of a slice, the way back, and the latent of its condition.

E1 and D are one lifting scheme, so D(E1(x)) = x whatever the weights are: the autoencoder cannot be
the ceiling of the result. What it learns is to make the detail channels small, by predicting them
from the coarse one (Daubechies & Sweldens 1998, "Factoring wavelet transforms into lifting steps").
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT_CHANNELS = 4
FACTOR = 2  # the latent has half the samples in each direction


def haar_split(x: Tensor) -> Tensor:
    """Return the orthonormal Haar coefficients of `x`.

    Parameters
    ----------
    x : (B, 1, H, W), H and W even

    Returns
    -------
    (B, 4, H/2, W/2) in the order mean, horizontal, vertical, diagonal detail
    """
    a, b, c, d = F.pixel_unshuffle(x, 2).unbind(1)  # 4 x (B, H/2, W/2)
    return 0.5 * torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=1)


def haar_merge(z: Tensor) -> Tensor:
    """Return the slice whose Haar coefficients are `z`, the inverse of `haar_split`."""
    s, h, v, d = z.unbind(1)
    quarters = torch.stack([s + h + v + d, s - h + v - d, s + h - v - d, s - h - v + d], dim=1)
    return F.pixel_shuffle(0.5 * quarters, 2)


def lifting_step(channels_in: int, channels_out: int, width: int) -> nn.Sequential:
    """Return a two-layer predictor that starts as the zero function."""
    last = nn.Conv2d(width, channels_out, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Conv2d(channels_in, width, 3, padding=1), nn.SiLU(), last)


class LatentCodec(nn.Module):
    """E1 (`encode`) and D (`decode`): an exactly invertible learned wavelet."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.predict = lifting_step(1, 3, width)
        self.update = lifting_step(3, 1, width)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent (B, 4, H/2, W/2) of slices (B, 1, H, W)."""
        z = haar_split(x)
        coarse, detail = z[:, :1], z[:, 1:]
        detail = detail - self.predict(coarse)
        coarse = coarse + self.update(detail)
        return torch.cat([coarse, detail], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Return the slices (B, 1, H, W) of latents (B, 4, H/2, W/2)."""
        coarse, detail = z[:, :1], z[:, 1:]
        coarse = coarse - self.update(detail)
        detail = detail + self.predict(coarse)
        return haar_merge(torch.cat([coarse, detail], dim=1))

    def detail_energy(self, x: Tensor) -> Tensor:
        """Return what training makes small: mean |detail| and the drift of the coarse channel."""
        z, plain = self.encode(x), haar_split(x)
        return z[:, 1:].abs().mean() + (z[:, :1] - plain[:, :1]).square().mean()


class ConditionEncoder(nn.Module):
    """E2: the latent of the conditioning slice with its neighbours.

    It runs once a slice, not once a step, so most of what can be known from the input is computed
    here.
    """

    def __init__(self, slices: int, width: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(slices * FACTOR * FACTOR, width, 3, padding=1)
        self.middle = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, y: Tensor) -> Tensor:
        """Return the latent (B, channels, H/2, W/2) of slices `y` (B, slices, H, W)."""
        h = self.first(F.pixel_unshuffle(y, FACTOR))
        h = h + self.middle(h)
        return self.last(F.silu(h))
