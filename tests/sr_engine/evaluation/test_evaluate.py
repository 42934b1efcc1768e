"""The protocol inside the product gives the numbers of the protocol beside it."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from sr_engine.cli import main
from sr_engine.errors import InputRefused
from sr_engine.evaluation.calibration import spread_calibration
from sr_engine.evaluation.evaluate import evaluate
from sr_engine.evaluation.methods import load_tools
from sr_engine.evaluation.summary import compared, mean_rows
from tests.sr_engine.evaluation.conftest import HEADER

CASE = "oasis_1000_1p5T_T1w_1mm_SS"
SIDE, AIR = 96, 12


def quiet(line: str) -> None:
    pass


@pytest.fixture
def part_of_a_head(shared_dir, tmp_path):
    """Return a folder with the middle of a real head in air: a third of the time of all of it."""
    whole = nibabel.load(shared_dir / "data" / "volumes" / f"{CASE}.nii.gz")
    middle = tuple(slice(n // 2 - SIDE // 2, n // 2 + SIDE // 2) for n in whole.shape)
    folder = tmp_path / "volumes"
    folder.mkdir()
    part = np.pad(np.asanyarray(whole.dataobj)[middle], AIR)
    nibabel.save(nibabel.Nifti1Image(part, whole.affine), folder / f"{CASE}.nii.gz")
    row = f"{CASE}.nii.gz,evaluation,T1w,1x1x1"
    (folder / "manifest.csv").write_text(f"{HEADER}\n{row}\n")
    return folder


@pytest.mark.slow
def test_linear_rows_equal_those_of_the_protocol_within_a_hundredth_db(
    shared_dir, part_of_a_head, tmp_path
):
    tool = shared_dir / "tools" / "sr_protocol.py"

    def protocol(*arguments):
        subprocess.run([sys.executable, tool, *arguments], check=True, capture_output=True)

    protocol("prepare", tmp_path, part_of_a_head / f"{CASE}.nii.gz")
    protocol("baselines", tmp_path)
    theirs = {}
    for method in ("cubic", "zerofill"):
        protocol("score", tmp_path, "--method", method, "--json", tmp_path / "rows.json")
        for row in json.loads((tmp_path / "rows.json").read_text()):
            theirs[row["input"], method] = row

    methods = ["cubic", "zerofill"]
    ours = evaluate(
        part_of_a_head,
        methods=methods,
        inputs=["iso2_snr25", "thick4_snr0"],
        tools=load_tools(methods),
        cases=CASE,
        say=quiet,
    )

    assert len(ours["rows"]) == 4
    for row in ours["rows"]:
        expected = theirs[row["input"], row["method"]]
        assert row["psnr_db"] == pytest.approx(expected["psnr_db"], abs=0.01)
        assert row["ssim"] == pytest.approx(expected["ssim"], abs=0.001)
        assert row["fsc05_mm"] == pytest.approx(expected["fsc05_mm"], abs=0.01)


@pytest.fixture(scope="module")
def report(data, identity, disturbed, tmp_path_factory):
    """Return what the command says of all methods on the small brain."""
    out = tmp_path_factory.mktemp("report") / "rows.json"
    arguments = ["evaluate", "--data", data, "--out", out, "--inputs", "iso2_snr25,iso1.0_snr25"]
    arguments += ["--weights", disturbed, "--regression", identity, "--teacher", disturbed]
    arguments += ["--also", f"stage2={disturbed}"]
    methods = "student,student@2,stage2,axis0,axis1,axis2,plain-mean,no-consistency,no-b,no-g"
    methods += ",no-noise-reduction,no-small-structures,regression,teacher,cubic,zerofill"
    arguments += ["--methods", methods, "--teacher-steps", 2, "--blobs", 2]
    assert main([str(argument) for argument in arguments]) == 0
    return out, json.loads(out.read_text())


def by_method(report) -> dict:
    return {row["method"]: row for row in report[1]["rows"]}


def test_every_method_has_a_row_and_a_mean_of_inputs_coarser_than_the_reference(report):
    rows = by_method(report)
    assert len(rows) == len(report[1]["rows"]) == len(report[1]["means"]) == 16
    assert {row["input"] for row in rows.values()} == {"iso2_snr25"}
    assert rows["student@2"]["steps"] == 2 and rows["teacher"]["steps"] == 2
    assert rows["cubic"]["weights"] == "" and len(rows["student"]["weights"]) == 16


def test_an_ablation_differs_from_the_student_where_something_was_switched_off(report):
    rows = by_method(report)
    student = rows["student"]["psnr_db"]
    for method in ("axis0", "axis1", "axis2", "no-consistency", "no-b", "regression"):
        difference = rows[method]["psnr_db_over_student"]
        assert difference == pytest.approx(rows[method]["psnr_db"] - student, abs=1e-3)
    assert len({rows[f"axis{a}"]["psnr_db"] for a in range(3)}) > 1
    assert rows["stage2"]["psnr_db_over_student"] == 0
    assert rows["plain-mean"]["psnr_db_over_student"] == 0  # of an isotropic input
    # Nobody waits for the network where its part of the result was there already.
    assert rows["axis0"]["seconds"] is None and rows["student@2"]["seconds"] > 0
    assert rows["no-g"]["psnr_db_over_student"] == 0 and not rows["no-g"]["g_known"]


def test_cases_under_the_linear_line_are_named(report):
    rows = by_method(report)
    best = max(rows["cubic"]["psnr_db"], rows["zerofill"]["psnr_db"])
    student = rows["student"]
    assert student["psnr_db"] < best and "psnr_db" in student["below_linear"]
    mean = next(m for m in report[1]["means"] if m["method"] == "student")
    assert mean["below_linear"] == ["brain"]
    assert mean["psnr_db_over_linear"] == pytest.approx(student["psnr_db"] - best, abs=1e-3)


def test_a_row_says_how_the_result_explains_the_input_and_what_it_cost(report):
    row = by_method(report)["student"]
    assert row["noise_sigma"] == pytest.approx(row["true_sigma"], rel=0.5)
    assert 0.2 < row["residual_over_noise"] < 3
    assert row["seconds"] > 0 and row["peak_mib"] > 50
    assert len(row["calibration"]["spread"]) == len(row["calibration"]["error"]) == 10
    assert set(row["blobs"]) == {"5 mm", "3 mm"}


def test_rows_that_are_there_are_not_made_again_unless_the_weights_are_others(
    report, data, identity, disturbed
):
    out, _ = report
    before = out.read_text()
    said = []

    def again(weights):
        methods = ["student", "cubic"]
        tools = load_tools(methods, weights=str(weights))
        evaluate(
            data, methods=methods, inputs=["iso2_snr25"], tools=tools, out=out, say=said.append
        )
        return json.loads(out.read_text())

    again(disturbed)
    assert "all rows are there" in said[0]
    assert json.loads(before)["means"] == json.loads(out.read_text())["means"]
    renewed = again(identity)
    assert len(renewed["rows"]) == 16
    weights = {row["method"]: row["weights"] for row in renewed["rows"]}
    assert weights["student"] == weights["regression"] != weights["axis0"]
    out.write_text(before)


def test_a_method_that_means_nothing_or_lacks_its_weights_is_refused(data):
    for name, complaint in (("magic", "magic"), ("teacher", "--teacher")):
        with pytest.raises(InputRefused, match=complaint):
            evaluate(data, methods=[name], inputs=["iso2_snr0"], tools=load_tools(["cubic"]))


def test_other_weights_need_a_name_of_their_own(data, identity):
    for text in (f"cubic={identity}", "stage2"):
        assert main(["evaluate", "--data", str(data), "--also", text]) == 1


def test_spread_that_follows_the_error_is_calibrated():
    rng = np.random.default_rng(5)
    spread = rng.random((20, 20, 20), np.float32)
    truth = np.zeros_like(spread)
    mask = np.ones(spread.shape, bool)
    good = spread_calibration(rng.normal(0, spread), spread, truth, mask)
    blind = spread_calibration(rng.normal(0, 0.5, spread.shape), spread, truth, mask)
    assert good["decile_correlation"] > 0.95 and good["rank_correlation"] > 0.3
    assert abs(blind["rank_correlation"]) < 0.1
    assert good["spread"] == sorted(good["spread"])


def test_the_line_of_a_case_is_the_better_linear_method_score_by_score():
    def row(case, method, psnr, ssim):
        made_with = {"input": "iso2_snr25", "steps": 1, "weights": ""}
        return {**made_with, "case": case, "method": method, "psnr_db": psnr, "ssim": ssim}

    rows = [row("a", "cubic", 28, 0.93), row("a", "zerofill", 29, 0.92)]
    rows += [row("a", "student", 30, 0.925), row("b", "cubic", 20, 0.5)]
    rows += [row("b", "student", 22, 0.6)]
    found = compared(rows)
    assert found[2]["psnr_db_over_linear"] == 1 and found[2]["below_linear"] == ["ssim"]
    student = next(m for m in mean_rows(found) if m["method"] == "student")
    assert student["psnr_db_over_linear"] == 1.5 and student["below_linear"] == ["a"]
