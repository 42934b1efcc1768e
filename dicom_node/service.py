"""The composition root: start every part of the node, keep the workers alive, drain, stop."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import uvicorn

from dicom_node import heaps, housekeeping, intake, retention, signing, telemetry
from dicom_node.errors import CertificateNotValid, DatabaseTaken, NodeError, StoreUnavailable
from dicom_node.network.scp import NodeScp
from dicom_node.performer import Performer
from dicom_node.pixel_files import PixelFiles
from dicom_node.sender import Sender
from dicom_node.settings import Settings
from dicom_node.store import Store, open_store
from dicom_node.web import https, tokens
from dicom_node.web.app import Probe, create_app
from dicom_node.worker.processes import expire_gone_workers, return_jobs
from dicom_node.worker.watch import utc_now

log = telemetry.get_logger()

TICK_S = 0.5
BACKOFF_S = (0.5, 2.0, 5.0, 15.0, 60.0)  # a worker that dies again and again
SETTLED_S = 60.0  # a worker that lived this long starts from the shortest back-off again
LONGEST_PAUSE_S = 600.0  # before another attempt at a job, or another audit export
KILL_AFTER_S = 5.0  # what a worker gets on top of the drain before it is killed


class CannotStart(NodeError):
    """The node cannot start: a port or the state folder is taken."""


@contextmanager
def sole_owner(settings: Settings) -> Iterator[None]:
    """Hold the state folder's lock, so that two nodes never share one.

    Raises
    ------
    CannotStart
        If another node runs on this folder.
    """
    settings.node.state_dir.mkdir(parents=True, exist_ok=True)
    path = settings.node.state_dir / "serve.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"another node is running on {settings.node.state_dir}") from None
        yield


def listen(host: str, port: int, what: str) -> socket.socket:
    """Return a socket that is bound and will listen on `host`:`port`.

    Raises
    ------
    CannotStart
        If the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host}:{port} for {what}: {os.strerror(error.errno or 0)}"
        ) from error


