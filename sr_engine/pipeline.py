"""The way of one series through the engine: a list of steps, each timed.

read -> normalise -> b, g -> one interpolation -> student along three axes -> fuse -> data
consistency -> judge -> scanner units -> derived series.
"""

import hashlib
import math
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume

from sr_engine import __version__
from sr_engine.dicom.kinds import CLASSIC
from sr_engine.dicom.outputs import write_outputs
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.reader import SourceSeries, read_series
from sr_engine.dicom.seal import Signer
from sr_engine.dicom.template import JobIdentity
from sr_engine.dicom.writer import WrittenSeries
from sr_engine.fusion import axis_weights, fuse
from sr_engine.inference import MEMORY_MIB, NetworkInput, predict_triaxial
from sr_engine.model.bundle import Bundle
from sr_engine.physics.bias_field import estimate_bias_field, without_field
from sr_engine.physics.data_consistency import hold_to_data
from sr_engine.physics.forward_model import (
    Acquisition,
    AcquisitionModel,
    Profile,
    choose_profiles,
)
from sr_engine.physics.gradient_nonlinearity import GradientMap, displacement_map
from sr_engine.physics.intensity import (
    estimate_noise_sigma,
    head_mask,
    normalise,
    refuse_negative,
)
from sr_engine.physics.noise_reduction import reduce_noise
from sr_engine.physics.resample import Grid, interpolate, target_grid
from sr_engine.physics.small_structures import keep_small_structures
from sr_engine.quality import QualityReport, judge
from sr_engine.recipe import Recipe
from sr_engine.threads import one_blas_thread
from sr_engine.timing import Stages

SOFTWARE = "DICOM-NODE AI-SR"
Progress = Callable[[str, float], None]
Predict = Callable[..., list[np.ndarray]]  # as `inference.predict_triaxial`


def silent(stage: str, share: float) -> None:
    """Take the progress of a job and say nothing."""


@dataclass(frozen=True, kw_only=True)
class Acquired:
    """What is known of how a volume was measured.

    Attributes
    ----------
    profiles           how each array axis was sampled
    acquired_voxel_mm  true resolution along each array axis
    """

    profiles: tuple[Profile, Profile, Profile]
    acquired_voxel_mm: tuple[float, float, float]
    manufacturer: str = ""
    model: str = ""
    image_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Enhancement:
    """An enhanced volume in the input's units, its spread over the axes, and the verdict."""

    volume: Volume
    spread: np.ndarray
    report: QualityReport
    gradient: GradientMap
    noise_method: str
    stages: Stages


@dataclass(frozen=True, kw_only=True)
class EnhanceResult:
    """A derived series on disk and everything that led to it."""

    outputs: tuple[WrittenSeries, ...]  # every series that was written, images first
    report: QualityReport
    provenance: Provenance
    stages: Stages
    shape: tuple[int, ...]  # of the derived volume: slices, rows, columns

    @property
    def written(self) -> WrittenSeries:
        """Return the derived image, in its first form."""
        return self.outputs[0]


def acquired_of_series(source: SourceSeries) -> Acquired:
    """Return what the headers say about the acquisition."""
    header = source.headers[0]
    acquisition: Acquisition = "3D" if source.acquisition == "3D" else "2D"
    return Acquired(
        profiles=choose_profiles(acquisition, source.spacing_mm, source.acquired_voxel_mm),
        acquired_voxel_mm=source.acquired_voxel_mm,
        manufacturer=str(header.get("Manufacturer", "")),
        model=str(header.get("ManufacturerModelName", "")),
        image_types=tuple(header.get("ImageType") or ()),
    )


def acquired_of_volume(volume: Volume) -> Acquired:
    """Return what can be guessed of a volume without headers: a NIfTI file."""
    spacing = _spacing(volume)
    return Acquired(profiles=choose_profiles(None, spacing, spacing), acquired_voxel_mm=spacing)


