"""`dicom-node purge`: what retention deletes, now instead of in its own time."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from dicom_node import retention
from dicom_node.cli.operations import Refused, opened, refuse_foreign_root
from dicom_node.cli.output import print_json, settings_of, table
from dicom_node.retention import Departure
from dicom_node.store import Store


def purge(arguments: argparse.Namespace) -> None:
    """Delete what may go by the configuration, or only say what and why."""
    settings = settings_of(arguments)
    refuse_foreign_root(settings)
    if not settings.retention.enabled:
        raise Refused("nothing may go: retention is off (retention.enabled = false)")
    with opened(settings) as store:
        now = datetime.now(UTC)
        refuse_doubtful_clock(store, now, arguments.clock_is_right)
        gone = list(retention.purge(store, settings, now, dry=arguments.dry_run))
    files, size = (sum(getattr(one.lot, name) for one in gone) for name in ("files", "bytes"))
    if arguments.json:
        listed = [as_json(one) for one in gone]
        print_json({"dry_run": arguments.dry_run, "files": files, "bytes": size, "lots": listed})
        return
    if gone:
        print(as_table(gone))
    word = "would be deleted" if arguments.dry_run else "deleted"
    print(f"{files} files, {size / 1e6:.1f} MB {word}; their rows and the audit trail stay")


def refuse_doubtful_clock(store: Store, now: datetime, is_right: bool) -> None:
    """Raise Refused while the clock may be wrong: what is old would be whatever it says.

    Of a node that does not run nobody has watched the clock; a person can.
    """
    if retention.is_clock_doubtful(store, now):
        raise Refused(f"nothing may go: {retention.CLOCK_DOUBTFUL}")
    step = None if is_right else retention.step_in(store, now)
    if step is not None:
        raise Refused(
            f"nothing may go: it is {now:%Y-%m-%d %H:%M} UTC here, and the audit trail ends "
            f"{abs(step).days} days before or after that; if the clock is right: --clock-is-right"
        )


def as_json(one: Departure) -> dict[str, object]:
    """Return what goes as plain JSON."""
    lot = one.lot
    names = ("kind", "job_id", "series_uid", "state", "files", "bytes")
    return {name: getattr(lot, name) for name in names} | {"reason": one.reason}


def as_table(gone: Sequence[Departure]) -> str:
    """Return what goes, and why, for people."""
    rows = [("JOB", "WHAT", "FILES", "MB", "WHY")]
    rows += [
        (
            str(one.lot.job_id),
            one.lot.kind,
            str(one.lot.files),
            f"{one.lot.bytes / 1e6:.1f}",
            one.reason,
        )
        for one in gone
    ]
    return table(rows)
