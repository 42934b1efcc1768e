"""What is sent together: the instances of one delivery, and what became of each of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.network.outgoing import Head, Unfit, read_head
from dicom_node.network.requesting import Context
from dicom_node.retry import Fault, Verdict, classify


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


@dataclass(eq=False, kw_only=True)
class Parcel:
    """Instances that are sent together; `outcomes` and `error` grow while they are.

    Parameters
    ----------
    note
        Called with each outcome, in whatever thread has it, before that goes on.
    proceed
        Asked before every instance; False ends the sending of this parcel there.
    """

    items: Sequence[Item]
    note: Callable[[Outcome], None] = lambda outcome: None
    proceed: Callable[[], bool] = lambda: True
    outcomes: list[Outcome] = field(default_factory=list)  # of what was tried
    error: Exception | None = None  # what `note` or `proceed` raised, or nobody foresaw


@dataclass(frozen=True, kw_only=True)
class Sendable:
    """An item with what an association must be asked for; its data set stands from `at` on."""

    item: Item
    parcel: Parcel
    context: Context
    at: int


def sort_out(parcel: Parcel) -> tuple[list[Sendable], list[Outcome]]:
    """Return what can be sent, and the outcomes of what cannot, because of its file.

    Every file is looked at: to take the others to be like the first would let a peer's refusal of
    that one keep all of them back.
    """
    waiting, outcomes = [], []
    for item in parcel.items:
        head = head_of(item)
        if isinstance(head, Head):
            context = (head.sop_class, head.transfer_syntax)
            waiting.append(Sendable(item=item, parcel=parcel, context=context, at=head.at))
        else:
            outcomes.append(head)
    return waiting, outcomes


def head_of(item: Item) -> Head | Outcome:
    """Return what the item's file says of itself, or why it cannot be sent."""
    try:
        head = read_head(item.path)
    except Unfit as error:
        return Outcome(item=item, fault=error.fault, comment=str(error))
    if head.sop_uid != item.sop_uid:
        comment = f"the file holds {head.sop_uid}"
        return Outcome(item=item, fault=Fault.NO_FILE, comment=comment)
    return head