@one_blas_thread()
def enhance_volume(
    volume: Volume,
    acquired: Acquired,
    recipe: Recipe,
    bundle: Bundle,
    *,
    like: Grid | None = None,
    device: str = "auto",
    memory_mib: int = MEMORY_MIB,
    progress: Progress = silent,
    stages: Stages | None = None,
    predict: Predict = predict_triaxial,
) -> Enhancement:
    """Return the enhanced volume.

    Parameters
    ----------
    volume
        float32, any non-negative unit; slightly negative where an interpolation has rung.
    like
        Target grid; default: `recipe.spacing_mm`, finer where the acquisition was finer.
    predict
        Runs the network; an evaluation of several recipes runs it once for all.
    memory_mib
        What the network may take beside the volumes.

    Raises
    ------
    InputRefused
        If the volume holds no head, or its values are no numbers or clearly negative.
    GeometryError
        If the axes of `like` are not parallel to the volume's.
    """
    stages = stages or Stages()
    with stages.stage("normalise"):
        refuse_negative(volume.array, "the volume")
        mask = head_mask(volume.array)
        normal, scale = normalise(volume.array, mask)
        noise = estimate_noise_sigma(normal, mask, oversampling=_oversampling(volume, acquired))
    grid = like or target_grid(
        volume, spacing_mm=recipe.spacing_mm, acquired_voxel_mm=acquired.acquired_voxel_mm
    )
    progress("bias field", 0.02)
    with stages.stage("bias field"):
        wanted = recipe.use_bias_field or recipe.correct_bias
        bias = estimate_bias_field(volume, mask) if wanted else None
    with stages.stage("gradient nonlinearity"):
        gradient = displacement_map(
            volume,
            manufacturer=acquired.manufacturer,
            model=acquired.model,
            image_types=acquired.image_types,
            coefficient_dir=coefficient_folder(),
        )
    progress("interpolate", 0.05)
    with stages.stage("interpolate"):
        normal_volume = volume.with_array(normal)
        upsampled = interpolate(normal_volume, grid).array
        bias_log = None if bias is None else interpolate(volume.with_array(bias), grid).array
        given = NetworkInput(
            volume=upsampled,
            mask=interpolate(volume.with_array(mask.astype(np.float32)), grid).array > 0.5,
            bias_log=bias_log if recipe.use_bias_field else None,
            displacement_mm=_displacement_on(volume, gradient, grid, recipe),
            ratio=_ratio(acquired, grid),
            profile=_profile_names(acquired),
            noise=noise.sigma,
        )
    axes = (0, 1, 2) if recipe.triaxial else (0,)
    with stages.stage("student"):
        stacks = predict(
            given,
            bundle,
            steps=recipe.steps,
            axes=axes,
            device=device,
            seed=recipe.seed,
            memory_mib=memory_mib,
            progress=lambda share: progress("student", 0.08 + 0.8 * share),
        )
    progress("consistency", 0.9)
    with stages.stage("consistency"):
        weights = axis_weights(given.ratio, axes) if recipe.weighted_fusion else None
        fused = fuse(stacks, weights)
        model = AcquisitionModel.from_grids(
            grid.shape, grid.affine, volume.array.shape, volume.affine, profiles=acquired.profiles
        )
        finest_mm = float(min(_grid_spacing(grid)))
        mean = _held(model, fused.mean, normal, noise.sigma, mask, given.mask, finest_mm, recipe)
    with stages.stage("judge"):
        report = judge(
            measured=normal,
            predicted_low=model.forward(mean),
            measured_mask=mask,
            measured_spacing_mm=_spacing(volume),
            noise_sigma=noise.sigma,
            output=mean,
            upsampled=upsampled,
            spread=fused.spread,
            mask=given.mask,
        )
    # After the verdict: the measured data, which the result was held to, have the shading.
    shading = bias_log if recipe.correct_bias else None
    result = Volume(
        scale.back(without_field(mean, shading)),
        grid.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=volume.frame_of_reference_uid,
    )
    return Enhancement(
        volume=result,
        spread=scale.back(without_field(fused.spread, shading)),
        report=report,
        gradient=gradient,
        noise_method=noise.method,
        stages=stages,
    )


def enhance(
    paths: Iterable[Path],
    out_dir: Path,
    *,
    recipe: Recipe,
    job: JobIdentity,
    bundle: Bundle,
    device: str = "auto",
    memory_mib: int = MEMORY_MIB,
    incomplete_release: bool = False,
    kinds: Sequence[str] = (CLASSIC,),
    signer: Signer | None = None,
    progress: Progress = silent,
) -> EnhanceResult:
    """Write the derived series of the source instances in `paths` into `out_dir`.

    Equal inputs, recipe, weights and job give equal files, whoever runs it and how often.

    Parameters
    ----------
    kinds
        What is written, by the names of `dicom.kinds`.
    signer
        Vouches for every file; None: nobody does.

    Raises
    ------
    InputRefused
        If the source is at fault; the message names value and UID.
    WriteError
        If the series cannot be written.
    """
    stages = Stages()
    progress("read", 0.0)
    with stages.stage("read"):
        source = read_series(paths)
        refuse_negative(source.volume.array, f"series {source.series_uid}")
    result = enhance_volume(
        source.volume,
        acquired_of_series(source),
        recipe,
        bundle,
        device=device,
        memory_mib=memory_mib,
        progress=progress,
        stages=stages,
    )
    provenance = _provenance(source, result, recipe, job, bundle, incomplete_release)
    progress("write", 0.95)
    with stages.stage("write"):
        outputs = write_outputs(
            source,
            result.volume,
            out_dir=out_dir,
            recipe=recipe,
            provenance=provenance,
            job=job,
            kinds=kinds,
            spread=result.spread if recipe.triaxial else None,  # one axis disagrees with none
            findings=result.report.findings,
            signer=signer,
        )
    progress("done", 1.0)
    return EnhanceResult(
        outputs=outputs,
        report=result.report,
        provenance=outputs[0].provenance,
        stages=stages,
        shape=result.volume.array.shape,
    )


