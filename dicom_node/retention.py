"""Retention: which pixel files may go, when, and why; rows and audit trail stay.

Two phases. First a decision is committed: these files are to go, for this reason. Then they are
unlinked, the folders are fsynced, and the decision is ended. A crash between any two steps leaves a
decision that the next run carries out; what was not decided is never touched.
"""

import errno
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dicom_node import telemetry
from dicom_node.comparison import pixels_digest
from dicom_node.errors import OutOfSpace
from dicom_node.pixel_files import PixelFiles, clear_folder, keep
from dicom_node.rejection_notes import identity_path, write_identity, written_from
from dicom_node.settings import Settings
from dicom_node.states import JobState
from dicom_node.store import Limits, Lot, Removal, Store
from dicom_node.store.lots import DERIVED, ORIGINALS

AGES = {  # the end of a job -> the setting that says how long its files are kept
    JobState.DELIVERED: "delivered_days",
    JobState.SUPERSEDED: "superseded_days",
    JobState.SKIPPED: "skipped_days",
    JobState.CANCELLED: "cancelled_days",
    JobState.DEAD: "dead_days",
}
CLOCK_STEP_S = 3600.0
CLOCK_SETTLES = timedelta(days=1)
LOOK_BACK = 500  # rows of the trail
CLOCK_DOUBTFUL = "the clock was set within the last day, or the node was off for more than a day"
MOST_S = 15.0  # of one run of housekeeping, which a node that stops waits for

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Departure:
    """Files that go, and the sentence that says why."""

    lot: Lot
    reason: str


def purge(
    store: Store,
    settings: Settings,
    now: datetime,
    *,
    most_s: float = math.inf,
    dry: bool = False,
) -> Iterator[Departure]:
    """Yield what goes, each after it is gone, for `most_s`; with `dry` nothing is touched.

    What an earlier run had decided and did not get done comes first, and is not yielded. Nothing
    goes while the clock is doubtful.
    """
    until = time.monotonic() + most_s
    if not dry:
        finish(store, settings, now, until)
    if not settings.retention.enabled or is_clock_doubtful(store, now):
        return
    limits = limits_of(settings, now)
    foreign = []
    for lot in store.removals.lots(limits):
        if time.monotonic() >= until:
            break
        if not all(is_ours(path, settings) for path in store.removals.paths(lot)):
            foreign.append(lot.job_id)
            continue
        departure = Departure(lot=lot, reason=reason_of(lot, settings))
        if not dry:
            removal = store.removals.decide(lot, limits, departure.reason, now)
            # A late slice or a person may have been faster, or the disk may refuse.
            if removal is None or not carry_out(removal, store, settings, now, until):
                continue
        yield departure
    if foreign:  # the state folder has moved, or somebody has edited the database
        log.error("retention.foreign_paths", count=len(foreign), jobs=foreign[:10])


def is_clock_doubtful(store: Store, now: datetime) -> bool:
    """Return whether somebody set the clock lately, so far that ages may be wrong.

    A day is time for a person, or for the network's time, to set a wrong one right again.
    """
    rows = store.audit.clock_steps(now - CLOCK_SETTLES)
    return any(abs(row.fields.get("seconds") or 0) >= CLOCK_STEP_S for row in rows if row.at <= now)


def step_in(store: Store, now: datetime) -> timedelta | None:
    """Return the step of a day or more at the end of the trail, None where there is none.

    It lies before `now`, or before what was written within a day of it: by a command, or a worker
    that began before the service.
    """
    later = now
    for at in store.audit.newest_times(LOOK_BACK):
        if abs(later - at) >= CLOCK_SETTLES:
            return later - at
        if abs(now - at) >= CLOCK_SETTLES:
            return None
        later = at
    return None


def finish(store: Store, settings: Settings, now: datetime, until: float = math.inf) -> int:
    """Return how many decisions this carried out that an earlier run had left."""
    left = store.removals.unfinished()
    return sum(carry_out(removal, store, settings, now, until) for removal in left)


def limits_of(settings: Settings, now: datetime) -> Limits:
    """Return what may go at `now` by the configuration."""
    ages = {state: getattr(settings.retention, name) for state, name in AGES.items()}
    return Limits(
        before={state: now - timedelta(days=days) for state, days in ages.items()},
        committers={peer.name for peer in settings.peers if peer.commitment},
        originals=not settings.files.custody,
    )


