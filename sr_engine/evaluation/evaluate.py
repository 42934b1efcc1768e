"""Degrade, run, score: every case, input and method, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume

from sr_engine.evaluation.blobs import CONTRAST, caught_blobs
from sr_engine.evaluation.calibration import spread_calibration
from sr_engine.evaluation.cases import Case, Measured, is_finer, judged, make_input, read_case
from sr_engine.evaluation.ledger import Ledger, Row, Say
from sr_engine.evaluation.methods import AXES, LINEAR, Method, Outcome, Tools, run_method
from sr_engine.evaluation.metrics import fsc_resolution_mm, psnr_db, ssim
from sr_engine.evaluation.pages import case_page, page_name
from sr_engine.evaluation.summary import compared, mean_rows
from sr_engine.physics.resample import grid_like, interpolate
from sr_engine.quality import QualityReport

THROUGH = 2  # the axis of thick slices: S-I, the last of RAS
KEYS, MADE_WITH = ("case", "input", "method"), ("weights", "steps")


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is made of each result of the student besides its scores.

    Attributes
    ----------
    blobs            structures of each size planted in it, for the verdict to find
    blob_contrast    theirs, brighter and darker in turn; 1 is the 99.9th percentile of the head
    pages            folder for a page of images; None: no page
    """

    blobs: int = 0
    blob_contrast: float = CONTRAST
    pages: Path | None = None

    def page(self, case: str, given: str, method: Method) -> Path | None:
        """Return the file of a page, if one is wanted."""
        wanted = self.pages is not None and method.kind == "student"
        return self.pages / page_name(case, given, method.name) if wanted and self.pages else None


def evaluate(
    data: Path,
    *,
    methods: Sequence[str],
    inputs: Sequence[str],
    tools: Tools,
    cases: str = "",
    contrast: str = "T1w",
    use: str = "evaluation",
    extras: Extras | None = None,
    out: Path | None = None,
    say: Say = print,
) -> dict:
    """Return rows of scores for every case, input and method, and their means.

    Parameters
    ----------
    data
        Folder with a manifest.csv; its rows marked with `use`, of this contrast and at most
        1.5 mm are cases.
    cases
        Only files whose name holds this text.
    out
        Report as JSON. Rows that it holds already, for the same weights, are not made again.
    """
    chosen = [tools.method(name) for name in methods]
    student = tools.bundles.get("student")
    header = {"weights_sha256": student.sha256 if student else "", "steps": tools.steps}
    ledger = Ledger(out, KEYS, MADE_WITH, header)
    for path in judged(data, contrast, use, cases):
        _evaluate_case(path, inputs, chosen, tools, extras or Extras(), ledger, say)
    rows = compared(ledger.rows)
    means = mean_rows(rows)
    for mean in means:
        say("mean  " + _line(mean))
    ledger.rows = rows
    return ledger.write({"means": means})


def _evaluate_case(
    path: Path,
    inputs: Sequence[str],
    methods: Sequence[Method],
    tools: Tools,
    extras: Extras,
    ledger: Ledger,
    say: Say,
) -> None:
    """Add the rows of one volume that are not there yet; a volume without any is not read."""
    name = path.name.split(".nii")[0]
    missing = {
        given: [m for m in methods if not _is_done(ledger, name, given, m, tools, extras)]
        for given in inputs
    }
    if not any(missing.values()):
        say(f"{name}  all rows are there")
        return
    case = read_case(path)
    for given, wanted in missing.items():
        if not is_finer(case, given):
            say(f"{name}  {given}  left out: the reference is not finer")
            continue
        low = make_input(case, given)
        known: Outcome | None = None
        for method in wanted:
            if method.kind == "no-g" and known and not known.g_known:
                outcome = known  # there was no g to switch off
            else:
                outcome = run_method(method, low.volume, case.volume, tools)
            if method.kind == "student" and method.steps == tools.steps:
                known = outcome
            row = _row(case, low, method, outcome, tools)
            if method.kind == "student":
                row |= _extras(low.volume, case, method, outcome, extras, given)
            same = {key: row[key] for key in (*KEYS, *MADE_WITH)}
            ledger.add((ledger.find(**same) or {}) | row)  # made again for a page: keep the blobs
            say(_line(row))


def _is_done(
    ledger: Ledger, case: str, given: str, method: Method, tools: Tools, extras: Extras
) -> bool:
    made_with = {"weights": tools.weights(method), "steps": method.steps}
    row = ledger.find(case=case, input=given, method=method.name, **made_with)
    page = extras.page(case, given, method)
    if row is None or (page is not None and not page.is_file()):
        return False
    return not (extras.blobs and method.kind == "student" and "blobs" not in row)


def _extras(
    low: Volume, case: Case, method: Method, outcome: Outcome, extras: Extras, given: str
) -> Row:
    """Write the page, plant the blobs, and return what a row gains by it."""
    page = extras.page(case.name, given, method)
    if page is not None:
        cubic = interpolate(low, grid_like(case.volume.affine, case.volume.array.shape)).array
        case_page(page, low, case, {"cubic": cubic, method.name: outcome.array})
    if not extras.blobs:
        return {}
    return {"blobs": caught_blobs(low, outcome, case, extras.blobs, extras.blob_contrast)}


def _row(case: Case, low: Measured, method: Method, outcome: Outcome, tools: Tools) -> Row:
    """Return the figures of one result."""
    result, reference, mask = outcome.array, case.volume.array, case.mask
    row: Row = {
        "case": case.name,
        "input": low.name,
        "method": method.name,
        "steps": method.steps,
        "weights": tools.weights(method),
        "psnr_db": round(psnr_db(result, reference, mask), 3),
        "ssim": round(ssim(result, reference, mask), 4),
        "fsc05_mm": round(fsc_resolution_mm(result, reference, mask, case.spacing_mm), 3),
        "seconds": outcome.seconds,
        "peak_mib": outcome.peak_mib,
        "true_sigma": round(low.sigma, 6),
    }
    if low.name.startswith("thick"):
        through = fsc_resolution_mm(result, reference, mask, case.spacing_mm, cone_axis=THROUGH)
        row["fsc05_si_mm"] = round(through, 3)
    if outcome.report is not None:
        row |= {"g_known": outcome.g_known} | consistency(outcome.report)
    if outcome.spread is not None and method.kind not in (*LINEAR, *AXES):
        row["calibration"] = spread_calibration(result, outcome.spread, reference, mask)
    return row


def consistency(report: QualityReport) -> Row:
    """Return how the result explains the input: the figures of the verdict.

    `residual_over_sigma` is the residual over the estimated noise alone; the verdict's own
    `residual_over_noise` allows for an error of the acquisition model beside it.
    """
    figures = report.figures
    names = ("residual_over_noise", "residual_rms", "noise_sigma", "spread_p99", "blob_z")
    row: Row = {"passed": report.passed, "findings": list(report.findings)}
    row |= {name: round(float(figures[name]), 6) for name in names if name in figures}
    if row.get("noise_sigma"):
        row["residual_over_sigma"] = round(row["residual_rms"] / row["noise_sigma"], 4)
    return row


def _line(row: Row) -> str:
    """Return a row for a terminal."""
    parts = [str(row[key]) for key in ("case", "input", "method", "cases") if key in row]
    for key in ("psnr_db", "ssim", "fsc05_mm", "psnr_db_over_linear", "seconds"):
        if row.get(key) is not None:
            parts.append(f"{key} {float(np.round(row[key], 4))}")
    if row.get("below_linear"):
        parts.append(f"BELOW THE LINE: {', '.join(row['below_linear'])}")
    return "  ".join(parts)
