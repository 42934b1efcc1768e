"""What made a derived instance, carried inside it: canonical JSON in a private block.

Standard library and pydicom only, because the service reads it without the engine.
The SHA-256 shows a change; only a signature (see `seal`) keeps a determined forger out.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydicom.dataset import Dataset

from sr_engine.errors import HeaderError, InputRefused

SCHEMA_VERSION = 2
# Fields that older documents, which archives keep for years, do not have.
ADDED = {2: ("source_sha256", "result_sha256", "series")}
GROUP = 0x0075
CREATOR = "DICOM-NODE AI-SR"
JOB_ID, BUNDLE_SHA256, DIGEST, DOCUMENT = 0x01, 0x02, 0x03, 0x04


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything needed to explain, repeat or recall one derived series."""

    source_study_uid: str
    source_series_uid: str
    source_sop_uids: tuple[str, ...]
    recipe: Mapping[str, Any]
    recipe_digest: str
    bundle_name: str
    bundle_sha256: str
    software_name: str
    software_version: str
    generation: int = 1
    job_id: str
    created: str  # ISO 8601 with offset
    bias_field: str = ""  # "guidance", "applied", both, or why it is neither
    gradient_nonlinearity: str = ""  # status and reason
    quality: Mapping[str, float] = field(default_factory=dict)
    incomplete_release: bool = False  # a person released a series held for completeness
    timings_s: Mapping[str, float] = field(default_factory=dict)
    source_sha256: str = ""  # of the source volume, in scanner units, and its place in space
    # Filled in by the writer:
    derived_series_uid: str = ""
    series: Mapping[str, str] = field(default_factory=dict)  # kind -> SeriesInstanceUID, all of it
    result_sha256: str = ""  # of the stored values of the whole result
    slices: int = 0
    pixel_gain: float = 1.0  # stored value = scanner units * pixel_gain
    clipped_voxels: int = 0  # outside the range of the stored values (negative, as a rule)
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces, ASCII, no NaN."""
        values = asdict(self)
        for name in added_since(self.schema_version):
            del values[name]
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Return the provenance of a JSON document.

        Raises
        ------
        InputRefused
            If it is no JSON object, has another schema, or misses or adds a field.
        """
        try:
            values = json.loads(text)
        except ValueError:
            raise InputRefused("the provenance document is no JSON") from None
        if not isinstance(values, dict):
            raise InputRefused("the provenance document is no JSON object")
        version = values.get("schema_version")
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise InputRefused(f"provenance schema version {version!r} is not known")
        known = {item.name for item in fields(cls)} - set(added_since(version))
        odd = set(values) ^ known
        if odd:
            raise InputRefused(f"provenance field {sorted(odd)[0]!r} is missing or unknown")
        values["source_sop_uids"] = tuple(values["source_sop_uids"])
        return cls(**values)


def added_since(version: int) -> list[str]:
    """Return the fields that a document of schema `version` does not have."""
    return [name for later, names in ADDED.items() if later > version for name in names]


def to_private_block(dataset: Dataset, provenance: Provenance) -> None:
    """Write `provenance` into the private block of `dataset`."""
    block = dataset.private_block(GROUP, CREATOR, create=True)
    block.add_new(JOB_ID, "LO", provenance.job_id)
    block.add_new(BUNDLE_SHA256, "LO", provenance.bundle_sha256)
    block.add_new(DIGEST, "LO", provenance.digest())
    block.add_new(DOCUMENT, "UT", provenance.to_json())


def from_dataset(dataset: Dataset) -> Provenance:
    """Return the provenance carried by `dataset`, its hash checked.

    Raises
    ------
    HeaderError
        If the dataset carries none.
    InputRefused
        If the document does not fit its hash or is not ours.
    """
    uid = dataset.get("SOPInstanceUID", "without a SOP Instance UID")
    text, expected = _element(dataset, DOCUMENT, uid), _element(dataset, DIGEST, uid)
    actual = hashlib.sha256(text.encode()).hexdigest()
    if actual != expected:
        raise InputRefused(
            f"provenance of {uid} was changed: SHA-256 {actual[:12]}, not {expected[:12]}"
        )
    provenance = Provenance.from_json(text)
    for element, value in ((JOB_ID, provenance.job_id), (BUNDLE_SHA256, provenance.bundle_sha256)):
        if _element(dataset, element, uid) != value:
            raise InputRefused(f"provenance of {uid} was changed: element {element:02X} disagrees")
    return provenance


def _element(dataset: Dataset, element: int, uid: str) -> str:
    """Return one value of the private block as text; raise HeaderError where there is none."""
    value = block_text(dataset, element)
    if value is None:
        raise HeaderError(f"instance {uid} carries no {CREATOR} provenance")
    return value


def block_text(dataset: Dataset, element: int) -> str | None:
    """Return one value of our private block as text, None where there is none."""
    try:
        value = dataset.private_block(GROUP, CREATOR)[element].value
    except KeyError:
        return None
    if isinstance(value, bytes):  # an archive stored it in implicit VR: the VR is UN now
        value = value.decode("ascii", "replace")
    return str(value or "").rstrip(" \0")
