"""A page to look at: before, after, reference and error in three planes.

It shows a patient's head: it goes to the folder that the user names, and never into the docs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from highdicom import Volume
from scipy import ndimage

from sr_engine.evaluation.cases import Case
from sr_engine.evaluation.figures import new_figure, save_grey
from sr_engine.physics.resample import grid_like, interpolate

PLANES = ("axial", "coronal", "sagittal")
PAGE_DPI = 80
ERROR_SCALE = 0.15  # black to white in an error panel


def case_page(path: Path, low: Volume, case: Case, results: dict[str, np.ndarray]) -> Path:
    """Write the page of a case: the input, each result with its error, and the reference."""
    grid = grid_like(case.volume.affine, case.volume.array.shape)
    truth = case.volume.array
    panels = [("input", interpolate(low, grid, order=0).array, 1.0)]
    for name, array in results.items():
        panels += [(name, array, 1.0), (f"{name}: error", np.abs(array - truth), ERROR_SCALE)]
    panels.append(("reference", truth, 1.0))
    return _draw(path, panels, case.mask, case.spacing_mm)


def series_page(path: Path, low: Volume, cubic: np.ndarray, result: Volume) -> Path:
    """Write the page of a series without a reference: the input, cubic, and the result."""
    turned = result.to_patient_orientation("RAS")
    grid = grid_like(turned.affine, turned.array.shape)
    plain = result.with_array(cubic).to_patient_orientation("RAS").array
    before = interpolate(low, grid, order=0).array
    top = float(np.percentile(plain, 99.8))
    panels = [
        (n, a, top) for n, a in (("input", before), ("cubic", plain), ("result", turned.array))
    ]
    return _draw(path, panels, plain > 0.1 * top, grid.spacing_mm)


def _draw(
    path: Path,
    panels: Sequence[tuple[str, np.ndarray, float]],
    mask: np.ndarray,
    spacing_mm: Sequence[float],
) -> Path:
    """Write one row a plane through the middle of `mask`, one column a panel; axes are R, A, S."""
    centre = [int(round(c)) for c in ndimage.center_of_mass(mask)]
    figure = new_figure(2.1 * len(panels), 6.6)
    axes = figure.subplots(len(PLANES), len(panels), squeeze=False)
    for row, (plane, axis) in enumerate(zip(PLANES, (2, 1, 0), strict=True)):
        across, up = [a for a in range(3) if a != axis]
        for column, (title, array, top) in enumerate(panels):
            place = axes[row][column]
            image = np.take(array, centre[axis], axis=axis).T
            ratio = spacing_mm[up] / spacing_mm[across]
            place.imshow(image, cmap="gray", vmin=0, vmax=top, origin="lower", aspect=ratio)
            place.set_axis_off()
            if row == 0:
                place.set_title(title, fontsize=9)
        axes[row][0].text(0, 0, plane, color="white", fontsize=7)
    return save_grey(figure, path, dpi=PAGE_DPI)


def page_name(*parts: str) -> str:
    """Return the file name of a page."""
    return "-".join(parts) + ".png"
