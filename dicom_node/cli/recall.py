"""`dicom-node recall`: withdraw every series that was made with a weight file."""

import argparse
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_node import withdrawal
from dicom_node.cli.operations import Refused, opened
from dicom_node.cli.output import print_json, settings_of, table
from dicom_node.store import Store, Withdrawn
from dicom_node.store.series import several
from dicom_node.worker import file_sha256

WHOLE = re.compile("[0-9a-f]{64}")
PART = re.compile("[0-9a-f]{8,63}")


def recall(arguments: argparse.Namespace) -> None:
    """List every series made with the weights, withdrawn from now on, and tell the archives."""
    settings = settings_of(arguments)
    with opened(settings) as store:
        weights = weights_meant(store, arguments.weights)
        now = datetime.now(UTC)
        if arguments.lift:
            lift(store, weights, arguments.reason, now)
            return
        found = withdrawal.recall(store, weights, arguments.reason, now)
        withdrawal.send_notes(store, settings, now)  # or the running node does
        if arguments.json:
            print_json({"weights_sha256": weights, "series": [to_json(one) for one in found]})
        else:
            print(in_words(weights, found))


def lift(store: Store, weights: str, reason: str, now: datetime) -> None:
    """Let weights be used again, or raise Refused when they are not recalled."""
    if not store.withdrawals.lift(weights, reason, now):
        raise Refused(f"the weights {weights[:16]} are not recalled")
    print(
        f"weights {weights} may be used again; what was withdrawn stays so, requeue makes it anew"
    )


def weights_meant(store: Store, text: str) -> str:
    """Return the SHA-256 that `text` gives, begins or, as a file, has.

    Raises
    ------
    Refused
        If that is not one weight file.
    """
    path = Path(text)
    if path.is_file():
        return file_sha256(path)
    text = text.strip().lower()
    if WHOLE.fullmatch(text):
        return text
    if not PART.fullmatch(text):
        raise Refused(
            f"{text[:70]!r} is no file, and no SHA-256: 64 digits, or its first 8 or more"
        )
    known = [one for one in store.withdrawals.weights() if one.startswith(text)]
    if len(known) != 1:
        count = len(known) or "no"
        raise Refused(f"{count} weight files whose SHA-256 begins with {text} were ever used here")
    return known[0]


def to_json(one: Withdrawn) -> dict[str, Any]:
    """Return a withdrawn job as plain JSON."""
    names = ("job_id", "series_uid", "generation", "derived_series_uid", "state", "destinations")
    return {name: getattr(one, name) for name in names} | several(one.series_made)


def in_words(weights: str, found: Sequence[Withdrawn]) -> str:
    """Return what was withdrawn, for a person."""
    said = f"weights {weights} are recalled; nothing is made with them any more"
    if not found:
        return f"{said}\nno series was made with them"
    rows = [("JOB", "STATE", "SERIES", "DERIVED SERIES", "REJECTION NOTE TO")]
    for one in found:
        to = ", ".join(one.destinations) or "nobody has it"
        rows.append((str(one.job_id), one.state, one.series_uid, one.derived_series_uid or "-", to))
        rows += [("", "", "", uid, "") for uid in one.series_made if uid != one.derived_series_uid]
    return f"{said}\n{len(found)} results are withdrawn:\n{table(rows)}"
