"""The spread as a Parametric Map: how far the model's three axes disagree, voxel by voxel.

Stored as 16 bits with a mapping to scanner units: half the size of floats, and viewers that know
no real world value mapping still show it.

Source: PS3.3 A.75 (Parametric Map), C.8.32 (its modules), C.7.6.16.2.11 (real world values).
"""

from pathlib import Path

import numpy as np
from highdicom.pm import RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ParametricMapStorage

from sr_engine.dicom import attributes, multiframe
from sr_engine.dicom.companions import derived_places, template_of, write_companion
from sr_engine.dicom.display import MAX_STORED
from sr_engine.dicom.kinds import SPREAD, Kind
from sr_engine.dicom.multiframe import item
from sr_engine.dicom.template import SOURCE_IMAGE, add_qualities, code, reference, related_series
from sr_engine.dicom.writer import Result, WrittenSeries, add_plane_description, frame_order
from sr_engine.errors import WriteError

IMAGE_TYPE = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
DEVIATION = ("113061", "Standard Deviation")
EXPLANATION = "Standard deviation of the three axes of the model, in units of the scanner"


def write_spread(result: Result, form: str, out_dir: Path) -> WrittenSeries:
    """Write the spread beside the image in `form` and return what was written.

    Raises
    ------
    WriteError
        If there is no spread, or the file cannot be written.
    """
    kind = Kind(form=form, companion=SPREAD)
    return write_companion(result, kind, [parametric_map(result, kind)], out_dir)


def parametric_map(result: Result, kind: Kind) -> Dataset:
    """Return the complete dataset of the Parametric Map."""
    spread = result.spread
    if spread is None or not result.recipe.triaxial or not np.all(np.isfinite(spread)):
        raise WriteError(f"series {result.source.series_uid} has no spread to write")
    stored, slope = quantised(spread)
    root = template_of(result, kind, attributes.STUDY + attributes.SERIES)
    root.SOPClassUID, root.Modality = ParametricMapStorage, "OT"
    attributes.add_missing_type_2(root, ("PositionReferenceIndicator",))
    if "Laterality" in root:
        del root.Laterality  # of the frames here
    add_qualities(root, result.source, result.recipe)
    _describe(root)
    root.RelatedSeriesSequence = [related_series(result.source)]
    add_plane_description(root, result.volume)
    order = frame_order(result)
    shared = multiframe.take_planes(root)
    shared.FrameVOILUTSequence = [_window(stored)]
    shared.FrameAnatomySequence = [multiframe.anatomy(root)]
    shared.ParametricMapFrameTypeSequence = [item(FrameType=IMAGE_TYPE)]
    shared.RealWorldValueMappingSequence = [_mapping(slope)]
    shared.DerivationImageSequence = [_derivation(result, kind)]
    root.ReferencedSeriesSequence = [_referenced(result, kind)]
    root.SharedFunctionalGroupsSequence = [shared]
    root.PerFrameFunctionalGroupsSequence = multiframe.frames(result.volume, order)
    multiframe.add_dimensions(root)
    _add_pixels(root, stored[order])
    return root


def quantised(spread: np.ndarray) -> tuple[np.ndarray, float]:
    """Return stored values, uint16, and the scanner units of one step."""
    peak = float(spread.max(initial=0))
    slope = peak / MAX_STORED if peak > 0 else 1.0
    return np.rint(np.maximum(spread, 0) / slope).astype(np.uint16), slope


def _describe(root: Dataset) -> None:
    root.ImageType = IMAGE_TYPE
    root.ContentLabel = "SPREAD"
    root.ContentDescription = EXPLANATION[:64]
    root.ContentCreatorName = None
    root.AcquisitionContextSequence = []
    root.PixelPresentation = "MONOCHROME"
    if "RecognizableVisualFeatures" not in root:
        root.RecognizableVisualFeatures = "YES"  # the outline of a head


def _window(stored: np.ndarray) -> Dataset:
    """Return a window from nothing to the 99th percentile of what is above nothing."""
    above = stored[stored > 0]
    width = max(float(np.percentile(above, 99)) if above.size else 1.0, 1.0)
    return item(WindowCenter=str(round(width / 2)), WindowWidth=str(max(round(width), 1)))


def _mapping(slope: float) -> Dataset:
    return RealWorldValueMapping(
        lut_label="SPREAD",
        lut_explanation=EXPLANATION[:64],
        unit=codes.UCUM.ArbitraryUnit,
        value_range=(0, MAX_STORED),
        slope=slope,
        intercept=0.0,
        quantity_definition=codes.DCM.StandardDeviation,
    )


def _derivation(result: Result, kind: Kind) -> Dataset:
    """Return the reference to the image that this is the spread of."""
    places = {place.sop_uid: place for place in derived_places(result, kind.form)}
    images = []
    for place in places.values():
        image = reference(place.sop_class_uid, place.sop_uid)
        image.PurposeOfReferenceCodeSequence = code(SOURCE_IMAGE)
        image.SpatialLocationsPreserved = "YES"
        images.append(image)
    return item(
        DerivationDescription=EXPLANATION,
        DerivationCodeSequence=code(DEVIATION),
        SourceImageSequence=images,
    )


def _referenced(result: Result, kind: Kind) -> Dataset:
    """Return the image's instances by series (PS3.3 C.12.2)."""
    places = {place.sop_uid: place for place in derived_places(result, kind.form)}
    return item(
        SeriesInstanceUID=result.provenance.series[kind.form],
        ReferencedInstanceSequence=[
            reference(place.sop_class_uid, uid) for uid, place in places.items()
        ],
    )


def _add_pixels(root: Dataset, stored: np.ndarray) -> None:
    root.SamplesPerPixel = 1
    root.PhotometricInterpretation = "MONOCHROME2"
    root.Rows, root.Columns = stored.shape[1:]
    root.BitsAllocated, root.BitsStored, root.HighBit = 16, 16, 15
    root.PixelRepresentation = 0
    multiframe.add_pixels(root, stored)
