"""Peers of storage commitment on real sockets: an archive with faults at will, and a scanner."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from dicom_node.network import pynetdicom_scu, transport
from tests.rigs import MR

IMPLICIT = [ImplicitVRLittleEndian]  # the least that every archive speaks


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the first true value of `condition`; fail the test when `seconds` are over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def item(sop_uid: str, sop_class: str = MR, failure: int | None = None) -> Dataset:
    """Return one item of a sequence of references."""
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = sop_class, sop_uid
    if failure is not None:
        made.FailureReason = failure
    return made


def report_of(transaction_uid: str, verdicts: dict[str, int | None]) -> tuple[int, Dataset]:
    """Return event type and Event Information; None says nothing about an instance."""
    report = Dataset()
    report.TransactionUID = transaction_uid
    good = [item(uid) for uid, failure in verdicts.items() if failure == 0]
    bad = [item(uid, failure=failure) for uid, failure in verdicts.items() if failure]
    if good:
        report.ReferencedSOPSequence = good
    if bad:
        report.FailedSOPSequence = bad
    return (2 if bad else 1), report


def say(association: Association, event_type: int, report: Dataset) -> int | None:
    """Return the status of the response to an N-EVENT-REPORT."""
    status, _ = association.send_n_event_report(
        report, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    return status.get("Status")


def call_back(
    port: int, calling: str, event_type: int, report: Dataset, *, role=True
) -> int | None:
    """Report on a new association, as the SCP of the class; return the response's status."""
    ae = AE(ae_title=calling)
    ae.dimse_timeout = ae.acse_timeout = 10
    ae.add_requested_context(StorageCommitmentPushModel, IMPLICIT)
    association = ae.associate(
        "127.0.0.1",
        port,
        ae_title="SRNODE",
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)] if role else None,
        evt_handlers=[(evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies)],
    )
    assert association.is_established
    try:
        return say(association, event_type, report)
    finally:
        association.release()


class Archive:
    """Stores, and answers commitment `how` it is told: new, same, before, never,
    mute (no response in time) or refuse."""

    def __init__(self, how: str = "new") -> None:
        self.how = how
        self.loses: set[str] = set()  # answers success for them and keeps nothing
        self.received: Counter[str] = Counter()
        self.kept: set[str] = set()
        self.asked: list[Dataset] = []
        self.responses: list[int | None] = []  # of the node, to the reports
        self.node_port = 0
        self.verdict = self.truth
        self.on_store: Callable[[Event], int] = self.store

    def store(self, event: Event) -> int:
        """Keep an instance, or only say so."""
        uid = str(event.request.AffectedSOPInstanceUID)
        self.received[uid] += 1
        if uid not in self.loses:
            self.kept.add(uid)
        return 0x0000

    def truth(self, uid: str) -> int | None:
        """Return the Failure Reason of an instance, 0 when it is kept."""
        return 0 if uid in self.kept else 0x0112

    def on_action(self, event: Event) -> tuple[int, None]:
        """Answer an N-ACTION."""
        if self.how == "refuse":
            return 0x0213, None
        wanted = event.action_information
        self.asked.append(wanted)
        if self.how == "mute":
            time.sleep(2.5)
        elif self.how != "never":
            self.report(event.assoc, wanted)
        return 0x0000, None

    def report(self, association: Association, wanted: Dataset) -> None:
        """Report the way that is asked for."""
        uids = [str(each.ReferencedSOPInstanceUID) for each in wanted.ReferencedSOPSequence]
        event_type, report = report_of(
            str(wanted.TransactionUID), {uid: self.verdict(uid) for uid in uids}
        )
        if self.how == "before":
            self.responses.append(say(association, event_type, report))
        elif self.how == "same":
            threading.Thread(target=self._later, args=(association, event_type, report)).start()
        else:
            threading.Thread(target=self._call, args=(event_type, report)).start()

    def _later(self, association: Association, event_type: int, report: Dataset) -> None:
        time.sleep(0.2)
        self.responses.append(say(association, event_type, report))

    def _call(self, event_type: int, report: Dataset) -> None:
        self.responses.append(call_back(self.node_port, "PACS", event_type, report))

    def on_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer a C-FIND at IMAGE level."""
        for uid in sorted(self.kept):
            found = Dataset()
            found.SOPInstanceUID = uid
            yield 0xFF00, found

    @contextmanager
    def listening(self, *, commitment: bool = True, query: bool = True) -> Iterator["Archive"]:
        """Listen on a free port, with the services that are wanted."""
        ae = AE(ae_title="PACS")
        ae.dimse_timeout = 10
        ae.add_supported_context(MR, [ExplicitVRLittleEndian])
        if query:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if commitment:
            ae.add_supported_context(StorageCommitmentPushModel, IMPLICIT)
        handlers = [
            (evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies),
            (evt.EVT_C_STORE, lambda event: self.on_store(event)),
            (evt.EVT_N_ACTION, self.on_action),
            (evt.EVT_C_FIND, self.on_find),
        ]
        server = transport.listen(ae, ("127.0.0.1", 0), handlers)
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            transport.close(server, 0.0)


class Scanner:
    """Asks the node for storage commitment and keeps the reports it gets."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.port = 0
        self.answer = 0x0000

    def on_event(self, event: Event) -> tuple[int, None]:
        """Take a report."""
        if self.answer == 0x0000:
            self.reports.append((event.event_type, event.event_information))
        return self.answer, None

    def associate(self, node_port: int, calling: str = "MR1") -> Association:
        """Return an association on which the node can be asked."""
        ae = AE(ae_title=calling)
        ae.dimse_timeout = ae.acse_timeout = 10
        ae.add_requested_context(StorageCommitmentPushModel, IMPLICIT)
        handlers = [
            (evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies),
            (evt.EVT_N_EVENT_REPORT, self.on_event),
        ]
        found = ae.associate("127.0.0.1", node_port, ae_title="SRNODE", evt_handlers=handlers)
        assert found.is_established
        return found

    def ask(
        self, association: Association, items: list[Dataset], transaction_uid: str | None = None
    ) -> tuple[int | None, str]:
        """Return the response's status, and the transaction UID."""
        wanted = Dataset()
        wanted.TransactionUID = transaction_uid or generate_uid()
        wanted.ReferencedSOPSequence = items
        status, _ = association.send_n_action(
            wanted, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return status.get("Status"), str(wanted.TransactionUID)

    @contextmanager
    def listening(self, port: int = 0) -> Iterator["Scanner"]:
        """Listen for reports; only with the role that such a report needs."""
        ae = AE(ae_title="MR1")
        ae.add_supported_context(StorageCommitmentPushModel, IMPLICIT, scu_role=True, scp_role=True)
        server = transport.listen(
            ae, ("127.0.0.1", port), [(evt.EVT_N_EVENT_REPORT, self.on_event)]
        )
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            transport.close(server, 0.0)
