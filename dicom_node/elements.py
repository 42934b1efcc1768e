"""The elements of an ordinary data set, found without building pydicom's objects.

The receiving path needs a digest, four UIDs and a few dozen header values of each instance; pydicom
takes more time for that than everything else together. `scan` knows only what scanners write day by
day: little endian, ascending tags, lengths that fit, far fewer elements and items than `bombs`
allows. It returns nothing for everything else, and then `content` asks pydicom, which also finds
the words for what is wrong. What both say of one data set is the same; tests hold them against each
other. A slice that is laid out as one before it is not walked through again (`Layout`).
"""

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from dicom_node.bombs import ITEM, MOST_ELEMENTS, MOST_ITEMS, count_items
from dicom_node.brief_calls import sha256
from sr_engine.dicom.padding import is_padding

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF
ITEM_TAG, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
CHARACTER_SET, PIXEL_DATA = 0x00080005, 0x7FE00010
# They say how the pixels are packed, so a lossless re-encoding changes them.
PACKING = frozenset({
    0x00280004,  # PhotometricInterpretation: colour transforms of JPEG 2000
    0x00280006,  # PlanarConfiguration
    0x7FE00001, 0x7FE00002,  # extended offset table
    0x7FE00010,  # PixelData
    0xFFFCFFFC,  # DataSetTrailingPadding
})  # fmt: skip
PADDED = frozenset("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
SHORT = "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
LONG = frozenset("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = {vr.encode(): vr for vr in (*SHORT, *LONG)}
FUNCTIONAL_GROUPS = frozenset({0x52009229, 0x52009230})
DEEPEST = 8  # sequences in sequences
LONGEST_HEADER_BYTES, MOST_PIECES = 32 * 1024, 1500  # of a data set whose layout is remembered
MOST_ALIKE, MOST_MISSED = 64, 8  # lengths of data sets; data sets in a row laid out anew
ALWAYS_FEW_BYTES = len(ITEM) * MOST_ITEMS  # no more items fit

_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHL").unpack_from
_long = struct.Struct("<L").unpack_from
_pair = struct.Struct("<LL").pack
_single = struct.Struct("<L").pack


class Unusual(Exception):
    """The data set is not one that `scan` knows."""


@dataclass(kw_only=True)
class Scanned:
    """An ordinary data set: its values as they are encoded, those inside of sequences left out."""

    values: dict[int, tuple[str | None, bytes]] = field(default_factory=dict)  # tag -> VR, value
    attributes_sha256: str = ""  # of all but the pixels, as `content.attributes_digest`
    pixel_bytes: int | None = None  # None: there are none, or they are encapsulated
    fragments: int | None = None  # of encapsulated pixels, the offset table included


def scan(data: bytes, transfer_syntax: str) -> Scanned | None:
    """Return what an encoded data set says, None when it is no ordinary one."""
    if transfer_syntax in (DEFLATED, BIG_ENDIAN) or has_many_items(data):
        return None
    alike = _alike.get((transfer_syntax, len(data)))
    known = alike and alike.read(data)
    if known:
        return known
    found = Scanned()
    walk = Walk(data, found, encapsulated=transfer_syntax not in (EXPLICIT, IMPLICIT))
    try:
        walk.data_set(0, len(data), transfer_syntax == IMPLICIT, depth=0)
    except (Unusual, struct.error):
        return None
    found.attributes_sha256 = sha256(b"".join(walk.pieces))
    if alike is None:
        expect_more(transfer_syntax, len(data))
    elif walk.is_plain:
        alike.learn(data, walk, found)
    return found


def has_many_items(data: bytes) -> bool:
    """Return whether pydicom must not read the data set; asked first, because it is quick."""
    return len(data) > ALWAYS_FEW_BYTES and count_items(data) > MOST_ITEMS


@lru_cache(maxsize=4096)
def what_is(tag: int) -> tuple[bool, bool, bool, bool]:
    """Return whether a tag is in the dictionary, a sequence, padded text, no attribute."""
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else None
    nothing = tag & 0xFFFF == 0 or tag in PACKING
    return vr is not None, vr == "SQ", vr in PADDED, nothing


class Walk:
    """One pass over one data set.

    Attributes
    ----------
    pieces        what the digest is made of
    places        of each plain top-level element: tag, where its value begins and ends, and where
                  its two pieces are, -1 if it has none
    header_end    where the pixels begin, or the end
    """

    def __init__(self, data: bytes, found: Scanned, *, encapsulated: bool) -> None:
        self.pieces: list[bytes] = []
        self.places: list[tuple[int, int, int, int]] = []
        self.header_end = len(data)
        self._ends_plainly = not encapsulated
        self._data = data
        self._found = found
        self._encapsulated = encapsulated
        self._left = MOST_ELEMENTS // 2  # those inside of items count as well

    @property
    def is_plain(self) -> bool:
        """Return whether it is worth remembering where everything lay: no more than scanners write.

        Nothing follows the pixels, which are not encapsulated.
        """
        few = len(self.pieces) <= MOST_PIECES and self.header_end <= LONGEST_HEADER_BYTES
        return few and self._ends_plainly

    def data_set(self, at: int, end: int, implicit: bool, depth: int, *, open: bool = False) -> int:
        """Take the elements from `at` to `end`; return where they end.

        With `open` an item delimiter ends them, and `end` is only the farthest that it may be.
        """
        data, add, last = self._data, self.pieces.append, 0x0007FFFF
        values = {} if depth else self._found.values  # those inside of sequences are left out
        if depth > DEEPEST or (implicit and data[at + 4 : at + 6] in VRS):
            raise Unusual  # who knows: it may be explicit
        while at < end:
            vr = None
            if implicit:
                group, element, length = _implicit(data, at)
                at += 8
            else:
                group, element, code, length = _explicit(data, at)
                at += 8
                vr = VRS.get(code)
                if vr in LONG:
                    length = _long(data, at)[0]
                    at += 4
            tag = group << 16 | element
            if tag == ITEM_END and open and data[at - 4 : at] == bytes(4):
                return at
            if tag <= last or (vr is None and not implicit):
                if not depth and not tag and is_padding(data, at - 8):
                    return end
                raise Unusual
            last = tag
            self._left -= 1
            if not self._left:
                raise Unusual
            known, is_sequence, padded, nothing = what_is(tag)
            if tag == PIXEL_DATA and not depth:
                at = self._pixels(at, length, end)
                continue
            if is_sequence or vr == "SQ":
                if vr not in (None, "SQ") or tag in FUNCTIONAL_GROUPS:
                    raise Unusual
                add(_single(tag))
                at = self._sequence(at, length, end, implicit, depth)
                add(_single(0))
                continue
            stop = at + length
            if stop > end:
                raise Unusual  # cut short, or of undefined length
            value = encoded = data[at:stop]
            if not known and vr in (None, "UN") and value[:4] == ITEM:
                # A private sequence shows only in its first bytes (PS3.5 6.2.2).
                add(_single(tag))
                self._sequence(at, length, end, True, depth)
                add(_single(0))
            else:
                if not depth and tag != CHARACTER_SET:
                    self.places.append((tag, at, stop, -1 if nothing else len(self.pieces)))
                if not nothing:
                    if tag == CHARACTER_SET:
                        value = one_character_set(value)
                    elif padded:
                        value = value.rstrip(b" \x00")
                    add(_pair(tag, len(value)))
                    add(value)
            values[tag] = vr, encoded
            at = stop
        if open or at != end:
            raise Unusual
        return at

    def _sequence(self, at: int, length: int, end: int, implicit: bool, depth: int) -> int:
        """Take the items of a sequence; return where it ends."""
        defined = length != UNDEFINED
        stop = at + length if defined else end
        if stop > end:
            raise Unusual
        while at < stop:
            tag, of_item = self._item_head(at)
            at += 8
            if tag == SEQUENCE_END and not defined and not of_item:
                return at
            if tag != ITEM_TAG:
                raise Unusual
            self.pieces.append(ITEM)
            open = of_item == UNDEFINED
            item_end = stop if open else at + of_item
            if item_end > stop:
                raise Unusual
            at = self.data_set(at, item_end, implicit, depth + 1, open=open)
        if not defined or at != stop:
            raise Unusual
        return at

    def _pixels(self, at: int, length: int, end: int) -> int:
        """Count pixel bytes, or fragments (PS3.5 A.4); return where they end."""
        if (length == UNDEFINED) != self._encapsulated:
            raise Unusual
        if not self._encapsulated:
            self._found.pixel_bytes = length
            if at + length > end:
                raise Unusual
            self.header_end, self._ends_plainly = at, at + length == end
            return at + length
        count = 0
        while at < end:
            tag, of_item = self._item_head(at)
            at += 8
            if tag == SEQUENCE_END and not of_item:
                self._found.fragments = count
                return at
            if tag != ITEM_TAG or at + of_item > end:
                raise Unusual
            at, count = at + of_item, count + 1
        raise Unusual

    def _item_head(self, at: int) -> tuple[int, int]:
        group, element, length = _implicit(self._data, at)
        return group << 16 | element, length


class Layout:
    """Where the values of a data set's top-level elements lie: often where the next slice has them.

    If all that stands between them is the same, byte for byte, a `Walk` would go the same way. What
    it would make of the values that differ is made here. Values inside of sequences, and the
    character set, belong to what must be the same.
    """

    def __init__(self, data: bytes, walk: Walk, found: Scanned) -> None:
        self._places, self._pieces, self._found = walk.places, walk.pieces, found
        form, at = ["<"], 0
        for _, start, stop, _ in walk.places:
            form.append(f"{start - at}s{stop - start}s")
            at = stop
        self._split = struct.Struct("".join([*form, f"{walk.header_end - at}s"])).unpack_from
        parts = self._split(data)
        self._between, self._values = parts[0::2], parts[1::2]

    def read(self, data: bytes) -> Scanned | None:
        """Return what a data set of the same length says, None if it is not laid out so."""
        parts = self._split(data)
        if parts[0::2] != self._between:
            return None
        pieces, values = self._pieces.copy(), self._found.values.copy()
        for place, known, value in zip(self._places, self._values, parts[1::2], strict=True):
            if value == known:
                continue
            tag, _, _, at = place
            vr = values[tag][0]
            in_dictionary, _, padded, _ = what_is(tag)
            if not in_dictionary and vr in (None, "UN") and value[:4] == ITEM:
                return None
            values[tag] = vr, value
            if at >= 0:
                plain = value.rstrip(b" \x00") if padded else value
                pieces[at], pieces[at + 1] = _pair(tag, len(plain)), plain
        digest = sha256(b"".join(pieces))
        return Scanned(values=values, attributes_sha256=digest, pixel_bytes=self._found.pixel_bytes)


class Alike:
    """The layouts of data sets of one transfer syntax and length, as far as they help."""

    def __init__(self) -> None:
        self._layouts: list[Layout] = []
        self._missed = 0  # since one was right

    def read(self, data: bytes) -> Scanned | None:
        """Return what a data set says that is laid out as one before it."""
        for layout in self._layouts:
            found = layout.read(data)
            if found is not None:
                self._missed = 0
                return found
        return None

    def learn(self, data: bytes, walk: Walk, found: Scanned) -> None:
        """Remember one that is laid out as none before it; give up where that never helps."""
        self._missed += 1
        hopeless = self._missed > MOST_MISSED
        self._layouts = [] if hopeless else [Layout(data, walk, found), *self._layouts][:3]


_alike: dict[tuple[str, int], Alike] = {}
_more = Lock()


def expect_more(transfer_syntax: str, length: int) -> None:
    """Learn from the next data set of this kind."""
    with _more:
        while len(_alike) >= MOST_ALIKE:
            del _alike[next(iter(_alike))]
        _alike[transfer_syntax, length] = Alike()


def one_character_set(value: bytes) -> bytes:
    """Return the name of the only character set."""
    name = value.rstrip(b" \x00")
    if b"\\" in name or name != name.strip() or not name.isascii():
        raise Unusual
    return name
