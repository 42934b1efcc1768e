"""The folders of attempts: one for each, of which one is published."""

import secrets
import shutil
from pathlib import Path

from dicom_node.store import ClaimedJob


def attempt_name(job: ClaimedJob) -> str:
    """Return a folder name that no other attempt ever has."""
    return f"{job.attempt}-{secrets.token_hex(4)}"


def discard(folder: Path) -> None:
    """Delete what an attempt left behind."""
    shutil.rmtree(folder, ignore_errors=True)


def discard_others(folder: Path) -> None:
    """Delete the other attempts' folders of a job whose result lies in `folder`."""
    for other in folder.parent.iterdir():
        if other != folder:
            discard(other)
