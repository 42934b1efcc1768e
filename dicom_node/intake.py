"""One received instance: new, a duplicate or a conflict; durable before anybody hears "success"."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TypeVar

from dicom_node import telemetry
from dicom_node.comparison import pixels_digest, same_pixels
from dicom_node.content import split_file
from dicom_node.corrections import corrects
from dicom_node.edges import failure_of
from dicom_node.errors import ConflictingInstance, CorrectedSince, InstanceRejected, OutOfSpace
from dicom_node.examination import Examined, Incoming, examine
from dicom_node.pixel_files import PixelFiles, clear_folder, sha256_of, unclaimed_dir
from dicom_node.store import InstanceRow, NewInstance, Recorded, Store
from dicom_node.store.schema import storable

Outcome = TypeVar("Outcome")

SUCCESS = 0x0000
UNCLAIMED = (
    "no row knows these images: a crash came before their answer, or the database is an older one; "
    "dicom-node submit takes in those that are whole, and after 30 days they are deleted"
)
SUBMITTED = "SUBMIT"  # the calling AE title of files that a person imports

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of an instance that is safe now."""

    sop_uid: str
    series_uid: str
    outcome: str  # as `store.Recorded` says
    status: int = SUCCESS


def take_in(incoming: Incoming, files: PixelFiles, store: Store, now: datetime) -> Taken:
    """Return only when the instance would survive a power cut.

    Raises
    ------
    InstanceRejected
        If it cannot be kept: the sender must keep it. Its `status` is the answer of a C-STORE.
    """
    return _noted(
        incoming, store, now, lambda: _keep(examine(incoming), incoming, files, store, now)
    )


def take_in_meanwhile(
    incoming: Incoming,
    files: PixelFiles,
    store: Store,
    now: datetime,
    then: Callable[[Taken | Exception], None],
) -> None:
    """Have `then` called once with what `take_in` returns or raises, a failure of ours included.

    Nobody waits for the database: often another thread, which commits for several, calls `then`,
    before or after this returns. So `then` must be brief and raise nothing.
    """
    _Meanwhile(incoming, files, store, now, then).begin()


@dataclass(frozen=True, eq=False)
class _Meanwhile:
    """One instance that is being kept while the thread that brought it goes on."""

    incoming: Incoming
    files: PixelFiles
    store: Store
    now: datetime
    then: Callable[[Taken | Exception], None]
    told: Any = field(default_factory=Lock)  # held once `then` was called

    def begin(self) -> None:
        """Write the file and hand its row in."""
        kept: list[Taken | None] = []
        error = failure_of(lambda: kept.append(self._write()))
        if error is not None:
            self._tell(partial(_given, error))
        elif kept[0] is not None:
            self._tell(partial(_given, kept[0]))

    def _write(self) -> Taken | None:
        """Return what became of it; None if that will be told when its row is there."""
        examined = examine(self.incoming)
        with _asked_again(examined), ExitStack() as turn:
            turn.enter_context(self.files.exclusive(examined.sop_uid))
            path = self.files.create(*_to_write(examined))
            if path is None:
                return self._again(examined)
            new = _row(examined, self.incoming, path)
            recorded = partial(self._recorded, examined, new, turn.pop_all())
        self.store.series.hand_in_instance(new, self.now, recorded)
        return None

    def _recorded(
        self, examined: Examined, new: NewInstance, turn: ExitStack, recorded: Recorded | Exception
    ) -> None:
        """Tell what became of it, now that the database has spoken."""
        end = partial(self._tell, partial(self._end, examined, new, turn, recorded))
        if not isinstance(recorded, ConflictingInstance):
            end()
            return
        try:  # to compare takes its time, and the database, and others wait for this thread
            Thread(target=end, name="intake").start()
        except RuntimeError:
            self._tell(partial(self._refuse, examined, new, turn))

    def _refuse(self, examined: Examined, new: NewInstance, turn: ExitStack) -> Taken:
        """Let it be sent again; the row that is known speaks of another file."""
        with turn:
            self.files.discard(new.path)
            raise OutOfSpace(
                f"{examined.sop_uid}: cannot be kept now: the system starts no more threads"
            )

    def _end(
        self, examined: Examined, new: NewInstance, turn: ExitStack, recorded: Recorded | Exception
    ) -> Taken:
        with _asked_again(examined), turn:
            outcome = _outcome(partial(_given, recorded), new, self.files, self.store)
            return self._again(examined) if outcome is None else _taken(examined, outcome)

    def _again(self, examined: Examined) -> Taken:
        outcome = _keep_again(examined, self.incoming, self.files, self.store, self.now)
        return _taken(examined, outcome)

    def _tell(self, action: Callable[[], Taken]) -> None:
        """Tell what `action` returns or raises, once."""
        taken: list[Taken] = []
        noted = partial(_noted, self.incoming, self.store, self.now, action)
        error = failure_of(lambda: taken.append(noted()))
        if self.told.acquire(blocking=False):
            self.then(error or taken[0])


