"""A small brain-like volume with a manifest, and weight files of small networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from highdicom import Volume
from scipy import ndimage

from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.nifti import write_nifti

SIDE = 64
HEADER = "file,use,contrast,voxel_mm"


def brain(side: int = SIDE) -> np.ndarray:
    """Return white matter around dark ventricles, under folded grey matter, 0 outside."""
    k, i, j = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij")
    radius = np.sqrt(k**2 + i**2 + j**2)
    angle = 0.06 * side * (np.sin(k / 2.5) + np.sin(i / 2.5) + np.sin(j / 2.5)) / 3
    array = np.zeros((side,) * 3)
    array[radius < 0.42 * side] = 450  # grey
    array[radius + angle < 0.34 * side] = 800  # white
    array[(k / 1.2) ** 2 + i**2 + (j / 1.6) ** 2 < (0.09 * side) ** 2] = 120  # ventricles
    return ndimage.gaussian_filter(array, 0.6) * (radius < 0.45 * side)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Return a folder with one reference of 1 mm and its manifest."""
    folder = tmp_path_factory.mktemp("volumes")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    volume = Volume(brain().astype(np.float32), affine, coordinate_system="PATIENT")
    write_nifti(folder / "brain.nii.gz", volume)
    (folder / "manifest.csv").write_text(f"{HEADER}\nbrain.nii.gz,evaluation,T1w,1x1x1\n")
    return folder


def save_network(path: Path, noise: float, seed: int = 3) -> Path:
    """Write weights; without noise the network gives its input back."""
    torch.manual_seed(seed)
    model = SuperResolver(ModelConfig(widths=(4, 8), condition_channels=4, condition_width=4))
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    bundle.save(path, model.eval(), {})
    return path


@pytest.fixture(scope="session")
def identity(tmp_path_factory) -> Path:
    """Return the weights of a network that changes nothing."""
    return save_network(tmp_path_factory.mktemp("weights") / "identity.safetensors", 0.0)


@pytest.fixture(scope="session")
def disturbed(tmp_path_factory) -> Path:
    """Return the weights of a network that makes its input worse, differently along each axis."""
    return save_network(tmp_path_factory.mktemp("weights") / "disturbed.safetensors", 0.12)