def coefficient_folder() -> Path:
    """Return the folder of gradient coefficient files: the checkout's, else the installed one."""
    here = Path(__file__).resolve().parents[1] / "config"
    installed = Path(sysconfig.get_path("data")) / "share" / "dicom-node" / "config"
    return (here if here.is_dir() else installed) / "gradient_nonlinearity"


def _provenance(
    source: SourceSeries,
    result: Enhancement,
    recipe: Recipe,
    job: JobIdentity,
    bundle: Bundle,
    incomplete_release: bool,
) -> Provenance:
    return Provenance(
        source_study_uid=source.study_uid,
        source_series_uid=source.series_uid,
        source_sop_uids=source.sop_uids,
        recipe=recipe.to_dict(),
        recipe_digest=recipe.digest(),
        bundle_name=bundle.name,
        bundle_sha256=bundle.sha256,
        software_name=SOFTWARE,
        software_version=__version__,
        generation=job.generation,
        job_id=str(job.job_id),
        created=job.created.isoformat(),
        bias_field=_use_of_bias_field(recipe),
        gradient_nonlinearity=f"{result.gradient.status}: {result.gradient.reason}",
        quality={k: round(float(v), 6) for k, v in result.report.figures.items()},
        incomplete_release=incomplete_release,
        source_sha256=source_digest(source),
    )


def _use_of_bias_field(recipe: Recipe) -> str:
    uses = {"guidance": recipe.use_bias_field, "applied": recipe.correct_bias}
    return " and ".join(use for use, wanted in uses.items() if wanted) or "switched off"


def source_digest(source: SourceSeries) -> str:
    """Return the SHA-256 of the source volume and its place, whatever its files' encoding."""
    content = hashlib.sha256(np.ascontiguousarray(source.volume.array, "<f4").tobytes())
    content.update((np.round(source.volume.affine, 4) + 0.0).astype("<f8").tobytes())
    return content.hexdigest()


def _held(
    model: AcquisitionModel,
    mean: np.ndarray,
    measured: np.ndarray,
    sigma: float,
    measured_mask: np.ndarray,
    mask: np.ndarray,
    spacing_mm: float,
    recipe: Recipe,
) -> np.ndarray:
    """Return what the network made, held to the data: consistent, calm, its small structures kept.

    The order matters: noise reduction weakens small structures, and the noise that it finds hidden
    is noise to whoever looks for them.
    """
    if recipe.data_consistency:
        volume = hold_to_data(
            model, mean, measured, sigma, measured_mask, weight=recipe.consistency_weight
        )
    else:
        volume = np.maximum(mean, 0)
    hidden = 0.0
    if recipe.reduce_noise:
        volume, hidden = reduce_noise(volume, mask, spacing_mm, sigma)
    if recipe.data_consistency and recipe.keep_small_structures:
        noise = math.hypot(sigma, hidden) if sigma > 0 else 0.0
        volume = keep_small_structures(model, volume, measured, noise, measured_mask)
    return volume


def _displacement_on(
    volume: Volume, gradient: GradientMap, grid: Grid, recipe: Recipe
) -> np.ndarray | None:
    """Return the displacement along the array axes on the target grid, None where unknown."""
    if not (gradient.valid and recipe.use_gradient_map):
        return None
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    along = np.tensordot(directions.T, gradient.displacement_mm, axes=1).astype(np.float32)
    return np.stack([interpolate(volume.with_array(part), grid).array for part in along])


def _spacing(volume: Volume) -> tuple[float, float, float]:
    k, i, j = np.linalg.norm(volume.affine[:3, :3], axis=0)
    return float(k), float(i), float(j)


def _grid_spacing(grid: Grid) -> Sequence[float]:
    return np.linalg.norm(np.asarray(grid.affine)[:3, :3], axis=0)


def _ratio(acquired: Acquired, grid: Grid) -> tuple[float, float, float]:
    k, i, j = np.asarray(acquired.acquired_voxel_mm) / _grid_spacing(grid)
    return float(k), float(i), float(j)


def _profile_names(acquired: Acquired) -> tuple[str, str, str]:
    k, i, j = (profile.name for profile in acquired.profiles)
    return k, i, j


def _oversampling(volume: Volume, acquired: Acquired) -> tuple[float, ...]:
    return tuple(a / s for a, s in zip(acquired.acquired_voxel_mm, _spacing(volume), strict=True))
