"""Fetching series that a peer has: what it finds, what is here already, and what has arrived.

What arrives goes through the ordinary intake, on whatever way; whether it is here is asked of the
store, never believed of the peer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from dicom_node.errors import NodeError
from dicom_node.intake import SUCCESS
from dicom_node.network import dicomweb, retrieve
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.found import Counts, FoundSeries, Retrieved
from dicom_node.network.http import WebFault, connected
from dicom_node.network.keeping import Accepted, keep, keep_file
from dicom_node.network.query import Query
from dicom_node.network.scp import NodeScp, storage_classes
from dicom_node.network.tls import credentials
from dicom_node.pixel_files import PixelFiles, is_uid
from dicom_node.retry import Fault, describe
from dicom_node.settings import PeerSettings, Settings
from dicom_node.store import Store
from dicom_node.syntaxes import TRANSFER_SYNTAXES

LATE_S = 5.0  # some archives answer first and send then; without news for so long, they are done
LOOK_S = 0.2
LAST_ANSWERS_S = 2.0  # archives keep the association of a C-MOVE open for a while
MOST_TIMES = 10  # what a server may send of what it has named
MOST_AT_ONCE = 50  # instances of one retrieval where the rate is limited
WILD = frozenset("*?\\")


class PullRefused(NodeError):
    """Nothing can be fetched; the message says from whom and why."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to fetch: an accession number, or one series."""

    accession: str = ""
    series_uid: str = ""
    study_uid: str = ""  # of the series, where the peer needs it

    def __post_init__(self) -> None:
        """A wildcard, or nothing at all, would fetch the whole archive."""
        for text in (self.accession, self.series_uid, self.study_uid):
            if WILD & set(text):
                raise PullRefused(f"{text!r} has wildcards; name one accession number or series")
        for uid in (self.series_uid, self.study_uid):
            if uid and not is_uid(uid):  # it may become a part of a URL
                raise PullRefused(f"{uid[:80]!r} is no UID")
        if not (self.accession.strip() or self.series_uid.strip()):
            raise PullRefused("an accession number or a series UID is needed")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of one series."""

    series: FoundSeries
    known: int = 0  # were here before
    arrived: int = 0
    warned: int = 0
    failed: int = 0
    missing: tuple[str, ...] = ()
    trouble: str = ""


class Way(Protocol):
    """A protocol by which a peer is asked and fetched from."""

    def find(self, wanted: Wanted) -> list[FoundSeries]:
        """Return the series that the peer has, their instances named."""
        ...

    def fetch(
        self, found: FoundSeries, only: Sequence[str], tell: Callable[[Counts], None]
    ) -> Retrieved:
        """Fetch a series, or only some of its instances."""
        ...


class DimseWay:
    """C-FIND, then C-MOVE to ourselves or C-GET, as the peer prefers."""

    def __init__(
        self, peer: PeerSettings, settings: Settings, store: Store, files: PixelFiles
    ) -> None:
        self._peer, self._settings, self._store, self._files = peer, settings, store, files
        self._title = settings.node.ae_title
        tls = credentials(settings.tls)
        accept_s = settings.node.acse_timeout_s
        self._asking = Timeouts(association_s=accept_s, tls=tls)
        self._fetching = replace(self._asking, reply_s=settings.pull.timeout_s)

    def find(self, wanted: Wanted) -> list[FoundSeries]:
        """Return the series that the peer finds, their instances named."""
        with Query.opened(self._peer, self._title, self._asking) as query:
            if wanted.accession:
                studies = query.studies(wanted.accession)
                found = [one for study_uid in studies for one in query.series(study_uid)]
            elif wanted.study_uid:
                found = query.series(wanted.study_uid, wanted.series_uid)
            else:
                found = query.study_of(wanted.series_uid)
            return [self._named(one, query) for one in found]

    def _named(self, one: FoundSeries, query: Query) -> FoundSeries:
        """Return a series with its instances and, where they must be negotiated, their classes."""
        uids = one.study_uid, one.series_uid
        classes = query.classes(*uids) if self._peer.retrieve == "get" else []
        return replace(one, instances=tuple(query.instances(*uids)), classes=tuple(classes))

    def fetch(
        self, found: FoundSeries, only: Sequence[str], tell: Callable[[Counts], None]
    ) -> Retrieved:
        """Fetch by the peer's way."""
        to_us = (found, self._peer, self._title, self._fetching, tell)
        if self._peer.retrieve == "move":
            return retrieve.move(*to_us, only=only)
        taken = storage_classes(self._settings)
        return retrieve.get(
            *to_us,
            only=only,
            storage=retrieve.to_offer(found, taken, TRANSFER_SYNTAXES),
            keep=lambda arrived: keep(
                self._peer, arrived, self._files, self._store, datetime.now(UTC)
            ),
        )


