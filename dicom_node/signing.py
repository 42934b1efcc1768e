"""The node's signatures on what it derives.

The first is its own, with an Ed25519 key that is made at the first start: who has the public key
can tell a file of this node from a forged or changed one, without the node. The second is a DICOM
digital signature, where the site gives the node a certificate for it.
"""

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from dicom_node.errors import CertificateNotValid, SettingsError
from dicom_node.settings import SigningSettings

FILE = "signing.key"
FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def own_key(state_dir: Path) -> Ed25519PrivateKey:
    """Return the node's key; the first who asks makes it, and every process gets the same one.

    Raises
    ------
    SettingsError
        If the file is open to others, or holds no Ed25519 key.
    """
    path = state_dir / FILE
    if not path.exists():
        _make(path)
    key = _private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} holds no Ed25519 key")
    return key


def _private_key(path: Path) -> object:
    mode = path.stat().st_mode
    if mode & FOR_OTHERS:
        raise SettingsError(f"{path}: mode {stat.S_IMODE(mode):04o} opens the key; chmod 0600")
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} holds no private key: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certificate, and what makes RSA signatures with SHA-256 of it (PKCS #1 v1.5)."""

    certificate: bytes  # DER
    sign: Callable[[bytes], bytes]
    valid_from: datetime  # a signature that says it is older is none


def certified(settings: SigningSettings, now: datetime) -> Certified | None:
    """Return what DICOM digital signatures are made with; None where the site wants none.

    Raises
    ------
    SettingsError
        If a file is missing, holds something else or is open to others, or the key is not the
        certificate's.
    CertificateNotValid
        If the certificate is not valid now.
    """
    if not settings.enabled:
        return None
    paths = settings.certificate, settings.key
    try:
        certificate, key = _pair(*paths, tuple(map(_stamp, paths)))
    except OSError as error:
        raise SettingsError(f"signing: {error.filename}: {error.strerror}") from error
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        valid = (
            f"from {certificate.not_valid_before_utc:%Y-%m-%d} "
            f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
        )
        raise CertificateNotValid(f"{settings.certificate} is valid {valid}, not now")
    return Certified(
        certificate=certificate.public_bytes(serialization.Encoding.DER),
        sign=lambda content: key.sign(content, padding.PKCS1v15(), hashes.SHA256()),
        valid_from=certificate.not_valid_before_utc,
    )


def _stamp(path: str) -> tuple[int, ...]:
    """Return what changes with a file and its mode."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


@lru_cache(maxsize=4)
def _pair(
    certificate_path: str, key_path: str, stamps: tuple[tuple[int, ...], ...]
) -> tuple[x509.Certificate, RSAPrivateKey]:
    """Return certificate and key, read again when one of the files has changed.

    An idle worker asks every second, and to check an RSA key takes a tenth of one.
    """
    key = _private_key(Path(key_path))
    try:
        certificate = x509.load_pem_x509_certificate(Path(certificate_path).read_bytes())
    except ValueError as error:
        raise SettingsError(f"{certificate_path} holds no certificate: {error}") from None
    if not isinstance(key, RSAPrivateKey):
        raise SettingsError(f"{key_path} holds no RSA key")
    if key.public_key() != certificate.public_key():
        raise SettingsError(f"{key_path} is not the key of {certificate_path}")
    return certificate, key


def _make(path: Path) -> None:
    """Write a new key, whole or not at all; somebody else's that came first stays."""
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(part, path)
    part.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public key as 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def public_key(text: str) -> str:
    """Return a public key as 64 digits; `text` is that, or the path of a file with it, or of a PEM.

    Raises
    ------
    SettingsError
        If it is none of these.
    """
    with suppress(OSError, ValueError, UnicodeDecodeError):
        content = Path(text).read_bytes()
        if content.startswith(b"-----BEGIN"):
            found = serialization.load_pem_public_key(content)
            if isinstance(found, Ed25519PublicKey):
                return found.public_bytes_raw().hex()
        text = content.decode("ascii").strip()
    with suppress(ValueError):
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text)).public_bytes_raw().hex()
    raise SettingsError(f"{text[:80]!r} is no Ed25519 public key: 64 hexadecimal digits or a PEM")


def is_signed_by(key: str, signature: bytes, statement: bytes) -> bool:
    """Return whether the owner of the public key signed the statement."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, statement)
    except InvalidSignature:
        return False
    return True
