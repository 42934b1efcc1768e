"""Real inputs, which have no reference: is the noise lower and are the boundaries sharper?

Measured like the acceptance criteria of a cleared MR enhancer (K191688): signal-to-noise in
homogeneous tissue, and the 10-90 % width of boundaries, against cubic interpolation on one grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume

from sr_engine.dicom.reader import read_series
from sr_engine.errors import EngineError, InputRefused
from sr_engine.evaluation.evaluate import consistency
from sr_engine.evaluation.ledger import Ledger, Row, Say
from sr_engine.evaluation.pages import page_name, series_page
from sr_engine.evaluation.sharpness import (
    FEWEST,
    edge_widths_mm,
    find_edges,
    find_patches,
    signal_to_noise,
)
from sr_engine.model.bundle import Bundle
from sr_engine.nifti import read_nifti
from sr_engine.physics.intensity import head_mask
from sr_engine.physics.resample import grid_like, interpolate
from sr_engine.pipeline import Acquired, acquired_of_series, acquired_of_volume, enhance_volume
from sr_engine.recipe import Recipe

SNR_GAIN, SHARPER_SHARE = 0.05, 0.9  # K191688
FEWEST_PATCHES = 5
KEYS, MADE_WITH = ("case",), ("weights", "steps", "spacing_mm")


@dataclass(frozen=True, kw_only=True)
class RealInput:
    """A series as it came: one NIfTI file, or a folder of DICOM files."""

    name: str
    path: Path

    def read(self) -> tuple[Volume, Acquired]:
        """Return the volume and what is known of its acquisition."""
        if self.path.is_file():
            volume = read_nifti(self.path)
            return volume, acquired_of_volume(volume)
        source = read_series(sorted(p for p in self.path.rglob("*") if p.is_file()))
        return source.volume, acquired_of_series(source)


def find_inputs(places: Sequence[Path], cases: Sequence[str]) -> list[RealInput]:
    """Return the NIfTI files and DICOM series in `places` whose name holds one of `cases`.

    A place is a NIfTI file, a folder of those, a folder of one DICOM series, or a folder of such
    folders.

    Raises
    ------
    InputRefused
        If there is none.
    """
    found: list[Path] = []
    for place in places:
        niftis = sorted(place.glob("*.nii.gz")) + sorted(place.glob("*.nii"))
        folders = (
            sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
        )
        found += niftis or folders or [place]
    inputs = [RealInput(name=path.name.split(".nii")[0], path=path) for path in found]
    chosen = [one for one in inputs if any(text in one.name for text in cases or [""])]
    if not chosen:
        raise InputRefused(f"no NIfTI file or DICOM series in {', '.join(map(str, places))}")
    return chosen


def measure_real(
    places: Sequence[Path],
    bundle: Bundle,
    *,
    cases: Sequence[str] = (),
    recipe: Recipe | None = None,
    device: str = "auto",
    out: Path | None = None,
    pages: Path | None = None,
    say: Say = print,
) -> dict:
    """Return one row for each series, and whether the two criteria are met.

    A series that the engine refuses has a row that says why, and does not count.

    Parameters
    ----------
    pages
        Folder for before and after of each series as an image.
    """
    recipe = recipe or Recipe()
    made_with = {
        "weights": bundle.sha256[:16],
        "steps": recipe.steps,
        "spacing_mm": recipe.spacing_mm,
    }
    ledger = Ledger(out, KEYS, MADE_WITH, {"weights_sha256": bundle.sha256})
    for one in find_inputs(places, cases):
        page = pages / page_name(one.name) if pages else None
        known = ledger.find(case=one.name, **made_with)
        if known and (page is None or page.is_file() or "refused" in known):
            say(f"{one.name}  is there")
            continue
        row: Row = {"case": one.name, **made_with}
        try:
            row |= _measure(one, bundle, recipe, device, page)
        except EngineError as error:
            row["refused"] = str(error)
        ledger.add(row)
        say("  ".join(f"{k} {v}" for k, v in row.items() if k not in ("findings", *made_with)))
    summary = summarise(ledger.rows)
    say("  ".join(f"{key} {value}" for key, value in summary.items()))
    return ledger.write({"summary": summary})


def _measure(one: RealInput, bundle: Bundle, recipe: Recipe, device: str, page: Path | None) -> Row:
    """Return the figures of one series."""
    volume, acquired = one.read()
    result = enhance_volume(volume, acquired, recipe, bundle, device=device)
    grid = grid_like(result.volume.affine, result.volume.array.shape)
    cubic = interpolate(volume, grid).array
    mask = head_mask(volume.array).astype(np.float32)
    inside = interpolate(volume.with_array(mask), grid).array > 0.5
    if page is not None:
        series_page(page, volume, cubic, result.volume)
    row: Row = {
        "format": "NIfTI" if one.path.is_file() else "DICOM",
        "acquired_voxel_mm": [round(mm, 3) for mm in acquired.acquired_voxel_mm],
        "seconds": round(sum(result.stages.seconds.values()), 1),
    }
    row |= compare(result.volume.array, cubic, inside, grid.spacing_mm)
    return row | consistency(result.report)


def compare(
    image: np.ndarray, cubic: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
) -> Row:
    """Return signal-to-noise and edge widths of an image and of the cubic interpolation.

    What cannot be measured for want of places is None.
    """
    boxes = find_patches(cubic, mask, spacing_mm)
    row: Row = {"patches": len(boxes), "snr_gain": None}
    if len(boxes) >= FEWEST_PATCHES:
        ours, theirs = signal_to_noise(image, boxes), signal_to_noise(cubic, boxes)
        row |= {"snr": round(ours, 3), "snr_cubic": round(theirs, 3)}
        row["snr_gain"] = round(ours / theirs - 1, 4)
    edges = find_edges(cubic, mask, spacing_mm)
    ours_mm, good = edge_widths_mm(image, edges, spacing_mm)
    theirs_mm, also_good = edge_widths_mm(cubic, edges, spacing_mm)
    both = good & also_good
    for name, chosen in (
        ("", both),
        ("_ventricle", both & edges.deep),
        ("_cortex", both & ~edges.deep),
    ):
        row[f"edges{name}"] = int(chosen.sum())
        enough = chosen.sum() >= FEWEST
        row[f"width{name}_ratio"] = (
            round(float(np.median(ours_mm[chosen] / theirs_mm[chosen])), 4) if enough else None
        )
        if enough:
            row[f"width{name}_mm"] = round(float(np.median(ours_mm[chosen])), 3)
            row[f"width{name}_cubic_mm"] = round(float(np.median(theirs_mm[chosen])), 3)
    # Medians of a grid of widths are often equal: the mean logarithm tells which is sharper.
    if row["width_ratio"] is not None:
        change = float(np.mean(np.log(ours_mm[both] / theirs_mm[both])))
        row["width_change"] = round(float(np.expm1(change)), 4)
        row["sharper"] = change < 0
    return row


def summarise(rows: Sequence[Row]) -> Row:
    """Return the mean gain in signal-to-noise, the share of sharper series, and what they meet."""
    gains = [row["snr_gain"] for row in rows if row.get("snr_gain") is not None]
    sharper = [row["sharper"] for row in rows if "sharper" in row]
    gain = round(float(np.mean(gains)), 4) if gains else None
    share = round(float(np.mean(sharper)), 4) if sharper else None
    return {
        "series": len([row for row in rows if "refused" not in row]),
        "refused": len([row for row in rows if "refused" in row]),
        "snr_gain_mean": gain,
        "snr_met": gain is not None and gain >= SNR_GAIN,
        "sharper_share": share,
        "sharper_met": share is not None and share >= SHARPER_SHARE,
        "held": len([row for row in rows if row.get("passed") is False]),
    }
