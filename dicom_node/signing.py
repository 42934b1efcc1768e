"""The node's own signature on what it derives: an Ed25519 key that is made at the first start.

Who has the public key can tell a file of this node from a forged or changed one, without the node.
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dicom_node.errors import SettingsError

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
    mode = path.stat().st_mode
    if mode & FOR_OTHERS:
        raise SettingsError(f"{path}: mode {stat.S_IMODE(mode):04o} opens the key; chmod 0600")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} holds no private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} holds no Ed25519 key")
    return key


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
