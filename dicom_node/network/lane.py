"""A lane: one association after the other, over which instances of an agenda are sent.

The next instance is read and hashed while the peer answers about the last one, so that it is sent
at once when the answer is there. No more than one request is under way: the asynchronous operations
window of PS3.7 D.3.3.3 is not negotiated.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from pydicom.uid import UID

from dicom_node.edges import failure_of
from dicom_node.network.agenda import Agenda
from dicom_node.network.caller import Association, call
from dicom_node.network.connecting import USUAL, AssociationFault, Timeouts
from dicom_node.network.outgoing import DataSet, Reader, Unfit, file_fault, opened
from dicom_node.network.parcels import Outcome, Parcel, Sendable
from dicom_node.network.requesting import Context
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings

RESUMES = 3


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a peer is sent something.

    Parameters
    ----------
    resumes
        How often an instance may break its association and be sent again over a fresh one.
    """

    peer: PeerSettings
    calling_ae: str
    timeouts: Timeouts = USUAL
    resumes: int = RESUMES


class Lane:
    """One association after the other, as long as there is something to send."""

    def __init__(self, agenda: Agenda, terms: Terms) -> None:
        self._agenda = agenda
        self._terms = terms
        self._asked: Sequence[Context] = ()  # of the peer, the last time
        self.at_hand: Sendable | None = None  # which a failure that nobody foresaw is about

    def outcomes(self) -> Iterator[tuple[Sendable, Outcome]]:
        """Yield what becomes of each instance that it takes; who has noted that settles it."""
        blamed = None
        try:
            while not blamed and (parcel := self._agenda.front()):
                if self._may_send(parcel):
                    blamed = yield from self._over_one()
        except AssociationFault as fault:
            if first := self._agenda.leave_without(self._asked):
                yield first, _silence(first, fault)
        else:
            self._agenda.leave(blamed)

    def _over_one(self) -> Generator[tuple[Sendable, Outcome], None, Parcel | None]:
        """Yield the outcomes that one association brings; return the parcel that must end the lane.

        An instance that has broken too many is not tried again, on no lane: its fault is its
        outcome.

        Raises
        ------
        AssociationFault
            If there was no association.
        """
        terms, asked = self._terms, self._agenda.contexts()
        self._asked = asked
        if not asked:  # another lane has just taken the last instance
            return None
        with (
            call(terms.peer, terms.calling_ae, asked, terms.timeouts) as association,
            Desk(self._agenda, association, asked) as desk,
        ):
            while each := desk.next():
                if not (self._agenda.wanted(each) and self._may_send(each.parcel)):
                    self._agenda.settle(each, None)
                    continue
                self.at_hand = each
                try:
                    outcome = desk.send()
                except AssociationFault as fault:
                    self.at_hand = None
                    desk.clear()
                    if self._agenda.put_back(each, terms.resumes):
                        return None
                    yield each, _silence(each, fault)
                    return each.parcel
                self.at_hand = None
                yield each, outcome
        return None

    def _may_send(self, parcel: Parcel) -> bool:
        """Return what `proceed` says; where it is no, nothing more of the parcel is sent."""
        answers: list[bool] = []
        error = failure_of(lambda: answers.append(parcel.proceed()))
        if not any(answers):
            self._agenda.withdraw(parcel, error)
        return any(answers)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """An instance that is read, as far as that can be done before it is sent."""

    sendable: Sendable
    data_set: DataSet | None = None  # None: it is read while it is sent
    outcome: Outcome | None = None  # why it cannot be sent


class Desk:
    """What is next on an association, and is read while the peer answers.

    At its end what was not sent is given back.
    """

    def __init__(self, agenda: Agenda, association: Association, asked: Sequence[Context]) -> None:
        self._agenda = agenda
        self._association = association
        self._contexts = frozenset(asked)
        self._reader = Reader()
        self._now: Ready | None = None
        self._ahead: Ready | None = None

    def next(self) -> Sendable | None:
        """Return the next instance, as soon as there is one; None when there is none for us."""
        self._now = self._ahead or self._take(wait=True)
        self._ahead = None
        return self._now.sendable if self._now else None

    def send(self) -> Outcome:
        """Return what became of the instance that `next` returned.

        Raises
        ------
        AssociationFault
            If the association broke or a time limit passed.
        """
        ready, association = self._now, self._association
        assert ready
        if ready.outcome:
            return ready.outcome
        item, context = ready.sendable.item, ready.sendable.context
        try:
            if ready.data_set:
                association.store(context, item.sop_uid, ready.data_set)
            else:
                with opened(item.path) as file:
                    data_set = self._reader.read(file, ready.sendable.at, item.sha256)
                    association.store(context, item.sop_uid, data_set)
        except (Unfit, OSError) as error:
            return _unfit(ready.sendable, error)
        self._ahead = self._take(wait=False)  # what was sent is not needed any more
        response = association.answer()
        return Outcome(item=item, fault=response.status, comment=response.comment)

    def clear(self) -> None:
        """Give back what was read and not sent."""
        if self._ahead:
            self._agenda.give_back(self._ahead.sendable)
            self._ahead = None

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def _take(self, *, wait: bool) -> Ready | None:
        """Return the next instance that could be read."""
        while each := self._agenda.take(self._contexts, wait=wait):
            if ready := self._ready(each):
                return ready
        return None

    def _ready(self, each: Sendable) -> Ready | None:
        """Return an instance, read; None: that failed unforeseen, and its parcel is withdrawn."""
        done: list[Ready] = []
        if error := failure_of(lambda: done.append(self._read(each))):
            self._agenda.withdraw(each.parcel, error)
            self._agenda.settle(each, None)
        return done[0] if done else None

    def _read(self, each: Sendable) -> Ready:
        sop_class, syntax = each.context
        if not self._association.accepts(each.context):
            comment = f"{UID(sop_class).name}, {UID(syntax).name}"
            outcome = Outcome(item=each.item, fault=Fault.NO_CONTEXT, comment=comment)
            return Ready(sendable=each, outcome=outcome)
        try:
            with opened(each.item.path) as file:
                data_set = self._reader.read_short(file, each.at, each.item.sha256)
        except (Unfit, OSError) as error:
            return Ready(sendable=each, outcome=_unfit(each, error))
        return Ready(sendable=each, data_set=data_set)


def _unfit(each: Sendable, error: Unfit | OSError) -> Outcome:
    """Return the outcome of an instance whose file cannot be sent."""
    fault = error.fault if isinstance(error, Unfit) else file_fault(error)
    return Outcome(item=each.item, fault=fault, comment=str(error))


def _silence(each: Sendable, fault: AssociationFault) -> Outcome:
    """Return the outcome of an instance to which there was no answer."""
    return Outcome(item=each.item, fault=fault.fault, comment=fault.comment)
