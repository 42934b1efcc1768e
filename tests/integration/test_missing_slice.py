"""A slice that is missing inside a stack is named with its place: 100 of 100, and 100 of 100."""

import numpy as np
import pydicom
import pytest

from dicom_node.assembly import InstanceHeader, judge
from dicom_node.cli.dry_run import look_at
from dicom_node.settings import make_settings
from dicom_node.states import HeldBy
from sr_engine.dicom import geometry
from sr_engine.dicom.headers import read_headers
from sr_engine.errors import GeometryError
from tests.dicom_node.slices import slice_at

ANY = make_settings({"rules": [{"name": "any", "action": "enhance"}]})
REAL = ("p01", "p02", "p03", "p06")  # 3-D, rounded to 0.1 mm, with gaps, split from Enhanced


def assert_named(slices: list[InstanceHeader], lost_mm: float, rounding_mm: float) -> None:
    """The series is held, and the sentence names the place of the only slice that is not there."""
    verdict = judge(slices, ANY)
    assert verdict.held_by is HeldBy.COMPLETENESS, verdict.reason
    (found_mm,) = verdict.geometry.missing_mm
    assert found_mm == pytest.approx(lost_mm, abs=rounding_mm)
    assert f"slice missing at {found_mm:.1f} mm along the normal".replace("-0.0", "0.0") in (
        verdict.reason
    )


@pytest.mark.parametrize("seed", range(100))
def test_a_random_slice_of_a_random_stack_is_missed(seed):
    random = np.random.default_rng(seed)
    row, column = np.linalg.qr(random.normal(size=(3, 3)))[0][:2]  # double-oblique
    normal = np.cross(row, column)
    count = int(random.integers(20, 200))
    thickness = random.uniform(0.6, 6.0)
    gap = random.choice([0.0, 0.3, 2.0])
    start = random.uniform(-150, 150, 3)
    numbers = [*range(1, count + 1, 2), *range(2, count + 1, 2)]  # interleaved
    slices = []
    for index in range(count):
        jitter = random.uniform(-1e-8, 1e-8, 6)
        place = start + index * (thickness + gap) * normal + random.uniform(-1e-4, 1e-4, 3)
        slices.append(
            slice_at(
                0.0,
                numbers[index],
                ImagePositionPatient=[round(float(value), 6) for value in place],
                ImageOrientationPatient=[float(v) for v in np.concatenate([row, column]) + jitter],
                PixelSpacing=[1.0, 0.8],
                SliceThickness=thickness,
                SpacingBetweenSlices=gap or thickness,  # some say the gap
            )
        )
    assert judge(slices, ANY).event == "enqueue"
    lost = slices.pop(int(random.integers(1, count - 1)))
    random.shuffle(slices)

    first = np.array(slices[0].header["ImageOrientationPatient"])
    along = np.cross(first[:3], first[3:])
    lost_mm = float(np.dot(lost.header["ImagePositionPatient"], along))
    assert_named(slices, lost_mm, 1e-3)


@pytest.mark.parametrize("name", REAL)
def test_25_random_slices_of_each_real_series_are_missed(name, shared_series):
    folder = shared_series(name)
    examined = [look_at(path) for path in sorted(folder.iterdir())]
    slices = [InstanceHeader(sop_uid=one.sop_uid, header=one.header) for one in examined]
    headers = read_headers([folder])
    cosines = np.array(headers[0].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    along = {str(d.SOPInstanceUID): float(np.dot(d.ImagePositionPatient, normal)) for d in headers}
    inside = sorted(along, key=along.__getitem__)[1:-1]

    for uid in np.random.default_rng(0).choice(inside, 25):
        left = [one for one in slices if one.sop_uid != uid]
        assert_named(left, along[uid], 0.06 if name == "p02" else 0.01)
        with pytest.raises(GeometryError, match=r"1 slice\(s\) missing at"):
            geometry.stack_of(without(headers, uid), tolerance_mm=0.01)


def without(headers: list[pydicom.Dataset], uid: str) -> list[pydicom.Dataset]:
    return [header for header in headers if header.SOPInstanceUID != uid]
