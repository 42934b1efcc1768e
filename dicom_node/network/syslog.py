"""Syslog for audit messages: RFC 5424 lines, counted octets, over TCP (RFC 6587) or TLS (RFC 5425).

Source: PS3.15 A.6. Syslog answers nothing. So a batch gets a connection of its own, and counts as
handed over when the collector has read to its end, or its system has acknowledged every byte.
"""

import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dicom_node.network.tls import Credentials

SECURITY, WARNING, NOTICE = 10, 4, 5  # facility "security/authorization", severities
VERDICT_S = 1.0
READING_S = 2.0  # for the collector to read to the end
BOM = b"\xef\xbb\xbf"  # RFC 5424 6.4: UTF-8 says so


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Where to; with `tls` it must show a certificate for `host`."""

    host: str
    port: int
    tls: Credentials | None = None
    timeout_s: float = 10.0


def line(number: int, at: datetime, severity: int, body: bytes, host: str) -> bytes:
    """Return one message with its length before it (RFC 5425 4.3).

    `number` is that of the audit row: a collector can tell what it got twice.
    """
    moment = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = (
        f"<{SECURITY * 8 + severity}>1 {moment} {host} dicom-node - DICOM+RFC3881 "
        f'[meta sequenceId="{number}"] '
    )
    whole = header.encode("ascii", "replace") + BOM + body
    return str(len(whole)).encode() + b" " + whole


def hand_over(lines: Sequence[bytes], to: Collector) -> None:
    """Return when the collector has every line.

    Raises
    ------
    OSError
        If that is not sure: send them again.
    """
    with connect(to) as sock:
        if isinstance(sock, ssl.SSLSocket):
            await_verdict(sock)
        sock.settimeout(to.timeout_s)
        sock.sendall(b"".join(lines))
        finish(sock)


def connect(to: Collector) -> socket.socket:
    """Return a connection to the collector; with TLS the certificates are checked."""
    sock = socket.create_connection((to.host, to.port), timeout=to.timeout_s)
    return sock if to.tls is None else to.tls.client().wrap_socket(sock, server_hostname=to.host)


def await_verdict(sock: socket.socket) -> None:
    """Raise OSError when the collector turns our certificate down.

    In TLS 1.3 it does so when our side of the handshake is over, and what we had sent by then
    would be lost. A collector that takes us says nothing.
    """
    sock.settimeout(VERDICT_S)
    try:
        said = sock.recv(1)
    except TimeoutError:
        return
    if not said:
        raise ConnectionError("the collector closed at once")


def finish(sock: socket.socket) -> None:
    """End the stream and wait until the collector ends it, too."""
    sock.settimeout(READING_S)
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.unwrap()
        else:
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    except ssl.SSLEOFError:
        return  # the end without the last word of TLS: many do that, and have read all the same
    except TimeoutError:
        if unacknowledged(sock):
            raise


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the other system has not acknowledged."""
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
