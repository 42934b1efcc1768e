"""A person with a real browser: log in, press a button, log out; a foreign form does nothing."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dicom_node.service import WebThread
from dicom_node.states import JobState
from dicom_node.web.app import Probe
from dicom_node.web.tokens import Role, TokenFile
from tests.dicom_node.nodes import queued_node

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
).split()
PATIENCE_S = 30.0


class BrowserError(Exception):
    """Chromium answered a command with an error."""


class Browser:
    """Chromium, told what to do through the DevTools protocol on two pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        (to_it, self._out), (self._in, from_it) = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_it, from_it)]
        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=lambda: [os.dup2(end, number) for number, end in enumerate(ends, 3)],
        )
        for end in (to_it, from_it, *ends):
            os.close(end)
        self._rest, self._number, self._session = b"", 0, ""
        self._attach()

    def _attach(self) -> None:
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in pages if one["type"] == "page")
        attach = {"targetId": target, "flatten": True}
        self._session = self.call("Target.attachToTarget", **attach)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to one command.

        Raises
        ------
        BrowserError
            If it is an error.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], PATIENCE_S)
            more = os.read(self._in, 1 << 16) if ready else b""
            assert more, "the browser does not answer"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def evaluate(self, script: str) -> Any:
        """Return the value of a script in the page."""
        return self.call("Runtime.evaluate", expression=script)["result"].get("value")

    def go(self, url: str) -> None:
        """Open a page."""
        self.call("Page.navigate", url=url)

    def wait(self, script: str) -> None:
        """Wait until the script is true in the page."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_true(script):
            assert time.monotonic() < deadline, self.evaluate("document.body.innerText")
            time.sleep(0.1)

    def _is_true(self, script: str) -> bool:
        """Return whether the script is true; a page that is just being replaced has no answer."""
        try:
            return bool(self.evaluate(script))
        except BrowserError:
            return False

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(timeout=10)
        os.close(self._out)
        os.close(self._in)


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    """Yield a browser, or skip."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("chromium is not installed")
    started = Browser(program, tmp_path / "profile")
    yield started
    started.close()


@pytest.fixture
def node(tmp_path):
    """Yield a closed node with a queued job, the address of its page, and an operator's token."""
    made = queued_node(tmp_path / "node", web={"port": 0, "require_token": True})
    file = TokenFile(made.settings.node.state_dir)
    token = file.add("alice", Role.OPERATOR, datetime.now(UTC))
    probe = Probe(
        scp_listening=lambda: True,
        scp_port=lambda: 11112,
        workers=lambda: 1,
        failing_tasks=list,
    )
    web = WebThread(made.settings, made.store, probe)
    web.start()
    yield made, web.address, token
    web.stop()
    made.store.close()


class ForeignSite(BaseHTTPRequestHandler):
    """A page elsewhere whose form sends itself to `target`."""

    target = ""

    def do_GET(self) -> None:
        """Answer with the form."""
        form = f'<form method="post" action="{self.target}"><input name="csrf" value="x"></form>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"{form}<script>document.forms[0].submit()</script>".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_person_logs_in_decides_and_logs_out(browser, node):
    made, address, token = node

    browser.go(address)
    browser.wait("document.title.startsWith('Log in') && document.readyState == 'complete'")
    browser.evaluate(f"document.querySelector('#token').value = '{token}'")
    browser.evaluate("document.querySelector('button').click()")
    browser.wait("document.body.innerText.includes('QUEUED')")
    assert browser.evaluate("document.cookie") == ""  # no script can read it
    browser.go(f"{address}jobs/1")
    browser.wait("!!document.querySelector('.buttons form') && document.readyState == 'complete'")
    browser.evaluate("document.querySelector('.buttons button').click()")
    browser.wait("document.body.innerText.includes('CANCELLED')")

    assert made.store.jobs.get(1).state is JobState.CANCELLED
    browser.evaluate("document.querySelector('header button').click()")
    browser.wait("document.title.startsWith('Log in')")
    browser.go(address)
    browser.wait("document.title.startsWith('Log in')")


def test_a_form_on_another_site_changes_nothing(browser, node):
    made, address, token = node
    browser.go(address)
    browser.wait("document.title.startsWith('Log in') && document.readyState == 'complete'")
    browser.evaluate(f"document.querySelector('#token').value = '{token}'")
    browser.evaluate("document.querySelector('button').click()")
    browser.wait("document.body.innerText.includes('QUEUED')")

    server = ThreadingHTTPServer(("127.0.0.1", 0), ForeignSite)
    ForeignSite.target = f"{address}api/jobs/1/cancel"
    Thread(target=server.serve_forever, daemon=True).start()
    browser.go(f"http://localhost:{server.server_port}/")
    browser.wait("document.body?.innerText.includes('log in, or send a token')")
    server.shutdown()
    server.server_close()

    assert made.store.jobs.get(1).state is JobState.QUEUED
