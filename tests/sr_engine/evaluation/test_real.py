"""Noise and sharpness are measured as they are, in images without a reference."""

import json

import numpy as np
import pytest
from highdicom import Volume
from scipy import ndimage

from sr_engine.cli import main
from sr_engine.dicom.scanner import write_acquisition
from sr_engine.errors import InputRefused
from sr_engine.evaluation.cases import make_input, read_case
from sr_engine.evaluation.real import compare, find_inputs, summarise
from sr_engine.evaluation.sharpness import edge_widths_mm, find_edges, find_patches, signal_to_noise
from sr_engine.nifti import write_nifti

SPACING = (1.0, 0.8, 0.8)
SHAPE = (50, 64, 64)


def ball(blur_mm: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return a bright ball of 20 mm radius with a dark core, blurred, cut out with a margin."""
    k, i, j = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, SPACING, strict=True)],
        indexing="ij",
    )
    radius = np.sqrt(k**2 + i**2 + j**2)
    array = np.where(radius < 7, 0.2, np.where(radius < 20, 0.9, 0.0))
    array = ndimage.gaussian_filter(array, [blur_mm / mm for mm in SPACING])
    array = array + np.random.default_rng(seed).normal(0, noise, SHAPE)
    return np.where(radius < 24, array, 0.0)


MASK = ndimage.binary_dilation(ball(0.1) > 0.1, iterations=3)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("blur_mm", [1.2, 1.6])
def test_the_width_of_an_edge_is_that_of_its_blur_with_noise_and_without(blur_mm, noise):
    image = ball(blur_mm, noise)
    edges = find_edges(image, MASK, SPACING)
    width, good = edge_widths_mm(image, edges, SPACING)
    assert good.sum() > 200
    assert np.median(width[good]) == pytest.approx(2.563 * blur_mm, rel=0.12)
    assert edges.deep.any() and not edges.deep.all()


def test_signal_to_noise_is_found_in_homogeneous_tissue():
    image = ball(1.0, noise=0.03)
    boxes = find_patches(image, ball(0.1) > -1, SPACING)
    assert len(boxes) >= 5
    assert signal_to_noise(image, boxes) == pytest.approx(30, rel=0.25)


def test_a_calmer_sharper_image_is_seen_to_be_so_and_a_duller_one_too():
    better = compare(ball(1.2, 0.01, seed=1), ball(1.6, 0.03), MASK, SPACING)
    worse = compare(ball(1.6, 0.03, seed=1), ball(1.2, 0.01), MASK, SPACING)
    assert better["snr_gain"] > 0.5 and worse["snr_gain"] < -0.3
    assert better["sharper"] and better["width_ratio"] < 0.9
    assert not worse["sharper"] and worse["width_ratio"] > 1.1
    assert better["edges"] == better["edges_ventricle"] + better["edges_cortex"]


def test_the_criteria_are_those_of_the_cleared_enhancer():
    rows = [{"snr_gain": 0.1, "sharper": True}] * 9 + [{"snr_gain": 0.0, "sharper": False}]
    met = summarise([*rows, {"refused": "why"}])
    assert met["snr_met"] and met["sharper_met"]
    assert (met["series"], met["refused"], met["sharper_share"]) == (10, 1, 0.9)
    assert not summarise(rows[8:])["sharper_met"] and not summarise([])["snr_met"]


@pytest.fixture
def folder(data, tmp_path):
    """Return a folder with a NIfTI file, and one with a DICOM series and one that is none."""
    low = make_input(read_case(data / "brain.nii.gz"), "thick4_snr25").volume
    scanner = Volume(low.array * 900, low.affine, coordinate_system="PATIENT")
    (tmp_path / "volumes").mkdir()
    write_nifti(tmp_path / "volumes" / "native.nii.gz", scanner)
    lps = scanner.to_patient_orientation("FPL")
    write_acquisition(lps, tmp_path / "series" / "good", tags={})
    (tmp_path / "series" / "bad").mkdir()
    (tmp_path / "series" / "bad" / "0001.dcm").write_bytes(b"no DICOM file")
    return tmp_path


def test_the_command_measures_nifti_and_dicom_alike_and_names_what_it_refuses(
    folder, identity, capsys
):
    out = folder / "real.json"
    arguments = ["real", "--data", folder / "volumes", folder / "series", "--out", out]
    arguments += ["--weights", identity, "--spacing-mm", "1.0", "--pages", folder / "pages"]
    assert main([str(argument) for argument in arguments]) == 0
    report = json.loads(out.read_text())
    rows = {row["case"]: row for row in report["rows"]}
    assert set(rows) == {"native", "good", "bad"}
    assert "DICOM" in rows["bad"]["refused"] or "instance" in rows["bad"]["refused"]
    for name, kind in (("native", "NIfTI"), ("good", "DICOM")):
        assert rows[name]["format"] == kind and rows[name]["edges"] > 30
        assert 0.5 < rows[name]["width_ratio"] < 1.5
    assert {path.stem for path in (folder / "pages").iterdir()} == {"native", "good"}
    assert report["summary"]["series"] == 2 and report["summary"]["refused"] == 1

    assert main([str(argument) for argument in arguments]) == 0
    assert capsys.readouterr().out.count("is there") == 3


def test_inputs_are_chosen_by_name(folder):
    assert [one.name for one in find_inputs([folder / "series"], ["go", "xx"])] == ["good"]
    assert find_inputs([folder / "series" / "good"], [])[0].name == "good"
    with pytest.raises(InputRefused, match="no NIfTI"):
        find_inputs([folder / "volumes"], ["other"])
