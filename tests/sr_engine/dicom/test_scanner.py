"""What the phantom scanner writes looks like a scanner's series and is always the same."""

import numpy as np
import pydicom
from highdicom import Volume

from sr_engine.dicom.reader import read_series
from sr_engine.dicom.scanner import write_acquisition
from tests import phantoms


def test_the_same_volume_gives_the_same_files(tmp_path):
    one = phantoms.corner_series(tmp_path / "a").paths
    other = phantoms.corner_series(tmp_path / "b").paths

    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


def test_another_volume_or_tag_is_another_series_of_the_same_study(tmp_path):
    plain = pydicom.dcmread(phantoms.corner_series(tmp_path / "a").paths[0])
    tagged = pydicom.dcmread(phantoms.corner_series(tmp_path / "b", EchoTime=4).paths[0])
    turned = pydicom.dcmread(phantoms.corner_series(tmp_path / "c", "coronal").paths[0])

    series = {dataset.SeriesInstanceUID for dataset in (plain, tagged, turned)}
    assert len(series) == 3
    assert {d.StudyInstanceUID for d in (plain, tagged, turned)} == {plain.StudyInstanceUID}
    assert len({d.SOPInstanceUID for d in (plain, tagged, turned)}) == 3


def test_tags_override_the_protocol(tmp_path):
    volume, _ = phantoms.corner_volume()
    paths = write_acquisition(
        volume,
        tmp_path,
        tags={"MagneticFieldStrength": "3", "SeriesNumber": 9},
        patient_name="A^B",
        patient_id="77",
    )

    dataset = pydicom.dcmread(paths[0])
    assert (dataset.MagneticFieldStrength, dataset.SeriesNumber) == (3, 9)
    assert (str(dataset.PatientName), dataset.PatientID) == ("A^B", "77")


def test_values_beyond_twelve_bits_are_scaled_down(tmp_path):
    volume, _ = phantoms.corner_volume()
    bright = Volume(volume.array * 10, volume.affine, coordinate_system="PATIENT")

    source = read_series(write_acquisition(bright, tmp_path, tags={}))

    assert source.volume.array.max() == 4095
    expected = bright.array * (4095 / bright.array.max())
    assert np.abs(source.volume.array - expected).max() <= 0.51
