"""The sections of the configuration, one model each: keys, defaults and limits.

Prose stands in `config/node.toml`; a test holds both equal.
"""

import ipaddress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dicom_node.order import parse_window
from dicom_node.rules import parse_conditions, parse_reason
from sr_engine.errors import RecipeError
from sr_engine.recipe import Recipe

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Days = Annotated[float, Field(gt=0, le=36500)]
Role = Literal["source", "destination"]
Form = Literal["classic", "enhanced"]
Companion = Literal["spread", "key_objects", "presentation", "report"]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]


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


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`; False for a name that could be any."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_ae_title(title: str) -> str:
    """Return `title` if it is an AE title (PS3.5 6.2: VR AE)."""
    if not 1 <= len(title.strip()) <= 16 or title != title.strip():
        raise ValueError("an AE title has 1 to 16 characters and no outer blanks")
    if not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError("an AE title is printable ASCII without a backslash")
    return title


def check_url(url: str) -> str:
    """Return `url` without a final slash if it is the root of a DICOMweb server.

    What is refused is not quoted, nor are the words of a parser: a password may be in it.
    """
    try:
        parts = urlsplit(url)
        possible = parts.port != 0 and url.isprintable() and " " not in url
        (parts.hostname or "").encode("idna")  # the resolver raises for what this refuses
    except ValueError:
        raise ValueError("a url is like https://host:8043/dicom-web") from None
    if not possible:
        raise ValueError("a url is like https://host:8043/dicom-web")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a url begins with http:// or https:// and names a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a url holds no user, password, query or fragment")
    return url.rstrip("/")


class NodeSettings(Section):
    """Who we are, where we listen, where we keep things."""

    ae_title: str = "SRNODE"
    host: str = "127.0.0.1"
    port: Port = 11112
    state_dir: Path = Path("./state")
    database: str | None = None
    storage_classes: tuple[str, ...] = ("all",)
    max_associations: Annotated[int, Field(ge=1, le=200)] = 40
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = 131072
    acse_timeout_s: Seconds = 10.0
    network_timeout_s: Seconds = 30.0
    drain_s: Seconds = 20.0

    _ae_title = field_validator("ae_title")(check_ae_title)


class LimitSettings(Section):
    """What a peer may cost before it is cut off (see `network.limits`)."""

    associations_per_peer: Annotated[int, Field(ge=1, le=200)] = 10
    waiting: Annotated[int, Field(ge=8, le=512)] = 256
    request_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = 262144
    pdu_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 28)] = 16777216
    pdu_s: Seconds = 30.0
    message_bytes: Annotated[int, Field(ge=1 << 20)] = 1073741824
    message_bytes_per_s: Annotated[int, Field(ge=1)] = 1000


class TlsSettings(Section):
    """Certificates for DICOM over TLS, both ways."""

    certificate: str = ""
    key: str = ""
    ca: str = ""
    port: Port = 2762

    @property
    def enabled(self) -> bool:
        """Return whether TLS is configured."""
        return bool(self.certificate)

    @model_validator(mode="after")
    def _possible(self) -> "TlsSettings":
        if any((self.certificate, self.key, self.ca)):
            for name in ("certificate", "key", "ca"):
                if not getattr(self, name):
                    raise ValueError(f"{name} is missing: certificate, key and ca go together")
        return self


class SigningSettings(Section):
    """The certificate of DICOM digital signatures on what is derived; none: no such signature."""

    certificate: str = ""
    key: str = ""

    @property
    def enabled(self) -> bool:
        """Return whether results are signed so."""
        return bool(self.certificate)

    @model_validator(mode="after")
    def _possible(self) -> "SigningSettings":
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together")
        return self


class WebSettings(Section):
    """The status page and REST."""

    host: str = "127.0.0.1"
    port: Port = 8080
    names: tuple[HostName, ...] = ()
    require_token: bool = False
    session_s: Seconds = 28800.0
    stow: bool = False
    stow_bytes: Annotated[int, Field(ge=1 << 20)] = 4_294_967_296
    stow_part_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 32)] = 268_435_456
    certificate: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _possible(self) -> "WebSettings":
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together")
        return self

    @property
    def beyond_loopback(self) -> bool:
        """Return whether other machines can reach the page."""
        return not is_loopback(self.host)

    @property
    def closed(self) -> bool:
        """Return whether reading needs a token, too."""
        return self.require_token or self.beyond_loopback


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
    memory_mib: Annotated[int, Field(ge=64, le=1_048_576)] = 1024
    lease_s: Seconds = 60.0
    heartbeat_s: Seconds = 10.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    use_bias_field: bool = True
    use_gradient_map: bool = True
    data_consistency: bool = True
    consistency_weight: float = 1.0
    reduce_noise: bool = True
    keep_small_structures: bool = True
    correct_bias: bool = False
    correct_distortion: bool = False
    triaxial: bool = True
    weighted_fusion: bool = True
    synthetic_data: bool = True
    keep_scanner_manufacturer: bool = False
    content_qualification: str = "RESEARCH"
    description_suffix: str = " AI-SR RESEARCH"
    series_number_base: int = 0
    body_part: str = ""
    protocol_name: str = ""
    window: str = "source"

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


class OrderSettings(Section):
    """In which order series are begun, and how long a result may take."""

    normal_within_s: Seconds = 1800.0
    low_within_s: Seconds = 14400.0
    job_s: Seconds = 60.0
    turnaround_s: Annotated[float, Field(ge=0, le=30 * 86400)] = 3600.0


class FilesSettings(Section):
    """Room for pixel files."""

    min_free_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000
    results_reserve_bytes: Annotated[int, Field(ge=0)] = 1_500_000_000
    custody: bool = False

    @property
    def min_free_for_results_bytes(self) -> int:
        """Return the free space below which no result is written either."""
        return max(0, self.min_free_bytes - self.results_reserve_bytes)


class RetentionSettings(Section):
    """How many days files are kept after the end of their job, by the state it ended in."""

    enabled: bool = True
    delivered_days: Days = 14.0
    superseded_days: Days = 30.0
    skipped_days: Days = 30.0
    cancelled_days: Days = 60.0
    dead_days: Days = 90.0


class SendingSettings(Section):
    """How results leave the node."""

    enabled: bool = True
    shadow: bool = False
    interval_s: Seconds = 1.0
    timeout_s: Seconds = 30.0
    backoff_first_s: Seconds = 5.0
    backoff_last_s: Seconds = 900.0
    max_attempts: Annotated[int, Field(ge=1, le=100000)] = 700
    max_associations: Annotated[int, Field(ge=1, le=200)] = 16

    @model_validator(mode="after")
    def _possible(self) -> "SendingSettings":
        if self.backoff_last_s < self.backoff_first_s:
            raise ValueError("backoff_last_s must not be less than backoff_first_s")
        return self


class CommitmentSettings(Section):
    """How long we wait for storage commitment, and what a lack of it costs."""

    wait_s: Annotated[float, Field(ge=0, le=60)] = 2.0
    timeout_s: Seconds = 600.0
    max_resends: Annotated[int, Field(ge=0, le=100)] = 5
    resend_first_s: Seconds = 60.0
    answer_within_s: Seconds = 3600.0


class PullSettings(Section):
    """How series are fetched from peers (`dicom-node pull`)."""

    images_per_s: Annotated[float, Field(ge=0, le=10000)] = 0.0
    timeout_s: Seconds = 300.0


class WorklistSettings(Section):
    """How the worklists of peers are worked off (UPS)."""

    interval_s: Seconds = 15.0
    at_once: Annotated[int, Field(ge=1, le=100)] = 2
    patience_s: Seconds = 3600.0


class AuditSettings(Section):
    """Where the audit trail is exported to; an empty host: nowhere."""

    syslog_host: str = ""
    syslog_port: Annotated[int, Field(ge=1, le=65535)] = 6514
    tls: bool = False


class PeerSettings(Section):
    """One application entity, or one DICOMweb server, that we know."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern="^[^@]")]
    protocol: Literal["dimse", "dicomweb"] = "dimse"
    ae_title: str = ""
    host: str = ""
    port: Port = 104
    url: str = ""
    auth: Literal["none", "bearer", "basic"] = "none"
    secret: Annotated[str, Field(pattern=r"^(|env:\w+|file:.+)$")] = ""
    ca: str = ""
    worklist_code: Annotated[str, Field(max_length=16)] = ""
    roles: tuple[Role, ...] = ("source",)
    commitment: bool = False
    query: bool = False
    associations: Annotated[int, Field(ge=1, le=32)] = 1
    retrieve: Literal["move", "get"] = "move"
    addresses: tuple[str, ...] = ()
    tls: bool = False
    tls_name: str = ""
    quota_running: Annotated[int, Field(ge=0, le=64)] = 0
    quota_per_h: Annotated[int, Field(ge=0, le=10000)] = 0
    form: Form = "classic"
    companions: tuple[Companion, ...] = ()

    @field_validator("ae_title")
    @classmethod
    def _ae_title(cls, title: str) -> str:
        return check_ae_title(title) if title else title

    @field_validator("addresses")
    @classmethod
    def _networks(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            ipaddress.ip_network(address, strict=False)
        return addresses

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        return check_url(url) if url else url

    @model_validator(mode="after")
    def _possible(self) -> "PeerSettings":
        if not self.roles:
            raise ValueError(f"peer {self.name!r} needs a role: source, destination or both")
        if (self.auth == "none") != (not self.secret):
            raise ValueError(f"peer {self.name!r}: auth and secret go together")
        if self.protocol == "dicomweb":
            if not self.url:
                raise ValueError(f"peer {self.name!r} speaks dicomweb and needs a url")
            for name in {"commitment", "query"} - self.model_fields_set:
                object.__setattr__(self, name, True)  # it can always be asked what it has
            return self
        if not self.ae_title:
            raise ValueError(f"peer {self.name!r} needs an ae_title")
        if self.url or self.auth != "none" or self.ca:
            raise ValueError(f"peer {self.name!r}: url, auth and ca need protocol dicomweb")
        if self.worklist_code and not self.host:
            raise ValueError(f"peer {self.name!r} has a worklist and needs a host")
        if "destination" in self.roles and not self.host:
            raise ValueError(f"peer {self.name!r} is a destination and needs a host")
        return self

    @property
    def is_web(self) -> bool:
        """Return whether the peer speaks DICOMweb."""
        return self.protocol == "dicomweb"

    @property
    def address(self) -> str:
        """Return what the peer is called and where it lives, for people."""
        if self.is_web:
            return f"{self.name} ({self.url})"
        return f"{self.name} ({self.ae_title} at {self.host}:{self.port})"

    @property
    def calling(self) -> str:
        """Return the name under which images from here are on record."""
        return self.ae_title or self.name[:16]


class RuleSettings(Section):
    """One rule: what it matches and what becomes of the series (see `rules.decide`)."""

    model_config = ConfigDict(validate_by_name=True)

    name: Annotated[str, Field(min_length=1)]
    when: dict[str, Any] = {}
    unless: dict[str, Any] = Field(default={}, alias="not")
    action: Literal["enhance", "forward", "hold", "skip"]
    reason: str = ""
    to: tuple[str, ...] = ()
    priority: Literal["urgent", "normal", "low"] = "normal"
    windows: tuple[str, ...] = ()

    @field_validator("when", "unless")
    @classmethod
    def _conditions(cls, conditions: dict[str, Any]) -> dict[str, Any]:
        return parse_conditions(conditions)

    _reason = field_validator("reason")(parse_reason)

    @field_validator("windows")
    @classmethod
    def _windows(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        for window in windows:
            parse_window(window)
        return windows
