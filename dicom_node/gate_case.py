"""What the gate's rules look at, how they are named, and what they all need."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydicom.dataset import Dataset

from dicom_node.gate_geometry import text
from sr_engine.dicom.provenance import Provenance

TOLERANCE_MM = 0.01
SPREAD = "spread"  # of the companions, the one that is made of pixels
IDENTITY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A derived image and its source."""

    derived: tuple[Dataset, ...]  # in the order of the normal; of a multi-frame image the frames
    source: tuple[Dataset, ...]  # headers of the slices of the volume, Enhanced ones by frame
    received: tuple[Dataset, ...]  # headers of all instances that were handed in, as stored
    provenance: Provenance  # what the job says it did
    form: str = ""  # "classic" or "enhanced", where the caller knows which it must be
    whole: Dataset | None = None  # the one multi-frame instance whose frames `derived` are

    @property
    def multiframe(self) -> bool:
        """Return whether the image is one instance of several frames."""
        return self.whole is not None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice and where it is stored."""

    header: Dataset  # as a classic image has it
    frame: int  # the number of the frame in its instance; 1 in a classic image
    instance: Dataset  # as stored


@dataclass(frozen=True, kw_only=True)
class Series:
    """Headers that several checks look at, read and sorted once."""

    received: tuple[Dataset, ...]  # all instances, as stored
    slices: tuple[Slice, ...]  # of the volume: a scanner may keep other frames beside it


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A companion, the image beside it and the source; of the latter two headers."""

    kind: str  # "classic+spread", as in `sr_engine.dicom.kinds`
    made: tuple[Dataset, ...]  # the instances of the companion
    image: tuple[Slice, ...]  # the derived image that lies beside it, in its form
    source: tuple[Slice, ...]  # of the volume that was meant

    @property
    def companion(self) -> str:
        """Return what it is."""
        return self.kind.partition("+")[2]


Looked = TypeVar("Looked", Case, Beside)


class Registry(dict[str, Callable[[Looked], Iterator[str]]], Generic[Looked]):
    """Rules by their names."""

    def rule(
        self, function: Callable[[Looked], Iterator[str]]
    ) -> Callable[[Looked], Iterator[str]]:
        """Enter `function` under its own name."""
        self[function.__name__] = function
        return function


def uid_of(dataset: Dataset) -> str:
    """Return the SOP Instance UID, for messages also of a broken dataset."""
    return text(dataset, "SOPInstanceUID") or "an instance without UID"


def differing(case: Case, keyword: str) -> Iterator[str]:
    """Yield the instances in which `keyword` is not that of the first."""
    first = text(case.derived[0], keyword)
    for dataset in case.derived[1:]:
        if text(dataset, keyword) != first:
            yield f"{keyword} of {uid_of(dataset)} differs within the series"
