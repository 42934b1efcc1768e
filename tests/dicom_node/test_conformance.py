"""The Conformance Statement says what the node does, and docs/conformance.md is its output."""

import json
import re
from pathlib import Path

import pydicom.uid
import pytest
from pydicom.uid import (
    MPEG2MPHLF,
    EnhancedMRImageStorage,
    HTJ2KLossless,
    JPEG2000Lossless,
    MRImageStorage,
)
from pynetdicom import AE, build_context

from dicom_node.cli import main
from dicom_node.conformance import services, statement, tables
from dicom_node.network import scp
from dicom_node.settings import make_settings
from sr_engine.dicom.reader import read_series
from tests import phantoms
from tests.rigs import SOURCE, running_node

PRINTING = "1.2.840.10008.5.1.1.1"  # Basic Film Session: no node of ours does that

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_command_prints_for_the_default_configuration(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # no ./node.toml here
    assert main(["conformance"]) == 0

    kept = (ROOT / "docs" / "conformance.md").read_text()
    assert capsys.readouterr().out == kept, "dicom-node conformance > docs/conformance.md"


def test_the_tables_are_json_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["conformance", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    [table] = told["Network: SOP classes accepted (SCP)"]
    assert MRImageStorage in [row[1] for row in table["rows"]]


def stated_contexts(settings) -> set[tuple[str, str]]:
    """Return every accepted pair of SOP class and transfer syntax, as the tables state them."""
    classes = {row[0]: row[1] for row in services.accepted(settings)[0].rows}
    others = {uid for uid in classes.values() if uid not in scp.storage_classes(settings)}
    stated = set()
    for table in services.transfer_syntaxes(settings):
        names = table.note.split(";")[0]
        every = set(classes.values()) - others
        group = every if names == services.EVERY else {classes[name] for name in names.split(", ")}
        stated |= {(uid, row[1]) for uid in group for row in table.rows}
    return stated


@pytest.mark.parametrize("syntax", [*map(str, scp.TRANSFER_SYNTAXES), JPEG2000Lossless,
                                    HTJ2KLossless, MPEG2MPHLF])  # fmt: skip
@pytest.mark.parametrize("sop_class", [MRImageStorage, EnhancedMRImageStorage, PRINTING])
def test_what_is_stated_is_negotiated_and_nothing_else(node, syntax, sop_class):
    stated = (sop_class, syntax) in stated_contexts(node.settings)
    ae = AE(ae_title=SOURCE["ae_title"])

    association = ae.associate(
        "127.0.0.1", node.scp.port, [build_context(sop_class, syntax)], "SRNODE"
    )

    accepted = [context.transfer_syntax[0] for context in association.accepted_contexts]
    association.release()
    assert accepted == ([syntax] if stated else [])


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running


def test_a_peer_of_the_configuration_is_listed_with_all_that_it_states():
    peer = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 4242}
    settings = make_settings({"peers": [peer | {"roles": ["destination"], "commitment": True}]})

    [table] = tables.remote_entities(settings)

    told = dict(zip(table.head, table.rows[0], strict=True))
    assert (told["name"], told["ae title"], told["port"]) == ("pacs", "PACS", "4242")
    assert told["commitment"] == "yes"
    assert "| pacs |" in statement(settings)


def test_every_class_that_the_engine_writes_is_stated():
    """A new kind of output must stand in `services.SENT`, too."""
    written = set()
    for path in (ROOT / "sr_engine" / "dicom").glob("*.py"):
        if "reader" not in path.name and path.name != "enhanced.py":
            found = re.findall(r"SOPClassUID = (\w+Storage)\b", path.read_text())
            written |= {str(getattr(pydicom.uid, name)) for name in found}

    assert written
    assert written <= set(services.SENT)


def test_the_image_type_and_the_implementation_of_each_output_are_stated(tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)
    derived = phantoms.derive(
        source, tmp_path / "out", kinds=["classic", "enhanced", "classic+spread"]
    )
    written = [pydicom.dcmread(one.paths[0]) for one in derived.outputs]

    objects, copied = services.derived_objects(make_settings({}))

    told = {row[1]: row[3] for row in objects.rows}
    assert {one.SOPClassUID: "\\".join(one.ImageType) for one in written} == {
        uid: text for uid, text in told.items() if text != "-"
    }
    for one in written:
        assert one.file_meta.ImplementationClassUID in objects.note
        assert one.file_meta.ImplementationVersionName in objects.note
    assert "DERIVED" not in copied.note


def test_every_status_of_a_refusal_is_stated():
    stated = {row[0] for row in services.statuses_returned(make_settings({}))[0].rows}

    assert {f"{kind.status:04X}" for kind in services.refusals()} <= stated
    assert {"0000", "A700", "A900", "0111", "0122", "0124", "0211", "C211"} <= stated
