"""Original and derived slices at equal level: a Key Object Selection, and presentation states.

The Key Object Selection lists pairs for programs; the presentation states write the counterpart's
number on each image for people.

Source: PS3.16 TID 2010, PS3.3 A.35.4 (KO), A.33.1 (GSPS).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.pr import (
    GraphicAnnotation,
    GraphicLayer,
    GrayscaleSoftcopyPresentationState,
    SoftcopyVOILUTTransformation,
    TextObject,
)
from highdicom.sr import ImageContentItem, RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from sr_engine.dicom import attributes
from sr_engine.dicom.companions import (
    Level,
    Place,
    adopt,
    derived_places,
    distinct,
    levels,
    original_places,
    stand_in,
    template_of,
    write_companion,
)
from sr_engine.dicom.display import source_window, window_value
from sr_engine.dicom.headers import number
from sr_engine.dicom.kinds import KEY_OBJECTS, PRESENTATION, Kind
from sr_engine.dicom.observer import device_observer
from sr_engine.dicom.template import MANUFACTURER, MODEL_NAME
from sr_engine.dicom.uids import derived_instance_uid
from sr_engine.dicom.writer import Result, WrittenSeries

TEXT_BOX = (0.02, 0.93, 0.60, 0.99)  # left, top, right, bottom, as parts of the display


def write_key_objects(result: Result, form: str, out_dir: Path) -> WrittenSeries:
    """Write the list of pairs and return what was written."""
    kind = Kind(form=form, companion=KEY_OBJECTS)
    return write_companion(result, kind, [key_objects(result, kind)], out_dir)


def key_objects(result: Result, kind: Kind) -> Dataset:
    """Return a selection in which each original slice is followed by its counterpart."""
    template = template_of(result, kind)
    pairs = levels(original_places(result), derived_places(result, kind.form))
    places = [place for pair in pairs for place in (pair.slice, pair.counterpart)]
    evidence = distinct(result, places)
    content = KeyObjectSelection(
        document_title=codes.DCM.ForResearch,
        referenced_objects=evidence[:1],
        observer_device_context=device_observer(result),
        description=_described(pairs),
    )
    children = content[0].ContentSequence
    del children[-1]  # highdicom's reference names no frame
    children.extend(map(_image, places))
    made = KeyObjectSelectionDocument(
        evidence=evidence, content=content, **_common(template), manufacturer=MANUFACTURER
    )
    return adopt(template, made)


def _described(pairs: Sequence[Level]) -> str:
    apart_mm = max(pair.apart_mm for pair in pairs)
    return (
        "Original and derived slices at equal level: each original image is followed by the "
        f"derived image nearest to it. {len(pairs)} pairs, at most {apart_mm:.2f} mm apart."
    )


def _image(place: Place) -> ImageContentItem:
    return ImageContentItem(
        name=codes.SCT.Source,
        referenced_sop_class_uid=place.sop_class_uid,
        referenced_sop_instance_uid=place.sop_uid,
        referenced_frame_numbers=place.frame,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )


def write_presentation(result: Result, form: str, out_dir: Path) -> WrittenSeries:
    """Write a presentation state of each of the two series and return what was written."""
    kind = Kind(form=form, companion=PRESENTATION)
    original, derived = original_places(result), derived_places(result, form)
    shown = result.window
    states = [presentation(result, kind, 1, levels(derived, original), "original", shown, None)]
    rescale = _one_rescale(result)
    if rescale is not None:
        as_stated = source_window(result.source.headers)
        pairs = levels(original, derived)
        states.append(presentation(result, kind, 2, pairs, "AI-SR", as_stated, rescale))
    return write_companion(result, kind, states, out_dir)


def presentation(
    result: Result,
    kind: Kind,
    number: int,
    pairs: Sequence[Level],
    counterpart: str,
    window: tuple[float, float] | None,
    rescale: tuple[float, float] | None,
) -> Dataset:
    """Return a state that shows one series with the counterpart of each slice written on it."""
    template = template_of(result, kind, (*attributes.STUDY, "BodyPartExamined", "Laterality"))
    attributes.add_laterality(template)
    template.InstanceNumber = number
    template.SOPInstanceUID = derived_instance_uid(template.SeriesInstanceUID, number - 1)
    layer = GraphicLayer(layer_name="LEVELS", order=1, description="Counterpart of each slice")
    made = GrayscaleSoftcopyPresentationState(
        referenced_images=distinct(result, (pair.slice for pair in pairs)),
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=result.provenance.software_version,
        device_serial_number=result.provenance.bundle_sha256[:16] or "NONE",
        content_label="LEVELS",
        content_description="Original and derived slices at equal level",
        graphic_layers=[layer],
        graphic_annotations=[_label(result, layer, pair, counterpart) for pair in pairs],
        modality_lut_transformation=_modality(rescale),
        voi_lut_transformations=[_display(window)] if window else None,
        **_common(template),
    )
    state = adopt(template, made)
    state.PresentationCreationDate = template.ContentDate
    state.PresentationCreationTime = template.ContentTime
    for keyword in ("ContentDate", "ContentTime"):  # of images and documents only
        del state[keyword]
    return state


def _label(result: Result, layer: GraphicLayer, pair: Level, what: str) -> GraphicAnnotation:
    text = TextObject(
        text_value=f"level of {what} image {pair.counterpart.number}, {pair.apart_mm:.2f} mm away",
        units="DISPLAY",
        bounding_box=TEXT_BOX,
        text_justification="LEFT",
    )
    return GraphicAnnotation(
        referenced_images=[stand_in(result, pair.slice)],
        graphic_layer=layer,
        referenced_frame_number=pair.slice.frame,
        text_objects=[text],
    )


def _display(window: tuple[float, float]) -> SoftcopyVOILUTTransformation:
    centre, width = (float(window_value(value)) for value in window)
    return SoftcopyVOILUTTransformation(window_center=centre, window_width=max(width, 1.0))


def _one_rescale(result: Result) -> tuple[float, float] | None:
    """Return the source's rescale; None when it differs from slice to slice.

    A presentation state has one modality LUT for all its images: such a source keeps its own
    display, and only the derived series gets a state.
    """
    found = {
        (number(header, "RescaleSlope"), number(header, "RescaleIntercept"))
        for header in result.source.headers
    }
    if len(found) > 1:
        return None
    slope, intercept = found.pop()
    return (1.0 if slope is None else slope), intercept or 0.0


def _modality(rescale: tuple[float, float] | None) -> hd.ModalityLUTTransformation | None:
    if rescale is None or rescale == (1.0, 0.0):
        return None
    slope, intercept = rescale
    return hd.ModalityLUTTransformation(
        rescale_intercept=intercept, rescale_slope=slope, rescale_type="US"
    )


def _common(template: Dataset) -> dict[str, Any]:
    """Return the identity that highdicom wants to be told."""
    return {
        "series_instance_uid": template.SeriesInstanceUID,
        "series_number": int(template.SeriesNumber),
        "sop_instance_uid": template.SOPInstanceUID,
        "instance_number": int(template.InstanceNumber),
    }
