"""Sending: C-STORE with a status for every single instance, and C-ECHO."""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID, ImplicitVRLittleEndian

from dicom_node.edges import failure_of
from dicom_node.network.caller import Association, call
from dicom_node.network.connecting import USUAL, AssociationFault, Timeouts
from dicom_node.network.dimse import VERIFICATION
from dicom_node.network.negotiation import MOST_CONTEXTS
from dicom_node.network.outgoing import Reader, Unfit, file_fault, read_head
from dicom_node.network.requesting import Context
from dicom_node.retry import Fault, Verdict, classify, describe
from dicom_node.settings import PeerSettings

RESUMES = 3
WORTH_AN_ASSOCIATION = 8  # instances; for fewer it takes longer to ask for one than to wait


@dataclass(frozen=True, kw_only=True)
class Item:
    """One instance to send; `key` is the caller's."""

    key: int
    sop_uid: str
    path: Path
    sha256: str | None = None  # what the file must have; None: whatever it is


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one item: a DIMSE status, or why there is none."""

    item: Item
    fault: int | Fault
    comment: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the sender does about it."""
        return classify(self.fault).verdict


@dataclass(frozen=True, kw_only=True)
class Sendable:
    """An item with what an association must be asked for; its data set stands from `at` on."""

    item: Item
    context: Context
    at: int


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a peer is sent something.

    Parameters
    ----------
    proceed
        Asked before every instance; False ends the sending there.
    resumes
        How often an instance may break its association and be sent again over a fresh one.
    """

    peer: PeerSettings
    calling_ae: str
    timeouts: Timeouts = USUAL
    proceed: Callable[[], bool] = lambda: True
    resumes: int = RESUMES


def sentence(peer: PeerSettings, outcome: Outcome, failures: int) -> str:
    """Return what went wrong, for an administrator; a peer's own words may name a patient."""
    fault = outcome.fault
    comment = f" ({outcome.comment})" if isinstance(fault, Fault) and outcome.comment else ""
    more = f", and {failures - 1} more instances failed" if failures > 1 else ""
    return (
        f"{peer.address}: {describe(fault)}{comment} for SOP instance {outcome.item.sop_uid}{more}."
    )


class Agenda:
    """What waits to be sent; several associations take from it, each instance is with one."""

    def __init__(self, waiting: Sequence[Sendable], lanes: int) -> None:
        self._waiting = list(waiting)
        self._lanes = lanes  # that have not ended
        self._breaks: Counter[int] = Counter()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> bool:
        """Return whether there is something to take."""
        return bool(self._waiting)

    def contexts(self) -> list[Context]:
        """Return what an association must be asked for, as far as one can be."""
        with self._lock:
            return list(dict.fromkeys(each.context for each in self._waiting))[:MOST_CONTEXTS]

    def take(self, contexts: set[Context]) -> Sendable | None:
        """Return the next instance that an association with these contexts can send."""
        with self._lock:
            for place, each in enumerate(self._waiting):
                if each.context in contexts:
                    return self._waiting.pop(place)
        return None

    def put_back(self, each: Sendable, resumes: int) -> bool:
        """Let an instance whose association broke be the next; False where it has broken enough."""
        with self._lock:
            self._breaks[each.item.key] += 1
            again = self._breaks[each.item.key] <= resumes
            if again:
                self._waiting.insert(0, each)
            return again

    def close(self) -> Item | None:
        """Let no lane take anything more; return what would have been next."""
        with self._lock:
            first = self._waiting[0].item if self._waiting else None
            self._waiting.clear()
        return first

    def leave(self) -> bool:
        """End one lane; return whether it was the last."""
        with self._lock:
            self._lanes -= 1
            return not self._lanes


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
        proceed=proceed,
        resumes=RESUMES if resumes is None else resumes,
    )
    waiting, outcomes = sort_out(items)
    yield from outcomes
    yield from lane(Agenda(waiting, lanes=1), terms)


