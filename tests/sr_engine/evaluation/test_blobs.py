"""Large structures planted in a result are found by the verdict, and by their place."""

import numpy as np
import pytest

from sr_engine.evaluation.blobs import caught_blobs
from sr_engine.evaluation.cases import make_input, read_case
from sr_engine.evaluation.methods import Outcome
from sr_engine.evaluation.spheres import scattered, sphere


@pytest.mark.parametrize("diameter_mm", [2.0, 3.0, 5.0])
def test_a_sphere_has_its_volume_whatever_the_voxels(diameter_mm):
    _, share = sphere((30, 30, 30), (1.0, 0.7, 0.5), (15, 14, 13), diameter_mm)
    expected = np.pi / 6 * diameter_mm**3
    assert share.sum() * 0.35 == pytest.approx(expected, rel=0.05)
    assert share.max() == 1


def test_places_are_allowed_and_apart():
    allowed = np.zeros((40, 40, 40), bool)
    allowed[5:35, 5:35, 5:35] = True
    places = np.array(scattered(allowed, 10, (1, 1, 2), 9.0, np.random.default_rng(1)))
    apart = np.linalg.norm((places[:, None] - places) * (1, 1, 2), axis=-1)
    assert len(places) == 10 and allowed[tuple(places.T)].all()
    assert apart[np.triu_indices(10, 1)].min() >= 9


def test_blobs_of_5_mm_in_an_honest_result_are_caught(data):
    case = read_case(data / "brain.nii.gz")
    low = make_input(case, "iso2_snr50").volume
    honest = Outcome(array=case.volume.array, seconds=0.0, peak_mib=0.0)

    found = caught_blobs(low, honest, case, 6, contrast=0.3)

    assert found["5 mm"] == {"planted": 6, "caught": 6, "contrast": 0.3}
    assert found["3 mm"]["planted"] == 6
