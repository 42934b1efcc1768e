"""Withdrawing what was sent: recalls of weight files, and the rejection notes to archives.

What is withdrawn is a fact of the database from the moment it is decided; the notes follow from it,
whoever runs next and however often it was killed in between.
"""

import secrets
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from dicom_node import pixel_files, telemetry
from dicom_node.errors import OutOfSpace
from dicom_node.rejection_notes import (
    KEY_OBJECT_SELECTION,
    SAFETY,
    Note,
    identity_path,
    modifiers_of,
    write_note,
    written_from,
)
from dicom_node.settings import Settings
from dicom_node.store import DerivedInstance, Grounds, Owed, Store, Withdrawn

BY_HAND = (
    "No rejection note can be made: every file of it was deleted or is damaged; "
    "reject it in the archive."
)

MOST_NOTES = 50  # that one run of housekeeping makes
CATCH_UP = 200  # jobs that one run of housekeeping withdraws: a node that stops waits for it

log = telemetry.get_logger()


def recall(store: Store, weights_sha256: str, reason: str, now: datetime) -> list[Withdrawn]:
    """Return every job that was made with a weight file; nothing is made with it any more.

    Images of a model that proved wrong may mislead who reads them: that is the title for what is
    potentially harmful to the patient (PS3.16 CID 7010).
    """
    words = reason.strip().rstrip(".") or "no reason was given"
    said = f"the weights {weights_sha256[:16]} were recalled: {words}."
    return store.withdrawals.recall(weights_sha256, Grounds(title=SAFETY, reason=said), now)


def send_notes(store: Store, settings: Settings, now: datetime) -> int:
    """Return how many rejection notes were queued: each that a destination is still to get."""
    store.withdrawals.catch_up(now, CATCH_UP)
    made, unreadable = 0, None
    for owed in in_turn(store):
        try:
            made += queue_note(store, settings, owed, now)
        except OutOfSpace as error:  # the next run tries again
            log.error("withdrawal.no_room", job=owed.job_id, reason=str(error))
            return made
        except OSError as error:  # the next run tries again, and the others do not wait for it
            log.error("withdrawal.unreadable", job=owed.job_id, reason=error.strerror)
            unreadable = error
        if made >= MOST_NOTES:
            break
    if unreadable is not None:
        raise unreadable  # so that the failing task shows
    return made


def in_turn(store: Store) -> Iterator[Owed]:
    """Yield every note that is owed, a part of them at a time."""
    after = 0
    while waiting := store.withdrawals.owed(after):
        yield from waiting
        after = waiting[-1].job_id


def queue_note(store: Store, settings: Settings, owed: Owed, now: datetime) -> bool:
    """Write the note, durably, then queue it for whom it is owed to; False: it cannot be made.

    It has the patient and the study of what was sent, or of what retention has kept of that.
    """
    note = to_note(owed)
    paths = [one.path for one in owed.instances]
    paths.append(identity_path(settings.node.state_dir, owed.job_id))
    content = written_from(paths, partial(write_note, note))
    if content is None:
        store.withdrawals.give_up(owed, BY_HAND, now)
        return False
    folder = notes_dir(settings) / f"{owed.job_id}-{secrets.token_hex(4)}"
    path = pixel_files.keep(folder / f"{note.sop_uid}.dcm", content)
    instance = DerivedInstance(
        sop_uid=note.sop_uid,
        sop_class=KEY_OBJECT_SELECTION,
        path=path,
        sha256=pixel_files.sha256_of(path) or "",
        bytes=len(content),
    )
    store.withdrawals.announce(owed, instance, note.note_series_uid, now)
    return True


def to_note(owed: Owed) -> Note:
    """Return what the note says."""
    return Note(
        title=owed.grounds.title,
        modifiers=modifiers_of(owed.grounds.modifiers),
        reason=owed.grounds.reason,
        series_uid=owed.series_uid,
        instances=[(one.sop_class, one.sop_uid, one.series_uid) for one in owed.instances],
        at=owed.at,
        generation=owed.generation,
    )


def notes_dir(settings: Settings) -> Path:
    """Return the folder of our rejection notes; housekeeping sweeps what no row points into."""
    return settings.node.state_dir.resolve() / "out" / "notes"