class WebThread:
    """The status page in a thread of its own."""

    def __init__(self, settings: Settings, store: Store, probe: Probe) -> None:
        self._socket = listen(settings.web.host, settings.web.port, "the status page ([web])")
        port = self._socket.getsockname()[1]
        host = f"[{settings.web.host}]" if ":" in settings.web.host else settings.web.host
        certificate = https.context(settings.web)
        self.address = f"{'https' if certificate else 'http'}://{host}:{port}/"
        config = uvicorn.Config(
            create_app(settings, store, probe),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        config.load()
        config.ssl = certificate
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the open requests and end."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()


@dataclass(kw_only=True)
class Seat:
    """One place for a worker process."""

    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class WorkerPool:
    """N worker processes that are started again when they die.

    A worker reads its settings from standard input, which stays open as long as this process
    lives: when it ends, for whatever reason, the worker ends too.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._seats = [Seat() for _ in range(count)]

    def tend(self) -> bool:
        """Start the workers that are missing; return True when one has died since."""
        died = False
        now = time.monotonic()
        for seat in self._seats:
            if seat.process is not None and seat.process.poll() is not None:
                died = True
                self._bury(seat, seat.process, now)
            if seat.process is None and now >= seat.not_before:
                self._fill(seat, now)
        return died

    def _fill(self, seat: Seat, now: float) -> None:
        """Start a worker; what the system refuses for now must not end the service."""
        try:
            seat.process, seat.started_at = start_worker(self._settings), now
        except OSError as error:
            delay_s = self._put_off(seat, now)
            log.error("worker.not_started", reason=error.strerror, delay_s=delay_s)

    def _put_off(self, seat: Seat, now: float) -> float:
        """Count a failure; return after how many seconds a worker is started there."""
        seat.failures += 1
        delay_s = BACKOFF_S[min(seat.failures, len(BACKOFF_S)) - 1]
        seat.not_before = now + delay_s
        return delay_s

    def _bury(self, seat: Seat, process: subprocess.Popen[bytes], now: float) -> None:
        seat.process = None
        close(process)
        seat.failures = 0 if now - seat.started_at > SETTLED_S else seat.failures
        delay_s = self._put_off(seat, now)
        log.error("worker.died", pid=process.pid, exit_code=process.returncode, delay_s=delay_s)

    def alive(self) -> int:
        """Return how many workers run."""
        processes = [seat.process for seat in self._seats if seat.process is not None]
        return sum(process.poll() is None for process in processes)

    def pids(self) -> list[int]:
        """Return the process ids of the running workers."""
        return [seat.process.pid for seat in self._seats if seat.process is not None]

    def terminate(self) -> None:
        """Ask every worker to drain."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker at once; its job goes back to the queue."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for seat in self._seats:
            if seat.process is not None and seat.process.poll() is None:
                seat.process.send_signal(number)

    def wait(self, timeout_s: float) -> None:
        """Wait until every worker has ended; kill those that have not in time."""
        deadline = time.monotonic() + timeout_s
        for seat in self._seats:
            if seat.process is None:
                continue
            try:
                seat.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker.killed", pid=seat.process.pid, seconds=timeout_s)
                seat.process.kill()
                seat.process.wait()
            close(seat.process)
            seat.process = None


def start_worker(settings: Settings) -> subprocess.Popen[bytes]:
    """Return a new worker process; it has our settings and lives no longer than we do."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)
    process = subprocess.Popen(
        [sys.executable, "-m", "dicom_node.cli", "work", "--managed"],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C in a terminal reaches the node alone, which drains
    )
    try:
        write_settings(process, settings)
    except BrokenPipeError:
        log.error("worker.stillborn", pid=process.pid)  # the next tend() sees it and backs off
    return process


def write_settings(process: subprocess.Popen[bytes], settings: Settings) -> None:
    """Hand the settings to a new worker as one line; its standard input stays open."""
    if process.stdin is not None:
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.flush()


def close(process: subprocess.Popen[bytes]) -> None:
    """Close our end of the standard input of an ended worker."""
    if process.stdin is not None:
        process.stdin.close()


class Stop:
    """SIGTERM and Ctrl-C: the first asks to drain, the second ends everything at once."""

    def __init__(self, at_once: Callable[[], None]) -> None:
        """Take the signals; `at_once` kills what would outlive us."""
        self._asked = threading.Event()
        self._at_once = at_once
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._asked.is_set():
            self._at_once()
            os._exit(128 + number)
        self._asked.set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep, at most `timeout_s`; True when the end was asked for."""
        return self._asked.wait(timeout_s)


def serve(settings: Settings, workers: int, say: Callable[[str], None] = print) -> None:
    """Run the node until SIGTERM; return when everything has drained.

    Raises
    ------
    CannotStart, DatabaseTaken, SettingsError, StoreUnavailable
        If it cannot start; nothing runs then.
    DatabaseTaken
        If another node took the database while its server was away, after the drain.
    """
    with sole_owner(settings), ExitStack() as parts:
        tokens.check_start(settings)
        signing.own_key(settings.node.state_dir)  # made at the first start, checked at every one
        check_certificate(settings, datetime.now(UTC))
        store = open_store(settings.database_url)
        parts.callback(store.close)
        parts.enter_context(store.occupancy)
        root = settings.node.state_dir.resolve() / "in"
        files = PixelFiles(root, settings.files.min_free_bytes)
        recover(settings, store, files)
        failures = housekeeping.Failures()
        pool = WorkerPool(settings, workers)
        scp = NodeScp(settings, store, files)
        sender, performer = Sender(store, settings), Performer(store, settings)
        probe = Probe(
            scp_listening=lambda: scp.listening,
            scp_port=lambda: scp.port,
            workers=pool.alive,
            failing_tasks=lambda: [
                *failures.names(),
                *sender.failing(),
                *performer.failing(),
                *scp.failing(),
            ],
        )
        web = WebThread(settings, store, probe)
        heaps.set_apart()
        scp.start()
        web.start()
        parts.callback(web.stop)
        sender.start()
        performer.start()
        clock = housekeeping.ClockGuard(store, settings)
        scheduler = housekeeping.start(store, settings, failures, clock)
        stop = Stop(at_once=pool.kill)
        pool.tend()
        started = {"port": scp.port, "url": web.address, "workers": workers}
        store.audit.record("service.start", utc_now(), **started)
        say(f"receiving    {settings.node.ae_title} at {settings.node.host}:{scp.port}")
        say(f"status page  {web.address}")
        if settings.sending.shadow:
            say("shadow mode  nothing is sent")
        if scp.tls_port:
            say(f"TLS          {settings.node.ae_title} at {settings.node.host}:{scp.tls_port}")
        try:
            tend_until(stop, pool, store, settings, clock)
        finally:
            performer.stop()
            scheduler.shutdown(wait=True)  # first: it would count the attempts of workers we end
            drain(settings.node.drain_s, pool, scp, sender)
            leave(store)


def drain(grace_s: float, pool: WorkerPool, scp: NodeScp, sender: Sender) -> None:
    """Let everything that has begun come to its end, for `grace_s` at most."""
    log.info("service.drain", seconds=grace_s)
    deadline = time.monotonic() + grace_s
    pool.terminate()
    scp.stop(grace_s)
    sender.stop(max(1.0, deadline - time.monotonic()))
    pool.wait(max(0.0, deadline - time.monotonic()) + KILL_AFTER_S)


def leave(store: Store) -> None:
    """Give back the jobs of our workers and say goodbye, if the database is there."""
    try:
        return_jobs(store, utc_now())
        store.audit.record("service.stop", utc_now())
    except StoreUnavailable as error:  # the leases run out, or the next start finds the jobs
        log.warning("service.store_unavailable", error=str(error))


def recover(settings: Settings, store: Store, files: PixelFiles) -> None:
    """Bring the state folder and the queue in order after whatever ended the last service."""
    now = utc_now()
    note_clock(store, now)  # first: it looks at the end of the trail
    removed = intake.recover(files, store)
    expired = expire_gone_workers(store, now, settings.engine.max_attempts)
    # Scanners that we have cut get their time again; the clock may have been set meanwhile.
    longest_s = settings.commitment.timeout_s + settings.sending.backoff_last_s
    store.waits.restart(
        now,
        timedelta(seconds=settings.engine.lease_s),
        not_after=now + timedelta(seconds=max(longest_s, LONGEST_PAUSE_S)),
    )
    log.info("service.recover", count=len(removed), jobs=expired)


def check_certificate(settings: Settings, now: datetime) -> None:
    """Raise SettingsError for a certificate that can never sign.

    One that is not valid at this time must not keep images out: results wait, and say why.
    """
    try:
        signing.certified(settings.signing, now)
    except CertificateNotValid as error:
        log.error("signing.not_valid", reason=str(error))


def note_clock(store: Store, now: datetime) -> None:
    """Put on record that the clock is far from the end of the trail: it may have been set.

    The node may as well have been off for so long; then retention waits a day for nothing. What a
    command or a worker has written since then, before the service, does not hide the step.
    """
    step = retention.step_in(store, now)
    if step is not None:
        store.audit.record("clock.set", now, seconds=round(step.total_seconds(), 1))


def tend_until(
    stop: Stop,
    pool: WorkerPool,
    store: Store,
    settings: Settings,
    clock: housekeeping.ClockGuard,
) -> None:
    """Keep the workers alive until the end is asked for; mind that the clock may be set.

    Raises
    ------
    DatabaseTaken
        If another node has the database by now.
    """
    while not stop.wait(TICK_S):
        if store.occupancy.lost:
            raise DatabaseTaken(store.occupancy.lost)
        died = pool.tend()
        try:
            clock.check()
            if died:
                expire_gone_workers(store, utc_now(), settings.engine.max_attempts)
        except StoreUnavailable as error:  # housekeeping does it again every few seconds
            log.warning("service.store_unavailable", error=str(error))
