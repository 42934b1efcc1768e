"""Real lesions with a mask: what contrast to the white matter around them is left."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from sr_engine.errors import InputRefused
from sr_engine.evaluation.cases import Case, judged, make_input, read_case
from sr_engine.evaluation.ledger import Ledger, Row, Say
from sr_engine.evaluation.methods import Tools, run_method
from sr_engine.nifti import read_nifti
from sr_engine.physics.resample import grid_like, interpolate

AROUND_MM = (3.0, 6.0)  # of the lesions lies the tissue that they are compared with
LEAST_MM3 = 8.0
KEYS, MADE_WITH = ("case", "input", "method"), ("weights", "steps")


def measure_real_lesions(
    data: Path,
    lesion_mask: Path,
    *,
    inputs: Sequence[str],
    methods: Sequence[str],
    tools: Tools,
    cases: str,
    contrast: str = "FLAIR",
    out: Path | None = None,
    say: Say = print,
) -> dict:
    """Return the lesions' contrast after each method, over the reference's.

    Raises
    ------
    InputRefused
        If not exactly one volume is chosen, or the mask holds no lesion of it.
    """
    paths = judged(data, contrast, cases=cases)
    if len(paths) != 1:
        raise InputRefused(f"{len(paths)} {contrast} volumes match {cases!r}; a mask needs one")
    case = read_case(paths[0])
    lesions = _on_grid(lesion_mask, case)
    ledger = Ledger(out, KEYS, MADE_WITH, {"lesion_mask": lesion_mask.name})
    for given in inputs:
        low = make_input(case, given).volume
        for method in (tools.method(name) for name in methods):
            row: Row = {"case": case.name, "input": given, "method": method.name}
            row |= {"weights": tools.weights(method), "steps": method.steps}
            if ledger.find(**row) is None:
                result = run_method(method, low, case.volume, tools).array
                row |= contrast_kept(result, case, lesions)
                ledger.add(row)
                say("  ".join(f"{value}" for value in row.values()))
    return ledger.write({})


def _on_grid(path: Path, case: Case) -> np.ndarray:
    volume = read_nifti(path).to_patient_orientation("RAS")
    grid = grid_like(case.volume.affine, case.volume.array.shape)
    lesions = interpolate(volume, grid, order=1).array > 0.5
    if not lesions.any():
        raise InputRefused(f"{path}: no lesion lies in the field of view of {case.name}")
    return lesions


def contrast_kept(result: np.ndarray, case: Case, lesions: np.ndarray) -> Row:
    """Return the contrast of all lesions, and the mean over the lesions, over the reference's."""
    apart_mm = ndimage.distance_transform_edt(~lesions, sampling=case.spacing_mm)
    reference = case.volume.array
    around = (apart_mm > AROUND_MM[0]) & (apart_mm <= AROUND_MM[1]) & case.mask
    around &= reference > 0.5 * np.median(reference[around])  # no fluid
    ours, theirs = (float(x[lesions].mean() - x[around].mean()) for x in (result, reference))
    labels, count = ndimage.label(lesions)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(case.spacing_mm))
    ratios = []
    for number in (n for n in range(1, count + 1) if sizes[n] >= LEAST_MM3):
        part = labels == number
        expected = reference[part].mean() - reference[around].mean()
        if abs(expected) > 0.2 * abs(theirs):  # else there is no contrast to keep
            ratios.append(float((result[part].mean() - result[around].mean()) / expected))
    return {
        "contrast": round(ours, 5),
        "contrast_reference": round(theirs, 5),
        "kept": round(ours / theirs, 4),
        "lesions": len(ratios),
        "kept_per_lesion": round(float(np.mean(ratios)), 4) if ratios else None,
    }
