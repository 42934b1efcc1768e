"""DICOM over TLS: certificates, contexts, and what is wrong with them.

Source: PS3.15 B.12, "BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile" (2024e), the
successor of B.9 to B.11. Both sides show a certificate; below TLS 1.2 there is nothing.
"""

import os
import socket
import ssl
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dicom_node import telemetry
from dicom_node.errors import SettingsError
from dicom_node.settings import PeerSettings, TlsSettings

# RFC 9325 4.2 for TLS 1.2; the suites of TLS 1.3 are all good.
CIPHERS = "ECDHE+AESGCM"
NOT_FOR_OTHERS = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP

log = telemetry.get_logger()


class Credentials:
    """Our certificate and whom we trust; read again when one of the files has changed."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files.

        Raises
        ------
        SettingsError
            If one of them cannot be used; the message names it.
        """
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._server, self._client = contexts(settings)

    def server(self) -> ssl.SSLContext:
        """Return the context for a peer that calls."""
        self.refresh()
        return self._server

    def client(self) -> ssl.SSLContext:
        """Return the context for a peer that we call."""
        self.refresh()
        return self._client

    def refresh(self) -> None:
        """Read the files again if they have changed; keep what we have if they are no use.

        Associations that are established go on: they have their keys already.
        """
        with self._lock:
            now = self._signature()
            if now == self._seen:
                return
            self._seen = now
            try:
                self._server, self._client = contexts(self._settings)
            except SettingsError as error:
                log.error("tls.kept_old", reason=str(error))
            else:
                log.info("tls.reloaded", path=self._settings.certificate)

    def _signature(self) -> tuple[Any, ...]:
        return tuple(stamp(Path(path)) for path in _paths(self._settings).values())


def credentials(settings: TlsSettings) -> Credentials | None:
    """Return the certificates of the configuration; None where there is no TLS."""
    return Credentials(settings) if settings.enabled else None


def contexts(settings: TlsSettings) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts for peers that call and for peers that we call.

    Raises
    ------
    SettingsError
        If a file is missing, unreadable, no PEM, or the key is not the certificate's.
    """
    for name, path in _paths(settings).items():
        _check_file(name, Path(path))
    server, client = (
        _context(purpose, settings)
        for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    server.verify_mode = ssl.CERT_REQUIRED
    server.num_tickets = 0  # a resumed session would outlive the certificate it began with
    return server, client


def _context(purpose: ssl._SSLMethod, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    _load_authorities(context, "ca", settings.ca)
    # Into a context of its own: only to tell a bad certificate from a bad key.
    _load_authorities(ssl.SSLContext(purpose), "certificate", settings.certificate)
    try:
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            text = f"tls.key = {settings.key}: not the key of {settings.certificate}"
        else:
            text = f"tls.key = {settings.key}: no private key in PEM without a password"
        raise SettingsError(text) from error
    return context


def _load_authorities(context: ssl.SSLContext, name: str, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"tls.{name} = {path}: no certificate in PEM") from error


def _check_file(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"tls.{name} = {path}: {os.strerror(error.errno or 0)}") from error
    if name == "key" and mode & NOT_FOR_OTHERS:
        text = f"mode {stat.S_IMODE(mode):04o} opens the key to others; chmod 0600 or 0640"
        raise SettingsError(f"tls.{name} = {path}: {text}")


def _paths(settings: TlsSettings) -> dict[str, str]:
    return {"certificate": settings.certificate, "key": settings.key, "ca": settings.ca}


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def expected_name(peer: PeerSettings) -> str:
    """Return the name that must stand in the certificate of a peer that we call."""
    return peer.tls_name or peer.host


def names_in(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the host names and addresses of a peer's certificate, in lower case.

    The common name counts only where there is no subject alternative name (RFC 9525).
    """
    found = dict(certificate or {})
    names = {str(value).lower() for _, value in found.get("subjectAltName", ())}
    if names:
        return frozenset(names)
    pairs = (pair for part in found.get("subject", ()) for pair in part)
    return frozenset(str(value).lower() for key, value in pairs if key == "commonName")


def diagnose(address: tuple[str, int], tls: Credentials, name: str, limit_s: float) -> str:
    """Return why a handshake with `address` fails, for an administrator; "" if it does not.

    pynetdicom tells nobody; so the handshake is tried once more.
    """
    try:
        with socket.create_connection(address, limit_s) as plain:
            with tls.client().wrap_socket(plain, server_hostname=name):
                return ""
    except ssl.SSLError as error:
        return f"TLS with {address[0]}:{address[1]}: {words_of(error)}"
    except OSError:
        return ""


def kind_of(error: OSError) -> str:
    """Return what the metric calls a handshake that failed: one of a few words."""
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "TLS certificate"
    if reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER", "HTTPS_PROXY_REQUEST"):
        return "plain to TLS"
    kinds = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "TLS no certificate",
        "UNSUPPORTED_PROTOCOL": "TLS version",
        "NO_SHARED_CIPHER": "TLS cipher",
    }
    return kinds.get(reason, "TLS handshake")


def words_of(error: OSError) -> str:
    """Return why a handshake failed, for an administrator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message or "the certificate cannot be verified"
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else type(error).__name__
