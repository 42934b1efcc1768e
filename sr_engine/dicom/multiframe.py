"""What the multi-frame objects of one result share: functional groups, dimensions, pixels.

Source: PS3.3 C.7.6.16 (functional groups) and C.7.6.17 (dimensions).
"""

from collections.abc import Sequence

import numpy as np
from highdicom import Volume
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from sr_engine.dicom.headers import text
from sr_engine.dicom.uids import part_uid
from sr_engine.dicom.writer import slice_position

BODY_PARTS = {"HEAD": ("69536005", "Head"), "NECK": ("45048000", "Neck")}
BRAIN = ("12738006", "Brain")
STACK_ID = "1"
FRAME_CONTENT, STACK, PLACE = 0x00209111, 0x00209056, 0x00209057


def item(**values: object) -> Dataset:
    """Return an item of a sequence; `values` are attributes by keyword."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def sct(value: tuple[str, str]) -> list[Dataset]:
    """Return a code sequence of one SNOMED CT code."""
    return [item(CodeValue=value[0], CodingSchemeDesignator="SCT", CodeMeaning=value[1])]


def move(source: Dataset, target: Dataset, *keywords: str) -> None:
    """Move elements, as they are encoded, out of `source`."""
    for keyword in keywords:
        if keyword in source:
            target[keyword] = source.get_item(Tag(keyword))
            del source[keyword]


def take_planes(root: Dataset) -> Dataset:
    """Return shared functional groups of geometry and display, taken out of a slice's template."""
    shared, measures, orientation, display = Dataset(), Dataset(), Dataset(), Dataset()
    move(root, measures, "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
    move(root, orientation, "ImageOrientationPatient")
    move(root, display, "WindowCenter", "WindowWidth")
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    shared.FrameVOILUTSequence = [display]
    shared.PixelValueTransformationSequence = [
        item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
    ]
    return shared


def anatomy(root: Dataset) -> Dataset:
    """Return the frame anatomy, its region taken out of `root`; the engine takes heads only."""
    group = item(FrameLaterality="U")
    move(root, group, "AnatomicRegionSequence")
    if not group.get("AnatomicRegionSequence"):
        group.AnatomicRegionSequence = sct(BODY_PARTS.get(text(root, "BodyPartExamined"), BRAIN))
    return group


def frames(volume: Volume, order: Sequence[int]) -> list[Dataset]:
    """Return the per-frame groups of the slices in `order`, which counts from 0."""
    made = []
    for place, index in enumerate(order, 1):
        content = item(
            StackID=STACK_ID, InStackPositionNumber=place, DimensionIndexValues=[1, place]
        )
        position = item(ImagePositionPatient=slice_position(volume, index))
        made.append(item(FrameContentSequence=[content], PlanePositionSequence=[position]))
    return made


def add_dimensions(root: Dataset) -> None:
    """Say that frames are ordered by their place in one stack."""
    uid = part_uid(root.SeriesInstanceUID, "dimension organization")
    root.DimensionOrganizationType = "3D"
    root.DimensionOrganizationSequence = [item(DimensionOrganizationUID=uid)]
    root.DimensionIndexSequence = [
        item(
            DimensionOrganizationUID=uid,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=FRAME_CONTENT,
            DimensionDescriptionLabel=label,
        )
        for pointer, label in ((STACK, "Stack"), (PLACE, "Place in stack"))
    ]


def add_pixels(root: Dataset, pixels: np.ndarray) -> None:
    """Add unsigned 16-bit frames."""
    root.NumberOfFrames = len(pixels)
    root.PresentationLUTShape = "IDENTITY"
    root.add_new("PixelData", "OW", pixels.astype("<u2").tobytes())
