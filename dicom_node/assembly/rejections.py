"""Rejection notes that peers send (IHE IOCM): what they are about is withdrawn."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from dicom_node import telemetry
from dicom_node.errors import NotAnInstance
from dicom_node.pixel_files import UID
from dicom_node.rejection_notes import KEY_OBJECT_SELECTION, TITLES, read_rejection
from dicom_node.store import Grounds, InstanceRow, Store

log = telemetry.get_logger()


def rejected(store: Store, series_id: int) -> str:
    """Return why a series must not be used; "" when nobody has rejected an image of it.

    Its note may have come before it, or the images may have been sent again since.
    """
    found = store.withdrawals.rejected_among(series_id)
    if not found:
        return ""
    title, calling_ae = found[0]
    return f"{len(found)} of its images were rejected by {calling_ae} ({TITLES[title]})"


def heed(store: Store, rows: Sequence[InstanceRow], now: datetime) -> str:
    """Return what the rejection notes of a received series did, in a sentence; "" without any.

    To heed one twice changes nothing, so a crash before the series is decided does no harm.
    """
    told = []
    for row in rows:
        if row.sop_class == KEY_OBJECT_SELECTION and row.removal_id is None:
            told.append(heed_one(store, row, now))
    return " ".join(filter(None, told))


def heed_one(store: Store, row: InstanceRow, now: datetime) -> str:
    """Return what one Key Object Selection did; "" when it rejects nothing."""
    try:
        rejection = read_rejection(row.path)
    except NotAnInstance as error:
        log.error("rejection.unreadable", sop=row.sop_uid, calling_ae=row.calling_ae)
        return f"If it rejects images, nothing was withdrawn: {error}."
    if rejection is None:
        return ""
    title = TITLES[rejection.title]
    grounds = Grounds(
        title=rejection.title,
        reason=f"{row.calling_ae} has sent a rejection note about the series ({title}).",
        modifiers=tuple(asdict(code) for code in rejection.modifiers),
    )
    # What is no UID names nothing that could be here, and PostgreSQL takes no NUL.
    uids = {uid for uid in rejection.sop_uids if UID.fullmatch(uid)}
    gone = store.withdrawals.reject(uids, row.calling_ae, grounds, now)
    jobs = ", ".join(str(one.job_id) for one in gone)
    return f"It is a rejection note ({title}); withdrawn because of it: job {jobs or 'none'}."
