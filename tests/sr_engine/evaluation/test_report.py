"""Measured figures become tables and small plots; images of heads go where the user says."""

import json

import numpy as np
import pytest

from sr_engine.cli import main
from sr_engine.errors import InputRefused
from sr_engine.evaluation.report import read_rows, write_report
from sr_engine.evaluation.tables import p_value

pytest.importorskip("matplotlib")

GAINS = {"student": 1.0, "student@4": 1.1, "axis0": 0.8, "cubic": 0.0, "zerofill": -0.3}


def score(case: int, given: str, method: str) -> dict:
    """Return a row as `sr-engine evaluate` writes it."""
    linear = method in ("cubic", "zerofill")
    row = {
        "case": f"case{case}",
        "input": given,
        "method": method,
        "steps": 0 if linear else int(method.partition("@")[2] or 1),
        "weights": "" if linear else "ab" * 8,
        "psnr_db": 28 + 0.1 * case + GAINS[method],
        "ssim": 0.9 + 0.01 * GAINS[method],
        "fsc05_mm": 3.2,
        "seconds": 1.5,
        "peak_mib": 900.0,
    }
    if not linear:
        row |= {"passed": case != 3, "residual_over_noise": 0.9, "noise_sigma": 0.02}
        ramp = np.linspace(0.01, 0.05, 10).tolist()
        row["calibration"] = {
            "spread": ramp,
            "error": ramp,
            "rank_correlation": 0.4,
            "decile_correlation": 1.0,
        }
    if method == "student":
        row["blobs"] = {"5 mm": {"planted": 10, "caught": 9}, "3 mm": {"planted": 10, "caught": 4}}
    return row


@pytest.fixture
def reports(tmp_path):
    """Return report files of all four kinds."""
    inputs = ("iso2_snr25", "thick4_snr0", "iso1.5_snr25", "iso1.2_snr25", "thick5_snr25")
    lesions = [
        {
            **{"case": "a", "input": "iso2_snr25", "method": method, "steps": 1, "weights": "x"},
            **{"excess_clusters": 0, "cubic_excess_clusters": 1, "leak_clusters": 0},
            **{"leak_rms": 0.0002, "leak_max": 0.01},
            "lesions": [
                {
                    **{"site": "cortex", "size_mm": size, "hyperintense": bool(number % 2)},
                    **{"recovery": recovery, "detected": True, "centre": [number, size, 0]},
                }
                for number in range(4)
                for size in (2.0, 5.0)
            ],
        }
        for method, recovery in (("student", 0.7), ("cubic", 0.6))
    ]
    real = [
        {
            **{"case": "native", "acquired_voxel_mm": [1, 1, 1], "snr_gain": 0.12, "snr": 28.0},
            **{"snr_cubic": 25.0, "width_ratio": 0.9, "width_change": -0.1, "sharper": True},
            **{"width_mm": 1.8, "width_cubic_mm": 2.0, "passed": True, "weights": "ab" * 8},
        },
        {"case": "p99", "refused": "no slices", "weights": "ab" * 8},
    ]
    kept = {"case": "m", "input": "iso2_snr25", "method": "cubic", "weights": "", "kept": 0.8}
    files = {
        "scores": [score(c, i, m) for c in range(6) for i in inputs for m in GAINS],
        "lesions": lesions,
        "real": real,
        "masked": [kept | {"kept_per_lesion": None, "lesions": 0}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    return [tmp_path / f"{name}.json" for name in files]


def test_every_kind_of_figure_has_its_table_and_its_small_plot(reports, tmp_path):
    out = tmp_path / "evaluation"
    assert main(["report", *map(str, reports), "--out", str(out)]) == 0
    names = {path.stem for path in out.glob("*.png")}
    assert names == {"gains", "sweep", "steps", "calibration", "lesions", "real"}
    assert all(path.stat().st_size < 150_000 for path in out.glob("*.png"))
    text = (out / "tables.md").read_text()
    line = next(
        li for li in text.splitlines() if li.startswith("| iso2_snr25 | student | abababab | 1 |")
    )
    assert "+1.00" in line and "0.0312" in line and line.endswith("| none |")
    assert "Honest results of the student that the verdict held: 5 of 30." in text
    assert "| 54 of 60 | 24 of 60 |" in text
    assert "| iso2_snr25 | student | x | 2 | 4 | 0.700 |" in text
    assert "refused: no slices" in text and "+12.0 %" in text
    assert all(f"({name}.png)" in text for name in names)


def test_equal_figures_give_equal_files(reports, tmp_path):
    for name in ("first", "second"):
        write_report(reports[1:3], tmp_path / name, say=lambda line: None)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_a_file_that_is_no_report_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputRefused, match="x.json"):
        read_rows([tmp_path / "x.json"])


def test_few_cases_have_no_probability():
    assert p_value([0.1, 0.2]) == "-"
    assert float(p_value([0.1, 0.2, 0.3, 0.15, 0.12, 0.3, 0.2])) < 0.02


def test_pages_are_written_where_the_user_wants_them(data, identity, tmp_path):
    out, pages = tmp_path / "rows.json", tmp_path / "pages"
    arguments = ["evaluate", "--data", data, "--out", out, "--inputs", "thick4_snr0"]
    arguments += ["--methods", "student", "--weights", identity]
    assert main([str(argument) for argument in arguments]) == 0
    assert not pages.exists()
    assert main([str(argument) for argument in [*arguments, "--pages", pages]]) == 0
    (page,) = pages.iterdir()
    assert page.name == "brain-thick4_snr0-student.png" and page.stat().st_size > 10_000
