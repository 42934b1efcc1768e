"""The upper layer's PDUs, as both sides of our own associations use them (PS3.8 9.3)."""

import struct
from collections.abc import Iterator

HEADER_BYTES = 6
A_ASSOCIATE_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ = 0x01, 0x02, 0x03
P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 0x04, 0x05, 0x06, 0x07
PDU_TYPES = range(A_ASSOCIATE_RQ, A_ABORT + 1)
RELEASE = bytes.fromhex("0500 0000 0004 0000 0000")
RELEASED = bytes.fromhex("0600 0000 0004 0000 0000")
PDV_HEADER_BYTES = 6
COMMAND, LAST = 1, 2  # bits of a message control header (PS3.8 E.2)
USER, PROVIDER = 0, 2  # who aborts (PS3.8 Table 9-26)
UNSPECIFIED, UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6
LONGEST_OF_OURS = 2**17  # even where a peer would take more

_headers = struct.Struct(">BxLLBB")


def abort_pdu(source: int, reason: int = UNSPECIFIED) -> bytes:
    """Return an A-ABORT (PS3.8 9.3.8)."""
    return bytes((A_ABORT, 0, 0, 0, 0, 4, 0, 0, source, reason))


def command_pdus(command: bytes, number: int, longest_pdu: int) -> bytes:
    """Return a command set in PDUs that the peer takes; `longest_pdu` 0: any."""
    step = max(longest_pdu - PDV_HEADER_BYTES, 1) if longest_pdu else len(command)
    pdus = []
    for at in range(0, len(command), step):
        part = command[at : at + step]
        control = COMMAND | (LAST if at + step >= len(command) else 0)
        pdus += [_headers.pack(P_DATA_TF, len(part) + 6, len(part) + 2, number, control), part]
    return b"".join(pdus)


def data_pdus(
    part: memoryview, number: int, longest_pdu: int, *, last: bool
) -> Iterator[bytes | memoryview]:
    """Yield a part of a data set in PDUs that the peer takes: a header, what is behind it, and on.

    Nothing is copied or joined.

    Parameters
    ----------
    part
        Of even length, unless it is the last one: dcmtk takes no odd lengths.
    longest_pdu
        The most that the peer takes behind a PDU's header; 0: any length.
    last
        Nothing of the data set follows.
    """
    longest = min(longest_pdu or LONGEST_OF_OURS, LONGEST_OF_OURS)
    step = max(2, (longest - PDV_HEADER_BYTES) // 2 * 2)
    size, header = len(part), _headers.pack(P_DATA_TF, step + PDV_HEADER_BYTES, step + 2, number, 0)
    whole = max(0, size - 1) // step * step  # bytes in front of the last PDU, which may be shorter
    for at in range(0, whole, step):
        yield header
        yield part[at : at + step]
    if size:
        left, control = size - whole, LAST if last else 0
        yield _headers.pack(P_DATA_TF, left + PDV_HEADER_BYTES, left + 2, number, control)
        yield part[whole:]