def send_side_by_side(
    items: Sequence[Item], terms: Terms, associations: int, note: Callable[[Outcome], None]
) -> list[Outcome]:
    """Return what became of each instance that was tried; several associations share them.

    A lane is one association after the other, as in `send`. One that cannot have an association
    leaves its share to the others; only the last to end so makes that the outcome of an instance.
    One that ends with an instance that has broken too many leaves its share to them, too.

    Parameters
    ----------
    note
        Called with each outcome, in the thread of its lane, before the lane goes on.

    Raises
    ------
    Exception
        What `note` or `proceed` raised, in whatever lane; nothing more is sent then.
    """
    waiting, outcomes = sort_out(items)
    for outcome in outcomes:
        note(outcome)
    lanes = max(1, min(associations, len(waiting) // WORTH_AN_ASSOCIATION))
    agenda = Agenda(waiting, lanes)
    errors: list[Exception] = []

    def send_some() -> None:
        for outcome in lane(agenda, terms):
            note(outcome)
            outcomes.append(outcome)

    def run() -> None:
        if error := failure_of(send_some):  # raised below, when all lanes have ended
            agenda.close()
            errors.append(error)

    others = [threading.Thread(target=run, name="lane", daemon=True) for _ in range(lanes - 1)]
    started = []
    for thread in others:
        if failure_of(thread.start):  # the system starts no more threads: fewer lanes do it
            agenda.leave()
        else:
            started.append(thread)
    run()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    return outcomes


def sort_out(items: Sequence[Item]) -> tuple[list[Sendable], list[Outcome]]:
    """Return what can be sent, and the outcomes of what cannot, because of its file."""
    waiting, outcomes = [], []
    for item in items:
        found = sendable(item)
        if isinstance(found, Sendable):
            waiting.append(found)
        else:
            outcomes.append(found)
    return waiting, outcomes


def sendable(item: Item) -> Sendable | Outcome:
    """Return the item with what must be asked for, or why its file cannot be sent."""
    try:
        head = read_head(item.path)
    except Unfit as error:
        return Outcome(item=item, fault=error.fault, comment=str(error))
    if head.sop_uid != item.sop_uid:
        comment = f"the file holds {head.sop_uid}"
        return Outcome(item=item, fault=Fault.NO_FILE, comment=comment)
    return Sendable(item=item, context=(head.sop_class, head.transfer_syntax), at=head.at)


def lane(agenda: Agenda, terms: Terms) -> Iterator[Outcome]:
    """Yield the outcomes of what one association after the other takes from the agenda."""
    try:
        going = True
        while going and agenda.waiting and terms.proceed():
            going = yield from _over_one(agenda, terms)
    except AssociationFault as fault:
        if agenda.leave() and (item := agenda.close()):
            yield Outcome(item=item, fault=fault.fault, comment=fault.comment)
    else:
        agenda.leave()


def _over_one(agenda: Agenda, terms: Terms) -> Generator[Outcome, None, bool]:
    """Yield the outcomes that one association brings; return whether another may follow.

    An instance that has broken too many is not tried again, on no lane: its fault is its outcome.

    Raises
    ------
    AssociationFault
        If there was no association.
    """
    asked = agenda.contexts()
    if not asked:  # another lane has just taken the last instance
        return True
    with call(terms.peer, terms.calling_ae, asked, terms.timeouts) as association:
        reader = Reader()
        while terms.proceed() and (each := agenda.take(set(asked))):
            try:
                yield _store(association, reader, each)
            except AssociationFault as fault:
                if agenda.put_back(each, terms.resumes):
                    return True
                yield Outcome(item=each.item, fault=fault.fault, comment=fault.comment)
                return False
    return True


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
        with item.path.open("rb", buffering=0) as file:
            data_set = reader.read(file, each.at, item.sha256)
            response = association.store(each.context, item.sop_uid, data_set)
    except Unfit as error:
        return Outcome(item=item, fault=error.fault, comment=str(error))
    except OSError as error:  # of the file: those of the network are AssociationFaults
        return Outcome(item=item, fault=file_fault(error), comment=str(error))
    return Outcome(item=item, fault=response.status, comment=response.comment)
