"""Fetching from a peer: C-MOVE to ourselves, or C-GET on our association (PS3.4 C.4.2, C.4.3)."""

import time
from collections.abc import Callable, Iterator, Sequence

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_node.network import pynetdicom_scu
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.found import Counts, FoundSeries, Retrieved
from dicom_node.network.keeping import NO_SUCH_OPERATION, arrived_in, as_dataset
from dicom_node.network.query import identifier, silence
from dicom_node.network.storage import Answer, Arrived
from dicom_node.retry import Fault, describe
from dicom_node.settings import PeerSettings

MOVE = StudyRootQueryRetrieveInformationModelMove
GET = StudyRootQueryRetrieveInformationModelGet
PENDING, SUCCESS, SOME_FAILED = (0xFF00, 0xFF01), 0x0000, 0xB000
MOST_CONTEXTS = 127  # besides the one of the retrieval itself
MR_CLASSES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1")  # classic, enhanced

# Final statuses of C-MOVE and C-GET (PS3.4 tables C.4-2, C.4-3) -> words. "{title}" is ours.
WORDS = {
    (0x0122, 0x0122): "it does not offer this kind of retrieval",
    (0x0124, 0x0124): "it does not allow {title} to retrieve",
    (0xA701, 0xA701): "it ran out of resources while it counted the images",
    (0xA702, 0xA702): "it could not send the images (out of resources, or it cannot reach {title})",
    (0xA801, 0xA801): (
        "it does not know {title} as a move destination: enter our AE title, address and port there"
    ),
    (0xA900, 0xA900): "it finds that the request does not fit",
    (0xC000, 0xCFFF): (
        "it could not process the retrieval; "
        "perhaps it does not know {title} as a move destination, or cannot reach it"
    ),
    (0xFE00, 0xFE00): "it ended the retrieval before everything was sent",
}

Tell = Callable[[Counts], None]
Answers = Iterator[tuple[Dataset, Dataset | None]]


def in_words(status: int, title: str) -> str:
    """Return what a final status means; nothing for success."""
    if status in (SUCCESS, SOME_FAILED):  # the counts say the rest
        return ""
    for (first, last), words in WORDS.items():
        if first <= status <= last:
            return f"{words.format(title=title)} (status 0x{status:04X})"
    return f"it answered with {describe(status)}"


def move(
    found: FoundSeries,
    peer: PeerSettings,
    title: str,
    timeouts: Timeouts,
    tell: Tell,
    *,
    only: Sequence[str] = (),
) -> Retrieved:
    """Let the peer send a series to our listener, or only some instances of it; return how it went.

    Raises
    ------
    AssociationFault
        If there is no association, or it did not last to the end.
    """
    association = pynetdicom_scu.associate(peer, title, [build_context(MOVE)], timeouts)
    with Ending(association):
        wanted = asked(found, only)
        return followed(association, lambda: association.send_c_move(wanted, title, MOVE), tell)


def get(
    found: FoundSeries,
    peer: PeerSettings,
    title: str,
    timeouts: Timeouts,
    tell: Tell,
    *,
    only: Sequence[str] = (),
    storage: Sequence[tuple[str, str]],
    keep: Callable[[Arrived], Answer],
) -> Retrieved:
    """Let the peer send a series, or some of its instances, to us on our own association.

    Parameters
    ----------
    storage
        SOP classes with a transfer syntax each, as `to_offer` returns them. Each pair is a context
        of its own, so that the peer need not decode what it has.
    keep
        Called with each instance; its answer is what the peer hears.

    Raises
    ------
    AssociationFault
        As `move`.
    """
    contexts = [build_context(UID(sop_class), UID(syntax)) for sop_class, syntax in storage]
    roles = [build_role(UID(name), scp_role=True) for name in dict.fromkeys(n for n, _ in storage)]

    def on_store(event: Event) -> int | Dataset:
        arrived = arrived_in(event)
        if arrived is None:
            return NO_SUCH_OPERATION
        return as_dataset(keep(arrived))

    association = pynetdicom_scu.associate(
        peer,
        title,
        [build_context(GET), *contexts],
        timeouts,
        handlers=[(evt.EVT_C_STORE, on_store)],
        roles=roles,
    )
    with Ending(association):
        wanted = asked(found, only)
        return followed(association, lambda: association.send_c_get(wanted, GET), tell)


def to_offer(
    found: FoundSeries, taken: Sequence[str], syntaxes: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the SOP class and transfer syntax of each context to offer for a series.

    What a node takes may be more than an association can negotiate. First comes what the series is
    said to hold and what MR series are, in every syntax; then everything else, by syntax.
    """
    likely = [uid for uid in (*found.classes, *MR_CLASSES) if uid in taken]
    pairs = [(sop_class, syntax) for sop_class in likely for syntax in syntaxes]
    pairs += [(sop_class, syntax) for syntax in syntaxes for sop_class in taken]
    return list(dict.fromkeys(pairs))[:MOST_CONTEXTS]


class Ending:
    """Ends an association with the block: a release after the last answer, else an abort."""

    def __init__(self, association: Association) -> None:
        self._association = association

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """An operation that goes on would otherwise go on sending to us."""
        if kind is None:
            pynetdicom_scu.part(self._association)
        else:
            self._association.abort()


def asked(found: FoundSeries, only: Sequence[str]) -> Dataset:
    """Return the identifier of the series, or of some of its instances."""
    keys = {"StudyInstanceUID": found.study_uid, "SeriesInstanceUID": found.series_uid}
    if not only:
        return identifier("SERIES", keys)
    dataset = identifier("IMAGE", keys)
    dataset.SOPInstanceUID = list(only)
    return dataset


def followed(association: Association, ask: Callable[[], Answers], tell: Tell) -> Retrieved:
    """Return how the retrieval that `ask` begins has ended, telling every count on the way.

    Raises
    ------
    AssociationFault
        If it did not end.
    """
    last, counts, since = None, Counts(), time.monotonic()
    try:
        for status, _ in ask():
            last = status.get("Status")
            if last is not None:
                counts = counts_in(status)
                tell(counts)
                since = time.monotonic()
    except (RuntimeError, ValueError) as error:  # closed meanwhile, or no context for it
        raise AssociationFault(Fault.ABORTED, str(error), mid_way=True) from error
    if last is None or last in PENDING:
        raise silence(association, since)
    title = association.requestor.ae_title
    return Retrieved(counts=counts, trouble=in_words(int(last), title))


def counts_in(status: Dataset) -> Counts:
    """Return the numbers of sub-operations that an answer states."""

    def stated(what: str) -> int:
        return int(status.get(f"NumberOf{what}Suboperations") or 0)

    return Counts(
        completed=stated("Completed"),
        warned=stated("Warning"),
        failed=stated("Failed"),
        remaining=stated("Remaining"),
    )
