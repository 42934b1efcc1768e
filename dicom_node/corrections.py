"""Demographic corrections: the same image under the same UIDs, with other patient or study data."""

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from dicom_node.content import PARSE_ERRORS, attributes_digest, parse
from dicom_node.errors import InstanceRejected

PATIENT_GROUPS = (0x0010, 0x0012)
STUDY = (  # what is attached to a study by mistake, besides the patient
    *("AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName"),
    *("StudyID", "StudyDescription", "RequestAttributesSequence", "AdmissionID"),
)
TRACES = (  # what a correction leaves behind
    *("SpecificCharacterSet", "InstanceCreationDate", "InstanceCreationTime"),
    *("InstanceCoercionDateTime", "OriginalAttributesSequence", "ContributingEquipmentSequence"),
    *("ReferencedPatientSequence", "ReferencedStudySequence"),
)
STUDY_TAGS, TRACE_TAGS = (
    frozenset(tag for keyword in names if (tag := tag_for_keyword(keyword)) is not None)
    for names in (STUDY, TRACES)
)


def corrects(known: bytes, new: bytes) -> bool:
    """Return whether `new` differs from `known` in patient or study data, and in nothing else.

    Of the pixels nothing is said.
    """
    try:
        first, second = split(parse(known)), split(parse(new))
        digests = [tuple(map(attributes_digest, each)) for each in (first, second)]
    except (InstanceRejected, *PARSE_ERRORS):  # what cannot be read corrects nothing
        return False
    (whose, rest), (now_whose, now_rest) = digests
    return rest == now_rest and whose != now_whose


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Return what says whose image it is, and the rest; traces of corrections are dropped."""
    whose, rest = Dataset(), Dataset()
    for tag in dataset.keys():
        if tag not in TRACE_TAGS:
            part = whose if tag.group in PATIENT_GROUPS or tag in STUDY_TAGS else rest
            part[tag] = dataset.get_item(tag, keep_deferred=True)  # as sent, an empty one too
    implicit, little = dataset.original_encoding
    for part in (whose, rest):
        part.set_original_encoding(implicit, little, dataset.original_character_set)
        part.file_meta = dataset.file_meta
    return whose, rest
