"""Volumes into shards: what training reads on a machine that has only torch and numpy."""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from sr_engine.errors import InputRefused
from sr_engine.physics.intensity import head_mask
from sr_engine.training.shards import write_shard

MARGIN = 6  # voxels kept around the head


def pack(manifest: Path, out: Path, report: Callable[[str], None]) -> list[Path]:
    """Write one shard for every row of `manifest` that may be trained on; return their paths.

    Only rows whose `use` is train or validation, whose `weights_may_be_trained_on_it` is yes and
    whose contrast is T1w are taken.

    Raises
    ------
    InputRefused
        If a volume's bytes are not those that the manifest names.
    """
    written = []
    with manifest.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if _admitted(row)]
    for number, row in enumerate(rows, 1):
        path = out / row["use"] / (row["file"].split(".nii")[0] + ".safetensors")
        _write_shard(manifest.parent / row["file"], row, path)
        written.append(path)
        report(f"{number}/{len(rows)} {path.name}")
    return written


def _admitted(row: dict[str, str]) -> bool:
    return (
        row["use"] in ("train", "validation")
        and row["weights_may_be_trained_on_it"] == "yes"
        and row["contrast"].startswith("T1w")
        and float(row["voxel_mm"].split("x")[-1]) < 2
    )


def _write_shard(source: Path, row: dict[str, str], path: Path) -> None:
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != row["sha256"]:
        raise InputRefused(f"{source.name}: SHA-256 {sha256[:16]}… is not the manifest's")
    image = nibabel.as_closest_canonical(nibabel.load(source))
    volume = np.clip(np.asanyarray(image.dataobj).astype(np.float32), 0, None)
    mask = head_mask(volume)
    box = tuple(
        slice(max(0, int(where.min()) - MARGIN), int(where.max()) + 1 + MARGIN)
        for where in np.nonzero(mask)
    )
    volume, mask = volume[box], mask[box]
    meta = {
        "name": source.name,
        "whole_head": row["skull_stripped"] == "no",
        "voxel_mm": [float(v) for v in image.header.get_zooms()[:3]],
        "licence": row["licence"],
        "source_sha256": sha256,
    }
    write_shard(path, volume / np.percentile(volume[mask], 99.9), mask, meta)
