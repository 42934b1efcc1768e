"""Sending: C-STORE with a status for every single instance, and C-ECHO."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from pydicom.uid import UID, ImplicitVRLittleEndian

from dicom_node.edges import failure_of
from dicom_node.network.agenda import Agenda
from dicom_node.network.caller import Association, call
from dicom_node.network.connecting import USUAL, AssociationFault, Timeouts
from dicom_node.network.dimse import VERIFICATION
from dicom_node.network.outgoing import Opened, Reader, Unfit, file_fault
from dicom_node.network.parcels import Item, Outcome, Parcel, Sendable, sort_out
from dicom_node.network.requesting import Context
from dicom_node.retry import Fault, describe
from dicom_node.settings import PeerSettings

RESUMES = 3
WORTH_AN_ASSOCIATION = 8  # instances; for fewer it takes longer to ask for one than to wait


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


def sentence(peer: PeerSettings, outcome: Outcome, failures: int) -> str:
    """Return what went wrong, for an administrator; a peer's own words may name a patient."""
    fault = outcome.fault
    comment = f" ({outcome.comment})" if isinstance(fault, Fault) and outcome.comment else ""
    more = f", and {failures - 1} more instances failed" if failures > 1 else ""
    return (
        f"{peer.address}: {describe(fault)}{comment} for SOP instance {outcome.item.sop_uid}{more}."
    )


