"""Who asks: the gate before every page, tokens in a header, sessions in a cookie, and guesses.

Closed by default: in a node whose page is closed, a path that is not in OPEN answers nobody without
a token. What changes something needs a role, whether the page is closed or not.
"""

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dicom_node import telemetry
from dicom_node.errors import NodeError, SettingsError, StoreUnavailable, UnknownJob
from dicom_node.settings import WebSettings, is_loopback
from dicom_node.web.tokens import Role, Token, TokenFile

OPEN = ("/healthz", "/login", "/static/")
STOW = "/dicom-web/"
MACHINES = ("/api/", "/metrics", "/healthz", STOW)  # answered in one line, not with a page
MOST_SESSIONS = 1000
MOST_ADDRESSES = 10_000

log = telemetry.get_logger()


class Denied(NodeError):
    """The request is refused; `code` is its HTTP status."""

    def __init__(self, code: int, text: str, headers: dict[str, str] | None = None) -> None:
        """Say `text` to who asked."""
        super().__init__(text)
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and how they proved it."""

    name: str
    role: Role
    csrf: str | None = field(default=None, repr=False)  # of a session; a header needs none
    session: bytes | None = field(default=None, repr=False)

    def may(self, role: Role) -> bool:
        """Return whether the role of the caller includes `role`."""
        return self.role >= role


@dataclass(frozen=True, kw_only=True)
class Session:
    """One browser that has logged in."""

    token: Token
    csrf: str = field(repr=False)
    ends_at: float


class Sessions:
    """The browsers that are logged in; in memory, so that a restart ends them all."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Let a session live for `seconds`."""
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, token: Token) -> str:
        """Return the secret of a new session; only its digest is kept."""
        secret = secrets.token_urlsafe(32)
        ends_at = self._clock() + self._seconds
        session = Session(token=token, csrf=secrets.token_urlsafe(32), ends_at=ends_at)
        with self._lock:
            self._sessions[digest(secret)] = session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return secret

    def find(self, key: bytes) -> Session | None:
        """Return the session whose secret has the digest `key`, unless it has ended."""
        with self._lock:
            found = self._sessions.get(key)
            if found is not None and self._clock() >= found.ends_at:
                del self._sessions[key]
                return None
            return found

    def end(self, key: bytes) -> None:
        """Forget a session."""
        with self._lock:
            self._sessions.pop(key, None)


@dataclass(kw_only=True)
class Guesses:
    """Failed attempts by address; who fails too often waits, whatever they bring next."""

    most: int = 10
    window_s: float = 300.0
    clock: Callable[[], float] = time.monotonic
    _failed: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, address: str) -> int:
        """Count one attempt as failed until it is given back; return the seconds to wait, or 0.

        Counted first, so that many attempts at the same moment are not all let through.
        """
        group, now = network_of(address), self.clock()
        with self._lock:
            failed = self._failed.setdefault(group, deque())
            while failed and now - failed[0] >= self.window_s:
                failed.popleft()
            if len(failed) >= self.most:
                return int(self.window_s - (now - failed[0])) + 1
            failed.append(now)
            self._failed.move_to_end(group)
            while len(self._failed) > MOST_ADDRESSES:
                self._failed.popitem(last=False)
            return 0

    def give_back(self, address: str) -> None:
        """The attempt succeeded after all."""
        with self._lock:
            failed = self._failed.get(network_of(address))
            if failed:
                failed.pop()


def network_of(address: str) -> str:
    """Return whom to hold to account: an IPv4 address, or the /64 that one IPv6 site owns."""
    try:
        if ipaddress.ip_address(address).version == 6:
            return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))
    except ValueError:
        pass
    return address


def digest(secret: str) -> bytes:
    """Return what a secret is remembered by."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(kw_only=True)
class Guard:
    """Decides who asks."""

    settings: WebSettings
    tokens: TokenFile
    sessions: Sessions
    guesses: Guesses = field(default_factory=Guesses)
    throttle: telemetry.Throttle = field(default_factory=telemetry.Throttle)

    def check_token(self, text: str, address: str) -> Token:
        """Return the token that `text` is.

        Raises
        ------
        Denied
            401 if it is none, 429 after too many of these from one address.
        """
        known = self.tokens.recall(text)
        if known is not None:  # no guess: it goes on working while others fail from there
            return known
        wait_s = self.guesses.take(address)
        if wait_s:
            self._note(address, "too many failed attempts")
            raise Denied(
                429,
                f"too many failed attempts from your address; try again in {wait_s} s",
                {"Retry-After": str(wait_s)},
            )
        token = self.tokens.verify(text)
        if token is None:
            self._note(address, "unknown token")
            raise Denied(401, "this is no token of this node", {"WWW-Authenticate": "Bearer"})
        self.guesses.give_back(address)
        return token

    def caller(self, connection: HTTPConnection) -> Caller | None:
        """Return who asks, None for who shows nothing; a wrong token is Denied."""
        header = connection.headers.get("authorization")
        if header is not None:
            kind, _, text = header.partition(" ")
            if kind.lower() != "bearer":
                hint = {"WWW-Authenticate": "Bearer"}
                raise Denied(401, "write the header as: Authorization: Bearer TOKEN", hint)
            token = self.check_token(text.strip(), address_of(connection))
            return Caller(name=token.name, role=token.level)
        return self._of_session(connection.cookies.get(cookie_name(connection), ""))

    def _of_session(self, secret: str) -> Caller | None:
        key = digest(secret)
        session = self.sessions.find(key) if secret else None
        if session is None:
            return None
        if not self.tokens.has(session.token):
            self.sessions.end(key)
            return None
        token = session.token
        return Caller(name=token.name, role=token.level, csrf=session.csrf, session=key)

    def refuse_foreign_name(self, host: str) -> None:
        """Raise Denied unless we are asked under a name that is ours.

        A page under an attacker's name whose address becomes ours ("DNS rebinding") would be read
        as that name's own. A numeric address cannot be rebound.
        """
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            name = ""
        if name in ("localhost", self.settings.host.lower(), *self.settings.names):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            text = "this node does not go by the name you asked for; [web] names lists its names"
            raise Denied(421, text) from None

    def _note(self, address: str, reason: str) -> None:
        count = self.throttle.kept_back(reason)
        if count is not None:
            more = {"count": count} if count else {}
            log.warning("web.refused", address=address, reason=reason, **more)


def address_of(connection: HTTPConnection) -> str:
    """Return from where somebody asks."""
    return connection.client.host if connection.client else ""


def is_https(connection: HTTPConnection) -> bool:
    """Return whether the browser speaks HTTPS, to us or to a proxy on this machine."""
    return connection.scope["scheme"] == "https"


def for_machines(connection: HTTPConnection) -> bool:
    """Return whether a program is answered, not a person.

    The path as it is routed: that of ``connection.url`` could be bent by the Host header.
    """
    return str(connection.scope["path"]).startswith(MACHINES)


def cookie_name(connection: HTTPConnection) -> str:
    """Return the session cookie's name; over HTTPS one that no other host can set (RFC 6265bis)."""
    return "__Host-dicom_node" if is_https(connection) else "dicom_node"


