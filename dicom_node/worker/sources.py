"""Which files of a series the engine is given."""

from pathlib import Path

from dicom_node.assembly import InstanceHeader, volume_of
from dicom_node.store import Store


def source_paths(store: Store, series_id: int) -> tuple[Path, ...]:
    """Return the files of a series that hold its volume; others in the series are left out."""
    rows = store.series.instances(series_id)
    headers = [InstanceHeader(sop_uid=row.sop_uid, header=row.header) for row in rows]
    meant = volume_of(headers)
    return tuple(row.path for row in rows if row.sop_uid in meant)
