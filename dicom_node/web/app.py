"""The pages, REST, /healthz and /metrics: without script, without patient data."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node import pixel_files, telemetry
from dicom_node.certificates import validities
from dicom_node.errors import NodeError, SettingsError, StoreUnavailable, UnknownJob
from dicom_node.order import Place
from dicom_node.settings import Settings
from dicom_node.store import JobRow, Ledger, Store
from dicom_node.store.overview import Turnaround, oldest_queued, series_lines, turnaround
from dicom_node.together import Thrifty
from dicom_node.web import views
from dicom_node.web.api import Actions, Api, Forms, signed_in
from dicom_node.web.auth import (
    Denied,
    Gate,
    Guard,
    Sessions,
    caller_of,
    for_machines,
    refusal,
    status_of,
)
from dicom_node.web.numbers import JOB_ID
from dicom_node.web.stow import Stow
from dicom_node.web.tokens import Role, TokenFile

HERE = Path(__file__).parent
REFRESH_S = 10
MOST_LINES = 200
OLD_QUEUE_S = 3600.0  # a job that waits longer for a worker makes the strip's light amber
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer our own forms come from "null"
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
    ledger: Callable[[], Ledger]
    states: Callable[[], dict[str, int]]

    def login(self, request: Request) -> Response:
        """Return the form for a token."""
        return self._login_form()

    def index(self, request: Request) -> Response:
        """Return the table of series."""
        now = datetime.now(UTC)
        rows = series_lines(self.store.database, limit=MOST_LINES)
        places = {one.job_id: one for one in self._queue(now)}
        lines = [views.series_line(row, now, places.get(row["job_id"])) for row in rows]
        states = self.states()
        return self._page(
            "index.html",
            request,
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
            return self.refused(request, error)
        context = self._job_context(job, now) | {"buttons": self._buttons(request, job)}
        return self._page("job.html", request, refresh_s=REFRESH_S, **context)

    def refused(self, request: Request, error: Exception) -> Response:
        """Return a refusal as a page for people, in one line for programs."""
        if not isinstance(error, NodeError):
            raise error
        code, headers = status_of(error)
        path = request.scope["path"]
        if path == "/login" and isinstance(error, Denied):
            return self._login_form(code, headers, str(error))
        if for_machines(request) or code in (401, 503):
            return refusal(request, error)
        title = "No such job" if isinstance(error, UnknownJob) else "Not done"
        return self._page("missing.html", request, code, title=title, text=str(error))

    def healthz(self, request: Request) -> Response:
        """Return 200 when the node can receive and work, else 503 and what is wrong."""
        health = self.health(datetime.now(UTC))
        code = 200 if health["ok"] else 503
        if self.settings.web.closed and caller_of(request) is None:
            health = {"ok": health["ok"]}
        return JSONResponse(health, status_code=code)

    def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus' text format; counts may be a while old."""
        self.ledger()
        telemetry.set_jobs(self.states())
        telemetry.set_rejection_notes(self.store.withdrawals.note_states())
        late = self._turnaround(datetime.now(UTC))
        telemetry.set_turnaround(late.overdue, late.late, late.slowest_s)
        telemetry.sending.set(sending_text(self.settings, self.store) == "on")
        telemetry.set_commitments(self.store.commitments.open_transactions())
        room = pixel_files.room(self.settings)
        telemetry.set_room(room.free_bytes, room.incoming_bytes, room.results_bytes)
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    def health(self, now: datetime) -> dict[str, Any]:
        """Return the facts of /healthz."""
        try:
            queued_at = oldest_queued(self.store.database)
            database = "ok"
        except StoreUnavailable as error:
            queued_at, database = None, str(error)
        room = pixel_files.room(self.settings)
        listening = self.probe.scp_listening()
        failing = self.probe.failing_tasks()
        enough = room.incoming_bytes >= 0
        return {
            "ok": database == "ok" and listening and enough and not failing,
            "database": database,
            "listening": listening,
            "free_bytes": room.free_bytes,
            "free_enough": enough,
            "free_enough_for_results": room.results_bytes >= 0,
            "oldest_queued_s": waited_s(queued_at, now),
            "workers": self.probe.workers(),
            "failing_tasks": failing,
        }

    def _queue(self, now: datetime) -> list[Place]:
        return self.store.jobs.queue(now, self.settings.queue_order())

    def _turnaround(self, now: datetime) -> Turnaround:
        return turnaround(self.store.database, now, self.settings.order.turnaround_s)

    def _login_form(
        self, status: int = 200, headers: dict[str, str] | None = None, error: str = ""
    ) -> Response:
        html = self.templates.get_template("login.html").render(error=error)
        return HTMLResponse(html, status_code=status, headers=headers)

    def _buttons(self, request: Request, job: JobRow) -> tuple[str, ...]:
        caller = signed_in(request)
        if caller is None or not caller.may(Role.OPERATOR):
            return ()
        return views.possible_decisions(job.state, job.held_by)

    def _page(self, template: str, request: Request, status: int = 200, **context: Any) -> Response:
        now = datetime.now(UTC)
        caller = signed_in(request)
        operator = caller is not None and caller.may(Role.OPERATOR)
        node = {
            "ae_title": self.settings.node.ae_title,
            "host": self.settings.node.host,
            "port": self.probe.scp_port(),
            "version": software_version(),
            "at": views.clock_text(now),
            "lights": self._lights(now),
            "sending": self.store.switches.get("sending", self.settings.sending.enabled),
        }
        html = self.templates.get_template(template).render(
            {"node": node, "refresh_s": None, "caller": caller, "operator": operator} | context
        )
        return HTMLResponse(html, status_code=status)

    def _lights(self, now: datetime) -> list[views.Light]:
        health = self.health(now)
        ledger = self.ledger()
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
            self._turnaround_light(now),
            Light(
                name="Disk free",
                value=views.disk_text(health),
                look="idle" if health["free_enough"] else "bad",
            ),
            Light(
                name="Ledger",
                value=f"{ledger.acknowledged} images, "
                + ("all accounted for" if ledger.balanced else "NOT BALANCED"),
                look="good" if ledger.balanced else "bad",
            ),
            *self._certificate_lights(now),
            *(Light(name="Failing", value=name, look="bad") for name in health["failing_tasks"]),
        ]

    def _certificate_lights(self, now: datetime) -> list[views.Light]:
        """Return one for each certificate that ends soon; an unreadable one is a failing task."""
        try:
            found = validities(self.settings)
        except SettingsError:
            return []
        return [
            views.Light(
                name="Certificate", value=one.text(now), look="bad" if one.until <= now else "look"
            )
            for one in found
            if one.ends_soon(now)
        ]

    def _turnaround_light(self, now: datetime) -> views.Light:
        late = self._turnaround(now)
        text = views.turnaround_text(late, self.settings.order.turnaround_s)
        return views.Light(name="Turnaround", value=text, look="look" if late.overdue else "idle")

    def _job_context(self, job: JobRow, now: datetime) -> dict[str, Any]:
        row = series_lines(self.store.database, job_id=job.id)[0]
        reasons = {one["destination"]: one for one in self.store.deliveries.of_job(job.id)}
        for delivery in row["deliveries"]:
            if delivery.get("content"):
                continue
            delivery["reason"] = reasons[delivery["destination"]]["reason"]
        place = next((one for one in self._queue(now) if one.job_id == job.id), None)
        line = views.series_line(row, now, place)
        gone = self.store.removals.gone_originals(job.series_id)
        removals = self.store.removals.of_job(job.id)
        return {
            "line": line,
            "advice": views.advice(job.state, job.held_by, job.id, gone=gone),
            "facts": views.job_facts(job, row) + views.removal_facts(removals),
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


def export_ledger(store: Store) -> Ledger:
    """Return the ledger of this moment, which the metrics show from now on.

    Together: they also say when it was counted last, and a page may show it later.
    """
    ledger = store.ledger()
    telemetry.set_ledger(ledger.counts, balanced=ledger.balanced)
    return ledger


def create_app(settings: Settings, store: Store, probe: Probe) -> Starlette:
    """Return the application."""
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages = Pages(
        settings=settings,
        store=store,
        probe=probe,
        templates=templates,
        ledger=Thrifty(partial(export_ledger, store)),  # counting millions takes seconds
        states=Thrifty(store.series.states),
    )
    guard = Guard(
        settings=settings.web,
        tokens=TokenFile(settings.node.state_dir),
        sessions=Sessions(settings.web.session_s),
    )
    actions = Actions(settings=settings, store=store)
    return Starlette(
        routes=[
            Route("/", pages.index),
            Route("/login", pages.login),
            Route(f"/jobs/{JOB_ID}", pages.job),
            Route("/healthz", pages.healthz),
            Route("/metrics", pages.metrics),
            *Api(actions=actions, guard=guard).routes(),
            *Forms(actions=actions, guard=guard).routes(),
            *Stow(settings=settings, store=store).routes(),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(Gate, guard=guard)],
        exception_handlers={
            StoreUnavailable: unavailable,
            NodeError: pages.refused,
            ClientDisconnect: hung_up,
        },
    )


def hung_up(request: Request, error: Exception) -> Response:
    """Return what nobody will read: whoever ends a request in the middle is no error of ours."""
    return Response(status_code=400)


def unavailable(request: Request, error: Exception) -> Response:
    """Return 503 in one sentence: the database does not answer."""
    text = f"The node's database does not answer: {error}"
    if for_machines(request):
        return JSONResponse({"error": text}, status_code=503)
    return PlainTextResponse(f"{text}\n", status_code=503)
