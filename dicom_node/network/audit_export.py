"""The audit trail on its way to the site's collector: a batch at a time, each row at least once."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

from dicom_node import telemetry
from dicom_node.network import syslog
from dicom_node.network.audit_messages import DELETED, SUCCESS, is_arrival, message, to_xml
from dicom_node.network.tls import Credentials, credentials
from dicom_node.retry import backoff_s
from dicom_node.settings import Settings
from dicom_node.store import Store
from dicom_node.store.audit import AuditRow
from dicom_node.store.audit_export import AuditExport, ExportState, Transfer

BATCH_ROWS = 200
BATCHES = 25  # in one run: the next one goes on
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0

log = telemetry.get_logger()


def export(store: Store, settings: Settings, now: datetime) -> None:
    """Hand over what the collector does not have; while it is away, try less and less often."""
    if not settings.audit.syslog_host:
        return
    trail = AuditExport(store.database)
    state = trail.state()
    if state.next_try_at is None or state.next_try_at <= now:
        to = collector(settings, credentials(settings.tls) if settings.audit.tls else None)
        for _ in range(BATCHES):
            rows = trail.after(state.audit_id, BATCH_ROWS)
            if not rows or not hand_over(trail, state, rows, to, settings, now):
                break
            state = trail.state()
    telemetry.audit_backlog.set(trail.backlog())


def collector(settings: Settings, tls: Credentials | None) -> syslog.Collector:
    """Return the collector of the configuration."""
    audit = settings.audit
    return syslog.Collector(host=audit.syslog_host, port=audit.syslog_port, tls=tls)


def hand_over(
    trail: AuditExport,
    state: ExportState,
    rows: Sequence[AuditRow],
    to: syslog.Collector,
    settings: Settings,
    now: datetime,
) -> bool:
    """Return True when the collector has `rows`; what happened is on record."""
    lines = [line for row in rows if (line := line_of(trail, row, settings)) is not None]
    try:
        if lines:
            syslog.hand_over(lines, to)
    except OSError as error:
        failures = state.failures + 1
        # Not from zero: a collector that is away must not be asked in a tight loop.
        delay_s = FIRST_PAUSE_S + backoff_s(
            failures, Random(), base_s=FIRST_PAUSE_S, cap_s=LAST_PAUSE_S
        )
        later = now + timedelta(seconds=delay_s)
        trail.note(replace(state, failures=failures, next_try_at=later))
        reason = type(error).__name__
        log.warning("audit.not_exported", reason=reason, attempt=failures, delay_s=delay_s)
        return False
    trail.note(ExportState(audit_id=rows[-1].id, failures=0, next_try_at=None))
    return True


def line_of(trail: AuditExport, row: AuditRow, settings: Settings) -> bytes | None:
    """Return the syslog line of a row; None for a row that is no DICOM audit event."""
    said = message(row, settings.node.ae_title, transfer_of(trail, row))
    if said is None:
        return None
    severity = syslog.NOTICE if said.outcome == SUCCESS else syslog.WARNING
    host = socket.gethostname() or "-"
    return syslog.line(row.id, row.at, severity, to_xml(row, said, settings.node.ae_title), host)


def transfer_of(trail: AuditExport, row: AuditRow) -> Transfer | None:
    """Return what was transferred when `row` was written; None where nothing was."""
    if row.event == "delivery.attempt" and row.job_id is not None:
        return trail.sent(row.job_id, str(row.fields.get("destination", "")))
    if row.event in DELETED:
        return named(row.fields)
    if row.event == "instance.conflict":
        return trail.received(sop_uid=str(row.fields.get("sop")))
    if is_arrival(row):
        return trail.received(job_id=row.job_id)
    return None


def named(fields: Mapping[str, Any]) -> Transfer:
    """Return the instances that a row itself names: it is about those that were here then."""
    return Transfer(
        study_uid=str(fields.get("study", "")),
        series_uids=tuple(str(fields.get("series", "")).split(", ")),
        instances=dict(fields.get("counts", {})),
        sources=(),
    )
