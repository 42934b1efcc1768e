"""The last check of a derived series before anything is sent: a broken rule holds the job.

pydicom and numpy only, and none of the writer's code: the gate must not repeat its mistakes.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node import (
    gate_companions,
    gate_frames,
    gate_multiframe,
    gate_pixels,
    gate_rules,
    gate_spread,
)
from dicom_node import gate_geometry as geometry
from dicom_node.gate_case import Beside, Case, Series, uid_of
from dicom_node.gate_geometry import text, values
from sr_engine.dicom.provenance import Provenance
from sr_engine.dicom.sorting import sort

IMAGE_RULES = {**gate_rules.RULES, **gate_pixels.RULES, **gate_multiframe.RULES}
COMPANION_RULES = {**gate_companions.RULES, **gate_spread.RULES}
REQUIRED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)


DEFECT = (
    "This is a defect of ours, not of the data: keep the job and report the rule's name; "
    "`dicom-node cancel` puts it aside"
)
# Rule -> what to do, where somebody at the site can do something.
NEXT_STEPS = {
    "source_readable": "A received file is gone or damaged: check the disk, then send the series "
    "again",
    "patient_and_study": "Compare the patient and study of the source's instances; where they "
    f"agree: {DEFECT[0].lower()}{DEFECT[1:]}",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule."""

    rule: str
    message: str

    @property
    def next_step(self) -> str:
        """Return what a person can do about it."""
        return NEXT_STEPS.get(self.rule, DEFECT)


Headers = Sequence[Path | Dataset]


def check(
    derived: Sequence[Path], source: Headers | Series, provenance: Provenance, form: str = ""
) -> list[Finding]:
    """Return every broken rule of the derived series, [] when it may go out.

    Parameters
    ----------
    derived
        All files of the derived series.
    source
        All instances of the source series: files, or their headers, or `source_of` them.
    provenance
        What the job says it did.
    form
        "classic" or "enhanced"; "": as it looks.
    """
    findings: list[Finding] = []
    instances = _read_all(derived, findings)
    originals = source if isinstance(source, Series) else source_of(source, findings)
    if not findings and not (instances and originals.slices):
        findings.append(Finding(rule="readable", message="there is nothing to compare"))
    whole = None
    if len(instances) == 1 and gate_frames.is_multiframe(instances[0]):
        (whole,) = instances
        with quiet():
            instances = [one.header for one in gate_frames.slices_of(instances)]
    findings += [
        Finding(rule="required_attributes", message=message)
        for dataset in instances
        for message in _missing(dataset, REQUIRED)
    ]
    if findings:  # no rule below could be trusted
        return findings
    case = Case(
        derived=tuple(geometry.along_normal(instances)),
        source=tuple(one.header for one in originals.slices),
        received=originals.received,
        provenance=provenance,
        form=form,
        whole=whole,
    )
    with quiet():
        return [
            Finding(rule=name, message=message)
            for name, function in IMAGE_RULES.items()
            for message in function(case)
        ]


def check_companion(
    kind: str, made: Sequence[Path], image: Headers | Series, source: Headers | Series
) -> list[Finding]:
    """Return every broken rule of what goes out beside an image, [] when it may.

    Parameters
    ----------
    kind
        Its name, as in `sr_engine.dicom.kinds`.
    made, image, source
        All its files, those of the derived image in its form, and the source's; of the latter two
        the headers do, or `image_of` and `source_of` them.
    """
    findings: list[Finding] = []
    companion = tuple(_read_all(made, findings))
    derived = image if isinstance(image, Series) else image_of(image, findings)
    originals = source if isinstance(source, Series) else source_of(source, findings)
    if findings or not (companion and derived.slices and originals.slices):
        return findings or [Finding(rule="readable", message="there is nothing to compare")]
    with quiet():
        case = Beside(kind=kind, made=companion, image=derived.slices, source=originals.slices)
        return [
            Finding(rule=name, message=message)
            for name, function in COMPANION_RULES.items()
            for message in function(case)
        ]


def _headers(paths: Headers, findings: list[Finding], name: str) -> tuple[Dataset, ...]:
    """Return the headers in `paths`; what cannot be read becomes a finding called `name`."""
    read = [
        item if isinstance(item, Dataset) else _read(item, findings, name, False) for item in paths
    ]
    return tuple(one for one in read if one is not None)


def image_of(paths: Headers, findings: list[Finding]) -> Series:
    """Return a derived image without its pixels, to be compared with its companions."""
    received = _headers(paths, findings, "readable")
    with quiet():
        return Series(received=received, slices=tuple(gate_frames.slices_of(received)))


def source_of(paths: Headers, findings: list[Finding]) -> Series:
    """Return the source with the slices that make its volume, as service and engine sort them.

    A scanner may keep scouts or phase images among the frames of the same object.
    """
    received = _headers(paths, findings, "source_readable")
    with quiet():
        slices = gate_frames.slices_of(received)
        chosen = [slices[index] for index in sort([one.header for one in slices]).chosen]
        findings += [
            Finding(rule="source_readable", message=f"source: {message}")
            for one in chosen
            for message in _missing(one.header, tuple(geometry.PLANE))
        ]
    return Series(received=received, slices=tuple(chosen))


def _read_all(paths: Sequence[Path], findings: list[Finding]) -> list[Dataset]:
    read = [_read(path, findings, "readable") for path in paths]
    return [one for one in read if one is not None]


def quiet() -> warnings.catch_warnings:
    """Return a context without pydicom's remarks, which may quote patient values."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _read(path: Path, findings: list[Finding], name: str, pixels: bool = True) -> Dataset | None:
    try:
        with quiet():
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (OSError, EOFError, InvalidDicomError, ValueError) as error:
        findings.append(Finding(rule=name, message=f"{path.name}: {type(error).__name__}"))
        return None


def _missing(dataset: Dataset, wanted: Sequence[str]) -> Iterator[str]:
    for keyword in wanted:
        if not text(dataset, keyword):
            yield f"{keyword} is missing in {uid_of(dataset)}"
    for keyword, count in geometry.PLANE.items():
        if text(dataset, keyword) and len(values(dataset, keyword)) != count:
            yield f"{keyword} of {uid_of(dataset)} is not {count} numbers"
