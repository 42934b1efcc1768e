"""Stored images as the slices that the gate's rules look at: a classic image is one, a frame, too.

The gate must not repeat a mistake of the writer, so nothing here is shared with it.
"""

from collections.abc import Iterable, Iterator

from pydicom.dataset import Dataset

from dicom_node.gate_case import Slice

# Functional group -> its attribute -> what a classic image calls it.
GROUPS = {
    "PixelMeasuresSequence": {
        "PixelSpacing": "PixelSpacing",
        "SliceThickness": "SliceThickness",
        "SpacingBetweenSlices": "SpacingBetweenSlices",
    },
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "FrameContentSequence": {"InStackPositionNumber": "InstanceNumber"},
    "FrameVOILUTSequence": {"WindowCenter": "WindowCenter", "WindowWidth": "WindowWidth"},
    "MRImageFrameTypeSequence": {
        "FrameType": "ImageType",
        "ComplexImageComponent": "ComplexImageComponent",
    },
    "MRTimingAndRelatedParametersSequence": {
        "RepetitionTime": "RepetitionTime",
        "FlipAngle": "FlipAngle",
    },
    "MREchoSequence": {"EffectiveEchoTime": "EchoTime"},
    "DerivationImageSequence": {
        "DerivationDescription": "DerivationDescription",
        "DerivationCodeSequence": "DerivationCodeSequence",
        "SourceImageSequence": "SourceImageSequence",
    },
}
IDENTITY = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
NOT_OF_A_SLICE = (
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "NumberOfFrames",
    "PixelData",
)


def is_multiframe(dataset: Dataset) -> bool:
    """Return whether the image has functional groups."""
    return bool(dataset.get("PerFrameFunctionalGroupsSequence"))


def slices_of(instances: Iterable[Dataset]) -> list[Slice]:
    """Return every slice of `instances`, with the number of its frame in the file."""
    return [
        Slice(header=header, frame=number, instance=dataset)
        for dataset in instances
        for number, header in enumerate(
            frames(dataset) if is_multiframe(dataset) else (dataset,), start=1
        )
    ]


def frames(dataset: Dataset) -> Iterator[Dataset]:
    """Yield one dataset per frame, with the attributes of a classic image and its pixels."""
    root = Dataset()
    for tag in dataset.keys():
        root[tag] = dataset.get_item(tag)
    for keyword in NOT_OF_A_SLICE:
        if keyword in root:
            del root[keyword]
    _put_evidence(root)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    pixels = bytes(dataset.get("PixelData") or b"")
    size = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * 2
    for place, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        one = Dataset()
        for tag in root.keys():
            one[tag] = root.get_item(tag)
        for name, attributes in GROUPS.items():
            for group in frame.get(name) or shared.get(name) or ():
                for keyword, classic in attributes.items():
                    if keyword in group:
                        setattr(one, classic, group[keyword].value)
        _put_rescale(one, frame, shared)
        one.add_new("PixelData", "OW", pixels[place * size : (place + 1) * size])
        one.file_meta = dataset.file_meta
        yield one


def _put_evidence(root: Dataset) -> None:
    """Name the source instances as a classic image does."""
    listed = []
    for study in root.get("SourceImageEvidenceSequence") or ():
        for series in study.get("ReferencedSeriesSequence") or ():
            one = Dataset()
            one.SeriesInstanceUID = series.get("SeriesInstanceUID")
            one.ReferencedInstanceSequence = list(series.get("ReferencedSOPSequence") or ())
            listed.append(one)
    if listed:
        root.ReferencedSeriesSequence = listed


def _put_rescale(one: Dataset, frame: Dataset, shared: Dataset) -> None:
    """Show a rescale only where it is not the identity, which must stand in a multi-frame image."""
    name = "PixelValueTransformationSequence"
    for group in frame.get(name) or shared.get(name) or ():
        for keyword, neutral in IDENTITY.items():
            if float(group.get(keyword) or 0.0) != neutral:
                setattr(one, keyword, group.get(keyword))
