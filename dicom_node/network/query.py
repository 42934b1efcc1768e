"""Asking a peer what it has: C-FIND in the Study Root model (PS3.4 C.4.1, C.6.2)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from dicom_node.content import PARSE_ERRORS
from dicom_node.errors import NodeError
from dicom_node.network import pynetdicom_scu
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.found import FoundSeries
from dicom_node.retry import Fault, describe
from dicom_node.settings import PeerSettings

PENDING, SUCCESS = (0xFF00, 0xFF01), 0x0000
MODEL = StudyRootQueryRetrieveInformationModelFind
MOST_STUDIES = 200  # to look into, one by one, for a series whose study nobody names
NEEDS_THE_STUDY = "it finds a series only by its study: name it with --study"


class QueryRefused(NodeError):
    """The peer answered a C-FIND with a failure."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the query was answered with {describe(status)}")
        self.code = status


def instances_at(
    peer: PeerSettings,
    calling_ae: str,
    study_uid: str,
    series_uid: str,
    timeouts: Timeouts,
) -> set[str]:
    """Return the SOP instance UIDs that the peer has of a series; an unknown series has none.

    Raises
    ------
    AssociationFault
        If the peer does not answer to the end.
    """
    with Query.opened(peer, calling_ae, timeouts) as query:
        try:
            return set(query.instances(study_uid, series_uid))
        except QueryRefused as error:
            raise AssociationFault(Fault.ABORTED, str(error), mid_way=True) from error


@dataclass(frozen=True, kw_only=True)
class Query:
    """An association on which a peer is asked."""

    association: Association

    @classmethod
    @contextmanager
    def opened(cls, peer: PeerSettings, calling_ae: str, timeouts: Timeouts) -> Iterator["Query"]:
        """Yield a query; its association ends with the block.

        Raises
        ------
        AssociationFault
            If there is none.
        """
        association = pynetdicom_scu.associate(peer, calling_ae, [build_context(MODEL)], timeouts)
        try:
            yield cls(association=association)
        finally:
            pynetdicom_scu.part(association)

    def studies(self, accession: str) -> list[str]:
        """Return the studies of an accession number.

        A peer that ignores the key would answer with everything it has: what does not say the
        number itself is not taken.
        """
        wanted = {"AccessionNumber": accession, "StudyInstanceUID": ""}
        return [
            text(answer, "StudyInstanceUID")
            for answer in self._ask("STUDY", wanted)
            if text(answer, "AccessionNumber") == accession
        ]

    def series(self, study_uid: str, series_uid: str = "") -> list[FoundSeries]:
        """Return the series of a study, or one of them; their instances are not known yet."""
        wanted = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "Modality": ""}
        found = [
            FoundSeries(
                study_uid=text(answer, "StudyInstanceUID") or study_uid,
                series_uid=text(answer, "SeriesInstanceUID"),
                modality=text(answer, "Modality"),
            )
            for answer in self._ask("SERIES", wanted)
        ]
        return [one for one in found if one.series_uid and series_uid in ("", one.series_uid)]

    def study_of(self, series_uid: str) -> list[FoundSeries]:
        """Return the series, whose study is not known; none where the peer does not have it.

        Asked without the study first, which is a relational query (PS3.4 C.4.1.3.2.1); a peer that
        knows none is asked study by study, if it has few.
        """
        try:
            found = [one for one in self.series("", series_uid) if one.study_uid]
            if found:
                return found
        except QueryRefused:
            pass
        studies = [
            text(each, "StudyInstanceUID") for each in self._ask("STUDY", {"StudyInstanceUID": ""})
        ]
        if len(studies) > MOST_STUDIES:
            raise NodeError(NEEDS_THE_STUDY)
        hits = (self.series(study_uid, series_uid) for study_uid in studies)
        return next((found for found in hits if found), [])

    def instances(self, study_uid: str, series_uid: str) -> list[str]:
        """Return the SOP instance UIDs of a series."""
        wanted = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        answers = self._ask("IMAGE", wanted | {"SOPInstanceUID": ""})
        uids = [text(answer, "SOPInstanceUID") for answer in answers]
        return [uid for uid in dict.fromkeys(uids) if uid]

    def classes(self, study_uid: str, series_uid: str) -> list[str]:
        """Return the SOP classes of a series, as far as the peer says: the key is optional."""
        wanted = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        try:
            answers = self._ask("IMAGE", wanted | {"SOPInstanceUID": "", "SOPClassUID": ""})
        except QueryRefused:
            return []
        found = [text(answer, "SOPClassUID") for answer in answers]
        return [uid for uid in dict.fromkeys(found) if uid]

    def _ask(self, level: str, wanted: Mapping[str, str]) -> list[Dataset]:
        """Return the answers; raise QueryRefused or AssociationFault where they do not end well."""
        answers, last, began = [], None, time.monotonic()
        try:
            for status, answer in self.association.send_c_find(identifier(level, wanted), MODEL):
                last = status.get("Status")
                if last in PENDING and answer is not None:
                    answers.append(answer)
        except (RuntimeError, ValueError) as error:  # closed meanwhile
            raise AssociationFault(Fault.ABORTED, str(error), mid_way=True) from error
        if last is None:
            raise silence(self.association, began)
        if last != SUCCESS:
            raise QueryRefused(int(last))
        return answers


def silence(association: Association, began: float) -> AssociationFault:
    """Return why there is no answer: the time is over, or the peer has hung up.

    Some archives, Orthanc among them, drop the association of whom they do not know.
    """
    if time.monotonic() - began >= (association.dimse_timeout or 0):
        return AssociationFault(Fault.TIMED_OUT, mid_way=True)
    title = association.requestor.ae_title
    return AssociationFault(Fault.ABORTED, f"does it know {title}, our title?", mid_way=True)


def identifier(level: str, wanted: Mapping[str, str]) -> Dataset:
    """Return the identifier of a query or retrieval at `level`; empty values are asked for."""
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in wanted.items():
        setattr(dataset, keyword, value)
    return dataset


def text(answer: Dataset, keyword: str) -> str:
    """Return a value of an answer without padding; empty where it is absent or damaged."""
    try:
        value = answer.get(keyword)
    except PARSE_ERRORS:
        return ""
    return str(value or "").strip()