class WebWay:
    """QIDO-RS and WADO-RS."""

    def __init__(
        self, peer: PeerSettings, settings: Settings, store: Store, files: PixelFiles
    ) -> None:
        self._peer, self._store = peer, store
        self._most_bytes = settings.limits.message_bytes
        self._limits = Timeouts(reply_s=settings.pull.timeout_s)
        self._accepted = Accepted(
            classes=storage_classes(settings), syntaxes=TRANSFER_SYNTAXES, files=files
        )

    def find(self, wanted: Wanted) -> list[FoundSeries]:
        """Return the series that the server shows, their instances named."""
        peer = self._peer
        with connected(peer, self._limits) as client:
            if wanted.accession:
                uids = dicomweb.studies(client, peer, wanted.accession)
                found = [
                    one for uid in uids for one in dicomweb.series(client, peer, study_uid=uid)
                ]
            else:
                keys = {"study_uid": wanted.study_uid, "series_uid": wanted.series_uid}
                found = dicomweb.series(client, peer, **keys)
            return [
                replace(
                    one,
                    instances=tuple(
                        dicomweb.instances(client, peer, one.study_uid, one.series_uid)
                    ),
                )
                for one in found
            ]

    def fetch(
        self, found: FoundSeries, only: Sequence[str], tell: Callable[[Counts], None]
    ) -> Retrieved:
        """Fetch the whole series in one answer, or instance by instance."""
        named = len(only) or len(found.instances)
        counts, trouble = Counts(remaining=named), ""
        whole = dicomweb.series_url(self._peer, found.study_uid, found.series_uid)
        urls = [f"{whole}/instances/{uid}" for uid in only] or [whole]
        with connected(self._peer, self._limits) as client:
            for url in urls:
                for file in dicomweb.files_at(client, url, self._most_bytes):
                    if counts.completed + counts.failed >= MOST_TIMES * named:
                        raise WebFault(Fault.ABORTED, f"it sends more than {named} images")
                    kept = keep_file(
                        file, self._peer.calling, self._accepted, self._store, datetime.now(UTC)
                    )
                    good = kept.status == SUCCESS
                    trouble = trouble or kept.comment
                    counts = added(
                        counts,
                        Counts(
                            completed=good, failed=not good, remaining=max(0, counts.remaining - 1)
                        ),
                    )
                    tell(counts)
        return Retrieved(counts=counts, trouble=trouble)


@contextmanager
def listening(
    peer: PeerSettings, settings: Settings, store: Store, files: PixelFiles
) -> Iterator[None]:
    """Receive what C-MOVEs of `peer` bring, unless the running node does that already."""
    if peer.is_web or peer.retrieve != "move":
        yield
        return
    scp = NodeScp(settings, store, files)
    try:
        scp.start()
    except NodeError:  # the port is taken: the node runs
        yield
        return
    try:
        yield
    finally:
        scp.stop(LAST_ANSWERS_S)


class Pace:
    """How fast images may come."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow `per_s` images a second; 0: as many as come."""
        self._per_s = per_s
        self._clock = clock
        self._since = clock()
        self._count = 0

    def batches(self, uids: Sequence[str], *, whole: bool) -> Iterator[Sequence[str]]:
        """Yield what to ask for at once; nothing stands for the whole series."""
        if not self._per_s:
            yield () if whole else uids
            return
        step = max(1, min(MOST_AT_ONCE, round(self._per_s)))
        for first in range(0, len(uids), step):
            yield uids[first : first + step]

    def wait_s(self, came: int) -> float:
        """Return how long to wait after `came` more images."""
        self._count += came
        if not self._per_s:
            return 0.0
        return max(0.0, self._since + self._count / self._per_s - self._clock())


