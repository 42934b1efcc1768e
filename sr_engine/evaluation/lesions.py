"""Planted lesions: are they kept, and is nothing invented beside them?

Spheres are put into the reference, the pair with and without is degraded under the same noise, and
both are enhanced. The difference of the two results is what the method makes of the lesions alone.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import numpy as np
from scipy import ndimage

from sr_engine.errors import InputRefused
from sr_engine.evaluation.cases import Case, degradation, is_finer, judged, make_input, read_case
from sr_engine.evaluation.ledger import Ledger, Row, Say
from sr_engine.evaluation.lesion_summary import lesion_means
from sr_engine.evaluation.methods import Method, Tools, run_method
from sr_engine.evaluation.spheres import scattered, sphere
from sr_engine.evaluation.tissue import find_tissue

SIZES_MM = (1.0, 2.0, 3.0, 5.0)
CONTRAST = 0.25  # of white matter: a black hole, or a lesion that takes up contrast agent
APART_MM = 14.0  # so that what a method smears does not meet the next lesion
WIDENED = 2.0  # the point spread, in voxels of the input
CLUSTER_MM3 = 8.0
SIGMAS = 3.0
LEAST_SIGMA = 0.01  # of an input without noise: what the verdict allows the model to miss
FWHM = 2.355
KEYS, MADE_WITH = ("case", "input", "method"), ("weights", "steps", "planted")
SITES = ("ventricle", "cortex")


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A sphere: intensity added, in normalised units."""

    site: str
    size_mm: float
    contrast: float
    centre: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one method made of the input with the lesions and of that without."""

    with_lesions: np.ndarray
    without: np.ndarray

    @property
    def response(self) -> np.ndarray:
        """Return the difference that the lesions make."""
        return self.with_lesions - self.without


def choose_lesions(case: Case, count: int, sizes_mm: Sequence[float]) -> list[Lesion]:
    """Return up to `count` lesions, hypo- and hyperintense, half of them near the ventricles.

    Raises
    ------
    InputRefused
        If there is no room for any.
    """
    tissue = find_tissue(case.volume.array, case.mask, case.spacing_mm)
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    taken: list[tuple[int, int, int]] = []
    lesions = []
    for site, allowed in zip(SITES, (tissue.near_ventricles, tissue.cortex), strict=True):
        kinds = cycle(product(sizes_mm, (-1, 1)))
        places = scattered(allowed, (count + 1) // 2, case.spacing_mm, APART_MM, rng, taken)
        taken += places
        for place, (size_mm, sign) in zip(places, kinds, strict=False):
            contrast = sign * CONTRAST * tissue.white_mean
            lesions.append(Lesion(site=site, size_mm=size_mm, contrast=contrast, centre=place))
    if not lesions:
        raise InputRefused(f"{case.name}: no white matter or cortex found to plant lesions in")
    return lesions


def plant(case: Case, lesions: Sequence[Lesion]) -> tuple[Case, np.ndarray]:
    """Return the case with the lesions, never below 0, and what was added."""
    added = np.zeros_like(case.volume.array)
    for lesion in lesions:
        box, share = sphere(added.shape, case.spacing_mm, lesion.centre, lesion.size_mm)
        added[box] += np.float32(lesion.contrast) * share
    added = np.maximum(added, -case.volume.array)
    return case.with_array(case.volume.array + added), added


def measure_lesions(
    data: Path,
    *,
    inputs: Sequence[str],
    methods: Sequence[str],
    tools: Tools,
    cases: str = "",
    use: str = "evaluation",
    count: int = 32,
    sizes_mm: Sequence[float] = SIZES_MM,
    out: Path | None = None,
    say: Say = print,
) -> dict:
    """Return for each case, input and method what became of the lesions, and the means by size."""
    chosen = [tools.method(name) for name in methods]
    planted = f"{count} of {','.join(f'{size:g}' for size in sizes_mm)} mm"
    ledger = Ledger(out, KEYS, MADE_WITH, {"contrast_of_white_matter": CONTRAST})
    for path in judged(data, use=use, cases=cases):
        name = path.name.split(".nii")[0]
        missing = {
            given: [m for m in chosen if not _known(ledger, name, given, m, tools, planted)]
            for given in inputs
        }
        if not any(missing.values()):
            say(f"{name}  all rows are there")
            continue
        case = read_case(path)
        lesions = choose_lesions(case, count, sizes_mm)
        say(f"{name}  {len(lesions)} lesions planted")
        for given, wanted in missing.items():
            if is_finer(case, given):
                _measure_input(case, given, lesions, wanted, tools, planted, ledger, say)
    means = lesion_means(ledger.rows)
    for mean in means:
        say("mean  " + "  ".join(f"{key} {value}" for key, value in mean.items()))
    return ledger.write({"means": means})


def _known(
    ledger: Ledger, case: str, given: str, method: Method, tools: Tools, planted: str
) -> bool:
    made_with = {"weights": tools.weights(method), "steps": method.steps, "planted": planted}
    return ledger.find(case=case, input=given, method=method.name, **made_with) is not None


def _measure_input(
    case: Case,
    given: str,
    lesions: Sequence[Lesion],
    methods: Sequence[Method],
    tools: Tools,
    planted: str,
    ledger: Ledger,
    say: Say,
) -> None:
    """Add the rows of one input."""
    sick, added = plant(case, lesions)
    without = make_input(case, given)
    with_lesions = make_input(sick, given, sigma=without.sigma)

    def run(method: Method) -> Pair:
        first = run_method(method, with_lesions.volume, case.volume, tools)
        second = run_method(method, without.volume, case.volume, tools)
        return Pair(with_lesions=first.array, without=second.array)

    low_mm = degradation(given, case.spacing_mm).low_mm
    far = case.mask & ~widened(added != 0, case.spacing_mm, low_mm)
    cubic = run(tools.method("cubic"))
    for method in methods:
        pair = cubic if method.kind == "cubic" else run(method)
        row: Row = {"case": case.name, "input": given, "method": method.name}
        row |= {"weights": tools.weights(method), "steps": method.steps, "planted": planted}
        row |= {"lesions": lesion_rows(case, added, lesions, pair)}
        row |= invented(sick, pair, cubic, far, without.sigma)
        ledger.add(row)
        recovered = float(np.mean([one["recovery"] for one in row["lesions"]]))
        say(
            f"{case.name}  {given}  {method.name}  recovery {recovered:.3f}  clusters beside "
            f"cubic's error {row['excess_clusters']}  outside {row['leak_rms']:.5f}"
        )


def lesion_rows(case: Case, added: np.ndarray, lesions: Sequence[Lesion], pair: Pair) -> list[Row]:
    """Return contrast recovery and detection of each lesion.

    Recovery is the mean response over the mean of what was added, within the lesion. Detected is a
    lesion whose response is above three deviations of the method's own error at that size.
    """
    response = pair.response
    error = pair.without - case.volume.array
    noise = {
        size: _error_at(error, size, case) for size in dict.fromkeys(x.size_mm for x in lesions)
    }
    rows = []
    for lesion in lesions:
        box, share = sphere(added.shape, case.spacing_mm, lesion.centre, lesion.size_mm)
        core = share >= min(0.5, float(share.max()))
        truth, found = float(added[box][core].mean()), float(response[box][core].mean())
        if abs(truth) < 0.2 * abs(lesion.contrast):
            continue  # there was nothing to darken
        rows.append(
            {
                "site": lesion.site,
                "size_mm": lesion.size_mm,
                "hyperintense": lesion.contrast > 0,
                "recovery": round(found / truth, 4),
                "detected": bool(found * np.sign(truth) > SIGMAS * noise[lesion.size_mm]),
                "centre": list(lesion.centre),
            }
        )
    return rows


def _error_at(error: np.ndarray, size_mm: float, case: Case) -> float:
    """Return the deviation of an error averaged over a lesion's size."""
    smooth = ndimage.gaussian_filter(error, [size_mm / FWHM / mm for mm in case.spacing_mm])
    return float(smooth[case.mask].std())


