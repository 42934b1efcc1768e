"""What the file of an instance says of itself, read quickly and thoroughly alike."""

import struct

import pytest

from dicom_node.content import as_file, split_file
from dicom_node.network import outgoing
from dicom_node.network.outgoing import Unreadable, read_head
from dicom_node.retry import Fault
from tests.rigs import MR, make_instance, write_instance

EXPLICIT = "1.2.840.10008.1.2.1"
FILE = as_file(MR, "1.2.3", EXPLICIT, b"\x08\x00\x05\x00CS\x00\x00")
PLAIN = FILE[132:-8]  # group 0002, its length included


def short(element, vr, value):
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def long(element, vr, value):
    return struct.pack("<HH2s2xL", 2, element, vr, len(value)) + value


def with_meta(more, *, counted=True, length=True):
    """Return the file with another element at the end of its meta information."""
    group = PLAIN[12:] + more
    counts = len(group) if counted else len(PLAIN) - 12
    first = short(0, b"UL", struct.pack("<L", counts)) if length else b""
    return bytes(128) + b"DICM" + first + group + FILE[-8:]


HEADS = {
    "ordinary": FILE,
    "private information": with_meta(short(0x100, b"UI", b"1.2\0") + long(0x102, b"OB", b"1234")),
    "long information": with_meta(long(0x102, b"OB", bytes(5000))),
    "no group length": with_meta(b"", length=False),
    "wrong group length": with_meta(short(0x16, b"AE", b"SCANNER "), counted=False),
}


@pytest.mark.parametrize("file", HEADS.values(), ids=HEADS)
def test_head_is_what_pydicom_reads(tmp_path, file):
    path = tmp_path / "one.dcm"
    path.write_bytes(file)

    head = read_head(path)

    assert (head.sop_class, head.sop_uid, head.transfer_syntax) == (MR, "1.2.3", EXPLICIT)
    assert file[head.at :] == split_file(path)[1] == FILE[-8:]


def test_ordinary_files_need_no_pydicom(tmp_path, monkeypatch):
    monkeypatch.setattr(outgoing, "_thoroughly", None)
    path = write_instance(tmp_path, make_instance())

    assert path.read_bytes()[read_head(path).at :] == split_file(path)[1]


@pytest.mark.parametrize("file", [b"", b"junk" * 99, FILE[:100], FILE[:150], bytes(128) + b"DICM"])
def test_what_is_no_instance_is_refused(tmp_path, file):
    path = tmp_path / "one.dcm"
    path.write_bytes(file)

    with pytest.raises(Unreadable):
        read_head(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(Unreadable, match="No such file") as refused:
        read_head(tmp_path / "none.dcm")

    assert refused.value.fault is Fault.NO_FILE


def test_a_file_that_cannot_be_read_now_may_be_read_later(tmp_path):
    looped = tmp_path / "looped.dcm"
    looped.symlink_to(looped)

    with pytest.raises(Unreadable) as refused:
        read_head(looped)

    assert refused.value.fault is Fault.UNREADABLE
