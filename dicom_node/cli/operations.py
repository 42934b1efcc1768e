"""The commands that look at the store or change what the node does."""

import argparse
import os
import pwd
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from dicom_node.cli import listing
from dicom_node.cli.output import one_line, print_json, settings_of
from dicom_node.errors import InstanceRejected, NodeError, SettingsError, UnknownJob
from dicom_node.intake import submit_file
from dicom_node.pixel_files import PixelFiles
from dicom_node.settings import PeerSettings, Settings, is_loopback
from dicom_node.states import JobState
from dicom_node.store import Store, open_store
from dicom_node.store.engines import check_url
from dicom_node.store.overview import (
    GOING,
    GONE,
    KEPT,
    StoredFile,
    series_lines,
    stored_files,
    turnaround,
)
from dicom_node.worker import file_sha256
from dicom_node.worker.decisions import DECISIONS

Arguments = argparse.Namespace
REFUSED = 1
MOST_OVER = 200  # series that are done with, in a table for people


class Refused(NodeError):
    """What the command was asked to do cannot be done."""


@contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    """Yield the store of the configuration."""
    store = open_store(settings.database_url)
    try:
        yield store
    finally:
        store.close()


def refuse_foreign_root(settings: Settings) -> None:
    """Raise Refused for root on a state folder of somebody else.

    Files and locks that root makes there cannot be opened by the service afterwards, and images
    would be refused.
    """
    folder = settings.node.state_dir
    if os.geteuid() != 0 or not folder.is_dir() or folder.stat().st_uid == 0:
        return
    owner = str(folder.stat().st_uid)
    with suppress(KeyError):
        owner = pwd.getpwuid(int(owner)).pw_name
    raise Refused(
        f"{folder} belongs to {owner}, who could not use what root makes there: "
        f"runuser -u {owner} -- dicom-node ..."
    )


def jobs(arguments: Arguments) -> None:
    """List every received series, or decide about one."""
    if arguments.decision:
        if arguments.job is None:
            raise SettingsError(f"jobs {arguments.decision}: which JOB?")
        decide(arguments)
        return
    settings = settings_of(arguments)
    with opened(settings) as store:
        if arguments.json:
            print_json(store.series.listing())
            return
        show_jobs(settings, store, datetime.now(UTC), everything=arguments.all)


def show_jobs(settings: Settings, store: Store, now: datetime, *, everything: bool) -> None:
    """Print the table for people, and below it how things are.

    What is over fills the table of a node that is a year old: the newest are shown.
    """
    states = store.series.states()
    if not any(states.values()):
        print("Nothing has been received yet.")
        return
    over = [state for state in JobState if state not in listing.GROUPS]
    lines = series_lines(store.database, states=[*listing.GROUPS])
    lines += series_lines(store.database, states=over, limit=None if everything else MOST_OVER)
    queue = store.jobs.queue(now, settings.queue_order())
    late = turnaround(store.database, now, settings.order.turnaround_s)
    print(listing.lines_for_people(lines, queue, now))
    left_out = sum(states.values()) - len(lines)
    if left_out > 0:
        text = "older series that are done with are not shown: dicom-node jobs --all lists them"
        print(f"{left_out} {text}")
    print(listing.summary(states, queue, sending_text(settings, store), late))


def decide(arguments: Arguments) -> None:
    """Carry out what a person has decided about one job."""
    settings = settings_of(arguments)
    with opened(settings) as store:
        job_id = job_number(store, arguments.job)
        now_on = DECISIONS[arguments.decision].run(settings, store, job_id, datetime.now(UTC))
        print(f"job {now_on} is {store.jobs.get(now_on).state.value}")


def job_number(store: Store, text: str) -> int:
    """Return the job that `text` names: its number, or a series UID for its newest job.

    Raises
    ------
    UnknownJob
        If there is none.
    """
    if text.isascii() and text.isdigit() and len(text) < 10:
        return store.jobs.get(int(text)).id
    known = store.jobs.of_series(text)
    if not known:
        raise UnknownJob(f"no job and no series is called {text[:70]!r}")
    return known[-1].id


def submit(arguments: Arguments) -> int:
    """Import files as if they had been received."""
    settings = settings_of(arguments)
    refuse_foreign_root(settings)
    paths = [file for path in arguments.path for file in files_below(path)]
    outcomes: Counter[str] = Counter()
    refused: list[str] = []
    files = PixelFiles(settings.node.state_dir.resolve() / "in", settings.files.min_free_bytes)
    with opened(settings) as store:
        for path in paths:
            try:
                taken = submit_file(path, files, store, datetime.now(UTC))
            except InstanceRejected as error:
                refused.append(f"{path}: {one_line(error)}")
            else:
                outcomes[taken.outcome] += 1
    back = f", {outcomes['restored']} kept again" if outcomes["restored"] else ""
    mended = f", {outcomes['corrected']} corrected" if outcomes["corrected"] else ""
    known = f"{outcomes['new']} new, {outcomes['duplicate']} known already{back}{mended}"
    print(f"{known}, {len(refused)} refused")
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        print(f"dicom-node submit: refused {refused[0]}{more}", file=sys.stderr)
    return REFUSED if refused else 0


def files_below(path: Path) -> list[Path]:
    """Return the file, or every file below the folder; raise Refused where there is nothing."""
    found = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise Refused(f"{path}: no such file, or an empty folder")
    return found