def widened(mask: np.ndarray, spacing_mm: Sequence[float], low_mm: Sequence[float]) -> np.ndarray:
    """Return `mask` and what lies within the point spread of the acquisition around it."""
    sampling = [mm / low for mm, low in zip(spacing_mm, low_mm, strict=True)]
    return ndimage.distance_transform_edt(~mask, sampling=sampling) <= WIDENED


def invented(sick: Case, pair: Pair, cubic: Pair, far: np.ndarray, sigma: float) -> Row:
    """Return what a method shows that is neither there nor in the cubic interpolation.

    `excess_clusters`: where its error is larger than cubic's by three sigma of the input's noise,
    in clusters of 8 mm3 or more; `cubic_excess_clusters` is the same the other way round.
    `leak`: the response outside the lesions widened by the point spread.
    """
    limit = SIGMAS * max(sigma, LEAST_SIGMA)
    voxel_mm3 = float(np.prod(sick.spacing_mm))
    truth = sick.volume.array
    excess = np.abs(pair.with_lesions - truth) - np.abs(cubic.with_lesions - truth)
    response = np.where(far, pair.response, 0)
    row: Row = {"limit": round(limit, 5)}
    for name, field in (
        ("excess", excess),
        ("cubic_excess", -excess),
        ("leak", np.abs(response)),
    ):
        sizes = cluster_mm3((field > limit) & sick.mask, voxel_mm3)
        row[f"{name}_clusters"] = len(sizes)
        row[f"{name}_largest_mm3"] = round(float(max(sizes, default=0.0)), 2)
    row["leak_rms"] = round(float(np.sqrt(np.mean(response[far] ** 2))), 6)
    row["leak_max"] = round(float(np.abs(response).max()), 5)
    return row


def cluster_mm3(mask: np.ndarray, voxel_mm3: float) -> list[float]:
    """Return the volumes of the connected parts of at least 8 mm3."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())[1:] * voxel_mm3
    return [float(size) for size in sizes if size >= CLUSTER_MM3]
