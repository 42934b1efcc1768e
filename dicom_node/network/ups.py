"""The work that a manager has for us, and what became of it: Unified Procedure Steps (PS3.4 CC).

Who claims a workitem holds the key of it, a transaction UID, and nobody else changes it from then
on. What is said is the same over DICOMweb (`ups_web`) and over DIMSE (`ups_dimse`); here it is in
the DICOM JSON model (PS3.18 F).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.dicomweb import INSTANCE, SERIES, STUDY, text, uid_in
from dicom_node.settings import PeerSettings
from dicom_node.store import Reference

SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
STATE, TRANSACTION, INPUTS = "00741000", "00081195", "00404021"
WORK_CODE, CODE, SCHEME, MEANING = "00404018", "00080100", "00080102", "00080104"
PROGRESS_OF, PROGRESS, TOLD = "00741002", "00741004", "00741006"
CANCELED_AT, WHY_CODE, WHY = "00404052", "0074100E", "00741238"
PERFORMED, STATION, DONE_CODE = "00741216", "00404028", "00404019"
BEGAN, ENDED, OUTPUTS, KIND = "00404050", "00404051", "00404033", "0040E020"
REFERENCES, CLASS, UID = "00081199", "00081150", "00081155"
BY_MOVE, BY_WEB, AE_TITLE, URL = "0040E021", "0040E025", "00080054", "00081190"
UNSPECIFIED = ("110513", "DCM", "Discontinued for unspecified reason")
LONGEST_TEXT = 1024  # of a reason (VR LT, ST)


class Lost(AssociationFault):
    """The workitem is not ours, or not any more."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One series that a workitem is about, and where it can be had."""

    study_uid: str
    series_uid: str
    ae_title: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Workitem:
    """One unified procedure step as the manager shows it."""

    uid: str
    state: str
    code: tuple[str, str, str]
    inputs: tuple[Input, ...]


@dataclass(frozen=True, kw_only=True)
class Output:
    """One series that was made, and a destination that has it."""

    study_uid: str
    series_uid: str
    instances: tuple[Reference, ...]
    ae_title: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Times:
    """When the work began, and when it ended."""

    began: datetime
    ended: datetime


@dataclass(frozen=True, kw_only=True)
class Manager(ABC):
    """A peer that has a worklist; everything raises AssociationFault where there is no answer."""

    peer: PeerSettings
    title: str
    timeouts: Timeouts

    def scheduled(self) -> list[Workitem]:
        """Return the workitems of our code that nobody has claimed."""
        # A manager that ignores a key would have us take anybody's work.
        return [
            one
            for one in map(workitem_in, self._search())
            if one.state == SCHEDULED and one.code[0] == self.peer.worklist_code and one.uid
        ]

    def claim(self, uid: str, transaction_uid: str) -> None:
        """Make a workitem ours; raise Lost where somebody was faster."""
        self._change(uid, IN_PROGRESS, transaction_uid)

    def tell(self, uid: str, transaction_uid: str, percent: int, words: str) -> None:
        """Say how far we are; raise Lost where it is not ours any more."""
        progress = {PROGRESS: value("DS", str(percent)), TOLD: value("ST", words[:LONGEST_TEXT])}
        self._update(uid, transaction_uid, {PROGRESS_OF: sequence(progress)})

    def complete(
        self, workitem: Workitem, transaction_uid: str, outputs: Sequence[Output], at: Times
    ) -> None:
        """Say what was made, and that it is done."""
        performed = {
            STATION: sequence(coded(self.title, "99DICOMNODE", self.title)),
            BEGAN: value("DT", dicom_time(at.began)),
            ENDED: value("DT", dicom_time(at.ended)),
            DONE_CODE: sequence(coded(*workitem.code)),
            OUTPUTS: sequence(*map(output_item, outputs)),
        }
        progress = {PROGRESS: value("DS", "100")}
        said = {PROGRESS_OF: sequence(progress), PERFORMED: sequence(performed)}
        self._end(workitem.uid, said, COMPLETED, transaction_uid)

    def cancel(self, uid: str, transaction_uid: str, reason: str, now: datetime) -> None:
        """Say why it cannot be done, and give it up."""
        progress = {
            CANCELED_AT: value("DT", dicom_time(now)),
            WHY_CODE: sequence(coded(*UNSPECIFIED)),
            WHY: value("LT", reason[:LONGEST_TEXT]),
        }
        self._end(uid, {PROGRESS_OF: sequence(progress)}, CANCELED, transaction_uid)

    def _end(self, uid: str, said: Mapping[str, Any], state: str, transaction_uid: str) -> None:
        """Say the last words, and end it; nothing where it was heard and the answer was lost."""
        try:
            self._update(uid, transaction_uid, said)
            self._change(uid, state, transaction_uid)
        except Lost:  # who does not have our key cannot have ended it
            if self._state_of(uid) != state:
                raise

    @abstractmethod
    def _search(self) -> Iterable[Mapping[str, Any]]:
        """Return the workitems that the manager calls scheduled and of our code."""

    @abstractmethod
    def _state_of(self, uid: str) -> str:
        """Return the state of a workitem; raise Lost where the manager does not show it."""

    @abstractmethod
    def _change(self, uid: str, state: str, transaction_uid: str) -> None:
        """Change the state of a workitem; raise Lost where that is refused."""

    @abstractmethod
    def _update(self, uid: str, transaction_uid: str, said: Mapping[str, Any]) -> None:
        """Set attributes of a workitem; raise Lost where that is refused."""


