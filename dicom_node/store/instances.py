"""One received instance: as it comes, and as its row says."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.store import schema


@dataclass(frozen=True, kw_only=True)
class NewInstance:
    """One received instance whose file is already durable."""

    sop_uid: str
    sop_class: str
    series_uid: str
    study_uid: str
    modality: str
    description: str
    path: Path
    bytes: int
    sha256: str  # of the file
    attributes_sha256: str  # of all attributes but the pixels
    pixels_sha256: str | None = None  # of the decoded pixels, where they were decoded
    transfer_syntax: str
    calling_ae: str
    header: dict[str, Any]
    same_as: str | None = None  # SHA-256 of a file that was found to hold the same image
    corrects: str | None = None  # of a file that has the same image with other patient data


@dataclass(frozen=True, kw_only=True)
class InstanceRow:
    """One stored instance."""

    id: int
    sop_uid: str
    sop_class: str
    series_id: int
    path: Path
    bytes: int
    sha256: str
    attributes_sha256: str
    pixels_sha256: str | None
    transfer_syntax: str
    calling_ae: str
    received_at: datetime
    header: dict[str, Any]
    removal_id: int | None  # the decision of retention by which the file goes, or is gone
    replaced: list[str]  # attributes' digests of what corrections have replaced


# Built once: building and keying a statement takes longer than running it.
OF_INSTANCE = [field.name for field in fields(NewInstance) if field.name in schema.instance.c]
FIND = sa.select(schema.instance).where(schema.instance.c.sop_uid == sa.bindparam("uid"))
FIND_ALL = sa.select(schema.instance).where(
    schema.instance.c.sop_uid.in_(sa.bindparam("uids", expanding=True))
)


def to_values(new: NewInstance, series_id: int, now: datetime) -> dict[str, Any]:
    """Return the row of a new instance."""
    values = {name: getattr(new, name) for name in OF_INSTANCE}
    return values | {"path": str(new.path), "series_id": series_id, "received_at": now}


def instance_rows() -> sa.Select[Any]:
    """Return the query that `to_row` reads."""
    return sa.select(schema.instance)


def to_row(row: sa.Row[Any]) -> InstanceRow:
    """Return a database row as a value."""
    values = dict(row._mapping)
    return InstanceRow(**values | {"path": Path(values["path"])})


def find(connection: sa.Connection, sop_uid: str) -> InstanceRow | None:
    """Return the stored instance `sop_uid`, or None."""
    row = connection.execute(FIND, {"uid": sop_uid}).first()
    return None if row is None else to_row(row)


def find_all(connection: sa.Connection, sop_uids: Sequence[str]) -> dict[str, InstanceRow]:
    """Return those of the instances that are stored, by UID."""
    rows = connection.execute(FIND_ALL, {"uids": sop_uids})
    return {row.sop_uid: to_row(row) for row in rows}
