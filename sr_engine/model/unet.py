"""The conditional U-Net on one page: F(x, sigma | E2's latent, b, g, acquisition)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACQUISITION_FIELDS = (  # the acquisition as the network sees it, slice by slice
    "log2_ratio_row",  # low over high voxel size along the slice's rows axis
    "log2_ratio_column",
    "log2_ratio_through",
    "box_row",  # 1 when the axis was slice-selected, 0 when phase- or frequency-encoded
    "box_column",
    "box_through",
    "noise",  # 20 x noise sigma over the 99.9th percentile of the head
)
G_CHANNELS = 4  # displacement in cm along row, column, through; validity flag


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """Return the embedding (B, channels) of scalars `t` (B,).  Source: Vaswani 2017, 3.5."""
    half = channels // 2
    frequency = torch.exp(-math.log(1000.0) * torch.arange(half, device=t.device) / half)
    angle = 10.0 * t[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the embedding; starts as the identity.

    There is no normalisation layer: its statistics over a training crop and over a whole slice
    with air around the head differ, which costs accuracy.
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(x))
        h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


def guidance(channels: int, width: int) -> nn.Conv2d:
    """Return the projection of a guidance map into a level; it starts silent."""
    projection = nn.Conv2d(channels, width, 3, padding=1)
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


class ConditionalUNet(nn.Module):
    """U-Net over the latent; b enters the down path, g the up path (arXiv 2501.18736, 2)."""

    def __init__(
        self, *, latent: int, condition: int, widths: tuple[int, ...], embedding: int = 96
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.embed = nn.Sequential(
            nn.Linear(embedding + len(ACQUISITION_FIELDS), embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
        )
        self.first = nn.Conv2d(latent + condition, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(w, w, embedding) for w in widths)
        self.down_b = nn.ModuleList(guidance(1, w) for w in widths)
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.middle = ResidualBlock(widths[-1], widths[-1], embedding)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(ResidualBlock(2 * w, w, embedding) for w in widths)
        self.up_g = nn.ModuleList(guidance(G_CHANNELS, w) for w in widths)
        self.last = nn.Conv2d(widths[0], latent, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor,
        b: Tensor,
        g: Tensor,
        acquisition: Tensor,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        """Return F, the raw network output.

        Parameters
        ----------
        x : (B, latent, h, w)       scaled noised latent; h and w multiples of 2**(levels - 1)
        c_noise : (B,)              log sigma / 4
        condition : (B, C, h, w)    E2's latent
        b : (B, 1, h, w)            log bias field
        g : (B, 4, h, w)            displacement in cm and validity flag
        acquisition : (B, 7)        see ACQUISITION_FIELDS
        features
            When given, the features of every level's up path are appended: what distillation
            matches.
        """
        e = self.embed(torch.cat([sinusoids(c_noise, self.embedding), acquisition], dim=1))
        h = self.first(torch.cat([x, condition], dim=1))
        skips, g_levels = [], []
        for level, block in enumerate(self.down):
            if level:
                h, b, g = self.shrink[level - 1](h), F.avg_pool2d(b, 2), F.avg_pool2d(g, 2)
            h = block(h + self.down_b[level](b), e)
            skips.append(h)
            g_levels.append(g)
        h = self.middle(h, e)
        for level in reversed(range(len(self.up))):
            h = self.up[level](torch.cat([h, skips[level]], dim=1), e)
            h = h + self.up_g[level](g_levels[level])
            if features is not None:
                features.append(h)
            if level:
                h = self.grow[level - 1](h)
        return self.last(F.silu(h))
