"""One result to every series that is wanted of it: images first, then what refers to them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset

from sr_engine.dicom import display, seal
from sr_engine.dicom.enhanced_writer import write_enhanced
from sr_engine.dicom.headers import quiet
from sr_engine.dicom.kinds import (
    CLASSIC,
    ENHANCED,
    KEY_OBJECTS,
    PRESENTATION,
    REPORT,
    SPREAD,
    in_order,
    kind_of,
)
from sr_engine.dicom.pairs import write_key_objects, write_presentation
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.reader import SourceSeries
from sr_engine.dicom.report import write_report
from sr_engine.dicom.spread_map import write_spread
from sr_engine.dicom.template import JobIdentity
from sr_engine.dicom.uids import derived_series_uid
from sr_engine.dicom.writer import (
    Result,
    WrittenSeries,
    image_template,
    sync_folder,
    write_classic,
)
from sr_engine.errors import WriteError
from sr_engine.recipe import Recipe


@quiet()
def write_outputs(
    source: SourceSeries,
    volume: Volume,
    *,
    out_dir: Path,
    recipe: Recipe,
    provenance: Provenance,
    job: JobIdentity,
    kinds: Sequence[str] = (CLASSIC,),
    spread: np.ndarray | None = None,
    findings: tuple[str, ...] = (),
    signer: seal.Signer | None = None,
) -> tuple[WrittenSeries, ...]:
    """Write the series called `kinds` of one result and return them, images first.

    Parameters
    ----------
    volume
        float (slices, rows, columns) in the source's scanner units; the affine maps
        (slice, row, column) to LPS mm.
    spread : shape of the volume, float32
        Standard deviation over the axes in scanner units; needed for its companion.
    findings
        What the quality gate found, for the report.

    Raises
    ------
    WriteError
        If the volume has values that are not finite, or a file cannot be written.
    """
    if not np.all(np.isfinite(volume.array)):
        raise WriteError(f"the volume derived from {source.series_uid} has values not finite")
    stored = display.to_stored(source.volume.array, volume.array)
    result = Result(
        source=source,
        volume=volume,
        stored=stored,
        recipe=recipe,
        provenance=completed(provenance, source, recipe, job, stored, kinds),
        job=job,
        spread=spread,
        findings=findings,
        signer=signer,
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    template = image_template(result)
    written = []
    for kind in in_order(map(kind_of, kinds)):
        if kind.companion:
            written.append(COMPANIONS[kind.companion](result, kind.form, out_dir))
        else:
            written.append(IMAGES[kind.form](result, template, out_dir))
    sync_folder(out_dir)
    return tuple(written)


IMAGES: dict[str, Callable[[Result, Dataset, Path], WrittenSeries]] = {
    CLASSIC: write_classic,
    ENHANCED: write_enhanced,
}
COMPANIONS: dict[str, Callable[[Result, str, Path], WrittenSeries]] = {
    SPREAD: write_spread,
    KEY_OBJECTS: write_key_objects,
    PRESENTATION: write_presentation,
    REPORT: write_report,
}


def completed(
    provenance: Provenance,
    source: SourceSeries,
    recipe: Recipe,
    job: JobIdentity,
    stored: display.StoredPixels,
    kinds: Sequence[str],
) -> Provenance:
    """Return `provenance` with what only the writer knows."""
    wanted = in_order(map(kind_of, kinds))
    if not wanted or wanted[0].companion:
        raise WriteError(f"no image is written of {source.series_uid}: {', '.join(kinds)}")
    series = {
        kind.name: derived_series_uid(
            source.series_uid,
            source.sop_uids,
            recipe.digest(),
            provenance.bundle_sha256,
            provenance.software_version,
            job.generation,
            kind.uid_name,
        )
        for kind in wanted
    }
    return replace(
        provenance,
        derived_series_uid=series[wanted[0].name],
        series=series,
        result_sha256=hashlib.sha256(stored.array.astype("<u2").tobytes()).hexdigest(),
        slices=len(stored.array),
        pixel_gain=stored.gain,
        clipped_voxels=stored.clipped,
    )
