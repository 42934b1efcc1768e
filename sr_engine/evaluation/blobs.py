"""Structures planted in a finished result: does the verdict find them?

The network does not run again: the result with the blob in it is judged, as the pipeline does.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from scipy import ndimage

from sr_engine.evaluation.cases import Case
from sr_engine.evaluation.methods import Outcome
from sr_engine.evaluation.spheres import scattered, sphere
from sr_engine.physics.forward_model import AcquisitionModel
from sr_engine.physics.intensity import Scale, estimate_noise_sigma, head_mask, normalise
from sr_engine.physics.resample import Grid, grid_like, interpolate
from sr_engine.pipeline import acquired_of_volume
from sr_engine.quality import QualityReport, judge

SIZES_MM = (5.0, 3.0)
CONTRAST = 0.15  # of the 99.9th percentile: about a quarter of white matter in a T1w
FROM_EDGE_MM = 6.0
NEAR_MM = 6.0  # a finding further from the blob than this found something else


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that the verdict needs besides the result, normalised as the pipeline does it."""

    measured: np.ndarray
    measured_mask: np.ndarray
    measured_mm: tuple[float, float, float]
    low_affine: np.ndarray
    noise_sigma: float
    scale: Scale
    model: AcquisitionModel
    upsampled: np.ndarray
    mask: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, low: Volume, grid: Grid) -> "Scene":
        """Return the scene of an input and the grid of its result."""
        mask = head_mask(low.array)
        normal, scale = normalise(low.array, mask)
        acquired = acquired_of_volume(low)
        inside = interpolate(low.with_array(mask.astype(np.float32)), grid).array > 0.5
        return cls(
            measured=normal,
            measured_mask=mask,
            measured_mm=acquired.acquired_voxel_mm,
            low_affine=low.affine,
            noise_sigma=estimate_noise_sigma(normal, mask).sigma,
            scale=scale,
            model=AcquisitionModel.from_grids(
                grid.shape, grid.affine, low.array.shape, low.affine, profiles=acquired.profiles
            ),
            upsampled=interpolate(low.with_array(normal), grid).array,
            mask=inside,
            grid=grid,
        )

    def judged(self, output: np.ndarray, spread: np.ndarray) -> QualityReport:
        """Return the verdict on a normalised result."""
        return judge(
            measured=self.measured,
            predicted_low=self.model.forward(output),
            measured_mask=self.measured_mask,
            measured_spacing_mm=self.measured_mm,
            noise_sigma=self.noise_sigma,
            output=output,
            upsampled=self.upsampled,
            spread=spread,
            mask=self.mask,
        )

    def away_mm(self, report: QualityReport, voxel: tuple[int, int, int]) -> float:
        """Return how far the finding of a verdict is from a voxel of the result."""
        low = [report.figures[f"blob_{name}"] - 1 for name in ("slice", "row", "column")]
        here = self.low_affine @ [*low, 1]
        return float(np.linalg.norm((here - self.grid.affine @ [*voxel, 1])[:3]))


def caught_blobs(
    low: Volume, outcome: Outcome, case: Case, count: int, contrast: float = CONTRAST
) -> dict:
    """Return how many of `count` planted blobs of each size make the verdict hold the result.

    Caught means held, for a structure that is where the blob was planted.
    """
    scene = Scene.of(low, grid_like(case.volume.affine, case.volume.array.shape))
    plain = outcome.array / np.float32(scene.scale.divisor)
    spread = np.zeros_like(plain) if outcome.spread is None else outcome.spread
    spread = spread / np.float32(scene.scale.divisor)
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    deep = ndimage.distance_transform_edt(case.mask, sampling=case.spacing_mm) > FROM_EDGE_MM
    places = scattered(deep & (plain > contrast), count, case.spacing_mm, 0.0, rng)
    found = {}
    for size_mm in SIZES_MM:
        caught = 0
        for number, place in enumerate(places):
            box, share = sphere(plain.shape, case.spacing_mm, place, size_mm)
            output = plain.copy()
            output[box] += np.float32(contrast if number % 2 else -contrast) * share
            report = scene.judged(np.maximum(output, 0), spread)
            caught += not report.passed and scene.away_mm(report, place) <= NEAR_MM
        found[f"{size_mm:g} mm"] = {"planted": len(places), "caught": caught, "contrast": contrast}
    return found
