"""The gate's rules about what only a multi-frame image has: frames, dimensions, a type twice."""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from dicom_node.gate_case import Case, Registry, uid_of
from dicom_node.gate_geometry import text, values

DIMENSIONS = [0x00209056, 0x00209057]  # StackID, InStackPositionNumber
RULES: Registry[Case] = Registry()


@RULES.rule
def frame_count(case: Case) -> Iterator[str]:
    if case.whole is not None:
        yield from count_faults(case.whole)


def count_faults(dataset: Dataset) -> Iterator[str]:
    """Yield where the frames that are described are not those that are stored."""
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if values(dataset, "NumberOfFrames") != [described]:
        yield f"NumberOfFrames of {uid_of(dataset)} is not {described}"
    size = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * 2 * described
    if not size or len(dataset.get("PixelData") or b"") != size:
        yield f"the pixel data of {uid_of(dataset)} are not {size} bytes"


@RULES.rule
def frame_dimensions(case: Case) -> Iterator[str]:
    if case.whole is not None:
        yield from dimension_faults(case.whole)


def dimension_faults(dataset: Dataset) -> Iterator[str]:
    """Yield where the frames are not the places of one stack, by which viewers sort them."""
    indices = dataset.get("DimensionIndexSequence") or ()
    if [item.get("DimensionIndexPointer") for item in indices] != DIMENSIONS:
        yield f"the dimensions of {uid_of(dataset)} are not stack and place"
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    contents = [(frame.get("FrameContentSequence") or [Dataset()])[0] for frame in frames]
    stacks = {text(content, "StackID") for content in contents}
    if len(stacks) != 1 or "" in stacks:
        yield f"the frames of {uid_of(dataset)} are not of one stack"
    for number, content in enumerate(contents, 1):
        place = values(content, "InStackPositionNumber")
        if values(content, "DimensionIndexValues") != [1.0, *place]:
            yield f"DimensionIndexValues of frame {number} of {uid_of(dataset)} is not its place"


@RULES.rule
def root_image_type(case: Case) -> Iterator[str]:
    if case.whole is None:
        return
    stated = list(case.whole.get("ImageType") or [])
    if stated != list(case.derived[0].get("ImageType") or []) or stated[:1] != ["DERIVED"]:
        yield f"ImageType of {uid_of(case.whole)} is {'/'.join(stated) or 'missing'}"
