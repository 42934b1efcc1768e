"""HTTPS for the page: its certificate, checked before the node starts."""

import os
import ssl
import stat
from pathlib import Path

from dicom_node.errors import SettingsError
from dicom_node.network.tls import CIPHERS, NOT_FOR_OTHERS
from dicom_node.settings import WebSettings


def context(settings: WebSettings) -> ssl.SSLContext | None:
    """Return what serves HTTPS; None where no certificate is configured.

    Raises
    ------
    SettingsError
        If a file is missing, unreadable or no PEM, or the key is open to others or not its own.

    Source: RFC 9325 4.2, as for DICOM (`network.tls`), without a certificate of the client.
    """
    if not settings.certificate:
        return None
    check_file("certificate", settings.certificate)
    check_file("key", settings.key)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        made.load_cert_chain(settings.certificate, settings.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(
            f"web.certificate = {settings.certificate}: no certificate in PEM, or web.key is not "
            "its key without a password"
        ) from error
    return made


def check_file(name: str, path: str) -> None:
    """Raise SettingsError for a file that cannot be read, or a key that others can read."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise SettingsError(f"web.{name} = {path}: {os.strerror(error.errno or 0)}") from error
    if name == "key" and mode & NOT_FOR_OTHERS:
        text = f"mode {stat.S_IMODE(mode):04o} opens the key to others; chmod 0600 or 0640"
        raise SettingsError(f"web.{name} = {path}: {text}")
