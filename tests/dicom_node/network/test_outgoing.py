"""What the file of an instance says of itself, read quickly and thoroughly alike."""

import hashlib
import os
import struct

import pytest

from dicom_node import brief_calls
from dicom_node.content import as_file, split_file
from dicom_node.network import outgoing
from dicom_node.network.outgoing import MEMORY_BYTES, PART_BYTES, Opened, Reader, Unfit, read_head
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

    with pytest.raises(Unfit):
        read_head(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(Unfit, match="No such file") as refused:
        read_head(tmp_path / "none.dcm")

    assert refused.value.fault is Fault.NO_FILE


def test_a_file_that_cannot_be_read_now_may_be_read_later(tmp_path):
    looped = tmp_path / "looped.dcm"
    looped.symlink_to(looped)

    with pytest.raises(Unfit) as refused:
        read_head(looped)

    assert refused.value.fault is Fault.UNREADABLE


@pytest.mark.parametrize(
    "size",
    [1, PART_BYTES, PART_BYTES + 3, MEMORY_BYTES - 4, MEMORY_BYTES - 3, 3 * MEMORY_BYTES + 1],
)
def test_data_set_is_what_stands_in_the_file(tmp_path, size):
    path, data = tmp_path / "one", os.urandom(size)
    reader, sha256 = Reader(), hashlib.sha256(b"head" + data).hexdigest()
    path.write_bytes(b"head" + data)
    with path.open("rb") as file:
        for _ in range(2):  # the memory is used again
            found = reader.read(file.fileno(), 4, sha256)
            parts = [bytes(part) for part in found.parts]
            assert found.size == size and b"".join(parts) == data
            assert all(len(part) == PART_BYTES for part in parts[:-1])


def test_no_file_stays_open(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(b"no instance")
    there = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(Unfit):
            read_head(path)
        with pytest.raises(ZeroDivisionError), Opened(path):
            raise ZeroDivisionError

    assert len(os.listdir("/proc/self/fd")) == len(there)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [1000, PART_BYTES, MEMORY_BYTES, MEMORY_BYTES + 1])
def test_a_file_that_comes_piece_by_piece_is_read_to_its_end(tmp_path, monkeypatch, size, known):
    """The system gives at once what it has in memory, which may be the beginning only."""
    path, data = tmp_path / "one", os.urandom(size)
    path.write_bytes(data)
    whole = brief_calls.read_some

    def a_part(descriptor, target, start):
        return whole(descriptor, target[: PART_BYTES // 3], start)

    monkeypatch.setattr(brief_calls, "read_some", a_part)
    sha256 = hashlib.sha256(data).hexdigest() if known else None
    with path.open("rb") as file:
        found = Reader().read(file.fileno(), 4, sha256)
        assert b"".join(map(bytes, found.parts)) == data[4:] and found.size == size - 4


def test_what_was_hashed_is_what_is_sent(tmp_path):
    path, data = tmp_path / "one", os.urandom(PART_BYTES)
    path.write_bytes(data)
    with path.open("rb") as file:
        found = Reader().read(file.fileno(), 0, hashlib.sha256(data).hexdigest())
        path.write_bytes(bytes(PART_BYTES))
        assert b"".join(found.parts) == data


@pytest.mark.parametrize("size", [100, 2 * MEMORY_BYTES])
def test_another_file_is_not_sent(tmp_path, size):
    path = tmp_path / "one"
    path.write_bytes(bytes(size))
    with path.open("rb") as file, pytest.raises(Unfit, match="SHA-256 differs") as refused:
        Reader().read(file.fileno(), 4, hashlib.sha256(bytes(size - 1)).hexdigest())

    assert refused.value.fault is Fault.ALTERED


def test_file_without_a_data_set_is_not_sent(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(b"head")
    with path.open("rb") as file, pytest.raises(Unfit, match="no data set") as refused:
        Reader().read(file.fileno(), 4, None)

    assert refused.value.fault is Fault.NO_FILE


def test_file_that_ends_while_it_is_sent_is_noticed(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(bytes(2 * MEMORY_BYTES))
    with path.open("rb") as file:
        found = Reader().read(file.fileno(), 4, None)
        os.truncate(path, MEMORY_BYTES)
        with pytest.raises(OSError, match="became shorter"):
            list(found.parts)


def test_long_file_that_changes_while_it_is_sent_is_not_sent_to_its_end(tmp_path):
    path, data = tmp_path / "one", os.urandom(MEMORY_BYTES + 5)
    path.write_bytes(data)
    with path.open("rb") as file:
        found = Reader().read(file.fileno(), 4, hashlib.sha256(data).hexdigest())
        with path.open("r+b") as other:
            other.write(b"another")
        came = []
        with pytest.raises(OSError, match="changed while it was sent"):
            came += [bytes(part) for part in found.parts]

    assert len(b"".join(came)) < found.size