def _given(outcome: Outcome | Exception) -> Outcome:
    """Return it; raise it, if it is an exception."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _noted(incoming: Incoming, store: Store, now: datetime, action: Callable[[], Taken]) -> Taken:
    """Return what `action` says of the instance, which is counted; a refusal leaves a trace."""
    try:
        taken = action()
    except InstanceRejected as error:
        _note_rejection(incoming, error, store, now)
        raise
    telemetry.instances_received.labels(outcome=taken.outcome).inc()
    return taken


def submit_file(path: Path, files: PixelFiles, store: Store, now: datetime) -> Taken:
    """Return what became of a file that a person imports: as if it had been received.

    Raises
    ------
    InstanceRejected
        If it is no DICOM file or cannot be kept; the message is one line.
    """
    transfer_syntax, encoded = split_file(path)
    incoming = Incoming(
        encoded=encoded, transfer_syntax=transfer_syntax, calling_ae=SUBMITTED, by_hand=True
    )
    return take_in(incoming, files, store, now)


def recover(files: PixelFiles, store: Store) -> list[Path]:
    """Return what is no longer there: what a crash has left of instances without their row.

    Call it at start: a crash leaves unfinished files, and finished ones whose row was not
    committed, or says that retention has deleted them. A file that no row knows is moved aside and
    not deleted: in a database that was put back the row of an acknowledged image may be missing.
    So is a piece of one, which nobody was told to be safe. A database that knows none of the files
    is the wrong one: then they are left alone.
    """
    removed, aside = files.recover(), 0
    going = {removal.id for removal in store.removals.unfinished()}  # retention's, to the end
    paths = files.paths()
    rows = store.series.places([path.stem for path in paths])  # of what is here, not of all time
    mine = {path for path in paths if path.stem in rows and _is_at(path, rows[path.stem][0])}
    if paths and not mine:
        log.warning("files.unknown", folder=str(files.root), count=len(paths))
        return removed
    for path in paths:
        if path in mine and rows[path.stem][1] in (None, *going):
            continue
        with files.exclusive(path.stem):
            row = store.series.find_instance(path.stem)
            kept = row is not None and _is_at(path, row.path)
            if kept and row is not None and row.removal_id in (None, *going):
                continue  # somebody took it in meanwhile
            if row is None:
                files.set_aside(path)
                aside += 1
            else:
                files.discard(path)
            removed.append(path)
    if aside:
        folder = str(unclaimed_dir(files.root))
        log.warning("files.unclaimed", folder=folder, count=aside, reason=UNCLAIMED)
    return removed


def _is_at(path: Path, known: Path) -> bool:
    """Return whether series folder and file name are the same: the state folder may be moved."""
    return (path.parent.name, path.name) == (known.parent.name, known.name)


@contextmanager
def _asked_again(examined: Examined) -> Iterator[None]:
    """Let the sender send again what the system refuses for now."""
    try:
        yield
    except OSError as error:  # no descriptor left, a lock that somebody keeps
        reason = f"{examined.sop_uid}: cannot be kept now: {error.strerror or error}"
        raise OutOfSpace(reason) from error


def _keep(
    examined: Examined, incoming: Incoming, files: PixelFiles, store: Store, now: datetime
) -> Taken:
    """Write file and row, or find that both are there."""
    with _asked_again(examined), files.exclusive(examined.sop_uid):
        outcome = _keep_new(examined, incoming, files, store, now)
        if outcome is None:
            outcome = _keep_again(examined, incoming, files, store, now)
    return _taken(examined, outcome)


def _taken(examined: Examined, outcome: str) -> Taken:
    return Taken(sop_uid=examined.sop_uid, series_uid=examined.series_uid, outcome=outcome)


def _keep_new(
    examined: Examined, incoming: Incoming, files: PixelFiles, store: Store, now: datetime
) -> str | None:
    """Return the outcome where no such file lies; None if one does, or another content is known.

    The database is asked once, by the transaction that records. What it knows under this name may
    be the same image in another encoding: that takes longer to find out.
    """
    path = files.create(*_to_write(examined))
    if path is None:
        return None
    new = _row(examined, incoming, path)
    return _outcome(lambda: store.series.record_instance(new, now), new, files, store)


def _outcome(
    record: Callable[[], Recorded], new: NewInstance, files: PixelFiles, store: Store
) -> str | None:
    """Return the outcome for a new file; None if another content is known under its name."""
    try:
        outcome = record().outcome
    except ConflictingInstance:
        files.discard(new.path)
        return None
    known = store.series.find_instance(new.sop_uid) if outcome == "duplicate" else None
    if known is not None and known.path != new.path:  # a correction was cut short
        files.discard(new.path)
    return outcome


def _keep_again(
    examined: Examined, incoming: Incoming, files: PixelFiles, store: Store, now: datetime
) -> str:
    """Return the outcome where the instance may be known: a file that retention deleted is new."""
    known = store.series.find_instance(examined.sop_uid)
    if known is not None and _is_correction(known, examined, store, incoming.by_hand):
        return _keep_corrected(known, examined, incoming, files, store, now)
    if known is not None:
        _refuse_other_content(known, examined)
        if known.removal_id is None:
            _mend(known, examined, files)
            return "duplicate"
    new = _write(examined, incoming, files)
    if known is not None:
        new = replace(new, same_as=known.sha256)
    return store.series.record_instance(new, now).outcome


def _mend(known: InstanceRow, examined: Examined, files: PixelFiles) -> None:
    """Write the known file anew if it is not whole: a crash came while it was put back."""
    place = files.path_of(examined.series_uid, examined.sop_uid)
    if (known.path, known.sha256) != (place, examined.sha256):
        return
    if sha256_of(place) != examined.sha256:
        files.write(*_to_write(examined))


def _is_correction(known: InstanceRow, examined: Examined, store: Store, by_hand: bool) -> bool:
    """Return whether this is the known image with other patient or study data.

    What was corrected comes back by a person's hand only. Of a file that retention has deleted the
    decoded pixels and the header values are compared.
    """
    if examined.attributes_sha256 == known.attributes_sha256:
        return False
    if examined.attributes_sha256 in known.replaced and not by_hand:
        return False
    if known.removal_id is not None:
        same_study = store.series.study_of(known.series_id) == examined.study_uid
        same_header = storable(examined.header) == known.header
        if not (same_study and same_header and known.pixels_sha256):
            return False
        return known.pixels_sha256 == pixels_digest(examined.file)
    if not known.path.is_file():
        return False
    kept = known.path.read_bytes()
    return corrects(kept, examined.file) and same_pixels(kept, examined.file)


def _keep_corrected(
    known: InstanceRow,
    examined: Examined,
    incoming: Incoming,
    files: PixelFiles,
    store: Store,
    now: datetime,
) -> str:
    """Keep a corrected image in the place of the known one, whatever happens in between.

    The row speaks of one of two whole files at every moment; `recover` removes the other one.
    """
    beside = _write(examined, incoming, files, beside=examined.sha256[:16])
    outcome = store.series.record_instance(replace(beside, corrects=known.sha256), now).outcome
    place = files.path_of(examined.series_uid, examined.sop_uid)
    files.settle(beside.path, place)
    store.series.move_file(examined.sop_uid, beside.path, place)
    files.discard(beside.path)
    clear_folder(beside.path.parent)
    return outcome


def _write(
    examined: Examined, incoming: Incoming, files: PixelFiles, *, beside: str = ""
) -> NewInstance:
    """Return the row of an instance whose file is durable now.

    When the database does not answer, the row may or may not be there: the file stays, the sender
    tries again, and `recover` removes what nobody claims.
    """
    return _row(examined, incoming, files.write(*_to_write(examined), beside=beside))


def _to_write(examined: Examined) -> tuple[str, str, list[bytes], int]:
    """Return what `PixelFiles` needs: series and name, what is in the file, and its length."""
    parts = [examined.meta, examined.encoded]
    return examined.series_uid, examined.sop_uid, parts, examined.size_bytes


def _refuse_other_content(known: InstanceRow, examined: Examined) -> None:
    """Return when both are one instance, perhaps in another encoding."""
    if known.sha256 == examined.sha256:
        return
    if examined.attributes_sha256 in known.replaced:
        raise CorrectedSince(f"was corrected since: this is an older version of {examined.sop_uid}")
    what = f"SOP instance {examined.sop_uid} is known with other"
    if known.attributes_sha256 != examined.attributes_sha256:
        raise ConflictingInstance(f"{what} attributes")
    if known.pixels_sha256:  # retention keeps it for files that go
        if known.pixels_sha256 != pixels_digest(examined.file):
            raise ConflictingInstance(f"{what} pixels")
        return
    try:
        kept = known.path.read_bytes()
    except OSError as error:
        raise ConflictingInstance(f"{what} pixels, or its file is gone") from error
    if not same_pixels(kept, examined.file):
        raise ConflictingInstance(f"{what} pixels")


def _row(examined: Examined, incoming: Incoming, path: Path) -> NewInstance:
    header = examined.header
    return NewInstance(
        sop_uid=examined.sop_uid,
        sop_class=examined.sop_class,
        series_uid=examined.series_uid,
        study_uid=examined.study_uid,
        modality=str(header.get("Modality", ""))[:16],
        description=str(header.get("SeriesDescription", "")),
        path=path,
        bytes=examined.size_bytes,
        sha256=examined.sha256,
        attributes_sha256=examined.attributes_sha256,
        transfer_syntax=incoming.transfer_syntax,
        calling_ae=incoming.calling_ae[:16],
        header=header,
    )


def _note_rejection(
    incoming: Incoming, error: InstanceRejected, store: Store, now: datetime
) -> None:
    """Leave a trace of a refusal: a log line always, an audit row when it is final."""
    status = f"{error.status:04X}"
    telemetry.instances_rejected.labels(status=status).inc()
    fields = {
        "sop": incoming.sop_uid,
        "calling_ae": incoming.calling_ae,
        "status": status,
        "reason": str(error),
    }
    event = "instance.conflict" if isinstance(error, ConflictingInstance) else "instance.rejected"
    if error.retryable:  # the database may be what failed
        log.warning(event, **fields)
    else:
        store.audit.record(event, now, **fields)
