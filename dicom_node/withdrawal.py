"""Withdrawing what was sent: recalls of weight files, and the rejection notes to archives.

What is withdrawn is a fact of the database from the moment it is decided; the notes follow from it,
whoever runs next and however often it was killed in between.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicom_node import pixel_files, telemetry
from dicom_node.errors import OutOfSpace
from dicom_node.rejection_notes import (
    KEY_OBJECT_SELECTION,
    SAFETY,
    Note,
    identity_path,
    modifiers_of,
    write_note,
)
from dicom_node.settings import Settings
from dicom_node.store import DerivedInstance, Grounds, Owed, Store, Withdrawn

BY_HAND = "No rejection note can be made: every file of it was deleted; reject it in the archive."

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
    made = 0
    for owed in store.withdrawals.owed():
        identity = find_identity(owed, settings)
        if identity is None:
            store.withdrawals.give_up(owed, BY_HAND, now)
            continue
        try:
            queue_note(store, settings, owed, identity, now)
        except OutOfSpace as error:  # the next run tries again
            log.error("withdrawal.no_room", job=owed.job_id, reason=str(error))
            return made
        made += 1
    return made


def queue_note(
    store: Store, settings: Settings, owed: Owed, identity: Dataset, now: datetime
) -> None:
    """Write the note, durably, then queue it for whom it is owed to."""
    note = to_note(owed)
    content = write_note(note, identity)
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


def to_note(owed: Owed) -> Note:
    """Return what the note says."""
    return Note(
        title=owed.grounds.title,
        modifiers=modifiers_of(owed.grounds.modifiers),
        reason=owed.grounds.reason,
        series_uid=owed.series_uid,
        instances=[(sop_class, sop_uid) for sop_class, sop_uid, _ in owed.instances],
        at=owed.at,
        generation=owed.generation,
    )


def notes_dir(settings: Settings) -> Path:
    """Return the folder of our rejection notes; housekeeping sweeps what no row points into."""
    return settings.node.state_dir.resolve() / "out" / "notes"


def find_identity(owed: Owed, settings: Settings) -> Dataset | None:
    """Return a data set with the attributes of patient and study; None when none is left."""
    files: Sequence[Path] = [path for _, _, path in owed.instances]
    for path in (*files, identity_path(settings.node.state_dir, owed.job_id)):
        try:
            return dcmread(path, stop_before_pixels=True)
        except (OSError, InvalidDicomError):
            continue
    return None
