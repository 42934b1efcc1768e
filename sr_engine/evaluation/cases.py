"""The reference volumes and the inputs made of them.

Reference: a volume cropped to the head with a margin of 8 voxels, sides multiples of 8, divided by
the 99.9th percentile in the mask. Inputs: ``iso2`` (half the samples on three axes, centre of
k-space) and ``thick4`` (mean of 4 neighbours along S-I) are those of the protocol, in voxels of the
reference; every other number is in mm: ``iso1.5`` is 1.5 x 1.5 x 1.5 mm, ``thick5`` 1 x 1 x 5 mm.
``_snr25`` adds Rician noise, ``_snr0`` none.
"""

import csv
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from highdicom import Volume

from sr_engine.errors import InputRefused
from sr_engine.nifti import read_nifti
from sr_engine.physics.forward_model import ProfileName, add_rician_noise, shared_field, simulate
from sr_engine.physics.intensity import head_mask

MARGIN, MULTIPLE = 8, 8
FINEST_MM = 1.5  # a coarser volume is no reference
IN_PLANE_MM = 1.0  # of a thick slice given in mm
FINER = 0.98  # a reference voxel must be below this times the input's to be degraded at all
PROTOCOL = {"iso2": (2, 2, 2), "thick4": (1, 1, 4)}
NAME = re.compile(r"(iso|thick)(\d+(?:\.\d+)?)_snr(\d+)")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reference volume in RAS axis order, normalised, with its head mask."""

    name: str
    volume: Volume
    mask: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the voxel sizes along the array axes."""
        r, a, s = np.linalg.norm(self.volume.affine[:3, :3], axis=0).tolist()
        return r, a, s

    def with_array(self, array: np.ndarray) -> "Case":
        """Return the case with other intensities."""
        return replace(self, volume=self.volume.with_array(array.astype(np.float32)))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A low-resolution input and the true noise of one channel on it."""

    name: str
    volume: Volume
    sigma: float


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """What an input's name says."""

    kind: str
    snr: int
    low_mm: tuple[float, float, float]
    profiles: tuple[ProfileName, ProfileName, ProfileName]


def judged(
    data: Path, contrast: str = "T1w", use: str = "evaluation", cases: str = ""
) -> list[Path]:
    """Return the volumes of a manifest that can serve as a reference.

    Choices are made on those of `use` "validation", claims on "evaluation". The T1w of the MS
    patients are resampled thick slices and left out. `cases` is a text that the names must hold.

    Raises
    ------
    InputRefused
        If there is none: a report without rows would look like one that found nothing wrong.
    """
    with (data / "manifest.csv").open(newline="") as file:
        paths = [
            data / row["file"]
            for row in csv.DictReader(file)
            if row["use"] == use
            and row["contrast"].startswith(contrast)
            and not (contrast == "T1w" and row["file"].startswith("ms_"))
            and max(float(v) for v in row["voxel_mm"].split("x")) <= FINEST_MM
            and cases in row["file"]
        ]
    if not paths:
        named = f" with {cases!r} in its name" if cases else ""
        raise InputRefused(
            f"{data}: no volume{named} can be a {contrast} reference "
            f"(use {use}, voxels of at most {FINEST_MM} mm)"
        )
    return paths


def read_case(path: Path) -> Case:
    """Return the reference of a NIfTI file."""
    volume = read_nifti(path).to_patient_orientation("RAS")  # array axes run R, A, S
    array = np.clip(volume.array, 0, None)
    mask = head_mask(array)
    box = reference_box(mask)
    array, mask = array[box], mask[box]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    normal = (array / np.percentile(array[mask], 99.9)).astype(np.float32)
    return Case(
        name=path.name.split(".nii")[0],
        volume=Volume(normal, affine, coordinate_system="PATIENT"),
        mask=mask,
    )


def reference_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box of the head with its margin, sides multiples of 8."""
    window = []
    for axis, n in enumerate(mask.shape):
        where = np.nonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[0]
        low, high = max(0, int(where[0]) - MARGIN), min(n, int(where[-1]) + 1 + MARGIN)
        window.append(slice(low, low + (high - low) // MULTIPLE * MULTIPLE))
    return window[0], window[1], window[2]


def degradation(name: str, spacing_mm: tuple[float, float, float]) -> Degradation:
    """Return what the input `name` means for a reference of these voxels.

    Raises
    ------
    InputRefused
        If the name cannot be read.
    """
    read = NAME.fullmatch(name)
    if read is None:
        raise InputRefused(f"unknown input {name!r}: iso2_snr25, thick4_snr0, iso1.5_snr25 ...")
    form, size_mm, kind = read[1], float(read[2]), read[1] + read[2]
    r, a, s = spacing_mm
    if kind in PROTOCOL:
        low_mm = tuple(mm * f for mm, f in zip(spacing_mm, PROTOCOL[kind], strict=True))
    elif form == "iso":
        low_mm = (size_mm, size_mm, size_mm)
    else:
        low_mm = (max(r, IN_PLANE_MM), max(a, IN_PLANE_MM), size_mm)
    profiles: tuple[ProfileName, ProfileName, ProfileName] = (
        ("kspace", "kspace", "kspace") if form == "iso" else ("kspace", "kspace", "box")
    )
    return Degradation(
        kind=kind, snr=int(read[3]), low_mm=(low_mm[0], low_mm[1], low_mm[2]), profiles=profiles
    )


def is_finer(case: Case, name: str) -> bool:
    """Return whether the reference is fine enough for the input `name` to lose anything."""
    wanted = degradation(name, case.spacing_mm)
    finer = [mm < FINER * low for mm, low in zip(case.spacing_mm, wanted.low_mm, strict=True)]
    return all(finer) if wanted.kind.startswith("iso") else finer[2]


def make_input(case: Case, name: str, sigma: float | None = None) -> Measured:
    """Return the low-resolution input `name`, e.g. ``iso2_snr25``, of a case.

    Parameters
    ----------
    sigma
        Noise of one channel; default: as the name says. Two versions of one case get equal noise
        when they get equal sigma.
    """
    wanted = degradation(name, case.spacing_mm)
    _, affine = shared_field(case.volume.array.shape, case.volume.affine, wanted.low_mm)
    low = simulate(case.volume.array, case.spacing_mm, wanted.low_mm, profiles=wanted.profiles)
    if sigma is None:
        inside = nearest(case.mask, low.shape)
        sigma = float(low[inside].mean()) / wanted.snr if wanted.snr else 0.0
    if sigma:
        low = add_rician_noise(low, sigma, zlib.crc32((case.name + wanted.kind).encode()))
    volume = Volume(low.astype(np.float32), affine, coordinate_system="PATIENT")
    return Measured(name=name, volume=volume, sigma=sigma)


def nearest(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `mask` at the centres of the voxels of a coarser grid in the same field of view."""
    index = [
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*index)]