class Lanes:
    """How many associations are open to all destinations together.

    Each destination always has one, so that none waits for a silent one; what it may have besides
    is bounded.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    @contextmanager
    def open(self, wanted: int) -> Iterator[int]:
        """Yield how many of `wanted` associations there may be, at least one."""
        with self._lock:
            granted = max(1, min(wanted, self._left))
            self._left -= granted
        try:
            yield granted
        finally:
            with self._lock:
                self._left += granted


def echo(peer: PeerSettings, calling_ae: str, timeouts: Timeouts = USUAL) -> None:
    """Return when the peer has answered a C-ECHO with success.

    Raises
    ------
    AssociationFault
        If it has not.
    """
    with call(peer, calling_ae, [(VERIFICATION, ImplicitVRLittleEndian)], timeouts) as association:
        status = association.echo().status
    if status:
        raise AssociationFault(Fault.ABORTED, f"C-ECHO: status 0x{status:04X}")


def send(
    items: Sequence[Item],
    peer: PeerSettings,
    calling_ae: str,
    *,
    timeouts: Timeouts = USUAL,
    proceed: Callable[[], bool] = lambda: True,
    resumes: int | None = None,
) -> Iterator[Outcome]:
    """Yield one outcome per instance that was tried, as soon as it is known, over one association.

    An association that broke or timed out is never used again; the rest of the instances follow
    over a fresh one, until the same instance has broken `resumes` of them. Then that instance gets
    the fault as its outcome, and nothing is tried after it; the same when no association can be
    had.
    """
    terms = Terms(
        peer=peer,
        calling_ae=calling_ae,
        timeouts=timeouts,
        resumes=RESUMES if resumes is None else resumes,
    )
    parcel = Parcel(items=items, proceed=proceed)
    waiting, outcomes = sort_out(parcel)
    yield from outcomes
    agenda = Agenda()
    agenda.add(parcel, waiting)
    agenda.close()
    agenda.join()
    for each, outcome in Lane(agenda, terms).outcomes():
        yield outcome
        agenda.settle(each, outcome)
    if parcel.error:
        raise parcel.error


def send_parcels(
    parcels: Iterable[Parcel], terms: Terms, associations: int
) -> Generator[Parcel, None, None]:
    """Yield each parcel when it has come to its end; several associations share all of them.

    The next parcels are asked for while the last ones are on their way, so that the associations
    stay open and have something to do. A parcel has come to its end when each of its instances has
    an outcome, or when it was withdrawn: its `proceed` said no, or it failed.

    A lane is one association after the other, as in `send`. One that cannot have an association
    leaves its share to the others; only the last to end so makes that the outcome of an instance,
    and its parcel fails. One that ends with an instance that has broken too many leaves its share
    to them, too; the last one withdraws the parcel of that instance. The parcels behind it are sent
    over fresh lanes.

    What `note` or `proceed` of a parcel raised is its `error`, and nothing more of it is sent. If
    this generator is closed, or `parcels` raises something, the instances under way are finished
    and nothing more is sent.
    """
    agenda, source = Agenda(), iter(parcels)
    crew = Crew(agenda, terms, associations)
    try:
        while not agenda.done:
            if agenda.hungry:
                _add_next(agenda, source)
            crew.fill()
            yield from agenda.collect(wait=not agenda.hungry)
    finally:
        agenda.stop()
        crew.wait()


def _add_next(agenda: Agenda, source: Iterator[Parcel]) -> None:
    """Put the next parcel on the agenda, or close it."""
    parcel = next(source, None)
    if parcel is None:
        agenda.close()
        return
    waiting: list[Sendable] = []
    parcel.error = failure_of(partial(_look_through, parcel, waiting))
    agenda.add(parcel, waiting)


def _look_through(parcel: Parcel, waiting: list[Sendable]) -> None:
    """Note what cannot be sent of a parcel, then put what can into `waiting`."""
    found, unfit = sort_out(parcel)
    for outcome in unfit:
        parcel.note(outcome)
        parcel.outcomes.append(outcome)
    waiting.extend(found)


class Crew:
    """The threads of the lanes that work on an agenda."""

    def __init__(self, agenda: Agenda, terms: Terms, most: int) -> None:
        self._agenda = agenda
        self._terms = terms
        self._most = most
        self._begun = 0  # since there was none
        self._threads: list[threading.Thread] = []

    def fill(self) -> None:
        """Begin as many lanes as what waits is worth.

        One that has ended is not replaced while there are others: the peer may take no more.
        """
        agenda = self._agenda
        if not agenda.lanes:
            self._begun = 0
        if not agenda.waiting:
            return
        worth = max(1, min(self._most, agenda.waiting // WORTH_AN_ASSOCIATION))
        while self._begun < worth:
            self._begun += 1
            agenda.join()
            thread = threading.Thread(target=self._run, name="lane", daemon=True)
            if error := failure_of(thread.start):  # the system starts no more: fewer lanes do it
                agenda.crash(None, error)
                break
            self._threads.append(thread)

    def wait(self) -> None:
        """Return when all lanes have ended."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        lane = Lane(self._agenda, self._terms)
        if error := failure_of(lambda: self._work(lane)):
            self._agenda.crash(lane.at_hand, error)

    def _work(self, lane: "Lane") -> None:
        for each, outcome in lane.outcomes():
            if error := failure_of(partial(each.parcel.note, outcome)):
                self._agenda.withdraw(each.parcel, error)
            self._agenda.settle(each, outcome)


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
        with call(terms.peer, terms.calling_ae, asked, terms.timeouts) as association:
            reader, contexts = Reader(), frozenset(asked)
            while each := self._take(contexts):
                self.at_hand = each
                try:
                    outcome = _store(association, reader, each)
                except AssociationFault as fault:
                    self.at_hand = None
                    if self._agenda.put_back(each, terms.resumes):
                        return None
                    yield each, _silence(each, fault)
                    return each.parcel
                self.at_hand = None
                yield each, outcome
        return None

    def _take(self, contexts: frozenset[Context]) -> Sendable | None:
        """Return the next instance that may be sent."""
        while each := self._agenda.take(contexts):
            if self._may_send(each.parcel):
                return each
            self._agenda.settle(each, None)
        return None

    def _may_send(self, parcel: Parcel) -> bool:
        """Return what `proceed` says; where it is no, nothing more of the parcel is sent."""
        answers: list[bool] = []
        error = failure_of(lambda: answers.append(parcel.proceed()))
        if not any(answers):
            self._agenda.withdraw(parcel, error)
        return any(answers)


def _silence(each: Sendable, fault: AssociationFault) -> Outcome:
    """Return the outcome of an instance to which there was no answer."""
    return Outcome(item=each.item, fault=fault.fault, comment=fault.comment)


def _store(association: Association, reader: Reader, each: Sendable) -> Outcome:
    """Return what became of one instance.

    Raises
    ------
    AssociationFault
        If the association broke or a time limit passed.
    """
    item, (sop_class, syntax) = each.item, each.context
    if not association.accepts(each.context):
        comment = f"{UID(sop_class).name}, {UID(syntax).name}"
        return Outcome(item=item, fault=Fault.NO_CONTEXT, comment=comment)
    try:
        with Opened(item.path) as file:
            data_set = reader.read(file, each.at, item.sha256)
            response = association.store(each.context, item.sop_uid, data_set)
    except Unfit as error:
        return Outcome(item=item, fault=error.fault, comment=str(error))
    except OSError as error:  # of the file: those of the network are AssociationFaults
        return Outcome(item=item, fault=file_fault(error), comment=str(error))
    return Outcome(item=item, fault=response.status, comment=response.comment)
