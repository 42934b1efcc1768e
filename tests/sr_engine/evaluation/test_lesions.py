"""Planted lesions are counted as kept by a method that keeps them, and inventions are found."""

import json

import numpy as np
import pytest
from highdicom import Volume

from sr_engine.cli import main
from sr_engine.errors import InputRefused
from sr_engine.evaluation.cases import make_input, read_case
from sr_engine.evaluation.lesions import (
    Pair,
    choose_lesions,
    invented,
    lesion_rows,
    plant,
    widened,
)
from sr_engine.evaluation.real_lesions import contrast_kept
from sr_engine.evaluation.tissue import find_tissue
from sr_engine.nifti import write_nifti


@pytest.fixture(scope="module")
def case(data):
    return read_case(data / "brain.nii.gz")


@pytest.fixture(scope="module")
def lesions(case):
    return choose_lesions(case, 12, (2.0, 3.0, 5.0))


def test_white_matter_lies_around_the_ventricles_and_under_the_cortex(case):
    tissue = find_tissue(case.volume.array, case.mask, case.spacing_mm)
    assert tissue.white_mean == pytest.approx(case.volume.array.max(), rel=0.1)
    assert tissue.white.sum() > 5000
    assert (case.volume.array[tissue.cortex] < 0.9 * tissue.white_mean).all()
    assert tissue.near_ventricles.any() and not (tissue.near_ventricles & tissue.cortex).any()


def test_lesions_are_dark_and_bright_near_ventricles_and_cortical_and_apart(case, lesions):
    assert {lesion.site for lesion in lesions} == {"ventricle", "cortex"}
    assert {lesion.contrast > 0 for lesion in lesions} == {True, False}
    assert {lesion.size_mm for lesion in lesions} == {2.0, 3.0, 5.0}
    centres = np.array([lesion.centre for lesion in lesions])
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1)
    assert apart[np.triu_indices(len(lesions), 1)].min() >= 14


def test_without_tissue_there_is_nothing_to_plant_in(case):
    with pytest.raises(InputRefused, match="no white matter"):
        choose_lesions(case, 0, (2.0,))


def test_a_perfect_method_recovers_everything_and_a_blind_one_nothing(case, lesions):
    sick, added = plant(case, lesions)
    perfect = Pair(with_lesions=sick.volume.array, without=case.volume.array)
    blind = Pair(with_lesions=case.volume.array, without=case.volume.array)
    for row in lesion_rows(case, added, lesions, perfect):
        assert row["recovery"] == pytest.approx(1) and row["detected"]
    for row in lesion_rows(case, added, lesions, blind):
        assert row["recovery"] == 0 and not row["detected"]


def test_a_structure_that_is_not_there_is_counted_and_a_speck_is_not(case, lesions):
    sick, added = plant(case, lesions)
    far = case.mask & ~widened(added != 0, case.spacing_mm, (2.0, 2.0, 2.0))
    assert not far[tuple(lesions[0].centre)]
    cubic = Pair(with_lesions=sick.volume.array, without=case.volume.array)
    place = tuple(np.argwhere(far)[len(np.argwhere(far)) // 2])
    for side, expected in ((1, 0), (3, 1)):
        array = sick.volume.array.copy()
        array[tuple(slice(i, i + side) for i in place)] += 0.3
        row = invented(sick, Pair(with_lesions=array, without=case.volume.array), cubic, far, 0.02)
        assert row["excess_clusters"] == expected
        assert row["cubic_excess_clusters"] == 0 and row["leak_max"] == pytest.approx(0.3, abs=0.01)


def test_the_command_compares_with_cubic_by_size_and_goes_on_where_it_stopped(
    data, identity, tmp_path, capsys
):
    out = tmp_path / "lesions.json"
    arguments = ["lesions", "--data", data, "--out", out, "--inputs", "iso2_snr25", "--count", 8]
    arguments += ["--sizes-mm", "2,5", "--weights", identity]
    arguments += ["--methods", "student,cubic,regression", "--regression", identity]
    assert main([str(argument) for argument in arguments]) == 0
    report = json.loads(out.read_text())
    means = {(mean["method"], mean["size_mm"]): mean for mean in report["means"]}
    methods = ("student", "cubic", "regression")
    assert set(means) == {(m, s) for m in methods for s in (2.0, 5.0)}
    assert means["cubic", 5.0]["recovery"] > means["cubic", 2.0]["recovery"] > 0
    assert means["cubic", 5.0]["at_or_above_cubic_share"] == 1
    # The network changes nothing, but the data-consistency step sharpens: at least cubic.
    assert means["student", 5.0]["recovery"] >= means["cubic", 5.0]["recovery"] - 0.02
    assert means["student", 5.0]["leak_clusters"] == 0
    assert means["regression", 5.0]["recovery"] == means["student", 5.0]["recovery"]

    assert main([str(argument) for argument in arguments]) == 0
    assert "all rows are there" in capsys.readouterr().out
    assert json.loads(out.read_text()) == report


@pytest.fixture(scope="module")
def patient(tmp_path_factory, case):
    """Return a folder with a FLAIR, and the mask of its lesions beside it."""
    folder = tmp_path_factory.mktemp("patient")
    mask = np.zeros(case.volume.array.shape, bool)
    for k, i, j in ((20, 32, 32), (44, 30, 34)):
        mask[k : k + 4, i : i + 4, j : j + 4] = True
    for name, array in (("flair", case.volume.array + 0.3 * mask), ("lesions", mask)):
        volume = Volume(array.astype(np.float32), case.volume.affine, coordinate_system="PATIENT")
        write_nifti(folder / f"{name}.nii.gz", volume)
    (folder / "manifest.csv").write_text(
        "file,use,contrast,voxel_mm\nflair.nii.gz,evaluation,FLAIR,1x1x1\n"
    )
    return folder, mask


def test_real_lesions_keep_a_share_of_their_contrast(patient, identity, tmp_path):
    folder, mask = patient
    case = read_case(folder / "flair.nii.gz")
    assert contrast_kept(case.volume.array, case, mask)["kept"] == 1
    out = tmp_path / "real.json"
    arguments = ["lesions", "--data", folder, "--out", out, "--inputs", "thick4_snr0"]
    arguments += ["--methods", "cubic", "--lesion-mask", folder / "lesions.nii.gz"]
    assert main([str(argument) for argument in arguments]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert 0.3 < row["kept"] < 1 and row["lesions"] == 2
    assert make_input(case, "thick4_snr0").sigma == 0
