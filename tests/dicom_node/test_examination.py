"""The quick look at an instance says what the thorough one says, or nothing."""

import random

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.content import split_file
from dicom_node.examination import Incoming, quick_look, thorough_look
from tests.dicom_node.test_content import with_sequences
from tests.rigs import encoded, incoming, make_instance

ORDINARY = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless,
]  # fmt: skip


@pytest.mark.parametrize("make", [make_instance, with_sequences], ids=lambda make: make.__name__)
@pytest.mark.parametrize("syntax", ORDINARY, ids=lambda uid: uid.keyword)
def test_both_looks_agree_on_an_ordinary_data_set(tmp_path, make, syntax):
    arrived = incoming(encoded(make(), syntax), tmp_path)

    assert quick_look(arrived) == thorough_look(arrived)


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_no_scanner_sends_is_left_to_the_thorough_look(tmp_path, syntax):
    arrived = incoming(encoded(make_instance(), syntax), tmp_path)

    assert quick_look(arrived) is None
    assert thorough_look(arrived).sop_uid == arrived.sop_uid


REFUSED = {
    "cut short": {"cut": 1},
    "another instance": {"sop_uid": "1.2.3"},
    "another class": {"sop_class": "1.2.840.10008.5.1.4.1.1.2"},
    "none announced": {"sop_uid": ""},
}


@pytest.mark.parametrize("fault", REFUSED)
def test_quick_look_refuses_nothing_by_itself(tmp_path, fault):
    values = dict(REFUSED[fault])
    arrived = incoming(encoded(make_instance())[: -values.pop("cut", 0) or None], tmp_path)
    fields = vars(arrived) | values

    assert quick_look(Incoming(**fields)) is None


@pytest.mark.filterwarnings("ignore")  # of pydicom, about what is damaged
def test_both_looks_agree_on_damaged_data_sets(tmp_path):
    rng = random.Random(7)
    arrived = [
        incoming(encoded(make(), syntax), tmp_path)
        for make in (make_instance, with_sequences)
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    ]
    agreed = 0
    for _ in range(400):
        one = rng.choice(arrived)
        damaged = Incoming(**vars(one) | {"encoded": damage(one.encoded, rng)})
        quick = quick_look(damaged)
        if quick is not None:
            assert quick == thorough_look(damaged)
            agreed += 1

    assert agreed > 20


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return the data set with a byte changed, or a few lost or added, before the pixels."""
    at = rng.randrange(len(data) - 3072)
    kind = rng.choice(["change", "change", "lose", "add"])
    if kind == "change":
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    if kind == "lose":
        return data[:at] + data[at + rng.randint(1, 8) :]
    return data[:at] + rng.randbytes(rng.randint(1, 4)) + data[at:]


@pytest.mark.parametrize("name", ["p01", "p02", "p03", "p06", "p21", "p23", "p24", "p26", "p29"])
def test_both_looks_agree_on_real_instances(shared_series, name):
    for path in sorted(shared_series(name).iterdir())[::7]:
        syntax, data = split_file(path)
        arrived = Incoming(encoded=data, transfer_syntax=syntax, calling_ae="X")
        quick = quick_look(arrived)

        assert quick is not None or path.name == "0001.dcm"
        assert quick in (None, thorough_look(arrived))
