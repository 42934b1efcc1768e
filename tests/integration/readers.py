"""What readers that are not ours make of a DICOM series: dcm2niix, SimpleITK, highdicom."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import SimpleITK

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Read:
    """A volume and its affine, index -> LPS mm of the voxel's centre."""

    array: np.ndarray
    affine: np.ndarray

    @property
    def corners(self) -> np.ndarray:
        """Return the outer corners (8, 3) in LPS mm, in an order that no axis decides."""
        ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.array.shape], indexing="ij"))
        corners = ends.reshape(3, -1).T @ self.affine[:3, :3].T + self.affine[:3, 3]
        return corners[np.lexsort(np.rint(corners * 10).T)]


def with_dcm2niix(folder: Path, work: Path) -> Read:
    """Return the only volume that dcm2niix finds."""
    work.mkdir(parents=True, exist_ok=True)
    command = ["/usr/bin/dcm2niix", "-b", "n", "-z", "n", "-f", "volume", "-o", work, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    found = sorted(work.glob("*.nii"))
    assert len(found) == 1, (found, done.stdout)
    image = nibabel.load(found[0])
    return Read(array=np.asarray(image.dataobj), affine=LPS_FROM_RAS @ image.affine)


def with_simpleitk(folder: Path, work: Path) -> Read:
    """Return the series in the folder as ITK reads it; array axes are (i, j, k) of the image."""
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(names)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Read(array=SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), affine=affine)


def with_highdicom(folder: Path, work: Path) -> Read:
    """Return the series in the folder as highdicom reads it."""
    datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    volume = highdicom.get_volume_from_series(datasets)
    return Read(array=volume.array, affine=volume.affine)


READERS: dict[str, Callable[[Path, Path], Read]] = {
    "dcm2niix": with_dcm2niix,
    "SimpleITK": with_simpleitk,
    "highdicom": with_highdicom,
}
