"""Storage commitment as SCP: scanners ask whether they may delete what they sent (PS3.4 J).

"Committed" is said of an instance that a destination has committed to us, or, where the site sets
``files.custody``, that is held here under its hash; of everything else the truth, with a reason.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import cast
from weakref import WeakSet, WeakValueDictionary

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.events import Event
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicom_node import telemetry
from dicom_node.edges import failure_of
from dicom_node.errors import NodeError, StoreUnavailable, UnknownPeer
from dicom_node.loops import Loop
from dicom_node.network import pynetdicom_scu
from dicom_node.network.commitment import (
    ALL_COMMITTED,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    REQUEST,
    SOME_FAILED,
    SUCCESS,
    CommitmentRefused,
    context,
    read_request,
    reference_item,
    refusing_damage,
)
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.tls import credentials
from dicom_node.pixel_files import sha256_of
from dicom_node.retry import Fault, backoff_s, describe
from dicom_node.settings import PeerSettings, Settings
from dicom_node.store import Debt, Reference, Store

NOT_AUTHORISED, NO_SUCH_ACTION, RESOURCES = 0x0124, 0x0123, 0x0213
CONFLICT = 0x0119  # Failure Reason: the instance is of another class
MOST_INSTANCES = 10_000  # of one request: each is looked up, in one query
LOOK_S = 1.0  # between two looks for reports that are due
FORWARD_LOOK_S = 2.0  # between two looks whether forwarded originals are committed
GRACE_S = 0.3  # until the response is out, and a peer that releases at once has done so

log = telemetry.get_logger()


class CommitmentScp:
    """Takes requests, and reports on each from a thread of its own until the peer has it."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Callable[[], datetime],
        rng: Random | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._rng = rng or Random()
        self._tls = credentials(settings.tls)
        self._open: WeakValueDictionary[int, Association] = WeakValueDictionary()
        self._shielded: WeakSet[Association] = WeakSet()
        self._loop = Loop(
            "commitment", lambda: self.run_once(self._clock()), LOOK_S, grace_s=GRACE_S
        )

    def start(self) -> None:
        """Report in the background."""
        self._loop.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the report under way; what is not reported stays due."""
        self._loop.stop(timeout_s)

    @property
    def failing(self) -> bool:
        """Return whether the last look failed, or the thread is gone that was to go on."""
        return self._loop.failing

    def on_action(self, event: Event, peer: PeerSettings) -> int:
        """Return the status of the response to an N-ACTION: 0x0000 when it is on record."""
        try:
            return self._take(event, peer)
        except CommitmentRefused as error:
            log.warning("commitment.request_refused", peer=peer.name, reason=str(error))
            return error.status
        except StoreUnavailable as error:
            log.error("commitment.request_refused", peer=peer.name, reason=str(error))
            return RESOURCES

    def _take(self, event: Event, peer: PeerSettings) -> int:
        if "source" not in peer.roles:
            raise CommitmentRefused(f"{peer.name} is configured as no source", NOT_AUTHORISED)
        request = cast(N_ACTION, event.request)
        if request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
            raise CommitmentRefused("the request is to no instance we know", NO_SUCH_INSTANCE)
        if event.action_type != REQUEST:
            raise CommitmentRefused(f"there is no action type {event.action_type}", NO_SUCH_ACTION)
        with refusing_damage():
            wanted = read_request(event.action_information)
        if len(wanted.instances) > MOST_INSTANCES:
            raise CommitmentRefused(f"{len(wanted.instances)} instances at once", RESOURCES)
        number = self._store.debts.accept(
            peer.name, wanted.transaction_uid, wanted.instances, self._clock()
        )
        if pynetdicom_scu.CURE_FITS and event.assoc not in self._shielded:
            pynetdicom_scu.keep_replies(event)  # we shall wait for a reply on it, as a sender does
            self._shielded.add(event.assoc)
        self._open[number] = event.assoc
        self._loop.wake()
        return SUCCESS

    def run_once(self, now: datetime) -> int:
        """Return how many reports were tried: all that are due at `now`.

        A report that fails in a way that nobody foresaw is tried again later, like one that did not
        reach its peer, and holds up no other.

        Raises
        ------
        NodeError
            If the database is away.
        """
        debts = self._store.debts.due(now)
        for debt in debts:
            if self._loop.ending:
                break
            error = failure_of(partial(self._report, debt))
            if isinstance(error, NodeError):
                raise error
            if error:
                log.error("commitment.report_failed", peer=debt.peer, exc_info=error)
                self._postpone(debt, type(error).__name__)
        return len(debts)

    def _report(self, debt: Debt) -> None:
        """Report on one transaction: on the association of the request, else on a new one."""
        statuses = self.judge(debt.instances)
        if self._may_improve(debt, statuses):
            self._store.debts.wait(debt, self._clock() + timedelta(seconds=FORWARD_LOOK_S))
            return
        if self._settings.files.custody:  # the peer may delete its images, even if we never hear
            self._store.debts.promise(debt, statuses)
        report = event_information(debt, statuses)
        event_type = SOME_FAILED if any(statuses.values()) else ALL_COMMITTED
        association = self._open.pop(debt.commitment_id, None)
        try:
            if association is None or not said(association, report, event_type):
                self._call(debt, report, event_type)
        except UnknownPeer as error:
            self._store.debts.postpone(debt, f"{error}.", self._clock(), None)
        except AssociationFault as fault:
            self._postpone(debt, describe(fault.fault))
        else:
            self._store.debts.paid(debt, statuses, self._clock())

    def _may_improve(self, debt: Debt, statuses: Mapping[str, int]) -> bool:
        """Return whether what fails now may be committed soon, because we forward originals."""
        lacking = [uid for uid, status in statuses.items() if status == PROCESSING_FAILURE]
        forwards = any(rule.action == "forward" for rule in self._settings.rules)
        patience = timedelta(seconds=self._settings.commitment.answer_within_s)
        if not lacking or not forwards or self._clock() >= debt.asked_at + patience:
            return False
        return self._store.debts.under_way(lacking)

    def judge(self, instances: tuple[Reference, ...]) -> Mapping[str, int]:
        """Return for each instance 0 (committed) or the Failure Reason (PS3.3 C.14.1.1)."""
        kept = self._store.debts.kept_by_a_destination([one.sop_uid for one in instances])
        return {one.sop_uid: self._judge(one, one.sop_uid in kept) for one in instances}

    def _judge(self, one: Reference, kept: bool) -> int:
        row = self._store.series.find_instance(one.sop_uid)
        if row is None:
            return NO_SUCH_INSTANCE
        if row.sop_class != one.sop_class:
            return CONFLICT
        held = self._settings.files.custody and sha256_of(row.path) == row.sha256
        return SUCCESS if kept or held else PROCESSING_FAILURE

    def _call(self, debt: Debt, report: Dataset, event_type: int) -> None:
        """Report on a new association to the peer's configured address."""
        peer = self._settings.peer(debt.peer)
        if not peer.host:
            raise AssociationFault(Fault.UNREACHABLE, f"{peer.name} has no host")
        limits = Timeouts(
            association_s=self._settings.node.acse_timeout_s,
            reply_s=self._settings.sending.timeout_s,
            tls=self._tls,
        )
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)]
        title = self._settings.node.ae_title
        association = pynetdicom_scu.associate(peer, title, [context()], limits, roles=roles)
        try:
            if not said(association, report, event_type):
                raise AssociationFault(Fault.ABORTED, "the report was not accepted")
        finally:
            pynetdicom_scu.part(association)

    def _postpone(self, debt: Debt, why: str) -> None:
        sending, attempt = self._settings.sending, debt.attempts + 1
        wait_s = backoff_s(
            attempt, self._rng, base_s=sending.backoff_first_s, cap_s=sending.backoff_last_s
        )
        now = self._clock()
        again = None if attempt >= sending.max_attempts else now + timedelta(seconds=wait_s)
        reason = f"{debt.peer} was not reached with the report: {why}."
        self._store.debts.postpone(debt, reason, now, again)


def event_information(debt: Debt, statuses: Mapping[str, int]) -> Dataset:
    """Return what the N-EVENT-REPORT carries (PS3.4 Table J.3-2)."""
    dataset = Dataset()
    dataset.TransactionUID = debt.transaction_uid
    committed = [reference_item(one) for one in debt.instances if not statuses[one.sop_uid]]
    failed = [one for one in debt.instances if statuses[one.sop_uid]]
    if committed:
        dataset.ReferencedSOPSequence = committed
    if failed:
        items = [reference_item(one) for one in failed]
        for one, item in zip(failed, items, strict=True):
            item.FailureReason = statuses[one.sop_uid]
        dataset.FailedSOPSequence = items
    return dataset


def said(association: Association, report: Dataset, event_type: int) -> bool:
    """Return whether the peer has acknowledged the report on this association."""
    if not association.is_established:
        return False
    try:
        status, _ = association.send_n_event_report(
            report,
            event_type,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
    except (RuntimeError, ValueError):  # closed meanwhile, or no context for it
        return False
    return status.get("Status") == SUCCESS
