"""Before, after and difference side by side, as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN, CAPTION, TEXT = 16, 52, 15
PANEL_WIDTH = 460
PAPER, INK = 16, 235
BRIGHTEST = 99.7  # percentile of both planes that becomes white
DIFFERENCE_SHARE = 0.25  # of that white is white in the difference


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One plane before and after, (rows, columns), on the same grid and in the same units."""

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    aspect: float  # height of a pixel over its width, in mm

    def panels(self) -> list[Image.Image]:
        """Return before, after and difference as they are drawn."""
        white = float(np.percentile(np.maximum(self.before, self.after), BRIGHTEST)) or 1.0
        apart = np.abs(self.after - self.before) / DIFFERENCE_SHARE
        return [self._panel(plane / white) for plane in (self.before, self.after, apart)]

    def _panel(self, plane: NDArray[np.float32]) -> Image.Image:
        grey = np.clip(np.rint(255 * plane), 0, 255).astype(np.uint8)
        rows, columns = grey.shape
        size = (PANEL_WIDTH, max(1, round(PANEL_WIDTH * rows * self.aspect / columns)))
        # Nearest: nobody should see an interpolation that is not in the data.
        return Image.fromarray(grey).resize(size, Image.Resampling.NEAREST)


def draw(rows: Sequence[Pair], *, captions: Sequence[str], path: Path) -> None:
    """Write one row of three panels for each pair to `path`, the three `captions` above."""
    drawn = [pair.panels() for pair in rows]
    height = CAPTION + MARGIN + sum(panels[0].height + MARGIN for panels in drawn)
    sheet = Image.new("L", (MARGIN + 3 * (PANEL_WIDTH + MARGIN), height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    lefts = [MARGIN + column * (PANEL_WIDTH + MARGIN) for column in range(3)]
    for left, caption in zip(lefts, captions, strict=True):
        pen.multiline_text((left, MARGIN), caption, fill=INK, font=font, spacing=4)
    top = CAPTION + MARGIN
    for panels in drawn:
        for left, panel in zip(lefts, panels, strict=True):
            sheet.paste(panel, (left, top))
        top += panels[0].height + MARGIN
    sheet.save(path)
