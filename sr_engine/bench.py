"""Time and memory of one job by stage, beside a plain run of the same network."""

import os
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
from sr_engine.model.diffusion import SuperResolver, parameter_count
from sr_engine.model.run import computes_in_half, predict_slices
from sr_engine.model.speed import SLICE, macs_per_slice, roofline, volume_seconds
from sr_engine.pipeline import enhance
from sr_engine.recipe import Recipe

Progress = Callable[[str, float], None]
WHOLE_HEAD = (180, 224, 224)  # voxels of 1 mm: 258 x 320 x 320 of 0.7 mm come out
PLAIN_SLICES = 2  # of the plain run are timed an axis; the rest would take as long each


def synthetic_head(shape: tuple[int, int, int] = WHOLE_HEAD) -> Volume:
    """Return a head-like volume of ellipsoids, 1 mm voxels, in scanner units."""
    k, i, j = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    radius = np.sqrt((k / 0.9) ** 2 + (i / 0.85) ** 2 + (j / 0.7) ** 2)
    folds = 0.5 + 0.5 * np.sin(18 * i) * np.sin(17 * j) * np.sin(18 * k)
    array = np.select([radius < 0.3, radius < 0.8, radius < 0.9], [300, 500 + 150 * folds, 120], 0)
    noise = np.random.default_rng(1).normal(0, 12, (2, *shape))
    array = np.hypot(array + noise[0], noise[1])
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    affine[:3, 3] = -np.array(shape)[::-1] / 2
    return Volume(array.astype(np.float32), affine, coordinate_system="PATIENT")


def plain_seconds(
    model: SuperResolver, shape: tuple[int, ...], steps: int, device: torch.device
) -> float:
    """Return what a plain float32 run of the network over a volume of `shape` takes.

    Every slice of the three axes, one at a time, air and all, in torch's default memory layout.
    """
    model = model.to(device, memory_format=torch.contiguous_format)
    return volume_seconds(
        lambda given: predict_slices(model, given, steps=steps),
        model,
        shape,
        device,
        timed=PLAIN_SLICES,
    )


def bench(
    source: Path | None, *, steps: int, weights: str, device: str, progress: Progress
) -> dict:
    """Return seconds and peak memory by stage of one series, DICOM in and DICOM out.

    Parameters
    ----------
    source
        Folder of one series; None makes a whole head, 258 x 320 x 320 at 0.7 mm.
    """
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
    student = result.stages.seconds["student"]
    progress("plain run", 0.0)
    plain = plain_seconds(loaded.model, result.shape, steps, place)
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "weights_sha256": loaded.sha256,
        "parameters": parameter_count(loaded.model),
        "bfloat16": computes_in_half(place),
        "load": [round(load, 1) for load in os.getloadavg()],
        "macs_per_slice": macs_per_slice(loaded.model, steps),
        "roofline": roofline(loaded.model, result.shape, steps),
        "steps": steps,
        "instances_in": len(paths),
        "instances_out": len(result.written.paths),
        "shape": list(result.shape),
        "passed": result.report.passed,
        "seconds": result.stages.seconds,
        "seconds_total": round(sum(result.stages.seconds.values()), 2),
        "cpu_seconds": result.stages.cpu_seconds,
        "cpu_seconds_total": round(sum(result.stages.cpu_seconds.values()), 2),
        "plain_seconds": round(plain, 2),
        "plain_over_student": round(plain / student, 2),
        "peak_mib": result.stages.peak_mib,
        "peak_gpu_mib": round(peak_gpu, 1),
    }


def table(report: dict) -> str:
    """Return the report as lines for a terminal."""
    lines = [
        f"{report['instances_in']} instances in, {report['instances_out']} out "
        f"({' x '.join(map(str, report['shape']))}), "
        f"{report['steps']} steps, {report['device']}, {report['threads']} threads",
        f"{'stage':<24}{'seconds':>10}{'CPU s':>10}{'peak MiB':>12}",
    ]
    for stage, seconds in report["seconds"].items():
        cpu_seconds, peak_mib = report["cpu_seconds"][stage], report["peak_mib"][stage]
        lines.append(f"{stage:<24}{seconds:>10.2f}{cpu_seconds:>10.2f}{peak_mib:>12.0f}")
    totals = report["seconds_total"], report["cpu_seconds_total"]
    lines.append(f"{'total':<24}{totals[0]:>10.2f}{totals[1]:>10.2f}")
    lines.append(
        f"the network alone, plain float32 on every slice: {report['plain_seconds']:.1f} s, "
        f"{report['plain_over_student']:.2f} times the student stage; "
        f"{report['macs_per_slice'] / 1e9:.2f} GMAC a slice of {SLICE} x {SLICE}"
    )
    return "\n".join(lines)
