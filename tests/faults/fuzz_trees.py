"""Elements in explicit VR, and structures of them that hypothesis draws."""

import struct

import hypothesis
from hypothesis import strategies as st

from tests.faults import fuzz_wire as wire

LENGTH_32 = frozenset("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
ITEM = b"\xfe\xff\x00\xe0"


def raw(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    """Return an element, explicit VR little endian, that may lie about its length."""
    count = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in LENGTH_32:
        return head + struct.pack("<2xL", count & 0xFFFFFFFF) + value
    return head + struct.pack("<H", count & 0xFFFF) + value


def number(tag: int, value: int) -> bytes:
    """Return an unsigned short."""
    return raw(tag, "US", wire.us(value))


VALUES = st.one_of(
    st.builds(
        lambda tag, text: (tag, "LO", text),
        st.integers(0x00090000, 0x0021FFFF),
        st.text(max_size=20),
    ),
    st.builds(
        lambda tag, x: (tag, "DS", x),
        st.sampled_from((0x00180050, 0x00280030, 0x00200032, 0x00200037, 0x00180087, 0x00281053)),
        st.lists(st.floats(-1e6, 1e6, width=32).map(str), max_size=7),
    ),
    st.builds(
        lambda tag, x: (tag, "IS", x),
        st.sampled_from((0x00200013, 0x00280008, 0x00201002, 0x00200012)),
        st.integers(-(2**31), 2**31 - 1),
    ),
    st.builds(
        lambda tag, x: (tag, "US", x),
        st.sampled_from((0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280002)),
        st.integers(0, 65535),
    ),
    st.builds(
        lambda tag, x: (tag, "UN", x), st.integers(0x00100000, 0x7FE10000), st.binary(max_size=40)
    ),
)
TREES = st.recursive(
    st.lists(VALUES, max_size=6),
    lambda inner: st.lists(
        st.one_of(
            VALUES,
            st.builds(
                lambda tag, items: (tag, "SQ", items),
                st.sampled_from((0x00081140, 0x52009229, 0x52009230, 0x00209113, 0x00289110)),
                st.lists(inner, max_size=3),
            ),
        ),
        max_size=6,
    ),
    max_leaves=12,
)


def tree_bytes(tree: list[tuple]) -> bytes:
    """Return a structure of `TREES` as explicit VR little endian, checked by nobody."""
    parts = []
    for tag, vr, value in tree:
        if vr == "SQ":
            items = [ITEM + struct.pack("<L", len(each)) + each for each in map(tree_bytes, value)]
            parts.append(raw(tag, vr, b"".join(items)))
        elif vr == "US":
            parts.append(number(tag, value))
        elif vr == "UN":
            parts.append(raw(tag, vr, value))
        else:
            text = "\\".join(value) if isinstance(value, list) else str(value)
            parts.append(raw(tag, vr, wire.even(text.encode(), b" ")))
    return b"".join(parts)


def grown(seed: int, count: int) -> list[bytes]:
    """Return `count` structures that hypothesis draws from `TREES`; equal for equal seeds."""
    found: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(TREES)
    def collect(tree: list[tuple]) -> None:
        found.append(tree_bytes(tree))

    collect()
    return found