@dataclass(frozen=True, kw_only=True)
class Puller:
    """Fetches from one peer."""

    peer: PeerSettings
    way: Way
    store: Store
    pace: Pace

    def find(self, wanted: Wanted) -> list[FoundSeries]:
        """Return what the peer has.

        Raises
        ------
        PullRefused
            If it cannot be asked, or has nothing.
        """
        try:
            found = self.way.find(wanted)
        except AssociationFault as fault:
            raise PullRefused(f"{self.peer.address}: {said(fault)}") from fault
        except NodeError as error:
            raise PullRefused(f"{self.peer.address}: {error}") from error
        if not found:
            what = f"accession number {wanted.accession!r}" if wanted.accession else "that series"
            raise PullRefused(f"{self.peer.address} has nothing of {what}")
        return found

    def fetch(self, found: FoundSeries, tell: Callable[[int, int], None]) -> Fetched:
        """Return what became of one series; `tell` hears how many images of how many are here."""
        if not found.instances:
            return Fetched(series=found, trouble="it names no image of this series")
        here = self.store.series.here(found.instances)
        lacking = [uid for uid in found.instances if uid not in here]
        done, total, trouble = Counts(), len(found.instances), ""
        tell(len(here), total)
        for only in self.pace.batches(lacking, whole=not here) if lacking else ():

            def tell_more(now: Counts, at: int = len(here) + came(done)) -> None:
                tell(min(total, at + came(now)), total)

            try:
                ended = self.way.fetch(found, only, tell_more)
            except AssociationFault as fault:
                trouble = said(fault)
                break
            done, trouble = added(done, ended.counts), ended.trouble or trouble
            if trouble and not came(ended.counts):
                break
            time.sleep(self.pace.wait_s(len(only) or len(lacking)))
        missing = self._still_missing(lacking, wait=not trouble and not done.failed)
        tell(total - len(missing), total)
        return Fetched(
            series=found,
            known=len(here),
            arrived=len(lacking) - len(missing),
            warned=done.warned,
            failed=done.failed,
            missing=missing,
            trouble=trouble or self._unexplained(missing, done),
        )

    def _still_missing(self, uids: Sequence[str], *, wait: bool) -> tuple[str, ...]:
        """Return what has not arrived, when nothing comes any more."""
        missing = self._missing(uids)
        end = time.monotonic() + LATE_S
        while missing and wait and time.monotonic() < end:
            time.sleep(LOOK_S)
            now = self._missing(uids)
            if len(now) < len(missing):
                missing, end = now, time.monotonic() + LATE_S
        return missing

    def _missing(self, uids: Sequence[str]) -> tuple[str, ...]:
        here = self.store.series.here(uids)
        return tuple(uid for uid in uids if uid not in here)

    def _unexplained(self, missing: Sequence[str], done: Counts) -> str:
        """Return the words where the peer is content and images are missing all the same."""
        if not missing or done.failed:
            return ""
        if self.peer.retrieve == "move" and not self.peer.is_web:
            return "it says that it has sent everything: does it have our address and port?"
        return "it says that it has sent everything"


def came(counts: Counts) -> int:
    """Return how many instances were sent."""
    return counts.completed + counts.warned


def added(one: Counts, other: Counts) -> Counts:
    """Return both together; what is to come is the later one's."""
    return Counts(
        completed=one.completed + other.completed,
        warned=one.warned + other.warned,
        failed=one.failed + other.failed,
        remaining=other.remaining,
    )


def said(fault: AssociationFault) -> str:
    """Return a fault for an administrator."""
    comment = f" ({fault.comment})" if fault.comment else ""
    return f"{describe(fault.fault)}{comment}"


def way_to(peer: PeerSettings, settings: Settings, store: Store, files: PixelFiles) -> Way:
    """Return how `peer` is asked and fetched from.

    Raises
    ------
    PullRefused
        If its configuration does not allow it.
    """
    if "source" not in peer.roles:
        raise PullRefused(f"{peer.name} is configured as no source: give it the role to pull")
    if peer.is_web:
        return WebWay(peer, settings, store, files)
    if not peer.host:
        raise PullRefused(f"{peer.name} has no host in the configuration")
    return DimseWay(peer, settings, store, files)
