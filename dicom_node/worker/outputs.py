"""Which series a job writes for whom, how the gate sees them, and what the store keeps of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import release_gate
from dicom_node.errors import UnknownPeer
from dicom_node.settings import Settings
from dicom_node.store import DerivedInstance
from sr_engine.dicom.kinds import CLASSIC, Kind, in_order, kind_of
from sr_engine.dicom.provenance import Provenance

if TYPE_CHECKING:
    from sr_engine.dicom.writer import WrittenSeries

Readers = Mapping[str, tuple[str, ...]]  # the name of a kind -> the destinations that get it


def readers(settings: Settings, destinations: Sequence[str]) -> Readers:
    """Return what is to be written and for whom, images first.

    A classic series is written where nobody says otherwise: for nobody, or for a destination that
    has gone from the configuration since.
    """
    wanted: dict[Kind, list[str]] = {}
    for name in destinations:
        for kind in kinds_of(settings, name):
            wanted.setdefault(kind, []).append(name)
    if not wanted:
        wanted[Kind(form=CLASSIC)] = []
    return {kind.name: tuple(wanted[kind]) for kind in in_order(wanted)}


def kinds_of(settings: Settings, destination: str) -> list[Kind]:
    """Return what one destination gets."""
    try:
        peer = settings.peer(destination)
    except UnknownPeer:
        return [Kind(form=CLASSIC)]
    companions = [Kind(form=peer.form, companion=name) for name in peer.companions]
    return [Kind(form=peer.form), *companions]


def derived_instances(
    outputs: Iterable["WrittenSeries"], readers: Readers
) -> tuple[DerivedInstance, ...]:
    """Return what the store keeps of the files that were written."""
    return tuple(
        DerivedInstance(
            sop_uid=sop_uid,
            sop_class=written.sop_class_uid,
            path=path.resolve(),
            sha256=file_sha256(path),
            bytes=path.stat().st_size,
            kind=written.kind,
            series_uid=written.series_uid,
            destinations=readers.get(written.kind),
        )
        for written in outputs
        for sop_uid, path in zip(written.sop_uids, written.paths, strict=True)
    )


def gate(
    files: Mapping[str, Sequence[Path]], sources: Sequence[Path], provenance: Provenance
) -> list[release_gate.Finding]:
    """Return what the release gate finds in the files of each kind, [] when all may go out."""
    findings: list[release_gate.Finding] = []
    # Read and sorted once for all kinds: of an Enhanced object that takes its time.
    originals = release_gate.source_of(sources, findings)
    images = {
        form: release_gate.image_of(files.get(form, ()), findings)
        for form in {kind_of(name).form for name in files if kind_of(name).companion}
    }
    if findings:
        return findings
    for name, paths in files.items():
        kind = kind_of(name)
        if kind.companion:
            findings += release_gate.check_companion(name, paths, images[kind.form], originals)
        else:
            findings += release_gate.check(paths, originals, provenance, kind.form)
    return findings


def by_kind(instances: Iterable[DerivedInstance]) -> dict[str, list[Path]]:
    """Return the files of each kind; what was made before there were kinds is classic."""
    files: dict[str, list[Path]] = {}
    for one in instances:
        files.setdefault(one.kind or CLASSIC, []).append(one.path)
    return files


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
