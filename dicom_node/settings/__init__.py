"""The configuration: what `config/node.toml` may say, read and checked.

Unknown keys and impossible values refuse to start and say which. The keys stand in `sections`.
"""

import difflib
import json
import os
import sysconfig
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from dicom_node.errors import SettingsError, UnknownPeer
from dicom_node.order import LOW, NORMAL, Order, Quota
from dicom_node.rules import DEFAULT_RULES, RETURN_TO_SENDER
from dicom_node.settings.sections import (
    AssemblySettings,
    AuditSettings,
    CommitmentSettings,
    EngineSettings,
    FilesSettings,
    LimitSettings,
    NodeSettings,
    OrderSettings,
    PeerSettings,
    PullSettings,
    RetentionSettings,
    RuleSettings,
    Section,
    SendingSettings,
    SigningSettings,
    TlsSettings,
    WebSettings,
    WorklistSettings,
    is_loopback,
)
from sr_engine.recipe import Recipe

__all__ = [
    "AssemblySettings",
    "AuditSettings",
    "CommitmentSettings",
    "EngineSettings",
    "FilesSettings",
    "LimitSettings",
    "NodeSettings",
    "OrderSettings",
    "PeerSettings",
    "PullSettings",
    "RetentionSettings",
    "RuleSettings",
    "Section",
    "SendingSettings",
    "SigningSettings",
    "Settings",
    "TlsSettings",
    "WebSettings",
    "WorklistSettings",
    "default_config_path",
    "is_loopback",
    "load_settings",
    "make_settings",
]

PREFIX = "DICOM_NODE__"
SECRET = {"database", "secret", "url"}  # keys where a password may stand, if only by mistake


