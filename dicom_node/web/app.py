"""The status page, /healthz and /metrics: read-only, without script, without patient data."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node import telemetry
from dicom_node.errors import StoreUnavailable, UnknownJob
from dicom_node.settings import Settings
from dicom_node.store import JobRow, Store
from dicom_node.store.overview import oldest_queued, series_lines
from dicom_node.web import views

HERE = Path(__file__).parent
REFRESH_S = 10
MOST_LINES = 200
OLD_QUEUE_S = 3600.0  # a job that waits longer for a worker makes the strip's light amber
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What only the running service knows; all of it is asked at every request."""

    scp_listening: Callable[[], bool]
    scp_port: Callable[[], int]
    workers: Callable[[], int]
    failing_tasks: Callable[[], list[str]]


class SecurityHeaders:
    """Puts SECURITY_HEADERS on every answer (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def software_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("dicom-node")
    except PackageNotFoundError:  # run from the source tree
        return "(source tree)"


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The answers; starlette runs each of these in a thread."""

    settings: Settings
    store: Store
    probe: Probe
    templates: Environment

    def index(self, request: Request) -> Response:
        """Return the table of series."""
        now = datetime.now(UTC)
        rows = series_lines(self.store.database, limit=MOST_LINES)
        lines = [views.series_line(row, now) for row in rows]
        states = self.store.series.states()
        return self._page(
            "index.html",
            now,
            lines=lines,
            left_out=max(0, sum(states.values()) - len(lines)),
            counts=views.counts(states),
            refresh_s=REFRESH_S,
        )

    def job(self, request: Request) -> Response:
        """Return everything about one job."""
        now = datetime.now(UTC)
        try:
            job = self.store.jobs.get(request.path_params["job_id"])
        except UnknownJob as error:
            return self._missing(now, str(error))
        return self._page("job.html", now, refresh_s=REFRESH_S, **self._job_context(job, now))

    def healthz(self, request: Request) -> Response:
        """Return 200 when the node can receive and work, else 503 and what is wrong."""
        health = self.health(datetime.now(UTC))
        return JSONResponse(health, status_code=200 if health["ok"] else 503)

    def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus' text format, the store's share as of now."""
        ledger = self.store.ledger()
        telemetry.set_ledger(ledger.counts, balanced=ledger.balanced)
        telemetry.set_jobs(self.store.series.states())
        telemetry.free_bytes.set(self._free_bytes())
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    def health(self, now: datetime) -> dict[str, Any]:
        """Return the facts of /healthz."""
        try:
            queued_at = oldest_queued(self.store.database)
            database = "ok"
        except StoreUnavailable as error:
            queued_at, database = None, str(error)
        free = self._free_bytes()
        listening = self.probe.scp_listening()
        failing = self.probe.failing_tasks()
        enough = free >= self.settings.files.min_free_bytes
        return {
            "ok": database == "ok" and listening and enough and not failing,
            "database": database,
            "listening": listening,
            "free_bytes": free,
            "free_enough": enough,
            "oldest_queued_s": waited_s(queued_at, now),
            "workers": self.probe.workers(),
            "failing_tasks": failing,
        }

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.settings.node.state_dir).free

    def _page(self, template: str, now: datetime, status: int = 200, **context: Any) -> Response:
        node = {
            "ae_title": self.settings.node.ae_title,
            "host": self.settings.node.host,
            "port": self.probe.scp_port(),
            "version": software_version(),
            "at": views.clock_text(now),
            "lights": self._lights(now),
        }
        html = self.templates.get_template(template).render(
            {"node": node, "refresh_s": None} | context
        )
        return HTMLResponse(html, status_code=status)

    def _missing(self, now: datetime, text: str) -> Response:
        return self._page("missing.html", now, 404, title="No such job", text=text)

    def _lights(self, now: datetime) -> list[views.Light]:
        health = self.health(now)
        ledger = self.store.ledger()
        sending = sending_text(self.settings, self.store)
        receiving = f"{self.settings.node.host}:{self.probe.scp_port()}"
        queued_s = health["oldest_queued_s"]
        Light = views.Light
        return [
            Light(name="Receiving", value=receiving, look="good")
            if health["listening"]
            else Light(name="Receiving", value="not listening", look="bad"),
            Light(name="Sending", value=sending, look="good" if sending == "on" else "look"),
            Light(
                name="Workers",
                value=f"{health['workers']} here"
                + (f", oldest job waits {views.age_text(queued_s)}" if queued_s else ""),
                look="look" if (queued_s or 0) > OLD_QUEUE_S else "idle",
            ),
            Light(
                name="Disk free",
                value=views.bytes_text(health["free_bytes"]),
                look="idle" if health["free_enough"] else "bad",
            ),
            Light(
                name="Ledger",
                value=f"{ledger.acknowledged} images, "
                + ("all accounted for" if ledger.balanced else "NOT BALANCED"),
                look="good" if ledger.balanced else "bad",
            ),
            *(Light(name="Failing", value=name, look="bad") for name in health["failing_tasks"]),
        ]

    def _job_context(self, job: JobRow, now: datetime) -> dict[str, Any]:
        row = series_lines(self.store.database, job_id=job.id)[0]
        reasons = {one["destination"]: one for one in self.store.deliveries.of_job(job.id)}
        for delivery in row["deliveries"]:
            delivery["reason"] = reasons[delivery["destination"]]["reason"]
        line = views.series_line(row, now)
        return {
            "line": line,
            "advice": views.advice(job.state, job.held_by, job.id),
            "facts": views.job_facts(job, row),
            "findings": job.figures.get("findings", []),
            "figures": views.figure_lines(job.figures.get("quality", {})),
            "timings": views.timing_lines(job.figures.get("timings_s", {})),
            "timeline": views.timeline(self.store.audit.listing(job_id=job.id)),
        }


def waited_s(since: datetime | None, now: datetime) -> float | None:
    """Return for how long something has waited; never negative, even if the clock was set back."""
    return None if since is None else round(max(0.0, (now - since).total_seconds()), 1)


def sending_text(settings: Settings, store: Store) -> str:
    """Return how the sending switch stands, in one or two words."""
    if settings.sending.shadow:
        return "shadow mode"
    return "on" if store.switches.get("sending", settings.sending.enabled) else "OFF"


def create_app(settings: Settings, store: Store, probe: Probe) -> Starlette:
    """Return the application."""
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages = Pages(settings=settings, store=store, probe=probe, templates=templates)
    return Starlette(
        routes=[
            Route("/", pages.index),
            Route("/jobs/{job_id:int}", pages.job),
            Route("/healthz", pages.healthz),
            Route("/metrics", pages.metrics),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={StoreUnavailable: unavailable},
    )


def unavailable(request: Request, error: Exception) -> Response:
    """Return 503 in one sentence: the database does not answer."""
    return PlainTextResponse(f"The node's database does not answer: {error}\n", status_code=503)
