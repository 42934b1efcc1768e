"""A NIfTI volume as a scanner with coarser voxels would have measured it."""

from pathlib import Path

import numpy as np
from highdicom import Volume

from sr_engine.nifti import read_nifti, write_nifti
from sr_engine.physics.forward_model import ProfileName, shared_field, simulate
from sr_engine.physics.intensity import head_mask


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
