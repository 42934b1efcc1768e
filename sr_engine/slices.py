"""One axis of a volume: slices for the network, and what it makes of them put back."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sr_engine.model.autoencoder import FACTOR
from sr_engine.model.diffusion import Condition, ModelConfig, encode_acquisition
from sr_engine.physics.lines import largest_filter, mean_filter

MARGIN = 8  # voxels of air around the head in which the network's output gives way
FADE = 3  # voxels over which it gives way to the interpolated air, half the width
CONTEXT = 24  # voxels around what is shown of a slice that the network still sees

Box = tuple[slice, slice, slice]


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


@dataclass(frozen=True)
class Window:
    """A rectangle of a slice that the network sees; sides are multiples of its own."""

    rows: slice
    columns: slice

    @property
    def pixels(self) -> int:
        """Return the size of the rectangle."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


def head_box(mask: np.ndarray) -> Box:
    """Return the box around the head with its margin, as slices of the array axes."""
    if not mask.any():
        return (slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2]))
    box = []
    for axis, n in enumerate(mask.shape):
        where = np.nonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[0]
        box.append(slice(max(0, int(where[0]) - MARGIN), min(n, int(where[-1]) + 1 + MARGIN)))
    return box[0], box[1], box[2]


def fade(mask: np.ndarray) -> np.ndarray:
    """Return weights, float32: 1 in the head and just around it, falling to 0 within MARGIN.

    Denoised air in noisy air would show: as a rectangle if the whole box were replaced.
    """
    return mean_filter(largest_filter(mask, 2 * (MARGIN - FADE) + 1), 2 * FADE + 1)


class AxisSlices:
    """The slices of the head's box along one axis, on the device where the network runs.

    Parameters
    ----------
    share : shape of the box, float32
        How much of the network's output is shown, see `fade`.
    """

    def __init__(
        self,
        given: NetworkInput,
        box: Box,
        share: np.ndarray,
        axis: int,
        config: ModelConfig,
        device: torch.device,
    ) -> None:
        order = [axis, *(a for a in range(3) if a != axis)]

        def turned(array: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(order)))
            return tensor.pin_memory().to(device) if device.type == "cuda" else tensor

        self.order, self.config = order, config
        self.plain = turned(given.volume[box])  # (slices, H, W)
        self.share = turned(share)
        self.made = self.plain.clone()
        self.bias = None if given.bias_log is None else turned(given.bias_log[box])
        self.moved_cm: list[Tensor] | None = None  # along row, column, through
        if given.displacement_mm is not None:
            through, row, column = (turned(given.displacement_mm[a][box]) / 10 for a in order)
            self.moved_cm = [row, column, through]
        acquisition = encode_acquisition(given.ratio, given.profile, given.noise, order)
        self.acquisition = acquisition.to(device)[None]

    def __len__(self) -> int:
        return len(self.plain)

    @property
    def whole(self) -> Window:
        """Return the window that shows whole slices."""
        height, width = self.plain.shape[1:]
        return Window(slice(0, self._up(height)), slice(0, self._up(width)))

    def windows(self) -> list[Window | None]:
        """Return what the network must see of each slice; None where nothing of it is shown."""
        shown = self.share > 0
        rows, columns = shown.any(dim=2).cpu().numpy(), shown.any(dim=1).cpu().numpy()
        return [
            Window(self._span(r), self._span(c)) if r.any() else None
            for r, c in zip(rows, columns, strict=True)
        ]

    def _span(self, shown: np.ndarray) -> slice:
        where = np.nonzero(shown)[0]
        first = max(0, int(where[0]) - CONTEXT) // self.config.multiple * self.config.multiple
        return slice(first, self._up(min(len(shown), int(where[-1]) + 1 + CONTEXT)))

    def _up(self, count: int) -> int:
        return count + -count % self.config.multiple

    def condition(self, rows: slice, window: Window) -> Condition:
        """Return what the model is told of consecutive slices."""
        context = self.config.context
        near = torch.arange(-context, context + 1, device=self.plain.device)
        index = torch.arange(rows.start, rows.stop, device=self.plain.device)[:, None] + near
        planes = self.plain[:, window.rows, window.columns][index.clamp(0, len(self) - 1)]
        count, half = len(planes), [s // FACTOR for s in self._size(window)]
        b = torch.zeros(count, 1, *half, device=self.plain.device)
        g = torch.zeros(count, 4, *half, device=self.plain.device)
        if self.bias is not None:
            b[:, 0] = self._halved(self.bias, rows, window)
        if self.moved_cm is not None:
            for channel, moved in enumerate(self.moved_cm):
                g[:, channel] = self._halved(moved, rows, window)
            g[:, 3] = 1
        return Condition(
            slices=self._padded(planes, window),
            b=b,
            g=g,
            acquisition=self.acquisition.expand(count, -1),
        )

    @staticmethod
    def _size(window: Window) -> tuple[int, int]:
        rows, columns = window.rows, window.columns
        return rows.stop - rows.start, columns.stop - columns.start

    def _padded(self, planes: Tensor, window: Window) -> Tensor:
        """Return planes (B, C, h, w) filled up with their edge where the window leaves the box."""
        height, width = self._size(window)
        missing = (0, width - planes.shape[3], 0, height - planes.shape[2])
        return F.pad(planes, missing, mode="replicate") if any(missing) else planes

    def _halved(self, field: Tensor, rows: slice, window: Window) -> Tensor:
        planes = field[rows, window.rows, window.columns]
        return F.avg_pool2d(self._padded(planes[:, None], window), FACTOR)[:, 0]

    def put(self, rows: slice, window: Window, x: Tensor) -> None:
        """Take what the network made of consecutive slices: (B, 1, H, W)."""
        where = (rows, window.rows, window.columns)
        plain = self.plain[where]
        made = x[:, 0, : plain.shape[1], : plain.shape[2]]
        self.made[where] = plain + self.share[where] * (made - plain)

    def result(self, into: np.ndarray) -> None:
        """Write the slices into the box of a volume, `into`, in the volume's own order."""
        into[...] = self.made.cpu().numpy().transpose(np.argsort(self.order))
