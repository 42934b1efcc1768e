"""Whether two files hold one image is found out where nothing can be broken."""

import resource
import struct
import subprocess
import sys

import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from dicom_node.comparison import OTHER, SAME, same_pixels
from tests.rigs import encoded, make_instance


def test_a_stream_that_ends_its_decoder_ends_no_listener():
    # Found by fuzzing: the J2K decoder calls abort() on this size in the code stream's header.
    whole = encoded(make_instance(), JPEG2000Lossless)
    at = whole.index(b"\xff\x4f\xff\x51") + 8
    broken = whole[:at] + struct.pack(">LL", 2**31 - 1, 2**31 - 1) + whole[at + 8 :]

    assert not same_pixels(whole, broken)


@pytest.mark.parametrize(
    ("first_byte", "expected"), [(b"\0", SAME), (b"\1", OTHER)], ids=["same", "other"]
)
def test_the_process_says_what_it_finds(first_byte, expected):
    changed = make_instance()
    changed.PixelData = first_byte + changed.PixelData[1:]
    one, other = encoded(make_instance()), encoded(changed, RLELossless)
    said = struct.pack("<Q", len(one)) + one + other

    done = subprocess.run([sys.executable, "-m", "dicom_node.comparison"], input=said, check=False)

    assert done.returncode == expected
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # only the child


def test_a_value_that_cannot_be_read_is_not_the_same():
    odd = encoded(make_instance()).replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00XX")

    assert not same_pixels(odd, encoded(make_instance()))