class Gate:
    """Lets a request through, with who asks in its state, or answers it (ASGI middleware)."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        """Stand before `app`."""
        self.app = app
        self.guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            caller = await run_in_threadpool(self._admit, connection)
        except (Denied, SettingsError) as error:
            await refusal(connection, error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)

    def _admit(self, connection: HTTPConnection) -> Caller | None:
        path, settings = connection.scope["path"], self.guard.settings
        self.guard.refuse_foreign_name(Headers(scope=connection.scope).get("host", ""))
        if path == "/login" or path.startswith("/static/"):
            return None
        caller = self.guard.caller(connection)
        if caller is not None and caller.role is Role.SENDER and not path.startswith(STOW):
            raise Denied(403, f"{caller.name} may store images and nothing else")
        if caller is not None or not settings.closed or path in OPEN:
            return caller
        if path == "/metrics" and not settings.require_token:
            if is_loopback(address_of(connection)):
                return None
        raise Denied(401, "log in, or send a token", {"WWW-Authenticate": "Bearer"})


def status_of(error: NodeError) -> tuple[int, dict[str, str]]:
    """Return the HTTP status of a refusal and the headers that belong to it."""
    if isinstance(error, Denied):
        return error.code, error.headers
    codes = {StoreUnavailable: 503, SettingsError: 503, UnknownJob: 404}
    return codes.get(type(error), 409), {}


def refusal(connection: HTTPConnection, error: NodeError) -> Response:
    """Return the answer to a refused request: JSON for machines, for people a way to log in."""
    if isinstance(error, SettingsError):  # the file of tokens: it names a path of this machine
        log.error("web.tokens_unusable", error=str(error))
        error = Denied(503, "the node's tokens cannot be read; its log says why")
    code, headers = status_of(error)
    if for_machines(connection):
        return JSONResponse({"error": str(error)}, status_code=code, headers=headers)
    if code == 401 and connection.scope["method"] in ("GET", "HEAD"):
        return RedirectResponse("/login", status_code=303)
    return PlainTextResponse(f"{error}\n", status_code=code, headers=headers)


def caller_of(request: Request) -> Caller | None:
    """Return who asks, as the gate has found."""
    caller: Caller | None = request.state.caller
    return caller


def require(request: Request, role: Role) -> Caller:
    """Return who asks if they have `role`.

    Raises
    ------
    Denied
        401 without a token, 403 without the role.
    """
    caller = caller_of(request)
    if caller is None:
        raise Denied(401, "log in, or send a token", {"WWW-Authenticate": "Bearer"})
    if not caller.may(role):
        has, needs = caller.role.name.lower(), role.name.lower()
        raise Denied(403, f"{caller.name} is {has}; this needs {needs}")
    return caller


def require_sender(request: Request, csrf: str | None) -> Caller:
    """Return who asks if they may store images: not who may only read; raises as `require`."""
    caller = require_change(request, Role.SENDER, csrf)
    if caller.role is Role.VIEWER:
        raise Denied(403, f"{caller.name} is viewer; this needs sender or operator")
    return caller


def require_change(request: Request, role: Role, csrf: str | None) -> Caller:
    """Return who asks if they have `role` and mean it.

    A browser sends its cookie whoever wrote the form; `csrf` shows that the form is ours.

    Raises
    ------
    Denied
        As `require`, and 403 for a form that is not ours.
    """
    caller = require(request, role)
    if caller.csrf is not None:
        refuse_foreign_form(request)
        if not hmac.compare_digest((csrf or "").encode(), caller.csrf.encode()):
            raise Denied(403, "this form is not of your session; reload the page and try again")
    return caller


def refuse_foreign_form(request: Request) -> None:
    """Raise Denied for a form that a browser sends from another site's page."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Denied(403, "this form comes from another site")
