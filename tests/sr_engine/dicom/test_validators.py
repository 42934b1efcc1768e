"""dciodvfy and dcentvfy find nothing in a derived series that the source does not have."""

import shutil

import pytest

from sr_engine.dicom.reader import read_series
from tests import phantoms
from tests.validators import errors


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

    paths = phantoms.derive(read_series(phantom.paths), tmp_path / "out").written.paths

    assert errors("dciodvfy", paths[0]) == set()
    assert errors("dcentvfy", *phantom.paths, *paths) == set()


@pytest.mark.parametrize("name", ["p01", "p02", "p03", "p04", "p06", "p35"])
def test_a_derived_real_series_has_no_error_that_its_source_lacks(name, shared_series, tmp_path):
    folder = shared_series(name)
    source = read_series([folder])
    volume = source.volume if name == "p01" else phantoms.finer(source)
    originals = sorted(folder.iterdir())

    paths = phantoms.derive(source, tmp_path, volume=volume).written.paths

    inherited = errors("dciodvfy", originals[0])
    for path in (paths[0], paths[len(paths) // 2]):
        assert errors("dciodvfy", path) <= inherited
    assert errors("dcentvfy", *paths) <= errors("dcentvfy", *originals)
