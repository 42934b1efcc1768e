"""Who may use the page: named tokens with a role, kept as hashes in one file of the state folder.

A token is 256 random bits, shown once. The file holds its scrypt hash, has mode 0600 and is read
again when it has changed, so that a running node knows new and removed tokens at once.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from pathlib import Path

from dicom_node.errors import NodeError, SettingsError
from dicom_node.settings import Settings

FILE = "tokens.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
SHAPE = re.compile(r"dn_([0-9a-f]{12})_[0-9a-f]{64}")
# RFC 7914; 16 MiB. The secret is random, so that this is a second lock, not the only one.
SCRYPT = {"n": 1 << 14, "r": 8, "p": 1, "dklen": 32}


class Role(IntEnum):
    """What a token allows; each role may do what the ones below it may."""

    SENDER = 0  # store images by STOW-RS, and read nothing
    VIEWER = 1  # read
    OPERATOR = 2  # decide about jobs, switch sending
    ADMIN = 3  # see and remove tokens


class TokenRefused(NodeError):
    """A token cannot be made or removed."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One line of the file; nothing in it opens anything."""

    key: str = field(repr=False)  # the part of the token that says which line is meant
    name: str
    role: str
    created_at: str
    salt: str = field(repr=False)
    digest: str = field(repr=False)

    @property
    def level(self) -> Role:
        """Return the role as something that compares."""
        return Role[self.role.upper()]


NOBODY = Token(key="", name="", role="viewer", created_at="", salt="00" * 16, digest="")


def scrypt(text: str, salt: str) -> str:
    """Return the hash of a token as the file keeps it."""
    return hashlib.scrypt(text.encode(), salt=bytes.fromhex(salt), **SCRYPT).hex()


def quick(text: str) -> bytes:
    """Return by what a verified token is remembered in memory."""
    return hashlib.sha256(text.encode()).digest()


class TokenFile:
    """The tokens of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        """Use the file inside `state_dir`; it need not exist."""
        self.path = state_dir / FILE
        self._lock = threading.Lock()
        self._hashing = threading.Lock()  # one at a time: bounds the memory that guesses cost
        self._seen: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._verified: dict[bytes, Token] = {}

    def listing(self) -> tuple[Token, ...]:
        """Return the tokens as the file has them now; without a file there are none.

        Raises
        ------
        SettingsError
            If the file cannot be read, is open to others or is damaged.
        """
        with self._lock:
            seen = self._stamp()
            if seen != self._seen or seen is None:
                self._verified.clear()
                self._tokens, self._seen = (() if seen is None else read(self.path)), seen
            return self._tokens

    def recall(self, text: str) -> Token | None:
        """Return the token that `text` is if that was verified before; None: nobody knows.

        It is remembered by a digest until the file changes: scrypt at every request would cost
        more than the page.
        """
        self.listing()
        with self._lock:
            return self._verified.get(quick(text))

    def verify(self, text: str) -> Token | None:
        """Return the token that `text` is, or None; the time taken tells no part of it."""
        tokens, shape = self.listing(), SHAPE.fullmatch(text)
        found = next((one for one in tokens if shape and one.key == shape[1]), NOBODY)
        with self._hashing:
            digest = scrypt(text, found.salt)
        if not hmac.compare_digest(digest, found.digest):
            return None
        with self._lock:
            if found in self._tokens:  # it may have been removed meanwhile
                self._verified[quick(text)] = found
        return found

    def has(self, token: Token) -> bool:
        """Return whether a token that was verified before is still there, unchanged."""
        return token in self.listing()

    def add(self, name: str, role: Role, now: datetime) -> str:
        """Return a new token called `name`; it can never be shown again.

        Raises
        ------
        TokenRefused
            If the name is taken or impossible.
        """
        if not NAME.fullmatch(name):
            raise TokenRefused(
                f"a token's name has 1 to 64 letters, digits, '.', '_', '@' or '-', not {name!r}"
            )
        key, salt = secrets.token_hex(6), secrets.token_hex(16)
        text = f"dn_{key}_{secrets.token_hex(32)}"
        new = Token(
            key=key,
            name=name,
            role=role.name.lower(),
            created_at=now.isoformat(timespec="seconds"),
            salt=salt,
            digest=scrypt(text, salt),
        )
        with self._alone():
            tokens = self.listing()
            if any(one.name == name for one in tokens):
                raise TokenRefused(f"there is a token {name!r} already; remove it first")
            self._write([*tokens, new])
        return text

    def remove(self, name: str) -> None:
        """Take the token away; whoever uses it is out at once.

        Raises
        ------
        TokenRefused
            If there is none of that name.
        """
        with self._alone():
            tokens = self.listing()
            rest = [one for one in tokens if one.name != name]
            if len(rest) == len(tokens):
                raise TokenRefused(f"there is no token {name!r}")
            self._write(rest)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.path, error) from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, so that two changes at a time do not lose one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise unreadable(self.path.parent, error) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, tokens: Sequence[Token]) -> None:
        document = json.dumps({"tokens": [asdict(one) for one in tokens]}, indent=1)
        part = self.path.with_suffix(".part")
        try:
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                if os.geteuid() == 0:  # the service that owns the folder must be able to read it
                    owner = self.path.parent.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as error:
            raise TokenRefused(f"{self.path}: {os.strerror(error.errno or 0)}") from error


def read(path: Path) -> tuple[Token, ...]:
    """Return the tokens of the file at `path`, or raise SettingsError; it quotes nothing of it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError:
        raise damaged(path) from None
    if mode & 0o077:
        raise SettingsError(f"{path}: mode {mode:04o} opens the tokens to others; chmod 0600")
    try:
        tokens = tuple(Token(**one) for one in json.loads(text)["tokens"])
        return tuple(replace(one, role=one.level.name.lower()) for one in tokens)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(path) from None


def damaged(path: Path) -> SettingsError:
    """Return the error for a file that is not what we wrote."""
    return SettingsError(f"{path}: damaged; remove it and make new tokens (dicom-node token add)")


def unreadable(path: Path, error: OSError) -> SettingsError:
    """Return the error for a file that the system does not let us read."""
    return SettingsError(f"{path}: {os.strerror(error.errno or 0)}")


def check_start(settings: Settings) -> int:
    """Return how many tokens there are.

    Raises
    ------
    SettingsError
        If the page would answer beyond this machine and nobody could log in.
    """
    count = len(TokenFile(settings.node.state_dir).listing())
    if settings.web.beyond_loopback and not count:
        raise SettingsError(
            f"web.host = {json.dumps(settings.web.host)}: beyond this machine the page asks for a "
            f"token, and {settings.node.state_dir / FILE} has none; run "
            '`dicom-node token add NAME --role viewer`, or set web.host = "127.0.0.1"'
        )
    return count
