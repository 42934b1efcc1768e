"""One received instance: new, a duplicate or a conflict; durable before anybody hears "success"."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dicom_node import telemetry
from dicom_node.content import same_pixels, split_file
from dicom_node.errors import ConflictingInstance, InstanceRejected
from dicom_node.examination import Examined, Incoming, examine
from dicom_node.pixel_files import PixelFiles
from dicom_node.store import InstanceRow, NewInstance, Store

SUCCESS = 0x0000
SUBMITTED = "SUBMIT"  # the calling AE title of files that a person imports

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of an instance that is safe now."""

    sop_uid: str
    series_uid: str
    outcome: str  # "new" or "duplicate"
    status: int = SUCCESS


def take_in(incoming: Incoming, files: PixelFiles, store: Store, now: datetime) -> Taken:
    """Return only when the instance would survive a power cut.

    Raises
    ------
    InstanceRejected
        If it cannot be kept: the sender must keep it. Its `status` is the answer of a C-STORE.
    """
    try:
        examined = examine(incoming)
        taken = _keep(examined, incoming, files, store, now)
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
    incoming = Incoming(encoded=encoded, transfer_syntax=transfer_syntax, calling_ae=SUBMITTED)
    return take_in(incoming, files, store, now)


def recover(files: PixelFiles, store: Store) -> list[Path]:
    """Return what this removed: traces of instances that were never acknowledged.

    Call it at start: a crash leaves unfinished files, and finished ones whose row was not
    committed. A database that knows none of the files is the wrong one: then they are left alone.
    """
    removed = files.recover()
    known = {_place(row.path) for row in store.series.all_instances()}
    orphans = [path for path in files.paths() if _place(path) not in known]
    if orphans and len(orphans) == len(files.paths()):
        log.warning("files.unknown", folder=str(files.root), count=len(orphans))
        return removed
    for path in orphans:
        with files.exclusive(path.stem):
            row = store.series.find_instance(path.stem)
            if row is None or _place(row.path) != _place(path):  # nobody took it in meanwhile
                files.discard(path)
                removed.append(path)
    return removed


def _place(path: Path) -> tuple[str, str]:
    """Return series folder and file name: what stays when the state folder is moved."""
    return path.parent.name, path.name


def _keep(
    examined: Examined, incoming: Incoming, files: PixelFiles, store: Store, now: datetime
) -> Taken:
    """Write file and row, or find that both are there."""
    path = files.path_of(examined.series_uid, examined.sop_uid)
    with files.exclusive(examined.sop_uid):
        # Where there is no such file, the database is asked once, by the transaction that records.
        if path.exists() and _is_known(examined, store):
            return _taken(examined, "duplicate")
        files.write(examined.series_uid, examined.sop_uid, [examined.meta, examined.encoded])
        # When the database does not answer, the row may or may not be there: the file stays,
        # the sender tries again, and `recover` removes what nobody claims.
        try:
            outcome = store.series.record_instance(_row(examined, incoming, path), now).outcome
        except ConflictingInstance:
            outcome = "conflict"
        if outcome != "new":  # known, and its file is elsewhere or gone
            files.discard(path)
            _is_known(examined, store)
            outcome = "duplicate"
    return _taken(examined, outcome)


def _taken(examined: Examined, outcome: str) -> Taken:
    return Taken(sop_uid=examined.sop_uid, series_uid=examined.series_uid, outcome=outcome)


def _is_known(examined: Examined, store: Store) -> bool:
    """Return whether the instance is recorded already; raise ConflictingInstance if another is."""
    known = store.series.find_instance(examined.sop_uid)
    if known is None:
        return False
    _refuse_other_content(known, examined)
    return True


def _refuse_other_content(known: InstanceRow, examined: Examined) -> None:
    """Return when both are one instance, perhaps in another encoding."""
    if known.sha256 == examined.sha256:
        return
    what = f"SOP instance {examined.sop_uid} is known with other"
    if known.attributes_sha256 != examined.attributes_sha256:
        raise ConflictingInstance(f"{what} attributes")
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
        bytes=len(examined.meta) + len(examined.encoded),
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
