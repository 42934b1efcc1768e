"""dciodvfy and dcentvfy find nothing in a derived series that the source does not have."""

import shutil

import pytest

from sr_engine.dicom.kinds import COMPANIONS, FORMS
from sr_engine.dicom.reader import read_series
from tests import phantoms, variants
from tests.validators import errors

KINDS = ("classic", "enhanced", *(f"classic+{name}" for name in COMPANIONS), "enhanced+spread")


@pytest.fixture(scope="module", autouse=True)
def validators():
    if not shutil.which("dciodvfy") or not shutil.which("dcentvfy"):
        pytest.skip("dicom3tools (dciodvfy, dcentvfy) is not installed")


@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
def test_what_the_phantom_scanner_writes_has_no_error(orientation, tmp_path):
    phantom = phantoms.corner_series(tmp_path, orientation)

    assert errors("dciodvfy", phantom.paths[0]) == set()
    assert errors("dcentvfy", *phantom.paths) == set()


def test_a_derived_phantom_has_no_error(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", "double-oblique")

    outputs = phantoms.derive(read_series(phantom.paths), tmp_path / "out", kinds=KINDS).outputs

    assert {one.kind: errors("dciodvfy", one.paths[0]) for one in outputs} == dict.fromkeys(
        KINDS, set()
    )
    paths = [path for one in outputs for path in one.paths]
    assert errors("dcentvfy", *phantom.paths, *paths) == set()


@pytest.mark.parametrize(
    "tags",
    [
        phantoms.CONTRAST,
        {"ContrastBolusAgentSequence": [phantoms.GADOLINIUM]},
        {**phantoms.CONTRAST, "ContrastBolusAgentSequence": [phantoms.GADOLINIUM]},
    ],
    ids=["named", "coded", "both"],
)
def test_a_derived_phantom_after_contrast_has_no_error(tags, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", **tags)

    outputs = phantoms.derive(read_series(phantom.paths), tmp_path / "out", kinds=FORMS).outputs

    found = {one.kind: errors("dciodvfy", one.paths[0]) for one in outputs}
    assert found == dict.fromkeys(FORMS, set())
    paths = [path for one in outputs for path in one.paths]
    assert errors("dcentvfy", *phantom.paths, *paths) == set()


def test_what_is_derived_from_an_enhanced_phantom_after_contrast_has_no_error(tmp_path):
    slices = phantoms.corner_series(tmp_path / "in").paths
    agents = [phantoms.ENHANCED_GADOLINIUM]
    source = [
        variants.write_enhanced(slices, tmp_path / "1.dcm", ContrastBolusAgentSequence=agents)
    ]

    outputs = phantoms.derive(read_series(source), tmp_path / "out", kinds=FORMS).outputs

    for one in outputs:
        assert errors("dciodvfy", one.paths[0]) <= errors("dciodvfy", *source), one.kind


@pytest.mark.parametrize("name", ["p01", "p02", "p03", "p04", "p06", "p35"])
def test_a_derived_real_series_has_no_error_that_its_source_lacks(name, shared_series, tmp_path):
    folder = shared_series(name)
    source = read_series([folder])
    volume = source.volume if name == "p01" else phantoms.finer(source)
    originals = sorted(folder.iterdir())

    outputs = phantoms.derive(source, tmp_path, volume=volume, kinds=KINDS).outputs

    inherited = errors("dciodvfy", originals[0])
    for written in outputs:
        for path in {written.paths[0], written.paths[len(written.paths) // 2]}:
            assert errors("dciodvfy", path) <= inherited, written.kind
    paths = [path for one in outputs for path in one.paths]
    assert errors("dcentvfy", *paths) <= errors("dcentvfy", *originals)
