"""A small HTTP server on loopback: answers what a test says, remembers what it was asked."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Told:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WebServer:
    """A running server: its address, and every request in the order of arrival."""

    url: str
    asked: list[Asked]


@contextmanager
def web_server(
    answer: Callable[[Asked], Told], tls: ssl.SSLContext | None = None
) -> Iterator[WebServer]:
    """Yield a server that answers with what `answer` returns."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            request = Asked(
                method=self.command,
                path=parts.path,
                query=parse_qs(parts.query),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(int(self.headers.get("content-length", 0))),
            )
            asked.append(request)
            told = answer(request)
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    scheme = "https" if tls else "http"
    try:
        yield WebServer(url=f"{scheme}://127.0.0.1:{server.server_port}/web", asked=asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def raw_server(head: bytes, drip: bytes) -> Iterator[str]:
    """Yield the address of a server that says `head` to everybody, and `drip` again and again."""
    over = threading.Event()

    def speak(line: socket.socket) -> None:
        with line, suppress(OSError):  # until the other side has had enough
            line.sendall(head)
            while not over.wait(0.1):
                line.sendall(drip)

    def listen() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=speak, args=server.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/web"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
