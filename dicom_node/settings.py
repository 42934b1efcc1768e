"""The configuration: what `config/node.toml` may say, with defaults and limits.

Prose stands in `config/node.toml`; a test holds both equal. Unknown keys and impossible values
refuse to start and say which.
"""

import difflib
import ipaddress
import json
import os
import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from dicom_node.errors import SettingsError, UnknownPeer
from dicom_node.rules import DEFAULT_RULES, parse_conditions, parse_reason
from sr_engine.errors import RecipeError
from sr_engine.recipe import Recipe

PREFIX = "DICOM_NODE__"
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Role = Literal["source", "destination"]


class Section(BaseModel):
    """A part of the configuration: frozen, strict, without unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        hide_input_in_errors=True,
    )


def check_ae_title(title: str) -> str:
    """Return `title` if it is an AE title (PS3.5 6.2: VR AE)."""
    if not 1 <= len(title.strip()) <= 16 or title != title.strip():
        raise ValueError("an AE title has 1 to 16 characters and no outer blanks")
    if not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError("an AE title is printable ASCII without a backslash")
    return title


class NodeSettings(Section):
    """Who we are, where we listen, where we keep things."""

    ae_title: str = "SRNODE"
    host: str = "127.0.0.1"
    port: Port = 11112
    state_dir: Path = Path("./state")
    database: str | None = None
    storage_classes: tuple[str, ...] = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1")
    max_associations: Annotated[int, Field(ge=1, le=200)] = 16
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = 131072
    acse_timeout_s: Seconds = 10.0
    network_timeout_s: Seconds = 30.0
    drain_s: Seconds = 20.0

    _ae_title = field_validator("ae_title")(check_ae_title)


class WebSettings(Section):
    """The status page."""

    host: str = "127.0.0.1"
    port: Port = 8080


class AssemblySettings(Section):
    """When a series is complete."""

    idle_s: Seconds = 60.0
    min_slices: Annotated[int, Field(ge=2, le=10000)] = 16
    tolerance: Annotated[float, Field(gt=0, le=0.2)] = 0.02


class EngineSettings(Section):
    """What the engine does with a series, and how its workers are watched."""

    spacing_mm: float = 0.7
    steps: int = 1
    seed: int = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    weights: Annotated[str, Field(min_length=1)] = "default"
    weights_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    lease_s: Seconds = 60.0
    heartbeat_s: Seconds = 10.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    use_bias_field: bool = True
    use_gradient_map: bool = True
    data_consistency: bool = True
    consistency_weight: float = 1.0
    correct_bias: bool = False
    correct_distortion: bool = False
    triaxial: bool = True
    synthetic_data: bool = True
    keep_scanner_manufacturer: bool = False
    content_qualification: str = "RESEARCH"
    description_suffix: str = " AI-SR RESEARCH"

    @model_validator(mode="after")
    def _possible(self) -> "EngineSettings":
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError(
                f"heartbeat_s ({self.heartbeat_s}) must be at most half of lease_s ({self.lease_s})"
            )
        try:
            self.recipe()
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    def recipe(self) -> Recipe:
        """Return the recipe: every option that decides what the result looks like."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})


class FilesSettings(Section):
    """Room for pixel files."""

    min_free_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000


class SendingSettings(Section):
    """How results leave the node."""

    enabled: bool = True
    shadow: bool = False
    interval_s: Seconds = 1.0
    timeout_s: Seconds = 30.0
    backoff_first_s: Seconds = 5.0
    backoff_last_s: Seconds = 900.0
    max_attempts: Annotated[int, Field(ge=1, le=100000)] = 700

    @model_validator(mode="after")
    def _possible(self) -> "SendingSettings":
        if self.backoff_last_s < self.backoff_first_s:
            raise ValueError("backoff_last_s must not be less than backoff_first_s")
        return self


class PeerSettings(Section):
    """One application entity that we know."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    ae_title: str
    host: str = ""
    port: Port = 104
    roles: tuple[Role, ...] = ("source",)
    commitment: bool = False
    addresses: tuple[str, ...] = ()

    _ae_title = field_validator("ae_title")(check_ae_title)

    @field_validator("addresses")
    @classmethod
    def _networks(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            ipaddress.ip_network(address, strict=False)
        return addresses

    @model_validator(mode="after")
    def _possible(self) -> "PeerSettings":
        if not self.roles:
            raise ValueError(f"peer {self.name!r} needs a role: source, destination or both")
        if "destination" in self.roles and not self.host:
            raise ValueError(f"peer {self.name!r} is a destination and needs a host")
        return self


class RuleSettings(Section):
    """One rule: what it matches and what becomes of the series (see `rules.decide`)."""

    model_config = ConfigDict(validate_by_name=True)

    name: Annotated[str, Field(min_length=1)]
    when: dict[str, Any] = {}
    unless: dict[str, Any] = Field(default={}, alias="not")
    action: Literal["enhance", "hold", "skip"]
    reason: str = ""
    to: tuple[str, ...] = ()
    priority: Literal["urgent", "normal", "low"] = "normal"

    @field_validator("when", "unless")
    @classmethod
    def _conditions(cls, conditions: dict[str, Any]) -> dict[str, Any]:
        return parse_conditions(conditions)

    _reason = field_validator("reason")(parse_reason)


class Settings(Section):
    """The whole configuration."""

    node: NodeSettings = NodeSettings()
    web: WebSettings = WebSettings()
    assembly: AssemblySettings = AssemblySettings()
    engine: EngineSettings = EngineSettings()
    files: FilesSettings = FilesSettings()
    sending: SendingSettings = SendingSettings()
    peers: tuple[PeerSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = tuple(RuleSettings(**rule) for rule in DEFAULT_RULES)

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        refuse_repeated("peers", [peer.name for peer in self.peers])
        refuse_repeated("rules", [rule.name for rule in self.rules])
        known = [peer.name for peer in self.peers if "destination" in peer.roles]
        for rule in self.rules:
            for name in set(rule.to) - set(known):
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

    def peer(self, name: str) -> PeerSettings:
        """Return the peer called `name`, or raise UnknownPeer."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        names = [peer.name for peer in self.peers]
        raise UnknownPeer(f"no peer is called {name!r}{did_you_mean(name, names)}")

    def destinations(self, names: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return `names`, or every peer with the role destination when a rule names none."""
        everyone = tuple(peer.name for peer in self.peers if "destination" in peer.roles)
        return names or everyone


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
    beside = Path(__file__).resolve().parents[1] / "config" / "node.toml"
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
            raise SettingsError(f"config: {name} is no TOML value: {text}") from None
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
    if not place or not isinstance(details["input"], str | int | float) or "database" in place:
        return f"{place}: {message}".removeprefix(": ")
    return f"{place} = {json.dumps(details['input'])}: {message}"


def siblings(details: ErrorDetails) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    models: dict[str, type[Section]] = {"peers": PeerSettings, "rules": RuleSettings}
    section = str(details["loc"][0])
    if len(details["loc"]) == 1:
        return list(Settings.model_fields)
    model: type[Section] = models.get(section) or section_model(section) or Settings
    return [field.alias or name for name, field in model.model_fields.items()]
