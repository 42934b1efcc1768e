"""One series through a running node into two archives: every form, every companion, read back."""

import shutil
from collections import defaultdict

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.ko import KeyObjectSelectionDocument
from highdicom.sr import EnhancedSR

from dicom_node import signing
from sr_engine.dicom import seal
from tests.integration import marks
from tests.integration.partners import Node, Orthanc, free_port, storescu
from tests.integration.test_main_line import ADMIT_ANY_MR, engine
from tests.readers import READERS, placed
from tests.validators import errors

ALL = '["spread", "key_objects", "presentation", "report"]'
CLASSIC, ENHANCED = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
SPREAD, KEYS = "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.88.59"
STATES, REPORT = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.22"
COMPANIONS = {SPREAD: 1, KEYS: 1, STATES: 2, REPORT: 1}


def peer(name, archive, **options):
    """Return a destination's table of node.toml."""
    text = f'[[peers]]\nname = "{name}"\nae_title = "{archive.ae_title}"\nhost = "127.0.0.1"\n'
    text += f'port = {archive.port}\nroles = ["source", "destination"]\n'
    return text + "".join(f"{key} = {value}\n" for key, value in options.items())


def stored(archive, folder):
    """Return what an archive gives back, by SOP class; each as (dataset, path)."""
    found = defaultdict(list)
    for series in archive.series():
        for path in archive.download(series, folder / series["ID"]):
            dataset = pydicom.dcmread(path)
            found[str(dataset.SOPClassUID)].append((dataset, path))
    return found


@pytest.fixture
def research(tmp_path):
    """Yield a second archive."""
    second = Orthanc(tmp_path / "second", free_port(), "RESEARCH").start()
    yield second
    second.stop()


@pytest.fixture
def delivered(archive, research, small_weights, tmp_path):
    """Yield the node, its job's row, the source and what each archive holds."""
    volume, _ = marks.marked_volume("double-oblique")
    sources = marks.write_marked(tmp_path / "scan", volume)
    pacs = peer("pacs", archive, commitment="true", companions=ALL)
    second = peer("research", research, form='"enhanced"', companions=ALL)
    rules = ADMIT_ANY_MR.replace('to = ["orthanc"]', 'to = ["pacs", "research"]')
    node = Node(
        tmp_path / "node",
        rules=f"{pacs}\n{second}\n{rules}",
        engine=engine(small_weights, 1.0),
        port=archive.node_port,
    ).start()
    try:
        storescu(node.port, sources)
        uid = str(pydicom.dcmread(sources[0]).SeriesInstanceUID)
        row = node.wait_state(uid, ["DELIVERED", "HELD", "DEAD"], 300)
        yield node, row, sources, [stored(one, tmp_path / "back") for one in (archive, research)]
    finally:
        node.stop()


@pytest.mark.slow
def test_every_form_and_companion_reaches_its_archive_and_can_be_read_there(delivered, tmp_path):
    node, row, sources, (pacs, research) = delivered
    assert row["state"] == "DELIVERED", row["reason"]
    slices = len(pacs[CLASSIC])
    first, second = row["deliveries"]
    assert (first["state"], first["sent"]) == ("COMMITTED", slices + 5)
    assert first["committed"] == first["sent"]
    assert (second["state"], second["sent"]) == ("SENT", 6)
    assert {name: len(found) for name, found in pacs.items()} == {CLASSIC: slices} | COMPANIONS
    assert {name: len(found) for name, found in research.items()} == {ENHANCED: 1} | COMPANIONS

    check_readers(pacs, research)
    check_companions(pacs, [path for _, path in pacs[CLASSIC]], sources)
    check_companions(research, [research[ENHANCED][0][1]], sources)
    check_signatures(node, [*pacs.values(), *research.values()])
    check_validators(sources, [*pacs.values(), *research.values()])


def check_readers(pacs, research):
    """Three readers find the classic and the Enhanced image in the same place, with one content."""
    classic, enhanced = [path for _, path in pacs[CLASSIC]], [research[ENHANCED][0][1]]
    expected = placed(READERS["highdicom"](classic))
    for name, read in READERS.items():
        if name == "dcm2niix" and not shutil.which(name):
            continue
        assert np.allclose(placed(read(classic)), expected, atol=0.05), name
        assert np.allclose(placed(read(enhanced)), expected, atol=0.05), name


def check_companions(found, image_paths, sources):
    """What lies beside an image speaks of it, and highdicom understands it."""
    image = READERS["highdicom"](image_paths)
    ((spread, path),) = found[SPREAD]
    spread_volume = highdicom.imread(path).get_volume(apply_real_world_transform=True)
    assert np.allclose(spread_volume.affine[:, [2, 1, 0, 3]], image[1], atol=1e-4)
    assert 0 < spread_volume.array.max() < image[0].max()  # both in units of the scanner
    ((keys, _),) = found[KEYS]
    document = KeyObjectSelectionDocument.from_dataset(keys)
    references = document.content.get_references()
    assert len(references) == 2 * len(sources)
    named = {str(one.referenced_sop_instance_uid) for one in references}
    originals = {str(pydicom.dcmread(one).SOPInstanceUID) for one in sources}
    derived = {str(pydicom.dcmread(one).SOPInstanceUID) for one in image_paths}
    assert originals <= named <= originals | derived
    ((report, _),) = found[REPORT]
    content = EnhancedSR.from_dataset(report).content
    (group,) = content.get_image_measurement_groups()
    figures = {one.name.meaning: one.value for one in group.get_measurements()}
    assert 95 < figures["Head shown in the result"] <= 100
    texts = [
        one.TextObjectSequence[0].UnformattedTextValue
        for state, _ in sorted(found[STATES], key=lambda each: each[0].InstanceNumber)
        for one in state.GraphicAnnotationSequence
    ]
    assert texts[0].startswith("level of original image 1, ")
    assert texts[-1].startswith("level of AI-SR image ")


def check_signatures(node, groups):
    """Every stored file carries a signature by the node's key."""
    key = node.cli("public-key").stdout.strip()
    assert len(key) == 64
    for group in groups:
        for dataset, _ in (group[0], group[-1]):
            signature, named = seal.signature_of(dataset)
            assert named == key
            assert signing.is_signed_by(key, signature, seal.statement(dataset))
    path = str(groups[0][0][1])
    told = node.cli("provenance", path, "--verify", key)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "valid: pixels, geometry, content and provenance" in told.stdout


def check_validators(sources, groups):
    """dciodvfy finds no error that the source lacks."""
    if not shutil.which("dciodvfy"):
        return
    inherited = errors("dciodvfy", sources[0])
    for group in groups:
        for _, path in (group[0], group[-1]):
            assert errors("dciodvfy", path) <= inherited, path