def echo(arguments: Arguments) -> None:
    """Ask a peer for a sign of life: C-ECHO, or a query for one study of a DICOMweb server."""
    from dicom_node.network import dicomweb, scu
    from dicom_node.network.tls import credentials

    settings = settings_of(arguments)
    peer = settings.peer(arguments.peer)
    try:
        timeouts = scu.Timeouts(tls=credentials(settings.tls))
        if peer.is_web:
            dicomweb.echo(peer, timeouts)
        else:
            scu.echo(peer, settings.node.ae_title, timeouts)
    except scu.AssociationFault as error:
        comment = f" ({one_line(error.comment)})" if error.comment else ""
        raise Refused(f"{peer.address}: {error}{comment}") from error
    print(f"{peer.address} answers")


def send(arguments: Arguments) -> None:
    """Switch all sending on or off, or say how it stands."""
    settings = settings_of(arguments)
    with opened(settings) as store:
        if arguments.value:
            store.switches.set("sending", arguments.value == "on", datetime.now(UTC))
        on = store.switches.get("sending", settings.sending.enabled)
    shadow = "; but sending.shadow is set: nothing is sent" if settings.sending.shadow else ""
    print(f"sending is {'on' if on else 'off'}{shadow}")


def sending_text(settings: Settings, store: Store) -> str:
    """Return whether anything is sent."""
    if settings.sending.shadow:
        return "off (shadow mode)"
    return "on" if store.switches.get("sending", settings.sending.enabled) else "OFF"


def check_config(arguments: Arguments) -> int:
    """Say whether a configuration is accepted, and what it opens."""
    from dicom_node.network.tls import credentials
    from dicom_node.web import https, tokens

    try:
        settings = settings_of(arguments, path=arguments.file)
        credentials(settings.tls)  # reads the files
        https.context(settings.web)
        tokens.check_start(settings)
        check_url(settings.database_url)
    except SettingsError as error:  # here the file is the input, not the way to it
        raise Refused(str(error)) from error
    node, web = settings.node, settings.web
    print(f"{arguments.file}: accepted; {len(settings.peers)} peers, {len(settings.rules)} rules")
    opened = [("DICOM", node.host, node.port), ("the page", web.host, web.port)]
    if settings.tls.enabled:
        opened.append(("DICOM over TLS", node.host, settings.tls.port))
    for what, host, port in opened:
        if not is_loopback(host):
            print(f"note: {what} listens beyond this machine, on {host}:{port}")
    if web.beyond_loopback and not web.certificate:
        print("note: the page is served without TLS, and tokens travel readable")
    for peer in settings.peers:
        if peer.is_web:
            note_about_web(peer)
        elif not peer.tls and not is_loopback(peer.host):
            print(f"note: {peer.name} is served and called without TLS")
    if not settings.destinations():
        print("note: no peer has the role destination; results stay here")
    return 0


def note_about_web(peer: PeerSettings) -> None:
    """Say what a person may have overlooked about a DICOMweb server."""
    parts = urlsplit(peer.url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        print(f"note: {peer.name} is called without TLS")
    if "destination" in peer.roles and not peer.commitment:
        print(f"note: nobody looks whether {peer.name} has kept what it was sent")


def verify(arguments: Arguments) -> int:
    """Check the ledger, the audit trail and every stored hash."""
    with opened(settings_of(arguments)) as store:
        ledger, trail = store.ledger(), store.audit.prove()
        stored = stored_files(store.database)
        suspects = {one.path for one in stored if wrong(one)}
        # Retention may have been at work while we read, or an image may have arrived again.
        again = stored_files(store.database) if suspects else []
    problems = [why for one in again if one.path in suspects and (why := wrong(one))]
    counts = Counter(one.fate for one in stored)
    if trail.broken:
        problems.insert(0, trail.broken)
    if not ledger.balanced:
        problems.insert(0, f"the ledger does not add up: {ledger.counts}")
    if arguments.json:
        document = {"ledger": ledger.counts, "balanced": ledger.balanced, "files": counts[KEPT]}
        document |= {"deleted_by_retention": counts[GONE], "to_be_deleted": counts[GOING]}
        audit = {"rows": trail.rows, "head": trail.head}
        print_json(document | {"audit": audit, "problems": problems})
    elif problems:
        print("\n".join(problems))
    else:
        print(f"{counts[KEPT]} files as recorded; {ledger.acknowledged} instances accounted for")
        print(f"{counts[GONE] + counts[GOING]} files are not to be here: deleted by retention")
        print(f"{trail.rows} rows of the audit trail in order; its head is {trail.head}")
    if problems:
        print(f"dicom-node verify: {len(problems)} problems, first: {problems[0]}", file=sys.stderr)
    return REFUSED if problems else 0


def wrong(one: StoredFile) -> str:
    """Return what is wrong with a stored file, or nothing."""
    there = one.path.is_file()
    if one.fate == GONE:
        return f"{one.path}: deleted by retention, but it is there" if there else ""
    if one.fate == GOING:  # in the middle of it, or before the next run
        return ""
    if not there:
        return f"{one.path}: missing"
    changed = file_sha256(one.path) != one.sha256
    return f"{one.path}: was changed since it was recorded" if changed else ""
