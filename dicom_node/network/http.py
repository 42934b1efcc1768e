"""Talking to a DICOMweb server: its certificate, our credentials, what no answer means.

httpx limits the time of every single read: a server that drips would hold a thread for ever. Here
an exchange has a limit as a whole.
"""

import json
import os
import socket
import ssl
import stat
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import httpx

from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.tls import stamp
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings

JSON = "application/dicom+json"
SLOWEST_BYTES_PER_S = 1_000_000  # with which a server works through what it was sent
SLOWEST_LINE_BYTES_PER_S = 1000  # on the way there or back, beyond a time limit
MOST_ANSWER_BYTES = 2**26  # of an answer that is read whole
LOOK_S = 0.5  # at a limit that may have become shorter
SENT = "send_request_body.complete"
CONNECTED = ("connect_tcp.complete", "start_tls.complete")


class WebFault(AssociationFault):
    """There is no answer of the server that could be used; `fault` says why."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer that has come to its end."""

    status_code: int
    content: bytes


class Client:
    """Speaks with one server."""

    def __init__(self, client: httpx.Client, limit_s: float, bytes_sent: int) -> None:
        self._client = client
        self._limit_s = limit_s
        self._sending_s = bytes_sent / SLOWEST_LINE_BYTES_PER_S
        self._sockets: list[socket.socket] = []  # that were ever opened: they may be used again

    def ask(self, method: str, url: str, **said: Any) -> Reply:
        """Return the whole answer to a request; raise WebFault where it is too long or slow."""
        content = bytearray()
        with self.streamed(method, url, **said) as (reply, pieces):
            for piece in pieces:
                content += piece
                if len(content) > MOST_ANSWER_BYTES:
                    words = f"the answer has more than {MOST_ANSWER_BYTES} bytes"
                    raise WebFault(Fault.UNCONFIRMED, words, mid_way=True)
        return Reply(status_code=reply.status_code, content=bytes(content))

    @contextmanager
    def streamed(
        self, method: str, url: str, **said: Any
    ) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
        """Yield the head of an answer, and its body as it comes; raise WebFault if too slowly."""
        with Watch(self._limit_s, self._sending_s, self._sockets) as watch:
            try:
                extensions = {"trace": watch.on_event}
                with self._client.stream(method, url, extensions=extensions, **said) as reply:
                    yield reply, watch.over(reply.iter_bytes())
            except httpx.HTTPError:
                watch.refuse_expired()
                raise


class Watch:
    """Cuts the connections of an exchange that takes too long; a context manager."""

    def __init__(self, limit_s: float, sending_s: float, sockets: list[socket.socket]) -> None:
        self._limit_s = limit_s
        self._sockets = sockets
        self._until = time.monotonic() + limit_s + sending_s
        self._expired = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="web-watch", daemon=True)

    def on_event(self, name: str, info: Mapping[str, Any]) -> None:
        """Take note of a connection, and of the end of the request (httpx's `trace`)."""
        if name.endswith(CONNECTED):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
        elif name.endswith(SENT):
            self._until = time.monotonic() + self._limit_s

    def over(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces of the answer; each gives some more time for the next."""
        for piece in pieces:
            self._until += len(piece) / SLOWEST_LINE_BYTES_PER_S
            yield piece
        self.refuse_expired()  # a cut may look like the end of a body

    def refuse_expired(self) -> None:
        """Raise WebFault if the time was over."""
        if self._expired:
            raise WebFault(Fault.TIMED_OUT, "the answer comes too slowly", mid_way=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while (left_s := self._until - time.monotonic()) > 0:
            if self._done.wait(min(left_s, LOOK_S)):
                return
        self._expired = True
        for sock in self._sockets:
            with suppress(OSError):  # closed long ago
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS: no farewell


@contextmanager
def connected(peer: PeerSettings, timeouts: Timeouts, bytes_sent: int = 0) -> Iterator[Client]:
    """Yield a client of the server; everything that httpx raises inside becomes a WebFault.

    No proxy of the environment is used: images go where the configuration says, or nowhere.

    Parameters
    ----------
    bytes_sent
        How long the longest request is: a large one may take longer than one time limit.
    """
    limit_s = timeouts.reply_s + bytes_sent / SLOWEST_BYTES_PER_S
    try:
        with httpx.Client(
            headers=credentials(peer),
            verify=trust(peer),
            timeout=httpx.Timeout(limit_s, connect=timeouts.connect_s),
            trust_env=False,
            follow_redirects=False,
        ) as client:
            yield Client(client, limit_s, bytes_sent)
    except httpx.ConnectTimeout as error:
        raise WebFault(Fault.UNREACHABLE, peer.url) from error
    except httpx.ConnectError as error:  # its words name the certificate's fault, for example
        raise WebFault(Fault.UNREACHABLE, f"{peer.url}: {error}") from error
    except httpx.TimeoutException as error:
        raise WebFault(Fault.TIMED_OUT, mid_way=True) from error
    except httpx.InvalidURL as error:  # which is no HTTPError
        raise WebFault(Fault.UNREACHABLE, f"{peer.url}: no URL that can be called") from error
    except httpx.HTTPError as error:
        raise WebFault(Fault.ABORTED, type(error).__name__, mid_way=True) from error


def document_in(content: bytes) -> Any:
    """Return what JSON says; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def data_set_in(content: bytes) -> Mapping[str, Any]:
    """Return the one data set of an answer in DICOM JSON, an empty one where there is none."""
    found = document_in(content)
    document = found[0] if isinstance(found, list) and found else found
    return document if isinstance(document, dict) else {}


def trust(peer: PeerSettings) -> ssl.SSLContext:
    """Return whose certificates are believed: those of the peer's CA, or the system's.

    Raises
    ------
    WebFault
        If the CA cannot be read.
    """
    system = ssl.get_default_verify_paths()
    paths = (peer.ca,) if peer.ca else (system.cafile, system.capath)
    try:
        return context_of(peer.ca, tuple(stamp(Path(path)) for path in paths if path))
    except (OSError, ssl.SSLError) as error:
        raise WebFault(Fault.UNREACHABLE, f"the CA {peer.ca} cannot be used") from error


@lru_cache(maxsize=64)
def context_of(ca: str, stamps: tuple[tuple[int, int, int] | None, ...]) -> ssl.SSLContext:
    """Return what believes a CA, or those of the system, as long as their files stay the same.

    To read those of the system takes longer than most requests.
    """
    if ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def credentials(peer: PeerSettings) -> dict[str, str]:
    """Return the Authorization header for the server; none where it wants none.

    Raises
    ------
    WebFault
        If the secret cannot be read, or is none.
    """
    if peer.auth == "none":
        return {}
    kind, _, where = peer.secret.partition(":")
    secret = os.environ.get(where, "").strip() if kind == "env" else secret_in(Path(where))
    if not secret or not secret.isascii() or not secret.isprintable():
        raise WebFault(Fault.NO_SECRET, f"{peer.secret} holds none")
    if peer.auth == "bearer":
        return {"Authorization": f"Bearer {secret}"}
    return {"Authorization": f"Basic {b64encode(secret.encode()).decode()}"}


def secret_in(path: Path) -> str:
    """Return the secret in a file; raise WebFault where it cannot be read, or everybody can."""
    try:
        if path.stat().st_mode & stat.S_IROTH:
            raise WebFault(Fault.NO_SECRET, f"everybody can read {path}: chmod o-r")
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WebFault(Fault.NO_SECRET, f"{path} cannot be read") from error
