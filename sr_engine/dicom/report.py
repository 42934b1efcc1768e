"""The quality figures as a TID 1500 report, in the way of the IHE profile AI Results.

Source: PS3.16 TID 1500, TID 1501, TID 300, TID 4019; IHE RAD AI Results (AIR).
"""

from pathlib import Path

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    EnhancedSR,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from sr_engine.dicom.companions import (
    adopt,
    derived_places,
    distinct,
    template_of,
    write_companion,
)
from sr_engine.dicom.kinds import REPORT, Kind
from sr_engine.dicom.multiframe import item
from sr_engine.dicom.observer import device_observer
from sr_engine.dicom.template import MANUFACTURER
from sr_engine.dicom.uids import part_uid
from sr_engine.dicom.writer import Result, WrittenSeries

SCHEME = "99DICOMNODE"  # our own codes: PS3.16 has none for these figures
PER_CENT, RATIO = codes.UCUM.Percent, codes.UCUM.NoUnits
# Figure -> code, meaning, unit, factor.
FIGURES = {
    "residual_over_noise": ("Q01", "Residual to measured data over noise", RATIO, 1),
    "residual_rms": ("Q02", "Residual to measured data, RMS", RATIO, 1),
    "noise_sigma": ("Q03", "Noise of measured data", RATIO, 1),
    "blob_z": ("Q04", "Largest local residual in noise deviations", RATIO, 1),
    "blob_intensity": ("Q05", "Largest local residual, intensity", RATIO, 1),
    "spread_p99": ("Q06", "Disagreement of three axes, 99th percentile", RATIO, 1),
    "clipped": ("Q07", "Head cut off at black or white", PER_CENT, 100),
    "coverage": ("Q08", "Head shown in the result", PER_CENT, 100),
}
OF_THREE_AXES = ("spread_p99",)  # no figure where the model ran along one: 0 would look certain
VERDICT, GOOD, DOUBTFUL = ("V01", "Quality verdict"), ("V02", "Passed"), ("V03", "Doubtful")


def write_report(result: Result, form: str, out_dir: Path) -> WrittenSeries:
    """Write the report and return what was written."""
    kind = Kind(form=form, companion=REPORT)
    return write_companion(result, kind, [report(result, kind)], out_dir)


def report(result: Result, kind: Kind) -> Dataset:
    """Return the complete dataset of the report."""
    template = template_of(result, kind)
    series_uid = str(template.SeriesInstanceUID)
    evidence = distinct(result, derived_places(result, kind.form))
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=device_observer(result)),
        procedure_reported=codes.LN.MRIUnspecifiedBodyRegion,
        imaging_measurements=[_figures(result, evidence, series_uid)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = EnhancedSR(
        evidence=evidence,
        content=content[0],
        series_instance_uid=series_uid,
        series_number=int(template.SeriesNumber),
        sop_instance_uid=template.SOPInstanceUID,
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=True,
    )
    template.CodingSchemeIdentificationSequence = [
        item(CodingSchemeDesignator=SCHEME, CodingSchemeName=f"{MANUFACTURER} quality figures")
    ]
    return adopt(template, made)


def _figures(
    result: Result, evidence: list[Dataset], series_uid: str
) -> MeasurementsAndQualitativeEvaluations:
    """Return the group of all figures, with the images that they are about."""
    made, stated = result.provenance, result.provenance.quality
    verdict = QualitativeEvaluation(
        name=_code(VERDICT), value=_code(DOUBTFUL if result.findings else GOOD)
    )
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=part_uid(series_uid, "quality"), identifier="Quality of the derived series"
        ),
        algorithm_id=AlgorithmIdentification(
            name=made.software_name,
            version=made.software_version,
            parameters=[
                f"weights {made.bundle_name} {made.bundle_sha256}",
                f"recipe {made.recipe_digest}",
            ],
        ),
        finding_sites=[FindingSite(anatomic_location=codes.SCT.Brain)],
        measurements=[
            Measurement(
                name=_code(FIGURES[name][:2]),
                value=float(value) * FIGURES[name][3],
                unit=FIGURES[name][2],
            )
            for name, value in stated.items()
            if name in FIGURES and (name not in OF_THREE_AXES or result.recipe.triaxial)
        ]
        or None,
        qualitative_evaluations=[verdict],
        source_images=[
            SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
            for image in evidence
        ],
    )
    group[0].ContentSequence.extend(map(_comment, result.findings))
    return group


def _code(value: tuple[str, str]) -> CodedConcept:
    return CodedConcept(value=value[0], scheme_designator=SCHEME, meaning=value[1])


def _comment(finding: str) -> TextContentItem:
    return TextContentItem(
        name=codes.DCM.Comment, value=finding, relationship_type=RelationshipTypeValues.CONTAINS
    )
