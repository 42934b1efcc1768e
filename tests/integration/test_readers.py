"""Readers that are not ours see the derived series where they see its source."""

from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume

from sr_engine.dicom.reader import read_series
from sr_engine.dicom.scanner import write_acquisition
from tests import phantoms
from tests.integration.readers import READERS

AGREED_MM = 0.05
# Row and column direction of what patients rarely lie in, and scanners rarely cut.
POSITIONS = {
    "decubitus right": ("HFDR", [[0, 1, 0], [-1, 0, 0]]),
    "decubitus left, feet first": ("FFDL", [[0, -1, 0], [-1, 0, 0]]),
    "prone": ("HFP", [[-1, 0, 0], [0, -1, 0]]),
    "double-oblique": ("HFS", phantoms.ORIENTATIONS["double-oblique"]),
    "sagittal": ("HFS", phantoms.ORIENTATIONS["sagittal"]),
    "coronal": ("HFS", phantoms.ORIENTATIONS["coronal"]),
}
THICK_MM = (6.0, 0.9, 1.3)  # slice distance, row and column spacing


def thick_slices(folder: Path, position: str) -> list[Path]:
    """Write the phantom with gaps, pixels that are not square, and interleaved numbers."""
    stated, directions = POSITIONS[position]
    row, column = np.array(directions, float)
    volume, _ = phantoms.corner_volume(spacing_mm=THICK_MM)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([np.cross(row, column), column, row], axis=1) * np.array(THICK_MM)
    affine[:3, 3] = [-31.25, 17.5, -40.125]
    paths = write_acquisition(
        Volume(volume.array, affine, coordinate_system="PATIENT"),
        folder,
        tags={
            "PatientPosition": stated,
            "MRAcquisitionType": "2D",
            "SliceThickness": "5",
            "SpacingBetweenSlices": "1",  # the gap, as some scanners write it
        },
    )
    for index, path in enumerate(paths):
        number = 1 + (index * 2) % len(paths) + index * 2 // len(paths)
        phantoms.edit(path, lambda dataset, n=number: setattr(dataset, "InstanceNumber", n))
    return paths


def agreement_mm(source: Path, derived: Path, work: Path, names: list[str]) -> dict[str, float]:
    """Return how far the outer corners of both series lie apart, as each reader sees them."""
    apart = {}
    for name in names:
        theirs = READERS[name](source, work / f"{name}-source").corners
        ours = READERS[name](derived, work / f"{name}-derived").corners
        apart[name] = float(np.abs(theirs - ours).max())
    return apart


@pytest.mark.parametrize("position", POSITIONS)
def test_every_reader_sees_the_derived_series_in_the_place_of_the_source(
    position, programs, tmp_path
):
    paths = thick_slices(tmp_path / "in", position)
    source = read_series(paths)
    phantoms.derive(source, tmp_path / "out", volume=phantoms.finer(source, (6, 1, 1)))

    apart = agreement_mm(tmp_path / "in", tmp_path / "out", tmp_path, list(READERS))

    assert max(apart.values()) < AGREED_MM, apart


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("p01", list(READERS)),
        # Positions rounded to 0.1 mm: dcm2niix takes the first distance for all, highdicom none.
        ("p02", ["SimpleITK"]),
        ("p03", list(READERS)),
        ("p04", ["dcm2niix"]),  # the others read a folder of classic images
        ("p06", ["SimpleITK", "highdicom"]),  # Debian's dcm2niix decodes no fragments
    ],
)
def test_the_same_of_real_series(name, readers, programs, shared_series, tmp_path):
    source = read_series([shared_series(name)])
    phantoms.derive(source, tmp_path / "out", volume=phantoms.finer(source, (2, 1, 1)))

    apart = agreement_mm(shared_series(name), tmp_path / "out", tmp_path, readers)

    assert max(apart.values()) < AGREED_MM, apart
