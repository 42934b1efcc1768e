"""The quick look at an instance says what the thorough one says, or nothing."""

import random
from io import BytesIO

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node import elements as elements_module
from dicom_node import examination
from dicom_node.bombs import MOST_ELEMENTS, MOST_ITEMS
from dicom_node.content import split, split_file
from dicom_node.errors import InstanceRejected
from dicom_node.examination import Incoming, examine, quick_look, thorough_look
from tests.dicom_node.test_content import with_sequences
from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_data import fragments, identity, plane
from tests.faults.fuzz_trees import ITEM, raw
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


@pytest.mark.parametrize(
    "values",
    [
        {"NumberOfFrames": "0"},
        {"NumberOfFrames": "0", "PixelData": b""},
        {"Rows": 0, "PixelData": None},
        {"SpecificCharacterSet": "ISO_IR 4711"},
        {"StudyInstanceUID": "1." * 40 + "1"},
        {"SeriesInstanceUID": "1.2.ä"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # of pydicom, about what is damaged
def test_quick_look_never_takes_what_the_thorough_one_refuses(tmp_path, values):
    dataset = make_instance()
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    given = incoming(encoded(make_instance()), tmp_path)
    arrived = Incoming(**vars(given) | {"encoded": unchecked(dataset), "sop_uid": None})
    quick = quick_look(arrived)

    try:
        assert quick in (None, thorough_look(arrived))
    except InstanceRejected:
        assert quick is None


def unchecked(dataset: Dataset) -> bytes:
    """Return the data set in explicit VR, whatever stands in it."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, dataset)
    return stream.getvalue()


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


def elements(count: int) -> bytes:
    """Return so many empty private elements."""
    tags = ((0x0021 + 2 * (at >> 16)) << 16 | at & 0xFFFF for at in range(0x1000, 0x1000 + count))
    return b"".join(raw(tag, "LO", b"") for tag in tags)


BOMBS = {
    "items": (wire.EXPLICIT, raw(0x00400275, "SQ", (ITEM + bytes(4)) * (MOST_ITEMS + 1)), "items"),
    "items in the pixels": (
        wire.EXPLICIT,
        raw(0x7FE00010, "OW", ITEM * (MOST_ITEMS + 1)),
        "items",
    ),
    "fragments": (wire.RLE, plane(8, 8) + fragments(*[b""] * (MOST_ITEMS + 1)), "items"),
    "elements": (wire.EXPLICIT, elements(MOST_ELEMENTS + 1), "elements"),
    "a frame": (wire.JPEG, plane(65535, 65535) + fragments(b"", bytes(64)), "65535 x 65535"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_quick_look_leaves_bombs_to_who_refuses_them(name):
    syntax, body, words = BOMBS[name]
    harmless = Incoming(encoded=identity(), transfer_syntax=syntax, calling_ae="X")
    bomb = Incoming(encoded=identity() + body, transfer_syntax=syntax, calling_ae="X")

    assert quick_look(harmless) is not None
    assert quick_look(bomb) is None
    with pytest.raises(InstanceRejected, match=words):
        examine(bomb)


@pytest.mark.parametrize(("count", "quick"), [(100, True), (MOST_ELEMENTS, False)])
def test_elements_inside_of_items_count_as_well(count, quick):
    inside = elements(count)
    item = ITEM + len(inside).to_bytes(4, "little") + inside
    body = identity() + raw(0x00400275, "SQ", item)
    found = quick_look(Incoming(encoded=body, transfer_syntax=wire.EXPLICIT, calling_ae="X"))

    assert (found is not None) == quick


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


@pytest.fixture
def afresh(monkeypatch):
    """Return a function that scans without what was learned from other data sets."""
    monkeypatch.setattr(elements_module, "_alike", {})

    def scan(data: bytes, syntax: str):
        known, elements_module._alike = elements_module._alike, {}
        try:
            return elements_module.scan(data, syntax)
        finally:
            elements_module._alike = known

    return scan


def learned(data: bytes, syntax: str) -> int:
    """Return how many layouts are known of data sets of this length."""
    alike = elements_module._alike.get((syntax, len(data)))
    return len(alike._layouts) if alike else 0


def slices(syntax: str) -> list[bytes]:
    """Return data sets that are laid out alike, with sequences, private and unknown elements."""
    made = []
    for number in range(1, 6):
        dataset = with_sequences()
        dataset.SOPInstanceUID = f"1.2.826.0.1.{number}"
        dataset.InstanceNumber = number
        dataset.SliceLocation = f"{number}.25"
        dataset.PatientName = "Müller^Ä" if number % 2 else "Muller^AE "
        dataset.SpecificCharacterSet = "ISO_IR 100"
        block = dataset.private_block(0x0019, "SOMEBODY", create=True)
        block.add_new(0x08, "UN", bytes([number, 0, 0, 0]))
        made.append(split(BytesIO(encoded(dataset, syntax)))[1])
    return made


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_slice_that_is_laid_out_as_another_one_says_what_it_says(afresh, syntax):
    walked = [afresh(data, syntax) for data in slices(syntax)]

    assert [elements_module.scan(data, syntax) for data in slices(syntax)] == walked
    assert len({one.attributes_sha256 for one in walked}) == 5
    assert [learned(data, syntax) for data in slices(syntax)] == [1] * 5


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_whatever_byte_of_a_slice_is_another_one_it_is_read_as_if_nothing_had_been_learned(
    afresh, syntax
):
    rng = random.Random(8)
    known = slices(syntax)[0]
    pixels = known.rindex(b"\xe0\x7f\x10\x00")
    read, refused = 0, 0
    for number in range(3000):
        for _ in range(2):
            elements_module.scan(known, syntax)
        data = bytearray(known)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data[rng.randrange(pixels + 12)] = rng.randrange(256)
        if number % 10 == 0:  # what begins as an item where there was none
            at = known.index(b"\x19\x00\x08\x11") + (8 if syntax == ImplicitVRLittleEndian else 12)
            data[at : at + 4] = ITEM
        found = elements_module.scan(bytes(data), syntax)
        assert found == afresh(bytes(data), syntax)
        read, refused = read + (found is not None), refused + (found is None)

    assert read > 500 and refused > 500


def test_what_was_learned_stays_little(afresh, monkeypatch):
    monkeypatch.setattr(elements_module, "MOST_ALIKE", 4)
    syntax = ExplicitVRLittleEndian
    for number in range(20):  # each with another element that no slice before it had
        data = raw(0x00080060, "CS", b"MR") + raw(0x00100000 + 2 * number + 1, "UN", b"ab")
        elements_module.scan(data, syntax)
        assert learned(data, syntax) <= 3
    assert learned(data, syntax) == 0  # it never helped
    for length in range(2, 40, 2):
        elements_module.scan(raw(0x00080060, "CS", b"M" * length), syntax)
    assert len(elements_module._alike) == 4


def test_values_of_the_slice_before_are_remembered_if_they_are_short(tmp_path):
    dataset = make_instance(SeriesDescription="b" * 300)
    assert quick_look(incoming(encoded(dataset), tmp_path)).header["SeriesDescription"] == "b" * 300

    held = examination._slice_before.of(b"").values()
    assert held and max(len(value[1]) for value, _ in held) <= 256


def test_neither_a_long_header_nor_what_follows_the_pixels_is_learned(afresh):
    syntax = ExplicitVRLittleEndian
    many = elements(800) + raw(0x7FE00010, "OW", bytes(8))
    pixels = raw(0x7FE00010, "OW", bytes(8))
    long = raw(0x00080060, "CS", b"MR") + raw(0x00091010, "OB", bytes(40000)) + pixels
    followed = raw(0x00080060, "CS", b"MR") + pixels + raw(0xFFFCFFFC, "OB", bytes(8))
    for data in (long, followed, many):
        for _ in range(3):
            assert elements_module.scan(data, syntax) == afresh(data, syntax) is not None
        assert learned(data, syntax) == 0


def test_the_slice_before_lends_its_values_in_no_other_character_set(tmp_path):
    for name in ("ISO_IR 100", "ISO_IR 144", "ISO_IR 100"):
        dataset = make_instance(SpecificCharacterSet=name)
        dataset.SeriesDescription = "Ä" if name == "ISO_IR 100" else "Ф"
        arrived = incoming(encoded(dataset), tmp_path)

        assert quick_look(arrived) == thorough_look(arrived)
