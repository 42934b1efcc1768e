"""What the pipeline refuses before it computes anything."""

import pydicom
import pytest

from sr_engine.errors import UnsupportedInput
from sr_engine.pipeline import acquired_of_volume, enhance, enhance_volume
from sr_engine.recipe import Recipe
from tests import phantoms


def test_a_series_of_negative_tissue_is_refused_by_name(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", RescaleIntercept=-1000)
    uid = pydicom.dcmread(phantom.paths[0]).SeriesInstanceUID

    with pytest.raises(UnsupportedInput, match=f"series {uid} is no magnitude image: .*-9"):
        enhance(phantom.paths, tmp_path / "out", recipe=Recipe(), job=phantoms.JOB, bundle=None)


def test_a_volume_of_negative_tissue_is_refused():
    volume, _ = phantoms.corner_volume()
    negative = volume.with_array(volume.array - 1000)

    with pytest.raises(UnsupportedInput, match="the volume is no magnitude image"):
        enhance_volume(negative, acquired_of_volume(negative), Recipe(), bundle=None)
