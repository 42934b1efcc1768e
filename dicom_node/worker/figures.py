"""What a job's row keeps of the results of its volumes: one verdict, and every figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dicom_node.store import DerivedSeries
from dicom_node.worker.outputs import Readers, derived_instances
from dicom_node.worker.sources import Source

if TYPE_CHECKING:
    from sr_engine.pipeline import EnhanceResult


def derived_series(
    sources: Sequence[Source], results: Sequence["EnhanceResult"], wanted: Readers
) -> DerivedSeries:
    """Return what the store keeps of the engine's results, the first volume's first."""
    first = results[0]
    return DerivedSeries(
        series_uid=first.written.series_uid,
        instances=tuple(
            one for result in results for one in derived_instances(result.outputs, wanted)
        ),
        recipe_digest=first.provenance.recipe_digest,
        weights_sha256=first.provenance.bundle_sha256,
        figures=job_figures([source.name for source in sources], results),
    )


def job_figures(names: Sequence[str], results: Sequence["EnhanceResult"]) -> Mapping[str, Any]:
    """Return the plain JSON that the status page shows of a result; one doubt is a doubt about all.

    Parameters
    ----------
    names
        Of the volumes; what is said of one of several stands beside its name.
    """
    findings: list[str] = []
    quality: dict[str, float] = {}
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name, result in zip(names, results, strict=True):
        findings += [f"{name}: {said}" if name else said for said in result.report.findings]
        for figure, value in result.report.figures.items():
            quality[f"{figure} ({name})" if name else figure] = float(value)
        for stage, value in result.stages.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
        for stage, value in result.stages.peak_mib.items():
            peaks[stage] = max(value, peaks.get(stage, value))
    return {
        "passed": all(result.report.passed for result in results),
        "findings": findings,
        "quality": quality,
        "timings_s": seconds,
        "peak_mib": peaks,
    }
