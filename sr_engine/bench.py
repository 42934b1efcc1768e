"""Time and peak memory of one job, by stage."""

import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from highdicom import Volume

from sr_engine.dicom.scanner import write_acquisition
from sr_engine.dicom.writer import JobIdentity
from sr_engine.inference import choose_device
from sr_engine.model import bundle as bundles
from sr_engine.model.diffusion import parameter_count
from sr_engine.pipeline import enhance
from sr_engine.recipe import Recipe

Progress = Callable[[str, float], None]


def synthetic_head(shape: tuple[int, int, int] = (48, 192, 192)) -> Volume:
    """Return a head-like volume of ellipsoids, 3 x 1 x 1 mm voxels, in scanner units."""
    k, i, j = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt((k / 0.9) ** 2 + (i / 0.85) ** 2 + (j / 0.7) ** 2)
    folds = 0.5 + 0.5 * np.sin(18 * i) * np.sin(17 * j) * np.sin(9 * k)
    array = np.select([radius < 0.3, radius < 0.8, radius < 0.9], [300, 500 + 150 * folds, 120], 0)
    noise = np.random.default_rng(1).normal(0, 12, (2, *shape))
    array = np.hypot(array + noise[0], noise[1])
    affine = np.array([[0, 0, 1.0, -96], [0, 1.0, 0, -96], [3.0, 0, 0, -72], [0, 0, 0, 1]])
    return Volume(array.astype(np.float32), affine, coordinate_system="PATIENT")


def bench(
    source: Path | None, *, steps: int, weights: str, device: str, progress: Progress
) -> dict:
    """Return seconds and peak memory by stage of one series, DICOM in and DICOM out."""
    loaded = bundles.load(weights)
    place = choose_device(device)
    with tempfile.TemporaryDirectory(prefix="sr-bench-") as folder:
        if source is None:
            paths = write_acquisition(synthetic_head(), Path(folder) / "in", tags={})
        else:
            paths = sorted(path for path in source.rglob("*") if path.is_file())
        out = Path(folder) / "out"
        out.mkdir()
        result = enhance(
            paths,
            out,
            recipe=Recipe(steps=steps),
            job=JobIdentity(job_id="bench", created=datetime.now(UTC)),
            bundle=loaded,
            device=device,
            progress=progress,
        )
    peak_gpu = torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else 0.0
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "weights_sha256": loaded.sha256,
        "parameters": parameter_count(loaded.model),
        "steps": steps,
        "instances_in": len(paths),
        "instances_out": len(result.written.paths),
        "passed": result.report.passed,
        "seconds": result.stages.seconds,
        "seconds_total": round(sum(result.stages.seconds.values()), 2),
        "peak_mib": result.stages.peak_mib,
        "peak_gpu_mib": round(peak_gpu, 1),
    }


def table(report: dict) -> str:
    """Return the report as lines for a terminal."""
    lines = [
        f"{report['instances_in']} instances in, {report['instances_out']} out, "
        f"{report['steps']} steps, {report['device']}, {report['threads']} threads",
        f"{'stage':<24}{'seconds':>10}{'peak MiB':>12}",
    ]
    for stage, seconds in report["seconds"].items():
        lines.append(f"{stage:<24}{seconds:>10.2f}{report['peak_mib'][stage]:>12.0f}")
    lines.append(f"{'total':<24}{report['seconds_total']:>10.2f}")
    return "\n".join(lines)
