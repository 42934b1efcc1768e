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

from dicom_node import gate_companions, gate_frames
from dicom_node import gate_geometry as geometry
from dicom_node.gate_geometry import text, values
from dicom_node.gate_rules import RULES, Case, uid_of
from sr_engine.dicom.provenance import Provenance

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


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule."""

    rule: str
    message: str


def check(
    derived: Sequence[Path], source: Sequence[Path | Dataset], provenance: Provenance
) -> list[Finding]:
    """Return every broken rule of the derived series, [] when it may go out.

    Parameters
    ----------
    derived
        All files of the derived series.
    source
        All instances of the source series: files, or their headers.
    provenance
        What the job says it did.
    """
    findings: list[Finding] = []
    read = [_read(path, findings, "readable") for path in derived]
    headers = [
        item if isinstance(item, Dataset) else _read(item, findings, "source_readable", False)
        for item in source
    ]
    if not read or not headers:
        findings.append(Finding(rule="readable", message="there is nothing to compare"))
    instances = [dataset for dataset in read if dataset is not None]
    multiframe = len(instances) == 1 and gate_frames.is_multiframe(instances[0])
    if multiframe:
        with quiet():
            instances = list(gate_frames.slices(instances[0]))
    findings += [
        Finding(rule="required_attributes", message=message)
        for dataset in instances
        for message in _missing(dataset)
    ]
    if findings:  # no rule below could be trusted
        return findings
    case = Case(
        derived=tuple(geometry.along_normal(instances)),
        source=tuple(header for header in headers if header is not None),
        provenance=provenance,
        multiframe=multiframe,
    )
    with quiet():
        return [
            Finding(rule=name, message=message)
            for name, function in RULES.items()
            for message in function(case)
        ]


Headers = Sequence[Path | Dataset]


def check_companion(
    kind: str, made: Sequence[Path], image: Headers, source: Headers
) -> list[Finding]:
    """Return every broken rule of what goes out beside an image, [] when it may.

    Parameters
    ----------
    kind
        Its name, as in `sr_engine.dicom.kinds`.
    made, image, source
        All its files, those of the derived image in its form, and the source's; of the latter two
        the headers do.
    """
    findings: list[Finding] = []
    read = [headers(paths, findings) for paths in (made, image, source)]
    if findings or not all(read):
        return findings or [Finding(rule="readable", message="there is nothing to compare")]
    case = gate_companions.Beside(kind=kind, made=read[0], image=read[1], source=read[2])
    with quiet():
        return [
            Finding(rule=name, message=message)
            for name, function in gate_companions.RULES.items()
            for message in function(case)
        ]


def headers(paths: Headers, findings: list[Finding]) -> tuple[Dataset, ...]:
    """Return the headers in `paths`; what cannot be read becomes a finding."""
    read = [
        item if isinstance(item, Dataset) else _read(item, findings, "readable", False)
        for item in paths
    ]
    return tuple(one for one in read if one is not None)


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


def _missing(dataset: Dataset) -> Iterator[str]:
    for keyword in REQUIRED:
        if not text(dataset, keyword):
            yield f"{keyword} is missing in {uid_of(dataset)}"
    for keyword, count in geometry.PLANE.items():
        if text(dataset, keyword) and len(values(dataset, keyword)) != count:
            yield f"{keyword} of {uid_of(dataset)} is not {count} numbers"
