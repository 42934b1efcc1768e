"""Performs what a manager schedules: claim, fetch, wait for the result, report (IHE AIW-I).

A claim is on record before the manager hears of it, and each step can be repeated: after a crash
the next look goes on where the last one ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from dicom_node import telemetry
from dicom_node.loops import Loop
from dicom_node.network.commitment import new_uid
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.tls import credentials
from dicom_node.network.ups import Input, Lost, Manager, Output, Times, Workitem
from dicom_node.network.ups_dimse import DimseManager
from dicom_node.network.ups_web import WebManager
from dicom_node.pixel_files import PixelFiles
from dicom_node.pull import Pace, Puller, PullRefused, Wanted, way_to
from dicom_node.retry import describe
from dicom_node.sending import may_send
from dicom_node.settings import PeerSettings, Settings
from dicom_node.states import JobState
from dicom_node.store import JobRow, Reference, Store
from dicom_node.store.workitems import (
    CANCELED,
    CLAIMED,
    CLAIMING,
    COMPLETED,
    LOST,
    WORKING,
    WorkitemRow,
)

FETCHED_PERCENT, SENDING_PERCENT = 10, 90
ENDED_BADLY = (JobState.SKIPPED, JobState.DEAD, JobState.CANCELLED)

log = telemetry.get_logger()


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


class Performer:
    """Looks at the worklists of all managers, again and again."""

    def __init__(
        self, store: Store, settings: Settings, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        root = settings.node.state_dir.resolve() / "in"
        self._files = PixelFiles(root, settings.files.min_free_bytes)
        timeouts = Timeouts(reply_s=settings.sending.timeout_s, tls=credentials(settings.tls))
        self._managers: list[Manager] = [
            (WebManager if peer.is_web else DimseManager)(
                peer=peer, title=settings.node.ae_title, timeouts=timeouts
            )
            for peer in settings.peers
            if peer.worklist_code
        ]
        self._loop = Loop("performer", self.run_once, settings.worklist.interval_s)

    def start(self) -> None:
        """Work in the background, if any peer has a worklist for us."""
        if self._managers:
            self._loop.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the step under way."""
        self._loop.stop(timeout_s)

    def failing(self) -> list[str]:
        """Return what has failed lately, by name; /healthz shows it."""
        return ["performer"] if self._loop.failing else []

    def run_once(self) -> None:
        """Look once at every worklist: what was claimed goes on, and what is new is claimed.

        Not while nothing may be sent: what is claimed, and what is said of it, leaves the node too.
        """
        for manager in self._managers if self._may_speak() else ():
            try:
                for one in self._store.workitems.open_ones(manager.peer.name):
                    self._go_on(manager, one)
                self._claim_more(manager)
            except AssociationFault as fault:  # the next look goes on
                log.warning("performer.no_manager", peer=manager.peer.name, reason=str(fault))

    def _may_speak(self) -> bool:
        return may_send(self._settings, self._store)

    def _claim_more(self, manager: Manager) -> None:
        """Claim what we have room for; what we ever claimed is never claimed again."""
        peer = manager.peer.name
        room = self._settings.worklist.at_once - len(self._store.workitems.open_ones(peer))
        if room <= 0:
            return
        known = self._store.workitems.known(peer)
        fresh = [one for one in manager.scheduled() if one.uid not in known]
        for found in fresh[:room]:
            if not self._may_speak():
                return
            inputs = [asdict(one) | {"code": list(found.code)} for one in found.inputs]
            one = self._store.workitems.begin(peer, found.uid, new_uid(), inputs, self._clock())
            self._go_on(manager, one)

    def _go_on(self, manager: Manager, one: WorkitemRow) -> None:
        """Do the next step of one claim."""
        if not self._may_speak():
            return
        try:
            if one.state == CLAIMING:
                self._claim(manager, one)
            elif one.state == CLAIMED:
                self._fetch(manager, one)
            elif one.state == WORKING:
                self._look(manager, one)
        except Lost as fault:
            why = fault.comment or describe(fault.fault)
            reason = f"{manager.peer.name} does not leave it to us: {why}."
            self._store.workitems.move(one, LOST, self._clock(), reason=reason)

    def _claim(self, manager: Manager, one: WorkitemRow) -> None:
        """Claim it; after an answer that was lost, see whether the claim was heard."""
        try:
            manager.claim(one.uid, one.transaction_uid)
        except Lost:
            manager.tell(one.uid, one.transaction_uid, 0, "claimed")  # ours: our key fits
        self._store.workitems.move(one, CLAIMED, self._clock())

    def _fetch(self, manager: Manager, one: WorkitemRow) -> None:
        """Fetch what is not here; give up after a while."""
        if not one.series:
            self._cancel(manager, one, "The workitem names no series.")
            return
        try:
            for series in inputs_of(one):
                self._fetch_series(manager, series)
        except PullRefused as error:
            log.warning("performer.not_fetched", peer=manager.peer.name, reason=str(error))
            if self._waited_long(one) and self._may_speak():
                self._cancel(manager, one, f"The images could not be fetched: {error}.")
            return
        if not self._may_speak():  # it may have taken long; the next look finds everything here
            return
        manager.tell(one.uid, one.transaction_uid, FETCHED_PERCENT, "the images are here")
        self._store.workitems.move(one, WORKING, self._clock(), progress=FETCHED_PERCENT)

    def _waited_long(self, one: WorkitemRow) -> bool:
        patience = timedelta(seconds=self._settings.worklist.patience_s)
        return self._clock() - one.created_at > patience

    def _fetch_series(self, manager: Manager, series: Input) -> None:
        """Fetch one series; what is known here, files or not, has been received once.

        Raises
        ------
        PullRefused
            If it does not arrive wholly.
        """
        source = self._source(manager, series)
        way = way_to(source, self._settings, self._store, self._files)
        pace = Pace(self._settings.pull.images_per_s)
        puller = Puller(peer=source, way=way, store=self._store, pace=pace)
        wanted = Wanted(series_uid=series.series_uid, study_uid=series.study_uid)
        for found in puller.find(wanted):
            done = puller.fetch(found, lambda here, total: None)
            if not found.instances:  # of a late index: it would count as fetched without an image
                raise PullRefused(f"{source.address}: {done.trouble}")
            if done.missing:
                count = f"{len(done.missing)} of {len(found.instances)}"
                raise PullRefused(f"{source.address}: {count} images are missing: {done.trouble}")

    def _source(self, manager: Manager, series: Input) -> PeerSettings:
        """Return the configured peer that a workitem points at: nobody else is ever called."""
        sources = [peer for peer in self._settings.peers if "source" in peer.roles]
        for peer in sources:
            if peer.is_web and series.url and f"{series.url}/".startswith(f"{peer.url}/"):
                return peer
            if not peer.is_web and series.ae_title and series.ae_title == peer.ae_title:
                return peer
        if not series.url and not series.ae_title and manager.peer in sources:
            return manager.peer
        where = series.url or series.ae_title or "nowhere"
        raise PullRefused(f"the images are to be had from {where[:200]}, which is no source here")

    def _look(self, manager: Manager, one: WorkitemRow) -> None:
        """Report how far the jobs are; complete or cancel when they have ended."""
        jobs = {
            each.series_uid: self._store.jobs.of_series(each.series_uid)[-1:]
            for each in inputs_of(one)
        }
        without = [series_uid for series_uid, found in jobs.items() if not found]
        newest = [job for found in jobs.values() for job in found]
        bad = [job for job in newest if job.state in ENDED_BADLY]
        if bad:
            self._cancel(manager, one, bad[0].reason)
        elif without:  # nothing is done before everything is
            if self._waited_long(one):
                self._cancel(manager, one, f"Nothing came of series {without[0]}.")
        elif all(job.state is JobState.DELIVERED for job in newest):
            self._complete(manager, one, newest)
        else:
            percent = min(map(percent_of, newest))
            words = next((job.reason for job in newest if percent_of(job) == percent), "")
            if (percent, words) != (one.progress, one.reason):
                manager.tell(one.uid, one.transaction_uid, percent, words)
                self._store.workitems.move(
                    one, WORKING, self._clock(), progress=percent, reason=words
                )

    def _complete(self, manager: Manager, one: WorkitemRow, jobs: Sequence[JobRow]) -> None:
        code = tuple(one.series[0]["code"])
        workitem = Workitem(uid=one.uid, state="", code=code, inputs=())
        studies = {each.series_uid: each.study_uid for each in inputs_of(one)}
        outputs = [out for job in jobs for out in self._outputs(job, studies[job.series_uid])]
        times = Times(began=one.created_at, ended=self._clock())
        manager.complete(workitem, one.transaction_uid, outputs, times)
        self._store.workitems.move(one, COMPLETED, self._clock(), progress=100)

    def _outputs(self, job: JobRow, study_uid: str) -> list[Output]:
        """Return each series that the first destination of a job got from it."""
        known = {peer.name: peer for peer in self._settings.peers}
        peer = next((known[name] for name in job.destinations if name in known), None)
        study = self._store.series.study_of(job.series_id) or study_uid
        made: dict[str, list[Reference]] = {}
        for each in self._store.jobs.derived(job.id):
            if peer is None or each.destinations is None or peer.name in each.destinations:
                series_uid = each.series_uid or job.derived_series_uid or job.series_uid
                reference = Reference(sop_uid=each.sop_uid, sop_class=each.sop_class)
                made.setdefault(series_uid, []).append(reference)
        web = peer is not None and peer.is_web
        return [
            Output(
                study_uid=study,
                series_uid=series_uid,
                instances=tuple(references),
                ae_title="" if peer is None or web else peer.ae_title,
                url=f"{peer.url}/studies/{study}/series/{series_uid}" if peer and web else "",
            )
            for series_uid, references in made.items()
        ]

    def _cancel(self, manager: Manager, one: WorkitemRow, reason: str) -> None:
        manager.cancel(one.uid, one.transaction_uid, reason, self._clock())
        self._store.workitems.move(one, CANCELED, self._clock(), reason=reason)


def inputs_of(one: WorkitemRow) -> list[Input]:
    """Return the series of a claim."""
    names = ("study_uid", "series_uid", "ae_title", "url")
    return [Input(**{name: each[name] for name in names}) for each in one.series]


def percent_of(job: JobRow) -> int:
    """Return how far a job is."""
    if job.state is JobState.RUNNING:
        span = SENDING_PERCENT - FETCHED_PERCENT
        return FETCHED_PERCENT + int(span * (job.progress or 0.0))
    if job.state is JobState.DELIVERED:
        return 100
    return SENDING_PERCENT if job.state is JobState.DERIVED else FETCHED_PERCENT
