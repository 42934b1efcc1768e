"""Whether a failure was for want of room on a disk: then it is not the job's fault."""

import errno

from dicom_node.errors import StoreUnavailable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
FULL = ("disk is full", "No space left on device")  # in the words of SQLite and PostgreSQL


def is_for_want_of_room(error: BaseException | None) -> bool:
    """Return whether the disk was full, whatever was made of that on the way here."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        if isinstance(error, StoreUnavailable) and any(words in str(error) for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
