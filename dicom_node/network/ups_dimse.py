"""A manager's worklist over DIMSE: the UPS Pull SOP Class as SCU (PS3.4 CC.2).

A workitem is an instance of the UPS Push SOP Class whichever class it is worked on by (CC.3.1).
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.tag import Tag
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    UnifiedProcedureStepPull,
    UnifiedProcedureStepPush,
)

from dicom_node.content import PARSE_ERRORS
from dicom_node.network import pynetdicom_scu
from dicom_node.network.commitment import SYNTAXES
from dicom_node.network.connecting import AssociationFault
from dicom_node.network.dicomweb import text
from dicom_node.network.query import PENDING, silence
from dicom_node.network.ups import (
    SCHEDULED,
    STATE,
    TRANSACTION,
    Lost,
    Manager,
    value,
)
from dicom_node.retry import Fault, describe

SUCCESS, WARNINGS = 0x0000, (0x0001, 0x0107, 0x0116)
CHANGE_STATE = 1  # action type (PS3.4 Table CC.2.1-1)
# The answers to a change, an update or a look. Source: PS3.4 CC.2.1.3, CC.2.6.3, CC.2.7.3.
SAID_OTHERWISE = 0xB305  # a value was replaced by a valid one
ENDED_SO = (0xB304, 0xB306)  # it is canceled, or completed, already
REFUSALS = {
    0x0112: "it knows no such workitem",
    0x0124: "it does not allow that",
    0xC300: "the workitem may no longer be updated",
    0xC301: "another performer holds the key of it",
    0xC302: "it is in progress already",
    0xC303: "it may become scheduled by being created only",
    0xC304: "something that must be said before its end was not said",
    0xC307: "it knows no such workitem",
    0xC310: "it is not in progress yet",
}
MOST_WORKITEMS = 10_000  # of one answer
RETURNED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ProcedureStepState",
    "InputInformationSequence",
)


class DimseManager(Manager):
    """A peer with protocol = "dimse" that has a worklist."""

    def _search(self) -> list[dict[str, Any]]:
        wanted = Dataset()
        for keyword in RETURNED:
            setattr(wanted, keyword, None)
        code = Dataset()
        code.CodeValue = self.peer.worklist_code
        code.CodingSchemeDesignator = code.CodeMeaning = None
        wanted.ScheduledWorkitemCodeSequence = [code]
        wanted.ProcedureStepState = SCHEDULED
        found: list[dict[str, Any]] = []
        with self._associated() as association, unbroken():
            began, last = time.monotonic(), None
            for status, answer in association.send_c_find(wanted, UnifiedProcedureStepPull):
                last = status.get("Status")
                if last in PENDING and answer is not None:
                    found.append(in_json(answer))
                if len(found) > MOST_WORKITEMS:
                    association.abort()
                    words = f"more than {MOST_WORKITEMS} workitems came"
                    raise AssociationFault(Fault.UNCONFIRMED, words, mid_way=True)
            if last is None:
                raise silence(association, began)
        refuse(last)
        return found

    def _state_of(self, uid: str) -> str:
        with self._associated() as association, unbroken():
            status, answer = association.send_n_get(
                [Tag(STATE)], UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull
            )
            refuse(status.get("Status"))
            return text(in_json(answer or Dataset()), STATE)

    def _change(self, uid: str, state: str, transaction_uid: str) -> None:
        said = {STATE: value("CS", state), TRANSACTION: value("UI", transaction_uid)}
        with self._associated() as association, unbroken():
            status, _ = association.send_n_action(
                data_set(said),
                CHANGE_STATE,
                UnifiedProcedureStepPush,
                uid,
                meta_uid=UnifiedProcedureStepPull,
            )
            refuse(status.get("Status"))

    def _update(self, uid: str, transaction_uid: str, said: Mapping[str, Any]) -> None:
        said = {**said, TRANSACTION: value("UI", transaction_uid)}
        with self._associated() as association, unbroken():
            status, _ = association.send_n_set(
                data_set(said), UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull
            )
            refuse(status.get("Status"))

    @contextmanager
    def _associated(self) -> Iterator[Association]:
        contexts = [build_context(UnifiedProcedureStepPull, SYNTAXES)]
        association = pynetdicom_scu.associate(self.peer, self.title, contexts, self.timeouts)
        try:
            yield association
        finally:
            pynetdicom_scu.part(association)


@contextmanager
def unbroken() -> Iterator[None]:
    """Raise AssociationFault where the association is gone, or an answer cannot be read."""
    try:
        yield
    except (RuntimeError, *PARSE_ERRORS) as error:  # the first: closed meanwhile
        words = f"no answer that could be read: {type(error).__name__}"
        raise AssociationFault(Fault.ABORTED, words, mid_way=True) from error


def refuse(status: int | None) -> None:
    """Raise what a status means; a success is nothing, and so is an end that was reached before."""
    if status is None:
        raise AssociationFault(Fault.TIMED_OUT, "no answer about the workitem", mid_way=True)
    if status in (SUCCESS, *WARNINGS, SAID_OTHERWISE, *ENDED_SO):
        return
    if status in REFUSALS:
        raise Lost(Fault.CONFLICT, f"{status:04X}: {REFUSALS[status]}")
    raise AssociationFault(Fault.SERVER_ERROR, describe(status), mid_way=True)


def data_set(said: Mapping[str, Any]) -> Dataset:
    """Return what is said as a data set, in UTF-8 where it takes more than ASCII."""
    made = Dataset.from_json(dict(said))
    if not json.dumps(said, ensure_ascii=False).isascii():
        made.SpecificCharacterSet = "ISO_IR 192"
    return made


def in_json(answer: Dataset) -> dict[str, Any]:
    """Return a data set in the DICOM JSON model."""
    return answer.to_json_dict()
