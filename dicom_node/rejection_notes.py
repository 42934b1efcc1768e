"""Rejection notes of IHE IOCM: Key Object Selection documents that take images out of use.

What is read: which instances a peer rejects, and why. What is written: the note by which archives
hide a series of ours. The patient's data go from one of its images into the note byte for byte,
because an archive finds the patient by them.

Source: PS3.3 A.35.4, PS3.16 TID 2010 and CID 7010, IHE RAD TF-2 4.66.
"""

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.sequence import Sequence as ItemSequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.content import IMPLEMENTATION_NAME, IMPLEMENTATION_UID, PARSE_ERRORS, parse
from dicom_node.errors import InstanceRejected, NotAnInstance

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
QUALITY, SAFETY, WRONG_ENTRY, EXPIRED = "113001", "113037", "113038", "113039"
TITLES = {  # of CID 7010, those that reject (IHE RAD TF-2 4.66.4.1.3)
    QUALITY: "Rejected for Quality Reasons",
    SAFETY: "Rejected for Patient Safety Reasons",
    WRONG_ENTRY: "Incorrect Modality Worklist Entry",
    EXPIRED: "Data Retention Policy Expired",
}
IDENTITY = (  # what makes an archive file the note under patient and study
    *("SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyDescription", "PatientName", "PatientID"),
    *("IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
    "TimezoneOffsetFromUTC",
)
REQUIRED = (  # type 2: there, if need be without a value
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName"),
    *("PatientID", "PatientBirthDate", "PatientSex", "StudyID"),
)
MODIFIER, DESCRIPTION = "Document Title Modifier", "Key Object Description"
SERIES_NUMBER = 9900
NO_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # None: pydicom's own words


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept."""

    value: str
    meaning: str
    scheme: str = "DCM"


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What a rejection note says."""

    title: str  # a key of TITLES
    modifiers: tuple[Code, ...]  # why the quality was not enough; empty for the other titles
    sop_uids: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a note of ours is to say, about which instances of one result."""

    title: str
    modifiers: tuple[Code, ...]
    reason: str
    series_uid: str  # the result's first one
    instances: Sequence[tuple[str, str, str]]  # SOP class, SOP instance, series
    at: datetime
    generation: int = 1  # of the series, whose originals may have been forwarded more than once

    @property
    def note_series_uid(self) -> str:
        """Return the UID of the note's own series; the same note always has the same."""
        return self._uid("series")

    @property
    def sop_uid(self) -> str:
        """Return the UID of the note."""
        return self._uid("instance")

    def _uid(self, kind: str) -> str:
        parts = ["rejection note", kind, self.series_uid, self.title, self.at.isoformat()]
        if self.generation > 1:
            parts.append(str(self.generation))
        digest = hashlib.sha256("\n".join(parts).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16])}"


def read_rejection(path: Path) -> Rejection | None:
    """Return what a Key Object Selection rejects; None when its title is no rejection.

    Raises
    ------
    NotAnInstance
        If the file cannot be read, or names no instance.
    """
    try:
        dataset = parse(path.read_bytes())
        title = first_code(dataset.get("ConceptNameCodeSequence"))
        if title is None or title.scheme != "DCM" or title.value not in TITLES:
            return None
        named = frozenset([*evidence_uids(dataset), *content_uids(dataset)])
        modifiers = tuple(title_modifiers(dataset))
    except (*PARSE_ERRORS, InstanceRejected) as error:
        raise NotAnInstance(f"the rejection note cannot be read: {type(error).__name__}") from error
    if not named:
        raise NotAnInstance("the rejection note names no instance")
    return Rejection(title=title.value, modifiers=modifiers, sop_uids=named)


def first_code(sequence: Sequence[Dataset] | None) -> Code | None:
    """Return the first code of a sequence, None where there is none."""
    if not sequence:
        return None
    item = sequence[0]
    return Code(
        value=str(item.get("CodeValue", "")).strip(),
        meaning=str(item.get("CodeMeaning", "")).strip(),
        scheme=str(item.get("CodingSchemeDesignator", "")).strip(),
    )


def evidence_uids(dataset: Dataset) -> Iterator[str]:
    """Yield the instances of the evidence."""
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or ():
        for series in study.get("ReferencedSeriesSequence") or ():
            for item in series.get("ReferencedSOPSequence") or ():
                yield str(item.ReferencedSOPInstanceUID)


def content_uids(dataset: Dataset) -> Iterator[str]:
    """Yield the instances that the content refers to."""
    for content in dataset.get("ContentSequence") or ():
        for item in content.get("ReferencedSOPSequence") or ():
            yield str(item.ReferencedSOPInstanceUID)


def title_modifiers(dataset: Dataset) -> Iterator[Code]:
    """Yield the Document Title Modifiers."""
    for content in dataset.get("ContentSequence") or ():
        name = first_code(content.get("ConceptNameCodeSequence"))
        value = first_code(content.get("ConceptCodeSequence"))
        if name is not None and name.value == "113011" and value is not None:
            yield value


def write_note(note: Note, identity: Dataset) -> bytes:
    """Return the note as a DICOM file; `identity` is an image of the series, or what is kept of it.

    The same note always gives the same bytes.
    """
    dataset = identity_of(identity)
    add_document(dataset, note)
    dataset.CurrentRequestedProcedureEvidenceSequence = [evidence(note, dataset)]
    dataset.ContentSequence = ItemSequence(list(content(note)))
    return to_file(dataset)


