"""P-DATA-TF PDUs: a file comes out of them as it went in, whatever the peer takes."""

import os
import struct

import pytest

from dicom_node.network.pdus import (
    COMMAND,
    LAST,
    LONGEST_OF_OURS,
    P_DATA_TF,
    command_pdus,
    data_pdus,
)


def fragments(stream):
    """Return length, context, control and data of each PDV; one in each PDU."""
    found, at = [], 0
    while at < len(stream):
        kind, length, of_pdv, number, control = struct.unpack_from(">BxLLBB", stream, at)
        assert kind == P_DATA_TF and of_pdv == length - 4
        found.append((length, number, control, stream[at + 12 : at + 6 + length]))
        at += 6 + length
    assert at == len(stream)
    return found


@pytest.mark.parametrize("longest", [0, 1, 20, 4096, 16384, 16385, 2**20, 2**32 - 1])
@pytest.mark.parametrize("size", [1, 2, 16376, 16378, 16380, 3 * LONGEST_OF_OURS + 10])
@pytest.mark.parametrize("last", [True, False])
def test_data_set_comes_out_as_it_went_in(longest, size, last):
    if longest == 1 and size > 20000:
        pytest.skip("two bytes at a time: slow, and the same code")
    data = os.urandom(size)

    pieces = list(data_pdus(memoryview(data), 5, longest, last=last))

    found = fragments(b"".join(pieces))
    assert b"".join(data for *_, data in found) == data
    assert [each for _, _, each, _ in found] == [0] * (len(found) - 1) + [LAST if last else 0]
    assert {each for _, each, _, _ in found} == {5}
    assert all(length % 2 == 0 for length, *_ in found[:-1])  # dcmtk takes no other
    assert longest < 8 or all(length <= longest for length, *_ in found)
    assert all(piece.obj is data for piece in pieces[1::2])  # nothing is copied


@pytest.mark.parametrize("longest", [0, 1, 10, 16384])
def test_command_is_cut_to_what_the_peer_takes(longest):
    found = fragments(command_pdus(b"a command set", 3, longest))

    assert b"".join(data for *_, data in found) == b"a command set"
    assert [each for _, _, each, _ in found] == [COMMAND] * (len(found) - 1) + [COMMAND | LAST]
