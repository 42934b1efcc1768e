"""Whatever stands in a data set, intake takes or refuses it; assembly and rules decide on it."""

import json
import random

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from dicom_node.assembly import InstanceHeader, judge
from dicom_node.errors import InstanceRejected
from dicom_node.intake import Incoming, examine
from dicom_node.rules import FRAMES, HEADER_KEYS
from dicom_node.settings import make_settings
from tests.faults.fuzz_data import Maker, Subject

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about every value
SETTINGS = make_settings({})
PLAIN = st.one_of(
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=6))
HEADERS = st.dictionaries(st.sampled_from(HEADER_KEYS), VALUES, max_size=20)
GEOMETRY = st.fixed_dictionaries(
    {
        "ImagePositionPatient": st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3),
        "ImageOrientationPatient": st.just([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        "PixelSpacing": st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=2),
        "Modality": st.just("MR"),
        "SOPClassUID": st.just("1.2.840.10008.5.1.4.1.1.4"),
    }
)


def examined(subject: Subject) -> dict:
    """Return the header of a data set as intake leaves it in the database."""
    incoming = Incoming(
        encoded=subject.encoded,
        transfer_syntax=subject.syntax,
        calling_ae="MR1",
        sop_class=subject.sop_class,
        sop_uid=subject.sop_uid,
    )
    return json.loads(json.dumps(examine(incoming).header, allow_nan=False))


def test_hostile_data_sets_are_taken_or_refused_and_always_decided():
    maker, taken = Maker(6, trees=40), []

    for number in range(200):
        try:
            taken.append(examined(maker.make(random.Random(number))))
        except InstanceRejected as refused:
            assert len(str(refused)) > 10

    assert len(taken) > 40
    for at in range(0, len(taken), 4):
        headers = [InstanceHeader(sop_uid="1.2", header=each) for each in taken[at : at + 4]]
        assert judge(headers, SETTINGS).reason


@seed(8)
@settings(max_examples=80, deadline=None, database=None)
@given(
    st.lists(
        st.builds(dict.__or__, HEADERS, st.one_of(GEOMETRY, st.just({}))), min_size=1, max_size=4
    )
)
def test_any_headers_come_to_a_decision(headers):
    instances = [InstanceHeader(sop_uid=f"1.{at}", header=one) for at, one in enumerate(headers)]

    assert judge(instances, SETTINGS).reason


@seed(9)
@settings(max_examples=40, deadline=None, database=None)
@given(HEADERS, st.lists(st.builds(dict.__or__, HEADERS, GEOMETRY), min_size=1, max_size=4))
def test_any_frames_come_to_a_decision(header, frames):
    instance = InstanceHeader(sop_uid="1.2", header=header | {FRAMES: frames})

    assert judge([instance], SETTINGS).reason
