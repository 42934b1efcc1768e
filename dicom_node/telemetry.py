"""Logging as JSON lines and Prometheus metrics, both without patient data.

Fields of a log line come from an allow-list; what libraries say is reduced to who said it and how
loudly, because pydicom and pynetdicom quote values of data sets.
"""

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

WITHHELD = "[withheld]"
# Names that may stand in a log line or an audit row. None of them can hold a patient attribute.
FIELDS = frozenset(
    """
    address ae_title age_s attempt attempts balanced bytes called_ae calling_ae commitment
    committed count counts database delay_s delivery destination destinations device digest
    duration_s error exit_code failed fault figures file finding findings folder free_bytes
    generation held_by host incomplete_release instance instances job jobs key kind lease_until
    logger max_attempts method missing missing_mm name needed_bytes next_try_at old outcome path
    pdu_bytes peer pid port priority progress reason recipe_digest rule rules seconds series sha256
    signal slices sop sop_class stage state states status steps study switch transaction
    transfer_syntax url value version warnings weights_sha256 worker workers
    """.split()
)
STRUCTURE = frozenset({"event", "level", "at", "exception"})
SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 120, 300, 600, 1800)

registry = CollectorRegistry()
instances_received = Counter(
    "dicom_node_instances_received", "Instances acknowledged", ["outcome"], registry=registry
)
instances_rejected = Counter(
    "dicom_node_instances_rejected", "Instances refused, by status", ["status"], registry=registry
)
associations_rejected = Counter(
    "dicom_node_associations_rejected", "Associations refused", ["reason"], registry=registry
)
connections_refused = Counter(
    "dicom_node_connections_refused",
    "Connections that were turned away or cut, by kind",
    ["kind"],
    registry=registry,
)
jobs_by_state = Gauge(
    "dicom_node_jobs", "Received series by state of their newest job", ["state"], registry=registry
)
ledger_instances = Gauge(
    "dicom_node_ledger_instances", "Instances by what became of them", ["part"], registry=registry
)
ledger_balanced = Gauge(
    "dicom_node_ledger_balanced", "1 while every instance is accounted for", registry=registry
)
ledger_checked = Gauge(
    "dicom_node_ledger_checked_timestamp_seconds",
    "When the ledger was last computed",
    registry=registry,
)
deliveries_finished = Counter(
    "dicom_node_deliveries", "Delivery attempts", ["destination", "outcome"], registry=registry
)
rejection_notes = Gauge(
    "dicom_node_rejection_notes", "Rejection notes by state", ["state"], registry=registry
)
sending = Gauge(
    "dicom_node_sending",
    "1 while results are sent, 0 while the switch is off or in shadow mode",
    registry=registry,
)
turnaround_overdue = Gauge(
    "dicom_node_turnaround_overdue",
    "Series under way that have taken longer than order.turnaround_s already",
    registry=registry,
)
turnaround_late = Gauge(
    "dicom_node_turnaround_late",
    "Series delivered within the last hour that took longer than that",
    registry=registry,
)
turnaround_slowest = Gauge(
    "dicom_node_turnaround_slowest_seconds",
    "The longest time from first image to delivery, of what was delivered within the last hour",
    registry=registry,
)
commitments_open = Gauge(
    "dicom_node_commitments_open",
    'Storage commitment transactions without an answer: "scu" ours, "scp" those we owe',
    ["role"],
    registry=registry,
)
commitment_reports = Counter(
    "dicom_node_commitment_instances",
    "Instances in reports of storage commitment, by what they said",
    ["destination", "outcome"],
    registry=registry,
)
stage_seconds = Histogram(
    "dicom_node_stage_seconds",
    "Duration of one stage of one job",
    ["stage"],
    buckets=SECONDS,
    registry=registry,
)
audit_backlog = Gauge(
    "dicom_node_audit_backlog", "Audit rows that the collector does not have yet", registry=registry
)
certificate_ends = Gauge(
    "dicom_node_certificate_valid_until_timestamp_seconds",
    "When the first certificate of a configured file ends, by the option that names the file",
    ["use"],
    registry=registry,
)
free_bytes = Gauge("dicom_node_free_bytes", "Free space of the state folder", registry=registry)
disk_room = Gauge(
    "dicom_node_disk_room_bytes",
    'Free space above the limit, for "incoming" images and for "results"; below 0: refused',
    ["use"],
    registry=registry,
)
retention_files = Counter(
    "dicom_node_retention_files", "Files that retention has deleted", ["kind"], registry=registry
)
retention_bytes = Counter("dicom_node_retention_bytes", "Their size", ["kind"], registry=registry)
retention_unfinished = Gauge(
    "dicom_node_retention_unfinished",
    "Decisions of retention whose files may still be there",
    registry=registry,
)


def set_ledger(counts: Mapping[str, int], *, balanced: bool) -> None:
    """Export the ledger: one value for each part, and whether they add up."""
    for part, count in counts.items():
        ledger_instances.labels(part=part).set(count)
    ledger_balanced.set(1 if balanced else 0)
    ledger_checked.set_to_current_time()


def set_room(free: int, incoming: int, results: int) -> None:
    """Export the free space, and how much of it each use may take."""
    free_bytes.set(free)
    disk_room.labels(use="incoming").set(incoming)
    disk_room.labels(use="results").set(results)


