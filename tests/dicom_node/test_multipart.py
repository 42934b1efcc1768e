"""Bodies of several parts: any splitting gives the same parts, damage and excess are refused."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.multipart import (
    MultipartError,
    Part,
    PartTooLarge,
    Splitter,
    closing,
    media_type,
    opening,
)

BOUNDARY = "b0undary"


def body_of(parts, *, preamble=b"", epilogue=b""):
    framed = [
        opening(BOUNDARY, "application/dicom", first=not number) + part
        for number, part in enumerate(parts)
    ]
    return preamble + b"".join(framed) + closing(BOUNDARY) + epilogue


def split(pieces, most_bytes=10**6):
    splitter = Splitter(BOUNDARY, most_bytes)
    found = [part for piece in pieces for part in splitter.feed(piece)]
    splitter.end()
    return found


NEARLY = [b"\r\n", b"--", b"\r\n--", b"\r\n--b0undar", b"--b0undar", b"\r\n\r\n", b""]
CONTENTS = st.binary(max_size=60) | st.sampled_from(NEARLY)
# A sender chooses a boundary that does not occur.
CONTENTS = CONTENTS.filter(lambda content: BOUNDARY.encode() not in content)


@settings(max_examples=100, deadline=None)
@given(st.lists(CONTENTS, min_size=1, max_size=5), st.data())
def test_any_splitting_gives_the_same_parts(parts, data):
    whole = body_of(parts, preamble=b"hello\r\n", epilogue=b"good bye")
    places = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    pieces = [whole[a:b] for a, b in pairwise([0, *places, len(whole)])]

    assert [part.body for part in split(pieces)] == parts


def test_headers_and_media_types_are_read():
    [part] = split([b'--b0undary \r\nContent-TYPE: Application/DICOM; x="y"\r\nA: b\r\n\r\nq']
                   + [b"\r\n--b0undary--"])  # fmt: skip

    assert (part.media_type, part.headers["a"], part.body) == ("application/dicom", "b", b"q")
    assert Part(headers={}, body=b"").media_type == "application/dicom"
    kind = media_type('multipart/related; type="application/dicom"; boundary="a b"')
    assert (kind.name, kind.parameters["boundary"]) == ("multipart/related", "a b")
    assert media_type("").name == ""


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no boundary at all",
        body_of([b"a"])[:-6],
        b"--b0undaryX\r\n\r\nq" + closing(BOUNDARY),
        b"--b0undary\r\nno end of headers" + closing(BOUNDARY),
    ],
)
def test_a_damaged_body_is_refused(damaged):
    with pytest.raises(MultipartError):
        split([damaged])


@pytest.mark.parametrize("text", ["", "x" * 257, "\N{SNOWMAN}"])
def test_an_impossible_boundary_is_refused(text):
    with pytest.raises(MultipartError):
        Splitter(text, 10)


def test_a_part_that_is_too_large_is_not_waited_for():
    splitter = Splitter(BOUNDARY, 1000)
    kept = 0
    with pytest.raises(PartTooLarge):
        for _ in range(10**6):
            list(splitter.feed(b"--b0undary\r\n\r\n" if not kept else bytes(4096)))
            kept += 1
    assert kept < 10

    with pytest.raises(PartTooLarge):
        split([body_of([bytes(1001)])], most_bytes=1000)
    assert len(split([body_of([bytes(1000)] * 50)], most_bytes=1000)) == 50