def reason_of(lot: Lot, settings: Settings) -> str:
    """Return why a lot goes, for people and for the trail."""
    name = AGES[lot.state]
    days = getattr(settings.retention, name)
    to = f" to {', '.join(lot.destinations)}" if lot.state is JobState.DELIVERED else ""
    day = lot.since.astimezone(UTC).date()
    return f"{lot.state.value}{to} since {day}, longer than retention.{name} = {days:g}."


def is_ours(path: Path, settings: Settings) -> bool:
    """Return whether a file lies where this node keeps its files: else nothing may touch it."""
    state, folder = settings.node.state_dir, path.parent.resolve()
    return any(folder.is_relative_to((state / name).resolve()) for name in ("in", "out"))


def carry_out(
    removal: Removal, store: Store, settings: Settings, now: datetime, until: float = math.inf
) -> bool:
    """Take the files of a decision off the disk, then put that on record; False: later again."""
    try:
        if removal.kind == ORIGINALS and not note_pixels(removal, store, until):
            return False
        if removal.kind == DERIVED:
            keep_identity(removal, store, settings, now)
        for folder in unlink_files(removal, store, settings):
            clear_folder(folder)
            if removal.kind == DERIVED:  # out/<job>/<attempt>
                clear_folder(folder.parent)
    except OSError as error:  # one folder that refuses must not keep all others
        log.error("retention.failed", job=removal.job_id, reason=error.strerror)
        return False
    except OutOfSpace as error:  # a kilobyte, which must not stand in the way of gigabytes
        log.error("retention.failed", job=removal.job_id, reason=str(error))
        return False
    gone = store.removals.end(removal, now)
    if gone is not None:
        telemetry.retention_files.labels(kind=removal.kind).inc(gone.files)
        telemetry.retention_bytes.labels(kind=removal.kind).inc(gone.bytes)
    return True


def unlink_files(removal: Removal, store: Store, settings: Settings) -> set[Path]:
    """Return the folders from which this unlinked the files of a decision."""
    files = PixelFiles(settings.node.state_dir.resolve() / "in", settings.files.min_free_bytes)
    folders = set()
    for one in store.removals.doomed(removal):
        if not is_ours(one.path, settings):
            raise OSError(errno.EXDEV, f"{one.path} is outside of the state folder")
        with files.exclusive(one.sop_uid):  # the same image may be arriving again
            if store.removals.is_doomed(removal, one.sop_uid):
                one.path.unlink(missing_ok=True)
                folders.add(one.path.parent)
    return folders


def keep_identity(removal: Removal, store: Store, settings: Settings, now: datetime) -> None:
    """Keep of a result that was sent what a rejection note will need: weights may be recalled.

    Of a result whose every file is damaged nothing is kept, which is put on record: its files are
    to go all the same, and a note about it must be made by hand (`withdrawal.BY_HAND`).
    """
    path = identity_path(settings.node.state_dir, removal.job_id)
    job = store.jobs.get(removal.job_id)
    if path.exists() or job.published_at is None or job.is_note:
        return
    doomed = [one.path for one in store.removals.doomed(removal)]
    content = written_from(doomed, write_identity)
    if content is not None:
        keep(path, content)
    elif any(one.is_file() for one in doomed):  # else a crash came between the files and the row
        store.audit.record("retention.no_identity", now, job=removal.job_id)


def note_pixels(removal: Removal, store: Store, until: float) -> bool:
    """Return whether it is on record by what each original is known again in another encoding.

    Compressed ones take a while: what is not done by `until` is left to the next run.
    """
    waiting = [one for one in store.removals.doomed(removal) if one.pixels_sha256 is None]
    digests = {}
    for one in waiting:
        if time.monotonic() >= until:
            break
        # Nothing: nobody can decode it, or it is gone already. It is not tried again.
        digests[one.sop_uid] = (one.path.is_file() and pixels_digest(one.path.read_bytes())) or ""
    store.removals.note_pixels(removal, digests)
    return len(digests) == len(waiting)