def set_jobs(counts: Mapping[str, int]) -> None:
    """Export how many series stand in each state; a state without any is 0."""
    for state, count in counts.items():
        jobs_by_state.labels(state=state).set(count)


def set_turnaround(overdue: int, late: int, slowest_s: float | None) -> None:
    """Export how long results take; without one within the hour the slowest took no time."""
    turnaround_overdue.set(overdue)
    turnaround_late.set(late)
    turnaround_slowest.set(slowest_s or 0.0)


def set_rejection_notes(counts: Mapping[str, int]) -> None:
    """Export how many rejection notes stand in each state."""
    for state, count in counts.items():
        rejection_notes.labels(state=state).set(count)


def set_commitments(counts: Mapping[str, int]) -> None:
    """Export how many transactions of storage commitment wait for an answer, by our role."""
    for role, count in counts.items():
        commitments_open.labels(role=role).set(count)


def allowed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` with the value of every name that is not in FIELDS withheld."""
    known = FIELDS | STRUCTURE
    return {name: value if name in known else WITHHELD for name, value in fields.items()}


def withhold_unknown(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return the log line without values of names that are not allowed (a structlog processor)."""
    return allowed(event)


def own_error(error: BaseException) -> bool:
    """Return True for errors of this product: their messages name UIDs and settings only."""
    return type(error).__module__.split(".")[0] in ("dicom_node", "sr_engine")


def describe(error: BaseException) -> dict[str, Any]:
    """Return type and places of `error`; its message only if this product wrote it.

    A message of a library may quote the value of a data element.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "type": type(error).__name__,
        "message": str(error) if own_error(error) else WITHHELD,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def render_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the log line with `exc_info` turned into a description (a structlog processor)."""
    info = event.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else sys.exc_info()[1] if info else None
    if error is not None:
        event["exception"] = describe(error)
    return event


@dataclass
class Window:
    """What has been said under one key lately."""

    began_at: float
    said: int = 0
    kept_back: int = 0


@dataclass(kw_only=True)
class Throttle:
    """Lets the first few lines of a kind through in a minute, and counts the others.

    A port scanner, a broken load balancer or a fuzzer must not fill the log.
    """

    most: int = 10
    window_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _windows: dict[str, Window] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kept_back(self, kind: str) -> int | None:
        """Return how many lines were kept back before this one; None: keep it back, too."""
        now = self.clock()
        with self._lock:
            window = self._windows.setdefault(kind, Window(now))
            if now - window.began_at >= self.window_s:
                window.began_at, window.said = now, 0
            if window.said >= self.most:
                window.kept_back += 1
                return None
            window.said += 1
            count, window.kept_back = window.kept_back, 0
            return count


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Somebody who was turned away: a line that the audit trail is to have."""

    at: datetime
    fields: Mapping[str, Any]


class Refusals:
    """Who was turned away, until housekeeping writes it into the audit trail.

    The thread that watches every connection must not wait for a database.
    """

    def __init__(self, most: int = 1000) -> None:
        """Keep `most` at a time; the oldest go first."""
        self._waiting: deque[Refusal] = deque(maxlen=most)
        self._lock = threading.Lock()

    def add(self, fields: Mapping[str, Any]) -> None:
        """Keep one for the trail."""
        with self._lock:
            self._waiting.append(Refusal(at=datetime.now(UTC), fields=dict(fields)))

    def hand_over(self, take: Callable[[Refusal], None]) -> None:
        """Call `take` with each that has come since, oldest first, and forget it then.

        What `take` raises is raised; the one that it raised at, and all after it, stay.
        """
        while self._waiting:
            oldest = self._waiting[0]
            take(oldest)
            with self._lock:
                if self._waiting[0] is oldest:  # not pushed out meanwhile
                    self._waiting.popleft()


refusals = Refusals()


class LibraryHandler(logging.Handler):
    """Passes on who spoke and how loudly, never the words: they may quote a data set."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        """Begin with nothing said."""
        super().__init__(level)
        self._throttle = Throttle()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line for `record` without its message, unless there have been many."""
        count = self._throttle.kept_back(record.name)
        if count is None:
            return
        level = logging.getLevelName(record.levelno).lower()
        error = record.exc_info[1] if record.exc_info else None
        more = {"count": count} if count else {}
        get_logger().log(
            record.levelno,
            "library.message",
            logger=record.name,
            kind=level,
            exc_info=error,
            **more,
        )


def note_dead_thread(args: threading.ExceptHookArgs) -> None:
    """Log that a thread died of `args`, without the words: Python's own hook prints them all.

    What pynetdicom's threads cannot decode ends them, and with them their association.
    """
    count = None if args.exc_type is SystemExit else _dead_threads.kept_back("thread")
    if count is None:
        return
    more = {"count": count} if count else {}
    get_logger().error("thread.died", exc_info=args.exc_value, **more)


_dead_threads = Throttle()


def configure_logging(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Send our log lines as JSON to `stream` (default: stderr) and silence the libraries' words."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            render_exception,
            withhold_unknown,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [LibraryHandler(level=logging.WARNING)]
    logging.captureWarnings(True)
    threading.excepthook = note_dead_thread


def get_logger() -> Any:
    """Return the logger: ``log.info("series.complete", series=uid, instances=176)``."""
    return structlog.get_logger()
