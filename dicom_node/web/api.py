"""What the page and REST can change, by the CLI's own calls, and REST itself: JSON below /api/."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.errors import GateRefused, IllegalTransition, UnknownJob
from dicom_node.settings import Settings
from dicom_node.store import Store
from dicom_node.store.overview import series_lines
from dicom_node.web.auth import (
    Caller,
    Denied,
    Guard,
    address_of,
    caller_of,
    cookie_name,
    is_https,
    refuse_foreign_form,
    require,
    require_change,
)
from dicom_node.web.numbers import JOB_ID
from dicom_node.web.tokens import Role, TokenRefused
from dicom_node.worker.decisions import DECISIONS

MOST_BYTES = 4096  # of a form
MOST_JOBS = 1000
REFUSALS = (IllegalTransition, GateRefused, UnknownJob)


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Changes that a person asks for from afar, each in the audit trail with their name."""

    settings: Settings
    store: Store

    def decide(self, caller: Caller, address: str, job_id: int, decision: str) -> int:
        """Return the job that goes on after `decision`.

        The request is recorded first: a change is never without its author.
        """
        now = datetime.now(UTC)
        self.store.jobs.get(job_id)
        event = f"web.{decision}"
        who = {"job": job_id, "name": caller.name, "address": address}
        self.store.audit.record(event, now, **who)
        try:
            return DECISIONS[decision].run(self.settings, self.store, job_id, now)
        except REFUSALS as error:
            self.store.audit.record(event, now, **who, outcome="refused", reason=str(error))
            raise

    def send(self, caller: Caller, address: str, *, on: bool) -> None:
        """Switch all sending."""
        now = datetime.now(UTC)
        event = f"web.send_{'on' if on else 'off'}"
        self.store.audit.record(event, now, name=caller.name, address=address)
        self.store.switches.set("sending", on, now)


