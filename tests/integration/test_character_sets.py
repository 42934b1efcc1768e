"""A character set, however odd or broken, stops no series."""

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_node import release_gate
from dicom_node.assembly import InstanceHeader, judge
from dicom_node.cli.dry_run import look_at
from dicom_node.settings import make_settings
from sr_engine.dicom.reader import read_series
from tests import phantoms

ANY = make_settings(
    {"rules": [{"name": "any", "action": "enhance"}], "assembly": {"min_slices": 4}}
)
LATIN, JAPANESE = "Müller^Jürgen".encode("latin-1"), "Yamada^Tarou=山田^太郎".encode("iso2022_jp")
CHARACTER_SETS = {
    "one value of code extensions": (b"ISO 2022 IR 6", LATIN),
    "two of them": (b"ISO 2022 IR 100\\ISO 2022 IR 6", LATIN),
    "in the other order": (b"ISO 2022 IR 6\\ISO 2022 IR 100", LATIN),
    "with an empty first value": (b"\\ISO 2022 IR 87", JAPANESE),
    "three Japanese ones": (b"ISO 2022 IR 13\\ISO 2022 IR 87\\ISO 2022 IR 159", JAPANESE),
    "Korean": (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "Chinese": (b"GB18030", "王^小东".encode("gb18030")),
    "UTF-8": (b"ISO_IR 192", "Müller^Jürgen".encode()),
    "UTF-8 said, Latin 1 meant": (b"ISO_IR 192", LATIN),
    "Latin 1 said, UTF-8 meant": (b"ISO_IR 100", "山田^太郎".encode()),
    "nothing said": (b"", LATIN),
    "ASCII said": (b"ISO_IR 6", LATIN),
    "a spelling of its own": (b"ISO-IR 100", LATIN),
    "another": (b"ISO_IR_100", LATIN),
    "a name of Python's": (b"latin-1", LATIN),
    "nobody's": (b"X-KLINGON", LATIN),
    "two, one of them nobody's": (b"ISO_IR 100\\X-KLINGON", LATIN),
    "UTF-8 with code extensions": (b"ISO_IR 192\\ISO 2022 IR 6", LATIN),
    "bytes": (b"\xff\xfe\x80", LATIN),
    "an escape that leads nowhere": (b"\\ISO 2022 IR 87", b"Yamada\x1b$^Tarou\x1b(Z"),
    "an escape at the end": (b"ISO 2022 IR 6\\ISO 2022 IR 100", b"Muller^J\x1b"),
}
TEXTS = ("PatientName", "InstitutionName", "StudyDescription", "ReferringPhysicianName")


def put(dataset: Dataset, keyword: str, value: bytes) -> None:
    """Set an element to bytes as a scanner would write them."""
    tag, value = Tag(keyword), value + b" " * (len(value) % 2)
    vr = pydicom.datadict.dictionary_VR(tag)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return phantoms.corner_series(tmp_path_factory.mktemp("clean")).paths[:4]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHARACTER_SETS)
def test_a_character_set_stops_no_series(name, clean, tmp_path):
    said, text = CHARACTER_SETS[name]
    paths = []
    for path in clean:
        dataset = pydicom.dcmread(path)
        put(dataset, "SpecificCharacterSet", said)
        dataset.set_original_encoding(
            False, True, dataset._character_set
        )  # nothing is encoded anew
        for keyword in TEXTS:
            put(dataset, keyword, text)
        paths.append(tmp_path / path.name)
        dataset.save_as(paths[-1])

    headers = [
        InstanceHeader(sop_uid=one.sop_uid, header=one.header) for one in map(look_at, paths)
    ]
    assert judge(headers, ANY).event == "enqueue"
    derived = phantoms.derive(read_series(paths), tmp_path / "out")
    findings = release_gate.check(derived.written.paths, paths, derived.written.provenance)
    assert [(one.rule, one.message) for one in findings] == []
    sent = pydicom.dcmread(paths[0]).get_item("PatientName").value
    assert sent.rstrip() == text.rstrip()
    kept = pydicom.dcmread(derived.written.paths[0])
    assert kept.get_item("PatientName").value.rstrip() == text.rstrip()
