"""The protocol inside the product gives the numbers of the protocol beside it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from highdicom import Volume

from sr_engine.errors import InputRefused
from sr_engine.nifti import read_nifti, write_nifti
from sr_engine.training.evaluate import evaluate, judged, make_input, read_case
from sr_engine.training.metrics import fsc_resolution_mm, psnr_db, ssim

CASE = "oasis_1000_1p5T_T1w_1mm_SS"


@pytest.mark.slow
def test_linear_rows_equal_those_of_the_protocol_within_a_hundredth_db(shared_dir, tmp_path):
    tool = shared_dir / "tools" / "sr_protocol.py"
    volume = shared_dir / "data" / "volumes" / f"{CASE}.nii.gz"

    def protocol(*arguments):
        subprocess.run([sys.executable, tool, *arguments], check=True, capture_output=True)

    protocol("prepare", tmp_path, volume)
    protocol("baselines", tmp_path)
    theirs = {}
    for method in ("cubic", "zerofill"):
        protocol("score", tmp_path, "--method", method, "--json", tmp_path / "rows.json")
        for row in json.loads((tmp_path / "rows.json").read_text()):
            theirs[row["input"], method] = row

    ours = evaluate(
        shared_dir / "data" / "volumes",
        methods=["cubic", "zerofill"],
        inputs=["iso2_snr25", "thick4_snr0"],
        cases=CASE,
        say=lambda line: None,
    )

    assert len(ours["rows"]) == 4
    for row in ours["rows"]:
        expected = theirs[row["input"], row["method"]]
        assert row["psnr_db"] == pytest.approx(expected["psnr_db"], abs=0.01)
        assert row["ssim"] == pytest.approx(expected["ssim"], abs=0.001)
        assert row["fsc05_mm"] == pytest.approx(expected["fsc05_mm"], abs=0.01)


def test_the_judged_seven_are_found(shared_dir):
    names = [path.name for path in judged(shared_dir / "data" / "volumes")]
    assert len(names) == 7
    assert sum(name.startswith("oasis_") for name in names) == 6


@pytest.fixture
def ball(tmp_path):
    k, i, j = np.meshgrid(*[np.linspace(-1, 1, 40)] * 3, indexing="ij")
    array = np.where(k**2 + i**2 + j**2 < 0.6, 400 + 100 * np.sin(6 * i), 0).astype(np.float32)
    path = tmp_path / "ball.nii.gz"
    write_nifti(path, Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), coordinate_system="PATIENT"))
    return path


def test_nifti_goes_through_lps_and_back(ball, tmp_path):
    volume = read_nifti(ball)
    write_nifti(tmp_path / "again.nii.gz", volume)
    again = read_nifti(tmp_path / "again.nii.gz")
    assert np.array_equal(again.array, volume.array)
    assert np.allclose(again.affine, volume.affine)


def test_a_perfect_result_scores_perfectly_and_a_blurred_one_does_not(ball):
    case = read_case(ball)
    x, mask = case.volume.array, case.mask
    blurred = (x + np.roll(x, 1, 0) + np.roll(x, 2, 0)) / 3
    rng = np.random.default_rng(0)
    noisy = x + rng.normal(0, 0.1, x.shape)
    lost = x + rng.normal(0, 1.0, x.shape)
    assert psnr_db(noisy, x, mask) == pytest.approx(20, abs=0.2)
    assert ssim(x, x, mask) == pytest.approx(1)
    assert ssim(blurred, x, mask) < 0.98
    voxel = (1.0, 1.0, 1.0)
    assert fsc_resolution_mm(x, x, mask, voxel) == 2.0
    assert fsc_resolution_mm(lost, x, mask, voxel) > 2.0


def test_inputs_have_half_the_samples_or_a_quarter_of_the_slices(ball):
    case = read_case(ball)
    n = np.array(case.volume.array.shape)
    assert (np.array(make_input(case, "iso2_snr0").array.shape) == n // 2).all()
    assert make_input(case, "thick4_snr25").array.shape == (n[0], n[1], n[2] // 4)
    with pytest.raises(InputRefused, match="iso3"):
        make_input(case, "iso3_snr0")
