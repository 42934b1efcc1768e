"""Synthetic series as other scanners send them: Enhanced, and with more than one volume inside."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage, RawDataStorage, generate_uid

Change = Callable[[Dataset], None]


def setting(**values: Any) -> Change:
    """Return a change that sets attributes by keyword."""

    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def add_copy(path: Path, name: str, change: Change) -> Path:
    """Write a changed copy of an instance beside it, under a UID of its own."""
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(dataset.SOPInstanceUID), name])
    change(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    target = path.with_name(f"{name}-{path.name}")
    dataset.save_as(target)
    return target


def add_copies(paths: Sequence[Path], name: str, change: Change) -> list[Path]:
    """Write a changed copy of every instance beside it."""
    return [add_copy(path, name, change) for path in paths]


def one_series(*parts: Sequence[Path]) -> list[Path]:
    """Make one series of several, as scanners do: in one study and frame of reference, numbered on.

    The files stay where they are, and are returned.
    """
    first = pydicom.dcmread(parts[0][0], stop_before_pixels=True)
    shared = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    paths = [path for part in parts for path in part]
    for number, path in enumerate(paths, 1):
        dataset = pydicom.dcmread(path)
        setting(**{keyword: first[keyword].value for keyword in shared})(dataset)
        dataset.InstanceNumber = number
        dataset.save_as(path)
    return paths


def turned(dataset: Dataset) -> None:
    """Turn the plane about its row direction by a right angle."""
    cosines = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    dataset.ImageOrientationPatient = [*cosines[0], *np.cross(cosines[0], cosines[1])]


def raw_data(dataset: Dataset) -> None:
    """Make a Raw Data object of an image."""
    dataset.SOPClassUID = RawDataStorage
    for keyword in ("PixelData", "Rows", "Columns", "ImageType", "PixelSpacing"):
        delattr(dataset, keyword)
    dataset.ImagePositionPatient = dataset.ImageOrientationPatient = None


def ge_phase(dataset: Dataset) -> None:
    """Say in GE's private way that the image is a phase image."""
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", 1)


def frame_groups(dataset: Dataset) -> Dataset:
    """Return the functional groups of a classic image that vary from frame to frame."""
    groups = {
        "PlanePositionSequence": ("ImagePositionPatient",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
        "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "FlipAngle", "EchoTrainLength"),
    }
    frame = Dataset()
    for group, keywords in groups.items():
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, dataset.get(keyword))
        setattr(frame, group, Items([item]))
    echo, modifier, kind, value = Dataset(), Dataset(), Dataset(), Dataset()
    echo.EffectiveEchoTime = float(dataset.EchoTime)
    modifier.InversionRecovery, modifier.InversionTimes = "YES", [float(dataset.InversionTime)]
    modifier.Spoiling = "RF"
    kind.FrameType = [*dataset.ImageType[:2], "T1", "NONE"]
    kind.ComplexImageComponent = dataset.get("ComplexImageComponent", "MAGNITUDE")
    value.RescaleSlope = dataset.get("RescaleSlope", 1)
    value.RescaleIntercept = dataset.get("RescaleIntercept", 0)
    value.RescaleType = "US"
    frame.MREchoSequence, frame.MRModifierSequence = Items([echo]), Items([modifier])
    frame.MRImageFrameTypeSequence = Items([kind])
    frame.PixelValueTransformationSequence = Items([value])
    return frame


