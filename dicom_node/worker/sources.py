"""Which files of a series the engine is given: those of each volume that it holds."""

from dataclasses import dataclass
from pathlib import Path

from dicom_node.assembly import InstanceHeader, volumes_of
from dicom_node.store import Store


@dataclass(frozen=True, kw_only=True)
class Source:
    """One volume of a series."""

    name: str  # "" where it is the only one
    sop_uids: frozenset[str]
    paths: tuple[Path, ...]


def sources_of(store: Store, series_id: int) -> tuple[Source, ...]:
    """Return the volumes of a series; other things in the series are left out."""
    rows = store.series.instances(series_id)
    headers = [InstanceHeader(sop_uid=row.sop_uid, header=row.header) for row in rows]
    return tuple(
        Source(
            name=name,
            sop_uids=meant,
            paths=tuple(row.path for row in rows if row.sop_uid in meant),
        )
        for name, meant in volumes_of(headers).items()
    )
