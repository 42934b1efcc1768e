"""What must be true after every fault: nothing acknowledged is lost, nothing is there twice."""

import hashlib
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset

from dicom_node.settings import load_settings
from dicom_node.store import Store, open_store
from tests.faults.stand import Flight, Stand, StandNode
from tests.integration.partners import Orthanc

Holdings = dict[str, dict[str, str]]  # series UID -> SOP instance UID -> digest


@dataclass(kw_only=True)
class Account:
    """The promises after a campaign, counted; `problems` says each breach in words."""

    series: int = 0
    instances: int = 0  # acknowledged
    lost: int = 0
    unequal: int = 0
    duplicate_series: int = 0
    incomplete_at_pacs: int = 0
    stuck: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Account") -> None:
        """Count what another stand has found, too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def digest(content: Path | bytes | Dataset) -> str:
    """Return the SHA-256 of a data set, however it was encoded on the way.

    Transfer syntax, file meta information and the lengths of sequences are the sender's affair.
    """
    if isinstance(content, Dataset):
        dataset = Dataset(content)
    else:
        file = BytesIO(content) if isinstance(content, bytes) else content
        dataset = Dataset(pydicom.dcmread(file))
    _with_defined_lengths(dataset)
    buffer = BytesIO()
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False
    )
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _with_defined_lengths(dataset: Dataset) -> None:
    """Let all sequences and their items be written with their length: dcmtk sends them so."""
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = False
            for item in element.value:
                item.is_undefined_length_sequence_item = False
                _with_defined_lengths(item)


def holdings(pacs: Any) -> Holdings:
    """Return what an archive holds; one of our own tells it by itself."""
    if not isinstance(pacs, Orthanc):
        return pacs.holdings()
    found: Holdings = {}
    for key in pacs.get("/series"):
        # One request for each series: Orthanc waits 40 ms before each answer.
        url = f"http://127.0.0.1:{pacs.http}/series/{key}/archive"
        with urllib.request.urlopen(url, timeout=60) as reply:
            archive = zipfile.ZipFile(BytesIO(reply.read()))
        for name in archive.namelist():
            dataset = pydicom.dcmread(BytesIO(archive.read(name)))
            of_series = found.setdefault(str(dataset.SeriesInstanceUID), {})
            of_series[str(dataset.SOPInstanceUID)] = digest(dataset)
    return found


def settle_account(stand: Stand, final: Iterable[str] = ("DELIVERED",)) -> Account:
    """Return the account of a stand; a series in none of the `final` states is stuck."""
    account = Account(series=len(stand.flights))
    store = open_store(load_settings(stand.node.config, {}).database_url)
    try:
        check_received(account, store, stand.flights)
        check_ends(account, store, stand.flights, set(final))
        check_pacs(account, store, holdings(stand.pacs))
    finally:
        store.close()
    check_verify(account, stand.node)
    return account


def check_received(account: Account, store: Store, flights: Iterable[Flight]) -> None:
    """Every acknowledged instance is on record, and its file is the one that was sent."""
    kept = {row.sop_uid: row.path for row in store.series.all_instances()}
    for flight in flights:
        account.instances += len(flight.acknowledged)
        for path in flight.acknowledged:
            uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            if uid not in kept or not kept[uid].is_file():
                account.lost += 1
                account.problems.append(f"instance {uid} was acknowledged and is lost")
            elif digest(kept[uid]) != digest(path):
                account.unequal += 1
                account.problems.append(f"instance {uid} is not the one that was sent")


def check_ends(account: Account, store: Store, flights: Iterable[Flight], final: set[str]) -> None:
    """Every series has come to an end that was to be expected."""
    rows = {row["series_uid"]: row for row in store.series.listing()}
    for flight in flights:
        row = rows.get(flight.series_uid, {"state": "unknown", "reason": ""})
        if flight.acknowledged and row["state"] not in final:
            account.stuck += 1
            account.problems.append(
                f"series {flight.series_uid} is {row['state']}: {row['reason']}"
            )


def check_pacs(account: Account, store: Store, there: Holdings) -> None:
    """The archive holds each delivered series once, whole and equal, and no other."""
    expected = expected_holdings(store)
    for uid in there.keys() - expected.keys():
        account.duplicate_series += 1
        account.problems.append(f"series {uid} at the archive is nobody's newest result")
    for uid, instances in expected.items():
        if instances and there.get(uid) != instances:
            account.incomplete_at_pacs += 1
            account.problems.append(
                f"series {uid}: {len(there.get(uid, {}))} of {len(instances)} instances at the"
                " archive, or not equal"
            )


def expected_holdings(store: Store) -> Mapping[str, Mapping[str, str]]:
    """Return what the archive must hold: delivered results; of others it may hold anything.

    The value of a series whose delivery has not ended is empty.
    """
    found: dict[str, dict[str, str]] = {}
    for row in store.series.listing():
        job = store.jobs.of_series(row["series_uid"])[-1]
        uid = job.derived_series_uid or row["series_uid"]
        whole = row["state"] == "DELIVERED"
        derived = store.jobs.derived(job.id) if whole else []
        found[uid] = {one.sop_uid: digest(one.path) for one in derived}
    return found


def check_verify(account: Account, node: StandNode) -> None:
    """Ledger, audit trail and every stored hash are in order, as `dicom-node verify` says."""
    try:
        node.command("verify")
    except AssertionError as error:
        account.problems.append(str(error))
