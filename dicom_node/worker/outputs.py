"""Which series a job writes for whom, how the gate sees them, and what the store keeps of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread

from dicom_node import release_gate
from dicom_node.errors import GateRefused, UnknownPeer
from dicom_node.gate_case import Series
from dicom_node.settings import Settings
from dicom_node.store import DerivedInstance
from dicom_node.worker.sources import Source
from sr_engine.dicom.kinds import CLASSIC, Kind, in_order, kind_of
from sr_engine.dicom.provenance import Provenance, from_dataset

if TYPE_CHECKING:
    from sr_engine.dicom.writer import WrittenSeries
    from sr_engine.pipeline import EnhanceResult

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


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What was made of one volume of a series, as the gate looks at it."""

    source: Source
    files: Mapping[str, Sequence[Path]]  # by the names of their kinds
    provenance: Provenance


def gate(volumes: Sequence[Volume]) -> list[release_gate.Finding]:
    """Return what the release gate finds in the results of a job, [] when all may go out."""
    findings: list[release_gate.Finding] = []
    # Read and sorted once for all kinds: of an Enhanced object that takes its time.
    originals = [release_gate.source_of(one.source.paths, findings) for one in volumes]
    if findings:
        return findings
    received = tuple(header for one in originals for header in one.received)
    for one, original in zip(volumes, originals, strict=True):
        # The images of all volumes: they must be of one patient, and share no UID with a result.
        whole = replace(original, received=received)
        findings += [named(found, one.source.name) for found in gate_volume(one, whole)]
    return findings


def named(finding: release_gate.Finding, volume: str) -> release_gate.Finding:
    """Return a finding that names the volume, where there are several."""
    return replace(finding, message=f"{volume}: {finding.message}") if volume else finding


def gate_volume(volume: Volume, originals: Series) -> list[release_gate.Finding]:
    """Return what the gate finds in the files of each kind of one volume's result."""
    findings: list[release_gate.Finding] = []
    files = volume.files
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
            findings += release_gate.check(paths, originals, volume.provenance, kind.form)
    return findings


def volumes_made(sources: Sequence[Source], results: Sequence["EnhanceResult"]) -> list[Volume]:
    """Return what the engine has made of each source."""
    return [
        Volume(
            source=source,
            files={written.kind: written.paths for written in result.outputs},
            provenance=result.provenance,
        )
        for source, result in zip(sources, results, strict=True)
    ]


def kept_volumes(kept: Iterable[DerivedInstance], sources: Sequence[Source]) -> list[Volume]:
    """Return what a job has kept, by the volumes that it was made of.

    The files themselves say so: the provenance of one of each series is read.

    Raises
    ------
    GateRefused
        If what it was made of is no volume of the series any more.
    """
    series: dict[str | None, list[DerivedInstance]] = {}
    for one in kept:
        series.setdefault(one.series_uid, []).append(one)
    files: dict[str, dict[str, list[Path]]] = {}
    provenances: dict[str, Provenance] = {}
    for instances in series.values():
        first = instances[0]
        made = from_dataset(dcmread(first.path, stop_before_pixels=True))
        provenances.setdefault(made.derived_series_uid, made)
        # What was made before there were kinds is classic.
        paths = {first.kind or CLASSIC: [one.path for one in instances]}
        files.setdefault(made.derived_series_uid, {}).update(paths)
    return [
        Volume(source=source_of(made, sources), files=files[uid], provenance=made)
        for uid, made in provenances.items()
    ]


def source_of(made: Provenance, sources: Sequence[Source]) -> Source:
    """Return the volume that a result was made of; raise GateRefused where there is none."""
    for source in sources:
        if len(sources) == 1 or not source.sop_uids.isdisjoint(made.source_sop_uids):
            return source
    raise GateRefused(
        f"series {made.derived_series_uid} was made of what is no volume of "
        f"{made.source_series_uid} any more"
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