def workitem_in(document: Mapping[str, Any]) -> Workitem:
    """Return a workitem of the manager's answer."""
    code = first_item(document, WORK_CODE)
    return Workitem(
        uid=uid_in(document, INSTANCE),
        state=text(document, STATE),
        code=(text(code, CODE), text(code, SCHEME), text(code, MEANING)),
        inputs=tuple(
            Input(
                study_uid=uid_in(item, STUDY),
                series_uid=uid_in(item, SERIES),
                ae_title=text(first_item(item, BY_MOVE), AE_TITLE),
                url=text(first_item(item, BY_WEB), URL),
            )
            for item in items(document, INPUTS)
            if uid_in(item, SERIES)
        ),
    )


def items(document: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """Return the items of a sequence."""
    element = document.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def first_item(document: Mapping[str, Any], tag: str) -> Mapping[str, Any]:
    """Return the first item of a sequence, an empty one where there is none."""
    return next(iter(items(document, tag)), {})


def value(vr: str, *values: Any) -> dict[str, Any]:
    """Return an element in the DICOM JSON model (PS3.18 F)."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def sequence(*members: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sequence element."""
    return value("SQ", *members)


def coded(code: str, scheme: str, meaning: str) -> dict[str, Any]:
    """Return a code as an item."""
    return {CODE: value("SH", code), SCHEME: value("SH", scheme), MEANING: value("LO", meaning)}


def output_item(one: Output) -> dict[str, Any]:
    """Return what was made as an item (PS3.3 C.30.3)."""
    references = [
        {CLASS: value("UI", each.sop_class), UID: value("UI", each.sop_uid)}
        for each in one.instances
    ]
    item = {
        KIND: value("CS", "DICOM"),
        STUDY: value("UI", one.study_uid),
        SERIES: value("UI", one.series_uid),
        REFERENCES: sequence(*references),
    }
    if one.url:
        item[BY_WEB] = sequence({URL: value("UR", one.url)})
    if one.ae_title:
        item[BY_MOVE] = sequence({AE_TITLE: value("AE", one.ae_title)})
    return item


def dicom_time(at: datetime) -> str:
    """Return an instant as a value of VR DT."""
    return at.strftime("%Y%m%d%H%M%S.%f%z")
