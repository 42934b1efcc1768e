"""Acquisition models that several tests measure with."""

import numpy as np

from sr_engine.physics.forward_model import AcquisitionModel, Profile


def twice_as_coarse(side: int) -> AcquisitionModel:
    """Return a scan of `side` voxels of 2 mm an axis, each two of the fine grid's along each."""
    low = np.diag([2.0, 2.0, 2.0, 1.0])
    high = np.diag([1.0, 1.0, 1.0, 1.0])
    high[:3, 3] = -0.5
    k_space = Profile(name="kspace", width_mm=2.0)
    return AcquisitionModel.from_grids(
        (2 * side,) * 3, high, (side,) * 3, low, profiles=[k_space] * 3
    )
