"""Who gets what from a running server: roles, log-in, forms, REST, HTTPS; no secret in a log."""

import io
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from dicom_node import telemetry
from dicom_node.errors import SettingsError
from dicom_node.service import WebThread
from dicom_node.states import JobState
from dicom_node.web.app import Probe
from dicom_node.web.tokens import Role, TokenFile
from dicom_node.worker import Worker
from tests.certificates import Authority
from tests.dicom_node.nodes import QueuedNode, copying_engine, queued_node

PROBE = Probe(
    scp_listening=lambda: True,
    scp_port=lambda: 11112,
    workers=lambda: 1,
    failing_tasks=list,
)
READING = ("/", "/jobs/1", "/api/jobs", "/api/jobs/1", "/api/send")
CHANGING = ("/api/jobs/1/cancel", "/api/jobs/1/release", "/api/jobs/1/requeue", "/api/send/off")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running server, and a token for each role."""

    node: QueuedNode
    url: str
    tokens: dict[str, str]

    def client(self, role: str | None = None, **options: Any) -> httpx.Client:
        """Return a client, with the header of a role."""
        if role:
            options["headers"] = {"Authorization": f"Bearer {self.tokens[role]}"}
        return httpx.Client(base_url=self.url, trust_env=False, **options)

    @contextmanager
    def browser(self, role: str) -> Iterator[httpx.Client]:
        """Yield a client that has logged in at the form."""
        with self.client() as client:
            answer = client.post("/login", data={"token": self.tokens[role]})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            yield client

    def state(self) -> JobState:
        """Return the state of the only job."""
        return self.node.store.jobs.get(1).state

    def events(self) -> list[tuple[str, str]]:
        """Return what people asked for, and who."""
        rows = self.node.store.audit.listing()
        return [(row.event, row.fields["name"]) for row in rows if row.event.startswith("web.")]


@contextmanager
def site(folder: Path, *, passed: bool | None = None, **web: Any) -> Iterator[Site]:
    """Yield a running server; with `passed`, after a worker has computed."""
    node = queued_node(folder, web={"port": 0} | web)
    if passed is not None:
        Worker(node.settings, node.store, engine=copying_engine(passed=passed)).run_once()
    file = TokenFile(node.settings.node.state_dir)
    now = datetime.now(UTC)
    names = {role.name.lower(): role for role in Role}
    tokens = {name: file.add(name, role, now) for name, role in names.items()}
    thread = WebThread(node.settings, node.store, PROBE)
    thread.start()
    try:
        address = thread.address.replace("0.0.0.0", "127.0.0.1")
        yield Site(node=node, url=address, tokens=tokens)
    finally:
        thread.stop()
        node.store.close()


@pytest.fixture
def closed(tmp_path):
    with site(tmp_path, require_token=True) as running:
        yield running


@pytest.fixture
def open_site(tmp_path):
    with site(tmp_path) as running:
        yield running


def csrf_of(page: str) -> str:
    return re.search(r'name="csrf" value="([^"]+)"', page)[1]


def test_without_a_token_a_closed_page_answers_nobody(closed):
    with closed.client() as nobody:
        for path in ("/", "/jobs/1", "/jobs/99", "/nowhere"):
            answer = nobody.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        for path in ("/api/jobs", "/api/jobs/1", "/api/nowhere", "/api/tokens", "/metrics"):
            answer = nobody.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json() == {"error": "log in, or send a token"}
        for path in (*CHANGING, "/jobs/1/cancel", "/send/off", "/logout"):
            assert nobody.post(path).status_code == 401
        login = nobody.get("/login")

    assert login.status_code == 200
    assert "SRNODE" not in login.text and "t1_mpr" not in login.text
    assert closed.state() is JobState.QUEUED


def test_health_is_open_and_says_no_more_than_it_must(closed):
    with closed.client() as nobody, closed.client("viewer") as viewer:
        assert nobody.get("/healthz").json() == {"ok": True}
        assert viewer.get("/healthz").json()["database"] == "ok"


def test_a_viewer_reads_everything_and_changes_nothing(closed):
    with closed.client("viewer") as viewer:
        for path in (*READING, "/metrics"):
            assert viewer.get(path).status_code == 200
        for path in CHANGING:
            answer = viewer.post(path)
            assert answer.status_code == 403
            assert "this needs operator" in answer.json()["error"]
        assert viewer.get("/api/tokens").status_code == 403

    assert closed.state() is JobState.QUEUED
    assert closed.events() == []


def test_an_operator_decides_by_rest_and_the_trail_has_the_name(closed):
    with closed.client("operator") as operator:
        cancelled = operator.post("/api/jobs/1/cancel").json()
        again = operator.post("/api/jobs/1/cancel")
        requeued = operator.post("/api/jobs/1/requeue").json()
        off = operator.post("/api/send/off").json()
        job = operator.get("/api/jobs/1").json()
        missing = operator.post("/api/jobs/99/cancel")

    assert cancelled == {"job_id": 1, "state": "CANCELLED"}
    assert again.status_code == 409 and "not allowed in state CANCELLED" in again.json()["error"]
    assert requeued == {"job_id": 1, "state": "QUEUED"}
    assert off == {"sending": False, "shadow": False}
    assert closed.node.store.switches.get("sending", True) is False
    assert missing.status_code == 404 and "there is no job 99" in missing.json()["error"]
    assert (job["state"], job["instances"]) == ("QUEUED", len(closed.node.paths))
    names = ["web.cancel", "web.cancel", "web.cancel", "web.requeue", "web.send_off"]
    assert closed.events() == [(name, "operator") for name in names]
    assert [one["outcome"] for one in job["events"] if "outcome" in one] == ["refused"]


def test_a_held_result_is_released_by_rest_as_by_the_command_line(tmp_path):
    with site(tmp_path, passed=False) as held, held.client("operator") as operator:
        answer = operator.post("/api/jobs/1/release")

        assert answer.json() == {"job_id": 1, "state": "DERIVED"}


def test_an_admin_removes_a_token_and_its_sessions(closed):
    with closed.browser("operator") as operator, closed.client("admin") as admin:
        assert operator.get("/").status_code == 200
        listed = admin.get("/api/tokens")
        admin.post("/api/tokens/operator/remove")
        assert admin.post("/api/tokens/operator/remove").status_code == 404

        assert operator.get("/").headers["location"] == "/login"
    with closed.client("operator") as gone:
        assert gone.get("/api/jobs").status_code == 401
    names = {one["name"] for one in listed.json()["tokens"]}
    assert names == {"sender", "viewer", "operator", "admin"}
    assert {name for one in listed.json()["tokens"] for name in one} == {
        "name",
        "role",
        "created_at",
    }


def test_on_loopback_everybody_reads_and_only_a_token_changes(open_site):
    with open_site.client() as nobody:
        for path in (*READING, "/metrics"):
            assert nobody.get(path).status_code == 200
        for path in (*CHANGING, "/jobs/1/cancel", "/send/off"):
            assert nobody.post(path).status_code == 401
        assert "<button" not in nobody.get("/jobs/1").text

    assert open_site.state() is JobState.QUEUED


def test_beyond_loopback_the_page_is_closed_and_metrics_stay_for_this_machine(tmp_path):
    with site(tmp_path, host="0.0.0.0") as wide, wide.client() as nobody:
        assert nobody.get("/").headers["location"] == "/login"
        assert nobody.get("/metrics").status_code == 200
        elsewhere = nobody.get("/metrics", headers={"X-Forwarded-For": "192.0.2.9"})

        assert elsewhere.status_code == 401


def test_the_buttons_work_with_the_form_of_the_session_alone(closed):
    with closed.browser("operator") as operator:
        page = operator.get("/jobs/1").text
        csrf = csrf_of(page)
        for data in ({}, {"csrf": "x"}, {"csrf": csrf[:-1]}):
            assert operator.post("/jobs/1/cancel", data=data).status_code == 403
        foreign = {"Origin": "https://evil.example"}
        for origin in (foreign, {"Origin": "null"}):
            answer = operator.post("/jobs/1/cancel", data={"csrf": csrf}, headers=origin)
            assert answer.status_code == 403
        assert operator.post("/api/jobs/1/cancel").status_code == 403
        assert closed.state() is JobState.QUEUED

        done = operator.post(
            "/jobs/1/cancel", data={"csrf": csrf}, headers={"Origin": closed.url.rstrip("/")}
        )
        assert (done.status_code, done.headers["location"]) == (303, "/jobs/1")
        told = operator.get("/jobs/1").text
        refused = operator.post("/jobs/1/release", data={"csrf": csrf})
        unknown = operator.post("/jobs/1/explode", data={"csrf": csrf})

    assert closed.state() is JobState.CANCELLED
    assert "by operator" in told and ">Requeue</button>" in told
    assert refused.status_code == 409 and "not HELD" in refused.text
    assert unknown.status_code == 404


def test_sending_is_switched_at_a_button(closed):
    with closed.browser("operator") as operator:
        page = operator.get("/").text
        assert "Switch sending off" in page
        operator.post("/send/off", data={"csrf": csrf_of(page)})

        assert "Switch sending on" in operator.get("/").text
    with closed.browser("viewer") as viewer:
        assert "Switch sending" not in viewer.get("/").text


def test_the_cookie_is_for_this_site_alone_and_log_out_ends_it(closed):
    with closed.client() as client:
        answer = client.post("/login", data={"token": closed.tokens["viewer"]})
        cookie = answer.headers["set-cookie"].lower()
        value = client.cookies["dicom_node"]
        client.post("/logout", data={"csrf": csrf_of(client.get("/").text)})
    with closed.client(cookies={"dicom_node": value}) as thief:
        assert thief.get("/").headers["location"] == "/login"

    assert "httponly" in cookie and "samesite=strict" in cookie and "max-age=28800" in cookie
    assert "secure" not in cookie  # over plain HTTP a browser would not send it back


def test_a_session_ends_after_its_time(tmp_path):
    with site(tmp_path, require_token=True, session_s=0.3) as short:
        with short.browser("viewer") as viewer:
            kept = {"Cookie": f"dicom_node={viewer.cookies['dicom_node']}"}
        time.sleep(0.4)
        with short.client(headers=kept) as viewer:
            assert viewer.get("/").headers["location"] == "/login"


def test_who_guesses_is_stopped_and_who_is_in_goes_on(closed):
    with closed.client() as guesser, closed.browser("viewer") as inside:
        with closed.client("operator") as known:
            assert known.get("/api/jobs").status_code == 200
            codes = [guesser.post("/login", data={"token": "x"}).status_code for _ in range(12)]
            page = guesser.post("/login", data={"token": closed.tokens["admin"]})
            rest = guesser.get("/api/jobs", headers={"Authorization": "Bearer x"})

            assert codes == [401] * 10 + [429] * 2
            assert (page.status_code, rest.status_code) == (429, 429)
            assert "too many failed attempts" in page.text
            assert 0 < int(rest.headers["retry-after"]) <= 301
            assert inside.get("/").status_code == 200
            assert known.get("/api/jobs").status_code == 200


@pytest.mark.parametrize("header", ["Basic dTpw", "Bearer", "x"])
def test_a_header_that_is_no_token_is_told_so(open_site, header):
    with open_site.client() as client:
        assert client.get("/api/jobs", headers={"Authorization": header}).status_code == 401


def test_a_foreign_name_is_refused_everywhere(open_site):
    with open_site.client() as client:
        for path in ("/", "/healthz", "/login", "/static/node.css", "/api/jobs"):
            assert client.get(path, headers={"Host": "evil.example"}).status_code == 421
        # the path is the one that is asked for, whatever the name pretends
        for host in ("127.0.0.1/login?", "127.0.0.1/healthz#"):
            assert client.post("/api/send/off", headers={"Host": host}).status_code in (400, 401)


def test_a_closed_page_stays_closed_whatever_path_the_name_pretends(closed):
    with closed.client() as client:
        for host in ("127.0.0.1/login?", "127.0.0.1/static/", "127.0.0.1/healthz#"):
            answer = client.get("/api/jobs", headers={"Host": host})
            assert answer.status_code in (400, 401, 421)


def test_a_form_that_is_too_long_is_cut(closed):
    with closed.client() as client:
        assert client.post("/login", content=b"token=" + b"x" * 10_000).status_code == 413


STORING = 'multipart/related; type="application/dicom"; boundary=xyz'


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/login", "application/x-www-form-urlencoded"), ("/dicom-web/studies", STORING)],
)
def test_a_request_that_ends_in_the_middle_is_no_error_of_ours(tmp_path, path, kind):
    lines = io.StringIO()
    telemetry.configure_logging(lines)
    with site(tmp_path, stow=True) as running:
        host, port = running.url.removeprefix("http://").rstrip("/").split(":")
        head = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Type: {kind}"]
        head += [f"Authorization: Bearer {running.tokens['sender']}", "Content-Length: 100"]
        with socket.create_connection((host, int(port)), timeout=20) as caller:
            caller.sendall("\r\n".join([*head, "", "--xyz"]).encode())
        with running.client() as client:  # whoever comes next waits for the loop's next turn
            for _ in range(3):
                assert client.get("/healthz").status_code in (200, 503)
    structlog.reset_defaults()

    assert "ClientDisconnect" not in lines.getvalue()


def test_pages_of_people_who_are_in_have_the_security_headers(closed):
    with closed.browser("admin") as admin:
        for path in ("/", "/jobs/1", "/login", "/api/jobs", "/api/nowhere", "/metrics"):
            headers = admin.get(path).headers
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "script" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["cache-control"] == "no-store"
        assert "<script" not in admin.get("/").text + admin.get("/login").text


def test_https_serves_a_secure_cookie_and_nothing_in_the_clear(tmp_path):
    issued = Authority(tmp_path / "ca").issue("node")
    web = {"certificate": str(issued.certificate), "key": str(issued.key)}
    trust = ssl.create_default_context(cafile=str(issued.ca))

    with site(tmp_path, require_token=True, **web) as secure:
        assert secure.url.startswith("https://")
        with secure.client(verify=trust) as client:
            answer = client.post("/login", data={"token": secure.tokens["viewer"]})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-dicom_node=") and "Secure" in cookie
            assert client.get("/").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(secure.url.replace("https", "http"), trust_env=False)


def test_a_certificate_that_is_no_use_stops_the_start(tmp_path):
    issued = Authority(tmp_path / "ca").issue("node")
    issued.key.chmod(0o644)
    web = {"certificate": str(issued.certificate), "key": str(issued.key)}

    with pytest.raises(SettingsError, match=r"web\.key = .*mode 0644 opens the key to others"):
        with site(tmp_path, **web):
            pass


def test_a_damaged_file_of_tokens_lets_nobody_in_and_is_not_shown(closed):
    with closed.browser("viewer") as viewer, closed.client("admin") as admin:
        path = closed.node.settings.node.state_dir / "tokens.json"
        path.write_text('{"tokens": "SECRET"}')

        attempt = {"data": {"token": closed.tokens["viewer"]}}
        for answer in (viewer.get("/"), admin.get("/api/jobs"), viewer.post("/login", **attempt)):
            assert answer.status_code == 503
            assert "SECRET" not in answer.text and str(path) not in answer.text


def test_no_secret_reaches_the_log_the_trail_or_the_configuration(tmp_path):
    lines = io.StringIO()
    telemetry.configure_logging(lines)
    with site(tmp_path, require_token=True) as running:
        text = (running.node.settings.node.state_dir / "tokens.json").read_text()
        secrets = [*running.tokens.values(), *re.findall(r'"(?:digest|salt)": "(\w+)"', text)]
        with running.browser("operator") as operator:
            secrets += [operator.cookies["dicom_node"], csrf_of(operator.get("/").text)]
            operator.post("/jobs/1/cancel", data={"csrf": secrets[-1]})
            operator.post("/jobs/1/release", data={"csrf": secrets[-1]})
        with running.client() as client:
            almost = running.tokens["admin"][:-1] + "x"
            secrets.append(almost)
            client.post("/login", data={"token": almost})
            client.get(f"/{running.tokens['admin']}", headers={"Authorization": f"x {almost}"})
        said = lines.getvalue() + str(running.node.store.audit.listing())
        said += running.node.settings.model_dump_json() + repr(running.node.settings)
    structlog.reset_defaults()

    assert "web.cancel" in said and "web.refused" in said and "web.login" in said
    assert [secret for secret in secrets if secret in said] == []
