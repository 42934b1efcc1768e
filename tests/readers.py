"""Independent readers of a derived image: highdicom, SimpleITK, dcm2niix. None is ours.

Each returns the volume as (values, affine): the affine maps (column, row, slice, 1) to LPS mm.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import highdicom
import nibabel
import numpy as np
import SimpleITK as sitk
from pydicom import dcmread

Read = tuple[np.ndarray, np.ndarray]
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def by_highdicom(paths: Sequence[Path]) -> Read:
    """Read with highdicom."""
    if len(paths) == 1:
        volume = highdicom.imread(paths[0]).get_volume()
    else:
        volume = highdicom.get_volume_from_series([dcmread(path) for path in paths])
    affine = volume.affine[:, [2, 1, 0, 3]]
    return np.transpose(volume.array, (2, 1, 0)), affine


def by_simpleitk(paths: Sequence[Path]) -> Read:
    """Read with SimpleITK (GDCM)."""
    if len(paths) == 1:
        image = sitk.ReadImage(str(paths[0]))
    else:
        reader = sitk.ImageSeriesReader()
        folder = str(paths[0].parent)
        uid = str(dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID)
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, uid))
        image = reader.Execute()
    affine = np.eye(4)
    directions = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3] = directions * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.transpose(sitk.GetArrayFromImage(image), (2, 1, 0)), affine


def by_dcm2niix(paths: Sequence[Path]) -> Read:
    """Read with dcm2niix, which turns axes as NIfTI likes them."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        given, out = folder / "in", folder / "out"
        given.mkdir()
        out.mkdir()
        for path in paths:
            (given / path.name).symlink_to(path.resolve())
        command = ["dcm2niix", "-f", "volume", "-o", str(out), str(given)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        (file,) = out.glob("*.nii")
        image = nibabel.load(file)
        return np.asarray(image.dataobj), RAS_TO_LPS @ image.affine


READERS = {"highdicom": by_highdicom, "SimpleITK": by_simpleitk, "dcm2niix": by_dcm2niix}


def placed(read: Read) -> np.ndarray:
    """Return the place of every outermost voxel, in an order of its own: (8, 4), mm and value.

    What a reader calls rows, or where it begins to count, does not matter.
    """
    values, affine = read
    corners = [(0, n - 1) for n in values.shape]
    indices = np.array(np.meshgrid(*corners, indexing="ij")).reshape(3, -1)
    places = (affine @ np.vstack([indices, np.ones(8)]))[:3].T
    stored = values[tuple(indices)].astype(float)
    table = np.column_stack([places, stored])
    return table[np.lexsort(np.round(places, 2).T)]