class Settings(Section):
    """The whole configuration."""

    node: NodeSettings = NodeSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    signing: SigningSettings = SigningSettings()
    web: WebSettings = WebSettings()
    assembly: AssemblySettings = AssemblySettings()
    order: OrderSettings = OrderSettings()
    engine: EngineSettings = EngineSettings()
    files: FilesSettings = FilesSettings()
    retention: RetentionSettings = RetentionSettings()
    sending: SendingSettings = SendingSettings()
    commitment: CommitmentSettings = CommitmentSettings()
    pull: PullSettings = PullSettings()
    worklist: WorklistSettings = WorklistSettings()
    audit: AuditSettings = AuditSettings()
    peers: tuple[PeerSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = tuple(RuleSettings(**rule) for rule in DEFAULT_RULES)

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        refuse_repeated("peers", [peer.name for peer in self.peers])
        refuse_repeated("rules", [rule.name for rule in self.rules])
        if self.audit.tls and not self.tls.enabled:
            raise ValueError("audit.tls wants TLS, but [tls] names no certificate")
        for peer in self.peers:
            if (peer.tls or peer.tls_name) and not self.tls.enabled:
                raise ValueError(f"peer {peer.name!r} wants TLS, but [tls] names no certificate")
            if "spread" in peer.companions and not self.engine.triaxial:
                raise ValueError(
                    f"peer {peer.name!r} wants the companion spread, but engine.triaxial = false "
                    "runs the network along one axis, which leaves nothing to compare; "
                    "set triaxial = true or take spread out of its companions"
                )
        known = [peer.name for peer in self.peers if "destination" in peer.roles]
        for rule in self.rules:
            for name in set(rule.to) - {*known, RETURN_TO_SENDER}:
                raise ValueError(
                    f"rule {rule.name!r} sends to {name!r}, which is no peer with the role "
                    f"destination{did_you_mean(name, known)}"
                )
        return self

    @property
    def database_url(self) -> str:
        """Return the URL of the database; by default a SQLite file inside `node.state_dir`."""
        return self.node.database or f"sqlite:///{self.node.state_dir.resolve() / 'node.db'}"

    def recipe(self) -> Recipe:
        """Return the recipe of the [engine] section."""
        return self.engine.recipe()

    def queue_order(self) -> Order:
        """Return the order of the queue: the [order] section and the peers' quotas."""
        quotas = {
            caller: Quota(running=peer.quota_running, per_h=peer.quota_per_h)
            for peer in self.peers
            if peer.quota_running or peer.quota_per_h
            for caller in callers_of(peer)
        }
        within_s = {NORMAL: self.order.normal_within_s, LOW: self.order.low_within_s}
        return Order(within_s=within_s, job_s=self.order.job_s, quotas=quotas)

    def peer(self, name: str) -> PeerSettings:
        """Return the peer called `name`, or raise UnknownPeer."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        names = [peer.name for peer in self.peers]
        raise UnknownPeer(f"no peer is called {name!r}{did_you_mean(name, names)}")

    def destinations(
        self, names: tuple[str, ...] = (), callers: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Return `names`, or every peer with the role destination when a rule names none.

        Parameters
        ----------
        callers
            The titles under which the series came: "@sender" becomes the destinations of these.
            None: it stays as it is.
        """
        everyone = tuple(peer.name for peer in self.peers if "destination" in peer.roles)
        if callers is None or RETURN_TO_SENDER not in names:
            return names or everyone
        senders = [
            peer.name
            for peer in self.peers
            if peer.name in everyone and callers_of(peer) & set(callers)
        ]
        named = [name for name in names if name != RETURN_TO_SENDER]
        return tuple(dict.fromkeys([*named, *senders]))


def callers_of(peer: PeerSettings) -> set[str]:
    """Return the names under which what a peer sent may be on record: its title, its token's."""
    return {peer.calling, peer.name[:16]}


def refuse_repeated(section: str, names: list[str]) -> None:
    """Raise ValueError when two entries of `section` have one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{section}: the name {name!r} stands there twice")


def did_you_mean(word: str, known: list[str]) -> str:
    """Return " (did you mean ...?)" for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or [
        name for name in known if name.startswith(f"{word}_")
    ]
    return f" (did you mean {near[0]}?)" if near else ""


def default_config_path() -> Path:
    """Return the commented `node.toml` that came with this program: checkout or installation."""
    beside = Path(__file__).resolve().parents[2] / "config" / "node.toml"
    installed = Path(sysconfig.get_path("data")) / "share" / "dicom-node" / "config" / "node.toml"
    return beside if beside.is_file() else installed


def load_settings(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Return the configuration of `path`, else of ./node.toml, else the embedded defaults.

    Parameters
    ----------
    env
        Environment; DICOM_NODE__SECTION__KEY overrides single values. Default: that of the process.
    overrides
        From the command line: ``{"node.state_dir": "/srv/node"}``; they win over everything.

    Raises
    ------
    SettingsError
        If the file cannot be read, a key is unknown or a value impossible.
    """
    here = Path("node.toml")
    path = path or (here if here.is_file() else None)
    data = read_toml(path) if path else {}
    for name, text in sorted((os.environ if env is None else env).items()):
        if name.startswith(PREFIX):
            override(data, name.removeprefix(PREFIX).lower().split("__"), text, name)
    for dotted, text in (overrides or {}).items():
        override(data, dotted.split("."), text, dotted)
    return make_settings(data)


def make_settings(data: Mapping[str, Any]) -> Settings:
    """Return the configuration of parsed TOML, or raise SettingsError."""
    try:
        # As JSON, a strict model takes lists for tuples and text for paths, and nothing else.
        return Settings.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = [problem(details) for details in error.errors(include_url=False)]
        raise SettingsError(f"config: {'; '.join(problems)}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of the TOML file at `path`, or raise SettingsError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config: {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {path} is no TOML: {error}") from error


def override(data: dict[str, Any], keys: list[str], text: str, name: str) -> None:
    """Set the value at `keys` of `data` to `text`, read as the type of that key."""
    if len(keys) > 2:
        raise SettingsError(f"config: {name} names no section and key")
    model = section_model(keys[0])
    if len(keys) == 2 and model is not None:
        section = data.setdefault(keys[0], {})
        field = model.model_fields.get(keys[1])
        is_text = field is not None and field.annotation in (str, str | None, Path)
        section[keys[1]] = text if is_text else toml_value(text, name)
    else:
        data[".".join(keys)] = toml_value(text, name)


def toml_value(text: str, name: str) -> Any:
    """Return `text` read as a TOML value: ``11113``, ``true``, ``["a"]``; else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text[:1] in "[{":
            # Not quoted: whoever names all peers so may have written a password among them.
            raise SettingsError(f"config: {name} is no TOML value") from None
        return text


def section_model(name: str) -> type[Section] | None:
    """Return the model of a section, None where there is no such section."""
    field = Settings.model_fields.get(name)
    annotation = None if field is None else field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def problem(details: ErrorDetails) -> str:
    """Return one sentence about one refused key or value."""
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in details["loc"])
    place = place.removeprefix(".")
    if details["type"] == "extra_forbidden":
        return f"unknown key {place}{did_you_mean(str(details['loc'][-1]), siblings(details))}"
    if details["type"] == "missing":
        return f"{place} is missing"
    message = details["msg"].removeprefix("Value error, ")
    if not place or not may_be_quoted(details):
        return f"{place}: {message}".removeprefix(": ")
    return f"{place} = {json.dumps(details['input'])}: {message}"


def may_be_quoted(details: ErrorDetails) -> bool:
    """Return whether a refused value is small and cannot be a secret."""
    keys = {key for key in details["loc"] if isinstance(key, str)}
    if keys & SECRET:
        return False
    if isinstance(details["input"], str):  # in the place of a whole section, anything is in it
        return len(keys) > 1
    return isinstance(details["input"], int | float)


def siblings(details: ErrorDetails) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    models: dict[str, type[Section]] = {"peers": PeerSettings, "rules": RuleSettings}
    section = str(details["loc"][0])
    if len(details["loc"]) == 1:
        return list(Settings.model_fields)
    model: type[Section] = models.get(section) or section_model(section) or Settings
    return [field.alias or name for name, field in model.model_fields.items()]