def identity_of(image: Dataset) -> Dataset:
    """Return the attributes of patient and study as they stand in `image`.

    Raises
    ------
    KeyError
        If it names no study: it is damaged, and pydicom has read nothing.
    """
    if "StudyInstanceUID" not in image:
        raise KeyError("StudyInstanceUID")
    dataset = Dataset()
    for keyword in IDENTITY:
        if keyword in image:
            dataset[keyword] = image.get_item(keyword)  # not decoded: byte for byte
    for keyword in REQUIRED:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    return dataset


def add_document(dataset: Dataset, note: Note) -> None:
    """Add what makes a Key Object Selection document."""
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(KEY_OBJECT_SELECTION), UID(note.sop_uid)
    dataset.Modality, dataset.SeriesInstanceUID = "KO", note.note_series_uid
    dataset.SeriesNumber, dataset.InstanceNumber = SERIES_NUMBER, 1
    dataset.SeriesDescription = f"AI-SR: {TITLES[note.title]}"[:64]
    dataset.Manufacturer = "DICOM-NODE"
    dataset.ReferencedPerformedProcedureStepSequence = []
    written_at = note.at.astimezone(zone_of(dataset))
    dataset.ContentDate = dataset.SeriesDate = written_at.strftime("%Y%m%d")
    dataset.ContentTime = dataset.SeriesTime = written_at.strftime("%H%M%S")
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    title = Code(value=note.title, meaning=TITLES[note.title])
    dataset.ConceptNameCodeSequence = coded(title)
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    dataset.ContentTemplateSequence = [template]


def zone_of(dataset: Dataset) -> tzinfo | None:
    """Return the zone in which the image states its times; None where it does not say: ours."""
    try:
        stated = datetime.strptime(str(dataset.get("TimezoneOffsetFromUTC")), "%z")
    except ValueError:
        return None
    return stated.tzinfo


def coded(code: Code) -> list[Dataset]:
    """Return a code sequence of one code."""
    item = Dataset()
    item.CodeValue, item.CodeMeaning = code.value, code.meaning
    item.CodingSchemeDesignator = code.scheme
    return [item]


def evidence(note: Note, dataset: Dataset) -> Dataset:
    """Return the hierarchy of study, series and instances that the note is about."""
    study = Dataset()
    study.ReferencedSeriesSequence = [
        evidence_of(note, uid) for uid in dict.fromkeys(uid for *_, uid in note.instances)
    ]
    study.StudyInstanceUID = dataset.StudyInstanceUID
    return study


def evidence_of(note: Note, series_uid: str) -> Dataset:
    """Return the instances of one of the series that the note is about."""
    series = Dataset()
    series.ReferencedSOPSequence = [
        reference(sop_class, sop_uid)
        for sop_class, sop_uid, uid in note.instances
        if uid == series_uid
    ]
    series.SeriesInstanceUID = series_uid
    return series


def reference(sop_class: str, sop_uid: str) -> Dataset:
    """Return one reference."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item


def content(note: Note) -> Iterator[Dataset]:
    """Yield the items below the title (TID 2010)."""
    for modifier in note.modifiers:
        item = content_item("HAS CONCEPT MOD", "CODE", Code(value="113011", meaning=MODIFIER))
        item.ConceptCodeSequence = coded(modifier)
        yield item
    described = content_item("CONTAINS", "TEXT", Code(value="113012", meaning=DESCRIPTION))
    # In ASCII: the character set is the patient's.
    described.TextValue = note.reason.encode("ascii", "replace").decode()[:1024]
    yield described
    for sop_class, sop_uid, _ in note.instances:
        item = content_item("CONTAINS", "IMAGE")
        item.ReferencedSOPSequence = [reference(sop_class, sop_uid)]
        yield item


def content_item(relation: str, kind: str, name: Code | None = None) -> Dataset:
    """Return one content item without its value."""
    item = Dataset()
    item.RelationshipType, item.ValueType = relation, kind
    if name is not None:
        item.ConceptNameCodeSequence = coded(name)
    return item


def modifiers_of(stored: Sequence[Mapping[str, str]]) -> tuple[Code, ...]:
    """Return modifiers as the database keeps them."""
    return tuple(Code(**each) for each in stored)


def written_from(paths: Iterable[Path], write: Callable[[Dataset], bytes]) -> bytes | None:
    """Return what `write` makes of the first file that it can be made of; None, if of none.

    A damaged file is passed over, like one that is gone.

    Raises
    ------
    OSError
        If it can be made of none, and the disk does not give one that is there: another time it
        may.
    """
    withheld = None
    for path in paths:
        try:
            return write(dcmread(path, stop_before_pixels=True))
        except PARSE_ERRORS as error:
            if isinstance(error, OSError) and error.errno not in NO_FILE:
                withheld = error
    if withheld is not None:
        raise withheld
    return None


def identity_path(state_dir: Path, job_id: int) -> Path:
    """Return where the attributes of patient and study are kept when a job's files go."""
    return state_dir.resolve() / "identity" / f"{job_id}.dcm"


def write_identity(image: Dataset) -> bytes:
    """Return a file with what a later note about the series of `image` will need, and no more."""
    dataset = identity_of(image)
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(KEY_OBJECT_SELECTION), image.SOPInstanceUID
    return to_file(dataset)


def to_file(dataset: Dataset) -> bytes:
    """Return the data set as a DICOM file; the same one always gives the same bytes."""
    dataset.file_meta = meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_NAME
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