@dataclass(frozen=True, kw_only=True)
class Api:
    """The answers of REST; starlette runs each of these in a thread."""

    actions: Actions
    guard: Guard

    def routes(self) -> list[Route]:
        """Return the paths of REST."""
        return [
            Route("/api/jobs", self.jobs),
            Route(f"/api/jobs/{JOB_ID}", self.job),
            *(
                Route(f"/api/jobs/{JOB_ID}/{name}", self._deciding(name), methods=["POST"])
                for name in DECISIONS
            ),
            Route("/api/send", self.sending),
            Route("/api/send/on", self._switching(True), methods=["POST"]),
            Route("/api/send/off", self._switching(False), methods=["POST"]),
            Route("/api/tokens", self.tokens),
            Route("/api/tokens/{name}/remove", self.remove_token, methods=["POST"]),
        ]

    def jobs(self, request: Request) -> Response:
        """Return the newest series, at most ``?limit=`` of them."""
        limit = request.query_params.get("limit", str(MOST_JOBS))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST_JOBS):
            raise Denied(400, f"limit is a number from 1 to {MOST_JOBS}")
        settings, store = self.actions.settings, self.actions.store
        queue = store.jobs.queue(datetime.now(UTC), settings.queue_order())
        places = {
            one.job_id: {"position": one.position, "waits_for": one.waits_for} for one in queue
        }
        lines = series_lines(store.database, limit=int(limit))
        return to_json({"jobs": [line | {"queue": places.get(line["job_id"])} for line in lines]})

    def job(self, request: Request) -> Response:
        """Return one job and what happened to it."""
        return to_json(self._document(request.path_params["job_id"]))

    def sending(self, request: Request) -> Response:
        """Return how the switch of all sending stands."""
        settings, store = self.actions.settings, self.actions.store
        on = store.switches.get("sending", settings.sending.enabled)
        return to_json({"sending": bool(on), "shadow": settings.sending.shadow})

    def tokens(self, request: Request) -> Response:
        """Return names and roles of all tokens, to an admin."""
        require(request, Role.ADMIN)
        return to_json(
            {
                "tokens": [
                    {"name": one.name, "role": one.role, "created_at": one.created_at}
                    for one in self.guard.tokens.listing()
                ]
            }
        )

    def remove_token(self, request: Request) -> Response:
        """Take a token away, for an admin."""
        caller = require_change(request, Role.ADMIN, csrf_header(request))
        name = request.path_params["name"]
        try:
            self.guard.tokens.remove(name)
        except TokenRefused as error:
            raise Denied(404, str(error)) from error
        self.actions.store.audit.record(
            "web.token_remove",
            datetime.now(UTC),
            name=caller.name,
            address=address_of(request),
            reason=f"token {name}",
        )
        return to_json({"removed": name})

    def _document(self, job_id: int) -> dict[str, Any]:
        store = self.actions.store
        job = store.jobs.get(job_id)
        trail = store.audit.listing(job_id=job_id)
        return series_lines(store.database, job_id=job_id)[0] | {
            "rule": job.rule,
            "attempts": job.attempts,
            "destinations": job.destinations,
            "figures": job.figures,
            "events": [{"at": one.at, "event": one.event, **one.fields} for one in trail],
        }

    def _deciding(self, decision: str) -> Callable[[Request], Response]:
        def decide(request: Request) -> Response:
            caller = require_change(request, Role.OPERATOR, csrf_header(request))
            job_id = request.path_params["job_id"]
            now_on = self.actions.decide(caller, address_of(request), job_id, decision)
            state = self.actions.store.jobs.get(now_on).state
            return to_json({"job_id": now_on, "state": state.value})

        return decide

    def _switching(self, on: bool) -> Callable[[Request], Response]:
        def switch(request: Request) -> Response:
            caller = require_change(request, Role.OPERATOR, csrf_header(request))
            self.actions.send(caller, address_of(request), on=on)
            return self.sending(request)

        return switch


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What the buttons of the pages do; each ends with a page that a reload does not repeat."""

    actions: Actions
    guard: Guard

    def routes(self) -> list[Route]:
        """Return the paths of the forms."""
        return [
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route(f"/jobs/{JOB_ID}/{{decision}}", self.decide, methods=["POST"]),
            Route("/send/{value}", self.send, methods=["POST"]),
        ]

    async def login(self, request: Request) -> Response:
        """Give the browser a session for its token."""
        refuse_foreign_form(request)
        form = await read_form(request)
        address = address_of(request)
        text = form.get("token", "").strip()
        token = await run_in_threadpool(self.guard.check_token, text, address)
        await run_in_threadpool(
            self.actions.store.audit.record,
            "web.login",
            datetime.now(UTC),
            name=token.name,
            address=address,
        )
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            cookie_name(request),
            self.guard.sessions.begin(token),
            max_age=math.ceil(self.guard.settings.session_s),
            secure=is_https(request),
            httponly=True,
            samesite="strict",
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """End the session."""
        form = await read_form(request)
        caller = require_change(request, Role.VIEWER, form.get("csrf"))
        if caller.session is not None:
            self.guard.sessions.end(caller.session)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(
            cookie_name(request),
            secure=is_https(request),
            httponly=True,
            samesite="strict",
        )
        return answer

    async def decide(self, request: Request) -> Response:
        """Carry out a decision about a job."""
        decision = request.path_params["decision"]
        if decision not in DECISIONS:
            raise Denied(404, "there is no such decision")
        form = await read_form(request)
        caller = require_change(request, Role.OPERATOR, form.get("csrf"))
        now_on = await run_in_threadpool(
            self.actions.decide,
            caller,
            address_of(request),
            request.path_params["job_id"],
            decision,
        )
        return RedirectResponse(f"/jobs/{now_on}", status_code=303)

    async def send(self, request: Request) -> Response:
        """Switch all sending."""
        value = request.path_params["value"]
        if value not in ("on", "off"):
            raise Denied(404, "sending is on or off")
        form = await read_form(request)
        caller = require_change(request, Role.OPERATOR, form.get("csrf"))
        await run_in_threadpool(self.actions.send, caller, address_of(request), on=value == "on")
        return RedirectResponse("/", status_code=303)


def csrf_header(request: Request) -> str | None:
    """Return what a script of our own page would send along."""
    return request.headers.get("x-csrf-token")


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, or raise Denied when it is longer than any of ours."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Denied(413, "this form is too long")
    try:
        fields = parse_qs(body.decode(), max_num_fields=10)
    except ValueError:
        raise Denied(400, "this is no form") from None
    return {name: values[0] for name, values in fields.items()}


def to_json(document: Any) -> Response:
    """Return a document as JSON, times in ISO 8601."""
    text = json.dumps(document, default=as_text)
    return Response(text, media_type="application/json")


def as_text(value: Any) -> str:
    """Return what JSON has no form for: times, paths."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def signed_in(request: Request) -> Caller | None:
    """Return the caller whose browser can send our forms."""
    caller = caller_of(request)
    return caller if caller is not None and caller.csrf is not None else None
