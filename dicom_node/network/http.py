"""Talking to a DICOMweb server: its certificate, our credentials, what no answer means."""

import json
import os
import ssl
import stat
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings

JSON = "application/dicom+json"
SLOWEST_BYTES_PER_S = 1_000_000  # with which a server works through what it was sent


class WebFault(AssociationFault):
    """There is no answer of the server that could be used; `fault` says why."""


@contextmanager
def connected(
    peer: PeerSettings, timeouts: Timeouts, bytes_sent: int = 0
) -> Iterator[httpx.Client]:
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
            yield client
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


def trust(peer: PeerSettings) -> ssl.SSLContext:
    """Return whose certificates are believed: those of the peer's CA, or the system's.

    Raises
    ------
    WebFault
        If the CA cannot be read.
    """
    context = ssl.create_default_context()
    if peer.ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(peer.ca)
        except (OSError, ssl.SSLError) as error:
            raise WebFault(Fault.UNREACHABLE, f"the CA {peer.ca} cannot be used") from error
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
