"""Whether two files hold one image is found out where nothing can be broken."""

import resource
import struct
import subprocess
import sys

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.comparison import OTHER, SAME, pixels_digest, same_pixels
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

    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.comparison", "compare"], input=said, check=False
    )

    assert done.returncode == expected
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # only the child


def test_a_value_that_cannot_be_read_is_not_the_same():
    odd = encoded(make_instance()).replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00XX")

    assert not same_pixels(odd, encoded(make_instance()))


def test_pixels_have_one_digest_in_every_encoding():
    plain = (ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    packed = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
    digests = {pixels_digest(encoded(make_instance(), syntax)) for syntax in plain + packed}

    assert len(digests) == 1 and None not in digests


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelData": b"\x07" * 32 * 48 * 2},
        {"Rows": 48, "Columns": 32},  # the same values in another shape
        {"PixelRepresentation": 1, "PixelData": b"\xff\xff" * 32 * 48},
    ],
)
def test_other_pixels_have_another_digest(changes):
    assert pixels_digest(encoded(make_instance(**changes))) not in (
        None,
        pixels_digest(encoded(make_instance())),
    )


def without_pixels():
    dataset = make_instance()
    del dataset.PixelData
    return encoded(dataset)


@pytest.mark.parametrize(
    "file",
    [
        without_pixels(),
        b"no DICOM file",
        encoded(make_instance(Rows=65535, Columns=65535, PixelData=b"\0\0")),
    ],
    ids=["no pixels", "no file", "a few bytes that promise 8 GB"],
)
def test_what_cannot_be_decoded_has_no_digest(file):
    assert pixels_digest(file) is None
