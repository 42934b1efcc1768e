"""One real series, from the scanner's association to the derived series in a real PACS."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests import phantoms
from tests.certificates import signing_certificate
from tests.integration import marks
from tests.integration.partners import Node, storescu
from tests.integration.readers import READERS
from tests.validators import errors

ADMIT_ANY_MR = """
[[rules]]
name = "any MR"
when = { modality = ["MR"] }
action = "enhance"
to = ["orthanc"]
"""


SHIPPED_STUDENT = 'device = "cpu"'


def engine(weights: Path, spacing_mm: float = 0.7) -> str:
    return f'weights = "{weights}"\nsteps = 1\ndevice = "cpu"\nspacing_mm = {spacing_mm}'


def derived_files(archive, job: dict, folder: Path) -> list[pydicom.Dataset]:
    """Return the derived instances as the PACS gives them back, by InstanceNumber."""
    found = archive.series(job["derived_series_uid"])
    assert len(found) == 1
    paths = archive.download(found[0], folder)
    return sorted((pydicom.dcmread(path) for path in paths), key=lambda d: d.InstanceNumber)


def position_range(datasets, normal) -> tuple[float, float]:
    """Return the outer faces of the stack along `normal`, in mm."""
    depth = sorted(float(np.dot(d.ImagePositionPatient, normal)) for d in datasets)
    half = 0.5 * (depth[-1] - depth[0]) / (len(depth) - 1)
    return depth[0] - half, depth[-1] + half


def first_number(value) -> float:
    """Return the first of one or several window values."""
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)


def median_brightness(datasets) -> float:
    """Return the median grey of what is not dark under the default window, 0 .. 1.

    Without a usable window (p02: width 0) a viewer spreads the grey scale over what is there: the
    1st to the 99th percentile.
    """
    volume = np.stack(
        [
            d.pixel_array * float(d.get("RescaleSlope", 1)) + float(d.get("RescaleIntercept", 0))
            for d in datasets
        ]
    )
    if first_number(datasets[0].get("WindowWidth", 0)) >= 1:
        centre, width = (
            np.array([first_number(d[key].value) for d in datasets])[:, None, None]
            for key in ("WindowCenter", "WindowWidth")
        )
    else:
        low, high = np.percentile(volume, (1, 99))
        centre, width = (low + high) / 2, high - low
    grey = np.clip((volume - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    return float(np.median(grey[grey > 0.1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rules", "student"),
    [
        ("p01-siemens-avanto-1p5t-t1mpr-slab", "", "shipped"),  # the default rules take it
        # At 1.4 mm: an eighth of the time.
        ("p02-ge-signa-1p5t-fse-pd-axobl", ADMIT_ANY_MR, "shipped, 1.4 mm"),
        ("p04-siemens-xa30-3t-t1-enhanced", ADMIT_ANY_MR, "small"),
    ],
)
def test_a_real_series_comes_back_to_the_pacs_as_a_derived_one(
    name, rules, student, archive, shared_series, small_weights, tmp_path
):
    sources = sorted(path for path in shared_series(name).rglob("*") if path.is_file())
    headers = [pydicom.dcmread(path) for path in sources]
    if not rules:
        rules = ADMIT_ANY_MR.replace('"any MR"', '"1.5 T brain"').replace(
            '{ modality = ["MR"] }', '{ modality = ["MR"], field_strength_t = [1.4, 1.6] }'
        )
    certificate = signing_certificate(tmp_path / "signing")
    signed = f'[signing]\ncertificate = "{certificate.certificate}"\nkey = "{certificate.key}"\n'
    node = Node(
        tmp_path / "node",
        archives=[archive],
        rules=signed + rules,
        engine={
            "shipped": SHIPPED_STUDENT,
            "shipped, 1.4 mm": f"{SHIPPED_STUDENT}\nspacing_mm = 1.4",
            "small": engine(small_weights, 1.0),
        }[student],
        port=archive.node_port,
    ).start()
    try:
        storescu(node.port, sources, "-R")
        job = node.wait_state(headers[0].SeriesInstanceUID, ["DELIVERED", "HELD", "DEAD"], 420)
        assert job["state"] == "DELIVERED", job["reason"]
        assert [d["state"] for d in job["deliveries"]] == ["SENT"]
        derived = derived_files(archive, job, tmp_path / "back")
        page = node.page("/") + node.page("/metrics") + node.page("/jobs/1")
        verified = node.cli("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    finally:
        assert node.stop() == 0

    assert {d.SeriesInstanceUID for d in derived} == {job["derived_series_uid"]}
    assert {d.StudyInstanceUID for d in derived} == {headers[0].StudyInstanceUID}
    assert {d.PatientID for d in derived} == {headers[0].PatientID}
    assert list(derived[0].ImageType)[:2] == ["DERIVED", "SECONDARY"]
    for path in sorted((tmp_path / "back").glob("*.dcm"))[:3]:
        verify = ["dcmsign", "--verify", "+rc", "+cf", certificate.certificate, path]
        assert subprocess.run(verify, capture_output=True).returncode == 0, path
    check_field_of_view(headers, derived)
    if len(headers) > 1:  # p04 keeps its windows in functional groups
        assert median_brightness(derived) == pytest.approx(median_brightness(headers), rel=0.02)
    check_validators(sources, derived, tmp_path / "back")
    check_no_patient(headers, node.log.read_text() + page)


def check_field_of_view(headers, derived) -> None:
    """The stack covers the source's slices to within one output voxel."""
    if "PerFrameFunctionalGroupsSequence" in headers[0]:
        return  # its geometry is checked against the engine's reader in tests/sr_engine
    orientation = np.array(derived[0].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    source, ours = position_range(headers, normal), position_range(derived, normal)
    voxel = float(derived[0].SliceThickness)
    assert abs(ours[0] - source[0]) <= voxel + 0.01 and abs(ours[1] - source[1]) <= voxel + 0.01
    for axis in (0, 1):
        size = (derived[0].Rows, derived[0].Columns)[axis]
        extent = size * float(derived[0].PixelSpacing[axis])
        wanted = (headers[0].Rows, headers[0].Columns)[axis] * float(headers[0].PixelSpacing[axis])
        assert wanted - 0.01 <= extent <= wanted + float(derived[0].PixelSpacing[axis]) + 0.01


def check_validators(sources, derived, folder: Path) -> None:
    """Dciodvfy finds no Error that the source does not have; dcentvfy finds none."""
    paths = sorted(folder.glob("*.dcm"))
    assert len(paths) == len(derived)
    inherited = errors("dciodvfy", sources[0])
    for path in (paths[0], paths[len(paths) // 2], paths[-1]):
        assert errors("dciodvfy", path) <= inherited
    assert errors("dcentvfy", *paths) == set()


def check_no_patient(headers, said: str) -> None:
    """Neither name nor ID of the patient stands in any log line, metric or page."""
    name, patient_id = str(headers[0].get("PatientName", "")), str(headers[0].get("PatientID", ""))
    for value in (name, patient_id, *re.split(r"[\^ ]+", name)):
        if len(value) > 3:
            assert not re.search(rf"\b{re.escape(value)}\b", said)


@pytest.mark.parametrize("orientation", sorted(phantoms.ORIENTATIONS))
def test_the_same_patient_point_lies_at_the_same_place(
    orientation, archive, small_weights, tmp_path
):
    volume, corners = marks.marked_volume(orientation)
    sources = marks.write_marked(tmp_path / "in", volume)
    series_uid = pydicom.dcmread(sources[0], stop_before_pixels=True).SeriesInstanceUID
    node = Node(
        tmp_path / "node",
        archives=[archive],
        rules=ADMIT_ANY_MR,
        engine=engine(small_weights),
        port=archive.node_port,
    ).start()
    try:
        storescu(node.port, sources)
        job = node.wait_state(series_uid, ["DELIVERED", "HELD", "DEAD"], 180)
        assert job["state"] == "DELIVERED", job["reason"]
        derived = derived_files(archive, job, tmp_path / "back")
    finally:
        assert node.stop() == 0

    found = marks.marks_of(derived, near=corners)
    assert np.abs(found - corners).max() < 0.01
    for name, read in READERS.items():
        theirs = marks.marks_in(read(tmp_path / "back", tmp_path / name), near=corners)
        assert np.abs(theirs - corners).max() < 0.05, name
    source = [pydicom.dcmread(path) for path in sources]
    assert median_brightness(derived) == pytest.approx(median_brightness(source), rel=0.02)
