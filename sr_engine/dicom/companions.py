"""What every companion of an image has: template, references, one file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from sr_engine.dicom import attributes
from sr_engine.dicom.headers import number, sop_uid
from sr_engine.dicom.kinds import ENHANCED, Kind
from sr_engine.dicom.template import companion_template
from sr_engine.dicom.uids import derived_instance_uid
from sr_engine.dicom.writer import Result, WrittenSeries, finish, frame_order, instance_numbers


@dataclass(frozen=True, kw_only=True)
class Place:
    """One slice of one of the two series: where it is stored and where it lies."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    frame: int | None  # of a multi-frame image, from 1
    frames: int  # that the instance has; not all of a source's need be slices of its volume
    number: int  # what people read on the screen: InstanceNumber, or the frame
    along_mm: float  # its distance along the normal


@dataclass(frozen=True, kw_only=True)
class Level:
    """A slice and the one of the other series that lies nearest to it."""

    slice: Place
    counterpart: Place

    @property
    def apart_mm(self) -> float:
        """Return how far the two lie from each other along the normal."""
        return abs(self.counterpart.along_mm - self.slice.along_mm)


def template_of(result: Result, kind: Kind, copied: Sequence[str] = attributes.STUDY) -> Dataset:
    """Return what a companion starts from."""
    dataset = companion_template(
        result.source,
        kind,
        copied,
        recipe=result.recipe,
        provenance=result.provenance,
        job=result.job,
    )
    dataset.SOPInstanceUID = derived_instance_uid(dataset.SeriesInstanceUID, 0)
    dataset.InstanceNumber = 1
    return dataset


def adopt(template: Dataset, made: Dataset) -> Dataset:
    """Return `template` with what a library added to `made`; our own attributes stay."""
    for tag in made.keys():
        if tag not in template:
            template[tag] = made[tag]
    template.SOPClassUID, template.Modality = made.SOPClassUID, made.Modality
    return template


def write_companion(
    result: Result, kind: Kind, datasets: Sequence[Dataset], out_dir: Path
) -> WrittenSeries:
    """Write the instances of one companion and return what was written."""
    name = result.job.file_name(kind.file_name)
    stem = name.removesuffix(".dcm")
    paths = []
    for place, dataset in enumerate(datasets, 1):
        paths.append(out_dir / (f"{stem}-{place}.dcm" if place > 1 else name))
        finish(dataset, paths[-1], result.signer)
    return WrittenSeries(
        kind=kind.name,
        series_uid=str(datasets[0].SeriesInstanceUID),
        sop_uids=tuple(str(dataset.SOPInstanceUID) for dataset in datasets),
        paths=tuple(paths),
        sop_class_uid=str(datasets[0].SOPClassUID),
        provenance=result.provenance,
    )


def original_places(result: Result) -> list[Place]:
    """Return the source's slices in volume order."""
    source, volume = result.source, result.source.volume
    normal = volume.unit_vectors()[0]
    return [
        Place(
            sop_class_uid=source.sop_class_uid,
            sop_uid=sop_uid(header),
            series_uid=source.series_uid,
            frame=int(number(header, "InstanceNumber") or 1) if source.multiframe else None,
            frames=int(number(header, "NumberOfFrames") or 1),
            number=int(number(header, "InstanceNumber") or index + 1),
            along_mm=float((volume.affine[:3, 3] + index * volume.affine[:3, 0]) @ normal),
        )
        for index, header in enumerate(source.headers)
    ]


def derived_places(result: Result, form: str) -> list[Place]:
    """Return the derived slices in volume order, as they are stored in `form`."""
    volume, count = result.volume, len(result.stored.array)
    normal = volume.unit_vectors()[0]
    series_uid = result.provenance.series[form]
    frames = {index: place for place, index in enumerate(frame_order(result), 1)}
    numbers = instance_numbers(result.source, count)
    enhanced = form == ENHANCED
    return [
        Place(
            sop_class_uid=str(EnhancedMRImageStorage if enhanced else MRImageStorage),
            sop_uid=derived_instance_uid(series_uid, 0 if enhanced else index),
            series_uid=series_uid,
            frame=frames[index] if enhanced else None,
            frames=count if enhanced else 1,
            number=numbers[index],
            along_mm=float((volume.affine[:3, 3] + index * volume.affine[:3, 0]) @ normal),
        )
        for index in range(count)
    ]


def levels(slices: Sequence[Place], others: Sequence[Place]) -> list[Level]:
    """Return each of `slices` with the nearest of `others`."""
    along = np.array([place.along_mm for place in others])
    return [
        Level(slice=place, counterpart=others[int(np.argmin(np.abs(along - place.along_mm)))])
        for place in slices
    ]


def stand_in(result: Result, place: Place) -> Dataset:
    """Return as much of an image as highdicom asks of what a document refers to.

    Not the image itself: its patient's name or dates may be such that highdicom refuses them; ours
    are copied as they are encoded, see `template.companion_template`.
    """
    original = place.series_uid == result.source.series_uid
    shape = (result.source.volume if original else result.volume).spatial_shape
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = place.sop_class_uid, place.sop_uid
    image.StudyInstanceUID, image.SeriesInstanceUID = result.source.study_uid, place.series_uid
    for keyword in attributes.TYPE_2_STUDY:
        setattr(image, keyword, None)
    image.Rows, image.Columns = int(shape[1]), int(shape[2])
    image.SamplesPerPixel = 1
    image.Modality = "MR"
    if place.frame is not None:
        image.NumberOfFrames = place.frames
        image.SharedFunctionalGroupsSequence = [Dataset()]
        image.PerFrameFunctionalGroupsSequence = []  # highdicom looks for a rescale in each
    return image


def distinct(result: Result, places: Iterable[Place]) -> list[Dataset]:
    """Return a stand-in for each instance of `places`, once."""
    first = {place.sop_uid: place for place in reversed(list(places))}
    return [stand_in(result, place) for place in reversed(first.values())]
