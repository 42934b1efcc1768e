"""What of the residual is structure: a small network on the measured grid.

The student sees slices; whether a contrast of two millimetres is a lesion or noise is told by all
three axes and by what the data say beyond the student's result. This network sees both. It is
trained to give the structure that the result still lacks, small lesions above all
(`training/structures`), and `physics/small_structures` gives that back.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sr_engine.physics.forward_model import THICK
from sr_engine.physics.small_structures import Seen

INPUTS = 3  # residual, measured, predicted: in sigmas of the noise
ACQUISITION = 9  # measured, acquired and target voxel along each axis
TISSUE_SIGMAS = 10.0  # what brings intensities to the size of residuals
MOST_SIGMAS = 30.0  # more than this is no noise in any case
SLAB_VOXELS = 1 << 20  # looked at in one piece: bounds the memory


@dataclass(frozen=True, kw_only=True)
class StructureConfig:
    """Everything needed to build the network; travels inside the weight file."""

    channels: int = 16
    layers: int = 3

    def to_dict(self) -> dict:
        """Return the configuration as plain JSON values."""
        return asdict(self)


class StructureNet(nn.Module):
    """Convolutions of 3 x 3 x 3, each told the acquisition; says nothing before it is trained."""

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        self.config = config
        width, layers = config.channels, range(config.layers)
        self.convolutions = nn.ModuleList(
            nn.Conv3d(width if layer else INPUTS, width, 3, padding=1) for layer in layers
        )
        self.told = nn.ModuleList(nn.Linear(ACQUISITION, 2 * width) for _ in layers)
        self.last = nn.Conv3d(width, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, given: Tensor, acquisition: Tensor) -> Tensor:
        """Return the structure, (B, K, I, J), in sigmas of the noise.

        Parameters
        ----------
        given : (B, 3, K, I, J)      from `network_input`
        acquisition : (B, 9)         from `acquisition_of`
        """
        kept: Tensor | None = None
        active = given
        for convolution, told in zip(self.convolutions, self.told, strict=True):
            hidden = convolution(active)
            kept = hidden if kept is None else hidden + kept
            gain, offset = told(acquisition)[:, :, None, None, None].chunk(2, dim=1)
            active = functional.silu(kept * (1 + gain) + offset)
        return self.last(active)[:, 0]

    @torch.inference_mode()
    def find(self, seen: Seen) -> np.ndarray:
        """Return the structure that a result lacks, in the units and on the grid of `seen`."""
        order = axis_order(seen)
        given = torch.from_numpy(network_input(seen, order))[None]
        acquisition = torch.from_numpy(acquisition_of(seen, order))[None]
        length, halo = given.shape[2], len(self.convolutions)
        step = max(1, SLAB_VOXELS // max(1, given[0, 0, 0].numel()))
        slabs = []
        for start in range(0, length, step):
            low, high = max(0, start - halo), min(length, start + step + halo)
            found = self(given[:, :, low:high], acquisition)[0]
            slabs.append(found[start - low : min(start + step, length) - low])
        found = torch.cat(slabs).numpy() * np.float32(seen.sigma)
        return np.ascontiguousarray(found.transpose(np.argsort(order)))


def thick_axis(seen: Seen) -> int | None:
    """Return the axis along which the measured voxel is much longer than its shortest side."""
    sides = [axis.low_mm for axis in seen.model.axes]
    longest = int(np.argmax(sides))
    return longest if sides[longest] > THICK * min(sides) else None


def axis_order(seen: Seen) -> list[int]:
    """Return the axes as the network takes them: that of thick slices last."""
    thick = thick_axis(seen)
    return sorted(range(3), key=lambda axis: axis == thick)


def network_input(seen: Seen, order: list[int]) -> np.ndarray:
    """Return what the network sees, (3, K, I, J), float32, axes in this order."""
    given = np.stack([seen.residual, seen.measured / TISSUE_SIGMAS, seen.predicted / TISSUE_SIGMAS])
    given = np.clip(given / seen.sigma, -MOST_SIGMAS, MOST_SIGMAS).astype(np.float32)
    return np.ascontiguousarray(given.transpose(0, *[1 + axis for axis in order]))


def acquisition_of(seen: Seen, order: list[int]) -> np.ndarray:
    """Return what the network is told of the voxels, (9,), float32, axes in this order."""
    axes = [seen.model.axes[axis] for axis in order]
    low = np.array([axis.low_mm for axis in axes])
    acquired = np.array([max(axis.acquired_mm(), axis.low_mm) for axis in axes])
    high = np.array([axis.high_mm for axis in axes])
    return np.concatenate([np.log(low), np.log(acquired / low), np.log(low / high)]).astype(
        np.float32
    )
