"""The evaluation protocol inside the product: degrade, run, score.

Reference: a volume cropped to the head with a margin of 8 voxels, sides multiples of 8, divided by
the 99.9th percentile in the mask. Inputs: iso2 (half the samples on three axes, centre of k-space)
and thick4 (mean of 4 neighbours along S-I), each with Rician noise at SNR 25 and without.
"""

import csv
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume
from scipy import fft

from sr_engine.errors import InputRefused
from sr_engine.model import bundle as bundles
from sr_engine.nifti import read_nifti, write_nifti
from sr_engine.physics.forward_model import ProfileName, add_rician_noise, shared_field, simulate
from sr_engine.physics.intensity import head_mask
from sr_engine.physics.resample import grid_like, interpolate
from sr_engine.pipeline import acquired_of_volume, enhance_volume
from sr_engine.recipe import Recipe
from sr_engine.training.metrics import fsc_resolution_mm, psnr_db, ssim

MARGIN, MULTIPLE = 8, 8
INPUTS: dict[str, tuple[tuple[int, int, int], tuple[ProfileName, ProfileName, ProfileName]]] = {
    "iso2": ((2, 2, 2), ("kspace", "kspace", "kspace")),
    "thick4": ((1, 1, 4), ("identity", "identity", "box")),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reference volume in RAS axis order, normalised, with its head mask."""

    name: str
    volume: Volume
    mask: np.ndarray


def read_case(path: Path) -> Case:
    """Return the reference of a NIfTI file."""
    volume = read_nifti(path).to_patient_orientation("RAS")  # array axes run R, A, S
    array = np.clip(volume.array, 0, None)
    mask = head_mask(array)
    window = []
    for axis, n in enumerate(array.shape):
        where = np.nonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[0]
        low, high = max(0, int(where[0]) - MARGIN), min(n, int(where[-1]) + 1 + MARGIN)
        window.append(slice(low, low + (high - low) // MULTIPLE * MULTIPLE))
    box = window[0], window[1], window[2]
    array, mask = array[box], mask[box]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    normal = (array / np.percentile(array[mask], 99.9)).astype(np.float32)
    return Case(
        name=path.name.split(".nii")[0],
        volume=Volume(normal, affine, coordinate_system="PATIENT"),
        mask=mask,
    )


def make_input(case: Case, name: str) -> Volume:
    """Return the low-resolution input `name`, e.g. ``iso2_snr25``, of a case.

    Raises
    ------
    InputRefused
        If there is no input of that name.
    """
    kind, _, snr = name.partition("_snr")
    if kind not in INPUTS or not snr.isdigit():
        raise InputRefused(f"unknown input {name!r}: iso2_snr25, iso2_snr0, thick4_snr25 ...")
    factors, profiles = INPUTS[kind]
    spacing = np.linalg.norm(case.volume.affine[:3, :3], axis=0)
    low_mm = [float(s * f) for s, f in zip(spacing, factors, strict=True)]
    _, affine = shared_field(case.volume.array.shape, case.volume.affine, low_mm)
    low = np.abs(simulate(case.volume.array, spacing.tolist(), low_mm, profiles=profiles))
    if int(snr):
        inside = case.mask[tuple(slice(f // 2, None, f) for f in factors)]
        seed = zlib.crc32((case.name + kind).encode())
        low = add_rician_noise(low, float(low[inside].mean()) / int(snr), seed)
    return Volume(low.astype(np.float32), affine, coordinate_system="PATIENT")


def zero_fill(low: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return `low` on `shape`, both sharing one field of view, by padding k-space with zeros."""
    high = low.astype(np.complex64)
    for axis, n in enumerate(shape):
        m = low.shape[axis]
        if m == n:
            continue
        spectrum = np.moveaxis(fft.fft(high, axis=axis), axis, -1)
        wave = np.rint(fft.fftfreq(m) * m).astype(int)  # signed index of each component
        shift = np.exp(-2j * np.pi * wave / n * (0.5 * n / m - 0.5)).astype(np.complex64)
        padded = np.zeros((*spectrum.shape[:-1], n), np.complex64)
        padded[..., wave % n] = spectrum * shift
        high = np.moveaxis(fft.ifft(padded, axis=-1), -1, axis) * np.float32(n / m)
    return np.abs(high).astype(np.float32)


def run_method(
    method: str, low: Volume, case: Case, steps: int, weights: bundles.Bundle | None, device: str
) -> np.ndarray:
    """Return what `method` makes of an input, on the grid of the reference.

    Raises
    ------
    InputRefused
        If there is no such method.
    """
    grid = grid_like(case.volume.affine, case.volume.array.shape)
    if method == "cubic":
        return interpolate(low, grid).array
    if method == "zerofill":
        return zero_fill(low.array, case.volume.array.shape)
    if method != "student" or weights is None:
        raise InputRefused(f"unknown method {method!r}: student, cubic or zerofill")
    recipe = Recipe(steps=steps)
    acquired = acquired_of_volume(low)
    result = enhance_volume(low, acquired, recipe, weights, like=grid, device=device)
    return result.volume.array


def evaluate(
    data: Path,
    *,
    methods: Sequence[str],
    inputs: Sequence[str],
    cases: str = "",
    steps: int = 4,
    weights: str = "default",
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict:
    """Return rows of scores for every case, input and method, and their means.

    Parameters
    ----------
    data
        Folder with a manifest.csv; its rows marked `evaluation`, T1w and at most 1.5 mm are cases.
    """
    loaded = bundles.load(weights) if "student" in methods else None
    rows = []
    for path in judged(data):
        if cases not in path.name:
            continue
        case = read_case(path)
        voxel_mm = tuple(np.linalg.norm(case.volume.affine[:3, :3], axis=0))
        for name in inputs:
            low = make_input(case, name)
            for method in methods:
                result = run_method(method, low, case, steps, loaded, device)
                row = {
                    "case": case.name,
                    "input": name,
                    "method": method,
                    "psnr_db": round(psnr_db(result, case.volume.array, case.mask), 3),
                    "ssim": round(ssim(result, case.volume.array, case.mask), 4),
                    "fsc05_mm": round(
                        fsc_resolution_mm(result, case.volume.array, case.mask, voxel_mm), 3
                    ),
                }
                rows.append(row)
                say("  ".join(str(value) for value in row.values()))
    means = mean_rows(rows)
    for row in means:
        say("mean  " + "  ".join(str(value) for value in row.values()))
    return {
        "weights_sha256": loaded.sha256 if loaded else "",
        "steps": steps,
        "rows": rows,
        "means": means,
    }


def judged(data: Path) -> list[Path]:
    """Return the evaluation volumes of a manifest that can serve as a reference."""
    with (data / "manifest.csv").open(newline="") as file:
        return [
            data / row["file"]
            for row in csv.DictReader(file)
            if row["use"] == "evaluation"
            and row["contrast"].startswith("T1w")
            and not row["file"].startswith("ms_")
            and max(float(v) for v in row["voxel_mm"].split("x")) <= 1.5
        ]


def mean_rows(rows: Sequence[dict]) -> list[dict]:
    """Return the mean scores for each input and method."""
    means = []
    for name, method in dict.fromkeys((row["input"], row["method"]) for row in rows):
        chosen = [r for r in rows if (r["input"], r["method"]) == (name, method)]
        scores = {
            key: round(float(np.mean([r[key] for r in chosen])), 4)
            for key in ("psnr_db", "ssim", "fsc05_mm")
        }
        means.append({"input": name, "method": method, "cases": len(chosen)} | scores)
    return means


def degrade_file(
    high: Path, low: Path, *, voxel_mm: tuple[float, float, float], snr: float, seed: int
) -> None:
    """Write what a scanner with `voxel_mm` would have measured of the NIfTI file `high`."""
    volume = read_nifti(high)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()
    profiles: list[ProfileName] = [
        "box" if wanted > 2 * min(voxel_mm) else "kspace" for wanted in voxel_mm
    ]
    array = np.clip(volume.array, 0, None)
    measured = simulate(
        array, spacing, voxel_mm, profiles=profiles, snr=snr, seed=seed, mask=head_mask(array)
    )
    _, affine = shared_field(volume.array.shape, volume.affine, voxel_mm)
    write_nifti(low, Volume(measured, affine, coordinate_system="PATIENT"))
