"""`dicom-node provenance`: how a derived file was made, told by the file alone, and who signed."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node.cli.output import print_json, settings_of
from sr_engine.dicom import seal
from sr_engine.dicom.provenance import Provenance, from_dataset
from sr_engine.errors import NotDicom

DONE, REFUSED = 0, 1


def provenance(arguments: argparse.Namespace) -> int:
    """Print how a derived instance was made, its hash checked, and its signature if asked."""
    settings = settings_of(arguments)
    dataset = read(arguments.file, pixels=bool(arguments.verify))
    made = from_dataset(dataset)
    signed = signature(dataset, arguments.verify, settings.node.state_dir)
    document = made.to_dict() | {
        "sha256": made.digest(),
        "chain": chain(made),
        "signature": signed,
    }
    if arguments.json:
        print_json(document)
    else:
        print(in_words(document))
    if signed["valid"] is False:
        print(f"dicom-node provenance: {arguments.file}: {signed['verdict']}", file=sys.stderr)
        return REFUSED
    return DONE


def show_key(arguments: argparse.Namespace) -> int:
    """Print the public key of this node."""
    from dicom_node import signing

    settings = settings_of(arguments)
    print(signing.public_text(signing.own_key(settings.node.state_dir)))
    return DONE


def read(path: Path, *, pixels: bool) -> Dataset:
    """Return the dataset in a file; raise NotDicom where it is none."""
    try:
        return dcmread(path, stop_before_pixels=not pixels)
    except (InvalidDicomError, OSError) as error:
        raise NotDicom(f"{path} cannot be read as DICOM: {error}") from error


def chain(made: Provenance) -> list[dict[str, str]]:
    """Return the hashes from the source to the result, each with what it is of."""
    links = (
        ("source", made.source_sha256, f"volume of series {made.source_series_uid}"),
        ("recipe", made.recipe_digest, "processing options"),
        ("weights", made.bundle_sha256, made.bundle_name),
        ("result", made.result_sha256, "stored values of the derived volume"),
        ("provenance", made.digest(), "this document, which names all of the above"),
    )
    return [{"of": name, "sha256": value, "what": what} for name, value, what in links if value]


def signature(dataset: Dataset, wanted: str | None, state_dir: Path) -> dict[str, Any]:
    """Return who signed the instance, and whether that is true; `wanted` is the key to check with.

    "own" is the key of this node. Without `wanted` nothing is checked: a key inside the file proves
    nothing by itself.
    """
    found = seal.signature_of(dataset)
    if wanted is None:
        verdict = "not checked (--verify KEY)" if found else "none"
        return {"key": found[1] if found else "", "valid": None, "verdict": verdict}
    from dicom_node import signing

    own = wanted == "own"
    key = signing.public_text(signing.own_key(state_dir)) if own else signing.public_key(wanted)
    if found is None:
        return {"key": "", "valid": False, "verdict": "the file is not signed"}
    valid = signing.is_signed_by(key, found[0], seal.statement(dataset))
    if valid:
        verdict = "valid: pixels, geometry, content and provenance are as they were signed"
    elif found[1] != key:
        verdict = f"the file names another key, {found[1]}"
    else:
        verdict = "the signature does not fit: pixels, geometry, content or provenance were changed"
    return {"key": key, "valid": valid, "verdict": verdict}


def in_words(document: dict[str, Any]) -> str:
    """Return the document as lines for a person."""
    width = max(map(len, document))
    lines = []
    for name, value in document.items():
        if name == "source_sop_uids":
            lines.append(f"{name:<{width}}  {len(value)} instances")
        elif name == "chain":
            lines += [
                f"{name:<{width}}  {one['of']} {one['sha256']}: {one['what']}" for one in value
            ]
        elif isinstance(value, dict):
            lines += [f"{name:<{width}}  {key} = {one}" for key, one in value.items()]
        else:
            lines.append(f"{name:<{width}}  {value}")
    return "\n".join(lines)
