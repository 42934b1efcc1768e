"""The upper layer's PDUs, as both sides of our own associations use them (PS3.8 9.3)."""

import os
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
HEADERS_BYTES = HEADER_BYTES + PDV_HEADER_BYTES  # of a PDU with one PDV
LONGEST_OF_OURS = 2**17  # even where a peer would take more
WINDOW_BYTES = 2**18  # of a data set, read and sent at once
MOST_GAPS = 1024  # IOV_MAX of Linux
LEAD_BYTES = 4096  # for the PDUs of a command, before those of its data set

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


class Window:
    """Memory for some PDUs of a data set: their headers stand, a file fills what is between.

    A file is read where the PDUs have room for it, as many of them as there are with one call of
    the system, and sent from there: nothing is copied, cut or joined.
    """

    def __init__(self, longest_pdu: int) -> None:
        """Make room for PDUs of `longest_pdu` bytes behind their header at most; 0: any."""
        longest = min(longest_pdu or LONGEST_OF_OURS, LONGEST_OF_OURS)
        self._step = max(2, (longest - PDV_HEADER_BYTES) // 2 * 2)  # dcmtk takes no odd lengths
        self._pitch = HEADERS_BYTES + self._step
        count = min(max(1, WINDOW_BYTES // self._pitch), MOST_GAPS)
        self._memory = memoryview(bytearray(LEAD_BYTES + count * self._pitch))
        starts = range(LEAD_BYTES + HEADERS_BYTES, len(self._memory), self._pitch)
        self._gaps = [self._memory[at : at + self._step] for at in starts]
        self._number = -1

    def pdus(self, lead: bytes, file: int, at: int, size: int, number: int) -> Iterator[memoryview]:
        """Yield `lead`, then `size` bytes of an open file as PDUs of the context `number`.

        What was yielded is written over when the next is asked for.

        Parameters
        ----------
        lead : at most LEAD_BYTES
            The PDUs of the command. They go with the first of the data set: a peer that is woken
            for the command alone takes the processor away from who sends.

        Raises
        ------
        OSError
            If the file cannot be read, or ends before that.
        """
        self._stamp(number)
        begin = LEAD_BYTES - len(lead)
        self._memory[begin:LEAD_BYTES] = lead
        while size:
            count = min(len(self._gaps), -(-size // self._step))
            part = min(size, count * self._step)
            in_last = part - (count - 1) * self._step
            gaps = [*self._gaps[: count - 1], self._gaps[count - 1][:in_last]]
            if os.preadv(file, gaps, at) != part:
                raise OSError("the file ends before its end")
            at, size = at + part, size - part
            if not size:
                self._write_headers(count - 1, in_last, LAST)
            yield self._memory[begin : LEAD_BYTES + part + count * HEADERS_BYTES]
            begin = LEAD_BYTES
            if not size:
                self._write_headers(count - 1, self._step, 0)

    def _stamp(self, number: int) -> None:
        if number != self._number:
            self._number = number
            for place in range(len(self._gaps)):
                self._write_headers(place, self._step, 0)

    def _write_headers(self, place: int, length: int, control: int) -> None:
        at, number = LEAD_BYTES + place * self._pitch, self._number
        _headers.pack_into(
            self._memory, at, P_DATA_TF, length + PDV_HEADER_BYTES, length + 2, number, control
        )
