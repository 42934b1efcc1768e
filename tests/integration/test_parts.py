"""Series that hold several volumes, from the scanner's association to a real archive."""

import numpy as np
import pydicom
import pytest
from highdicom import Volume

from sr_engine.dicom.scanner import write_acquisition
from tests import variants
from tests.integration import marks
from tests.integration.partners import Node, storescu
from tests.integration.test_main_line import ADMIT_ANY_MR, engine
from tests.validators import errors

FINAL = ["DELIVERED", "HELD", "DEAD", "SKIPPED"]
FEW = 7  # slices that a localizer has in each plane


def stack(folder, orientation, number, weight=1.0, **tags):
    """Return the files of a marked head as one stack, and where its marks are."""
    volume, corners = marks.marked_volume(orientation)
    volume = Volume(volume.array * weight, volume.affine, coordinate_system="PATIENT")
    place = folder / f"{number} {orientation} {weight:g}"
    return write_acquisition(volume, place, tags=tags | {"SeriesNumber": number}), corners


def header(path):
    return pydicom.dcmread(path, stop_before_pixels=True)


@pytest.fixture
def node(archive, small_weights, tmp_path):
    made = Node(
        tmp_path / "node",
        archives=[archive],
        rules=ADMIT_ANY_MR,
        engine=engine(small_weights, 3.0),
        port=archive.node_port,
    ).start()
    yield made
    assert made.stop() == 0


def test_each_volume_of_a_series_comes_back_as_a_series(node, archive, tmp_path):
    planes, corners = {}, {}
    for orientation in ("axial", "sagittal", "coronal"):
        planes[orientation], corners[orientation] = stack(tmp_path, orientation, 2)
    echo, corners["TE 9 ms"] = stack(tmp_path, "double-oblique", 3, 0.6, EchoTime="9")
    first, corners["TE 2.97 ms"] = stack(tmp_path, "double-oblique", 3)
    broken, _ = stack(tmp_path, "axial", 4, 0.6, EchoTime="9")
    whole, _ = stack(tmp_path, "axial", 4)
    scouts = [stack(tmp_path, orientation, 5)[0][:FEW] for orientation in planes]
    series = {
        "planes": variants.one_series(planes["axial"], planes["sagittal"]),
        "echoes": variants.one_series(echo, first),
        "hole": variants.one_series(whole, broken),
        "scouts": variants.one_series(*scouts),
    }
    series["hole"].pop(-5)
    uids = {name: header(paths[0]).SeriesInstanceUID for name, paths in series.items()}

    for paths in series.values():
        storescu(node.port, paths)
    rows = {name: node.wait_state(uid, FINAL, 300) for name, uid in uids.items()}
    told = {name: (row["state"], row["reason"]) for name, row in rows.items()}
    page = node.page("/jobs/1")

    assert told["planes"][0] == told["echoes"][0] == "DELIVERED", told
    assert told["hole"][0] == "HELD" and "TE 9 ms: slice missing at" in told["hole"][1]
    assert told["scouts"][0] == "SKIPPED"
    assert "they lie in 3 orientations with 7, 7, 7 images" in told["scouts"][1]
    assert all(uid in page for uid in rows["planes"]["derived_series_uids"])
    parts = {"planes": ("axial", "sagittal"), "echoes": ("TE 2.97 ms", "TE 9 ms")}
    back = {}
    for name, expected in parts.items():
        made = rows[name]["derived_series_uids"]
        for part, uid in zip(expected, made, strict=True):
            [found] = archive.series(uid)
            back[part] = archive.download(found, tmp_path / "back" / uid)
    assert len(archive.series()) == len(back) == 4
    check(back, corners, [path for paths in series.values() for path in paths])


def check(back, corners, sources) -> None:
    """Each series shows its own volume, says so, and is told from all others by every number."""
    first = {part: header(paths[0]) for part, paths in back.items()}
    assert len({one.SeriesNumber for one in first.values()}) == len(first)
    uids = [header(path).SOPInstanceUID for paths in back.values() for path in paths]
    assert len(set(uids)) == len(uids)
    for part, paths in back.items():
        images = [pydicom.dcmread(path) for path in paths]
        assert {one.SeriesDescription for one in images} == {f"t1_mpr {part} AI-SR RESEARCH"}
        assert np.abs(marks.marks_of(images, corners[part]) - corners[part]).max() < 0.01
        assert errors("dciodvfy", paths[0]) == set()
    assert {float(first[part].EchoTime) for part in ("TE 2.97 ms", "axial")} == {2.97}
    assert float(first["TE 9 ms"].EchoTime) == 9.0
    every = [path for paths in back.values() for path in paths]
    assert errors("dcentvfy", *sources, *every) <= errors("dcentvfy", *sources)
