"""NIfTI in and out: RAS files, LPS volumes."""

from pathlib import Path

import nibabel
import numpy as np
from highdicom import Volume

from sr_engine.errors import NotDicom, UnsupportedInput

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti(path: Path) -> Volume:
    """Return the volume of a NIfTI file, float32, in the file's own axis order and units.

    Raises
    ------
    NotDicom
        If the file cannot be read.
    UnsupportedInput
        If it is not three-dimensional.
    """
    try:
        image = nibabel.nifti1.Nifti1Image.from_filename(path)
        array = np.asanyarray(image.dataobj).astype(np.float32)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise NotDicom(f"{path}: no readable NIfTI file ({error})") from error
    if array.ndim != 3:
        raise UnsupportedInput(f"{path}: a volume has 3 dimensions, this file has {array.ndim}")
    return Volume(array, RAS_TO_LPS @ image.affine, coordinate_system="PATIENT")


def write_nifti(path: Path, volume: Volume) -> None:
    """Write `volume` as float32 NIfTI."""
    nibabel.save(nibabel.Nifti1Image(volume.array, RAS_TO_LPS @ volume.affine), path)