def write_enhanced(paths: Sequence[Path], target: Path, **root: Any) -> Path:
    """Write classic instances as one Enhanced MR object, in the order given.

    Parameters
    ----------
    root
        Attributes of the object by keyword; the component is MIXED where the frames differ.
    """
    images = [pydicom.dcmread(path) for path in paths]
    made = pydicom.dcmread(paths[0])
    frames = [frame_groups(image) for image in images]
    for group in frames[0]:
        for keyword in [element.keyword for element in group.value[0]]:
            if keyword in made:
                delattr(made, keyword)
    components = {frame.MRImageFrameTypeSequence[0].ComplexImageComponent for frame in frames}
    made.ComplexImageComponent = components.pop() if len(components) == 1 else "MIXED"
    for keyword in ("EchoTime", "InversionTime", "ScanningSequence", "SequenceVariant"):
        if keyword in made:
            delattr(made, keyword)
    made.SOPClassUID = EnhancedMRImageStorage
    made.SOPInstanceUID = generate_uid(entropy_srcs=[str(target.name), str(made.SOPInstanceUID)])
    made.ImageType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    made.EchoPulseSequence, made.NumberOfFrames = "GRADIENT", len(images)
    made.PerFrameFunctionalGroupsSequence = Items(frames)
    made.SharedFunctionalGroupsSequence = Items([Dataset()])
    made.PixelData = b"".join(image.PixelData for image in images)
    setting(**root)(made)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    target.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(target)
    return target


def write_classic(enhanced: Dataset, folder: Path) -> list[Path]:
    """Write the frames of an Enhanced MR object as classic images, as a scanner splits them."""
    folder.mkdir(parents=True, exist_ok=True)
    planes = enhanced.pixel_array
    (shared,) = enhanced.SharedFunctionalGroupsSequence
    paths = []
    for number, frame in enumerate(enhanced.PerFrameFunctionalGroupsSequence, 1):
        image = pydicom.dcmread(paths[0]) if paths else _without_groups(enhanced)
        for keyword, value in _classic_values(shared, frame).items():
            setattr(image, keyword, value)
        image.SOPInstanceUID = generate_uid(entropy_srcs=[enhanced.SOPInstanceUID, str(number)])
        image.InstanceNumber = number
        image.PixelData = planes[number - 1].tobytes()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        paths.append(folder / f"{number:04d}.dcm")
        image.save_as(paths[-1])
    return paths


def _without_groups(enhanced: Dataset) -> Dataset:
    """Return a copy of the object as a classic image without frames."""
    image = pydicom.dcmread(enhanced.filename)
    for keyword in (
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("NumberOfFrames", "DimensionIndexSequence", "DimensionOrganizationSequence"),
        *("ComplexImageComponent", "AcquisitionContrast"),
    ):
        if keyword in image:
            delattr(image, keyword)
    image.SOPClassUID = MRImageStorage
    image.ScanningSequence, image.SequenceVariant = ["GR", "IR"], ["SK", "SP", "MP"]
    return image


def _classic_values(shared: Dataset, frame: Dataset) -> dict[str, Any]:
    """Return the classic attributes of one frame, looked up one by one."""

    def group(keyword: str) -> Dataset:
        return (frame.get(keyword) or shared.get(keyword))[0]

    measures, view = group("PixelMeasuresSequence"), group("MRFOVGeometrySequence")
    timing, value = (
        group("MRTimingAndRelatedParametersSequence"),
        frame.get("PixelValueTransformationSequence"),
    )
    along_rows = view.InPlanePhaseEncodingDirection == "ROW"
    frequency = view.MRAcquisitionFrequencyEncodingSteps
    phase = view.MRAcquisitionPhaseEncodingStepsInPlane
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
        "ImagePositionPatient": group("PlanePositionSequence").ImagePositionPatient,
        "ImageOrientationPatient": group("PlaneOrientationSequence").ImageOrientationPatient,
        "PixelSpacing": measures.PixelSpacing,
        "SliceThickness": measures.SliceThickness,
        "RepetitionTime": timing.RepetitionTime,
        "FlipAngle": timing.FlipAngle,
        "EchoTime": group("MREchoSequence").EffectiveEchoTime,
        "InPlanePhaseEncodingDirection": "ROW" if along_rows else "COL",
        "AcquisitionMatrix": [0, frequency, phase, 0] if along_rows else [frequency, 0, 0, phase],
        "PercentPhaseFieldOfView": view.PercentPhaseFieldOfView,
        "RescaleSlope": value[0].RescaleSlope if value else 1,
        "RescaleIntercept": value[0].RescaleIntercept if value else 0,
    }
