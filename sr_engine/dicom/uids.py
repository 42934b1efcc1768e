"""Identifiers of what we derive: the same inputs always give the same UIDs."""

import uuid
from collections.abc import Sequence

# Fixed for ever: another namespace would give every derived series a new identity.
NAMESPACE = uuid.UUID("6f0f6c5e-3c1b-5d0a-9a55-0b6f3d1e7a10")
IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.uuid5(NAMESPACE, 'implementation').int}"
IMPLEMENTATION_VERSION_NAME = "AI_SR_1"  # SH, at most 16 characters


def _uid(*parts: str) -> str:
    """Return the 2.25 UID of the UUID version 5 over `parts` (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join(parts)).int}"


def derived_series_uid(
    source_series_uid: str,
    source_sop_uids: Sequence[str],
    recipe_digest: str,
    bundle_sha256: str,
    software_version: str,
    generation: int,
    kind: str,
) -> str:
    """Return the Series Instance UID of one output `kind` of one processing of one source."""
    return _uid(
        "series",
        source_series_uid,
        recipe_digest,
        bundle_sha256,
        software_version,
        str(generation),
        kind,
        *source_sop_uids,
    )


def derived_instance_uid(series_uid: str, slice_index: int) -> str:
    """Return the SOP Instance UID of slice `slice_index` (0-based) of a derived series."""
    return _uid("instance", series_uid, str(slice_index))


def part_uid(series_uid: str, *names: str) -> str:
    """Return a UID inside a derived series that is no instance: a dimension, a tracked finding."""
    return _uid("part", series_uid, *names)


def digital_signature_uid(sop_uid: str) -> str:
    """Return the Digital Signature UID of an instance that is signed once."""
    return _uid("digital signature", sop_uid)


def device_uid(model_name: str, serial_number: str) -> str:
    """Return the UID of this software with certain weights, as an observer of documents."""
    return _uid("device", model_name, serial_number)


def acquired_uid(*parts: str) -> str:
    """Return a UID for an instance, series or study of the phantom scanner."""
    return _uid("acquired", *parts)
