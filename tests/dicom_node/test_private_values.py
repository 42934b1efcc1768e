"""Numbers of private elements, however the data set is encoded."""

import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.examination import quick_look, thorough_look
from tests.rigs import encoded, incoming, make_instance

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def with_private(group, creator, element, vr, value):
    dataset = make_instance()
    dataset.private_block(group, creator, create=True).add_new(element, vr, value)
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    ("private", "name", "expected"),
    [
        ((0x0019, "SIEMENS MR HEADER", 0x0A, "US", 36), "tiles", 36),
        ((0x0065, "Image Private Header", 0x50, "DS", "48"), "tiles", 48),
        ((0x0021, "GEMS_RELA_01", 0x4F, "SS", 130), "locations", 130),
        ((0x2001, "Philips Imaging DD 001", 0x18, "SL", 160), "locations", 160),
        ((0x0043, "GEMS_PARM_01", 0x2F, "SS", 1), "ComplexImageComponent", "PHASE"),
        ((0x0043, "GEMS_PARM_01", 0x2F, "SS", 0), "ComplexImageComponent", "MAGNITUDE"),
        ((0x0043, "GEMS_PARM_01", 0x2F, "SS", 17), "ComplexImageComponent", None),
        ((0x0043, "SOMEBODY ELSE", 0x2F, "SS", 1), "ComplexImageComponent", None),
        ((0x0065, "Image Private Header", 0x50, "DS", ""), "tiles", None),
    ],
)
def test_the_number_is_found_whatever_the_encoding(private, name, expected, syntax, tmp_path):
    arrived = incoming(encoded(with_private(*private), syntax), tmp_path)

    assert thorough_look(arrived).header.get(name) == expected
    quick = quick_look(arrived)
    assert quick is None or quick.header.get(name) == expected
    assert quick is not None or syntax == ExplicitVRBigEndian


def test_a_stated_component_wins_over_the_private_one(tmp_path):
    dataset = with_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 1)
    dataset.ComplexImageComponent = "MAGNITUDE"
    arrived = incoming(encoded(dataset), tmp_path)

    assert quick_look(arrived).header["ComplexImageComponent"] == "MAGNITUDE"
    assert thorough_look(arrived).header["ComplexImageComponent"] == "MAGNITUDE"
