"""Data sets that nobody should believe: for the listener, for intake, for the reader.

`Maker` turns a seed into one encoded data set at a time. Half of them are real images with one lie
in them, the others are made of raw elements, of structures that hypothesis found, or of noise.
"""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_trees import ITEM, grown, number, raw
from tests.rigs import encoded, make_instance

# Placeholders of one length, so that an encoded template gets new UIDs without being parsed.
SOP, SERIES = "1.2.826.0.1.3680043.100000000001", "1.2.826.0.1.3680043.200000000002"
TEXTS = (
    b"", b"\0", b"\\" * 100, b"9" * 400, b"9" * 6000, b"1e999999", b"-1", b"nan", b"inf", b"0x10",
    b"1.5\\2.5", b"\xff\xfe", b"\x1b$B\x1b(J", b"%s%n", b"../../x", b"A" * 9000, b" ", b"1\\2\\x",
)  # fmt: skip
CHARACTER_SETS = (
    b"ISO_IR 192",
    b"ISO_IR 13\\ISO 2022 IR 87",
    b"ISO 2022 IR 149",
    b"GB18030",
    b"utf7",
    b"\\\\",
    b"ISO_IR 100\\ISO_IR 192",
    b"rot13",
    b"unicode_escape",
    b"ISO 2022 IR 999",
    b"\xff\xff",
    b"idna",
)
SIZES = (0, 1, 2, 255, 4096, 32767, 65535)
FRAMES = (b"0", b"-1", b"2", b"1000000", b"2147483647", b"99999999999999999999", b"1\\2", b"x")
ITEM_END, SEQUENCE_END = b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = 0xFFFFFFFF
BOMB_MB = 80  # more than `bombs.ALWAYS_INFLATED_BYTES`


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One encoded data set, and what a C-STORE command would say of it."""

    what: str
    syntax: str
    encoded: bytes
    sop_class: str = wire.MR
    sop_uid: str = SOP
    series_uid: str = SERIES


def identity(sop_uid: str = SOP, series_uid: str = SERIES, sop_class: str = wire.MR) -> bytes:
    """Return the elements without which nothing is kept."""
    return b"".join(
        raw(tag, "UI", wire.even(wire.uid_bytes(uid)))
        for tag, uid in ((0x00080016, sop_class), (0x00080018, sop_uid))
    ) + raw(0x00080060, "CS", b"MR") + b"".join(
        raw(tag, "UI", wire.even(wire.uid_bytes(uid)))
        for tag, uid in ((0x0020000D, "1.2.826.0.2"), (0x0020000E, series_uid))
    )  # fmt: skip


def plane(rows: int, columns: int, frames: bytes | None = None, bits: int = 16) -> bytes:
    """Return an image description."""
    return b"".join([
        number(0x00280002, 1), raw(0x00280004, "CS", b"MONOCHROME2 "),
        raw(0x00280008, "IS", wire.even(frames, b" ")) if frames is not None else b"",
        number(0x00280010, rows), number(0x00280011, columns), number(0x00280100, bits),
        number(0x00280101, 12), number(0x00280102, 11), number(0x00280103, 0),
    ])  # fmt: skip


def fragments(*pieces: bytes, closed: bool = True) -> bytes:
    """Return encapsulated pixel data: an empty offset table and the pieces (PS3.5 A.4)."""
    items = b"".join(ITEM + struct.pack("<L", len(piece)) + piece for piece in (b"", *pieces))
    end = SEQUENCE_END + bytes(4) if closed else b""
    return raw(0x7FE00010, "OB", items + end, UNDEFINED)


def _template(syntax: str, **values: object) -> bytes:
    """Return a small real image, encoded, without file meta information."""
    file = encoded(make_instance(SOPInstanceUID=SOP, SeriesInstanceUID=SERIES, **values), syntax)
    length = struct.unpack_from("<L", file, 140)[0]
    return file[144 + length :]


def _enhanced(frames: int) -> Dataset:
    """Return an Enhanced MR image with its functional groups."""
    dataset = make_instance(SOPInstanceUID=SOP, SeriesInstanceUID=SERIES)
    dataset.SOPClassUID, dataset.NumberOfFrames = wire.ENHANCED_MR, frames
    dataset.PixelData = dataset.PixelData * frames
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.0, 1.0], 1.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(at) for at in range(frames)]
    return dataset


def _frame(at: int) -> Dataset:
    place, frame = Dataset(), Dataset()
    place.ImagePositionPatient = [0, 0, at]
    frame.PlanePositionSequence = [place]
    return frame


class Maker:
    """Makes data sets; equal seeds make equal ones."""

    def __init__(self, seed: int, trees: int = 150) -> None:
        self._trees = grown(seed, trees)
        syntaxes = (s for s in wire.SYNTAXES if s != wire.JPEG)  # no encoder for it here
        self._images = {syntax: _template(syntax) for syntax in syntaxes}
        enhanced = encoded(_enhanced(6), ExplicitVRLittleEndian)
        self._enhanced = enhanced[144 + struct.unpack_from("<L", enhanced, 140)[0] :]
        bomb = identity() + plane(16, 16) + raw(0x7FE00010, "OW", b"", BOMB_MB * 2**20)
        self._bomb = deflated(bomb, BOMB_MB)

    def make(self, rng: random.Random) -> Subject:
        """Return one data set with new UIDs, hostile in one way or several."""
        idea = rng.choice(IDEAS)
        subject = replace(idea(self, rng), what=idea.__name__.strip("_"))
        if rng.random() < 0.1:
            subject = replace(subject, encoded=wire.mangle(subject.encoded, rng))
        return renamed(subject, rng)

    def good(self, rng: random.Random) -> Subject:
        """Return an image that must be taken, with a UID that no other has."""
        sop_uid = f"1.2.826.0.1.3680043.3{rng.randrange(10**11):011d}"
        encoded = self._images[wire.EXPLICIT].replace(SOP.encode(), sop_uid.encode())
        return Subject(what="good", syntax=wire.EXPLICIT, encoded=encoded, sop_uid=sop_uid)

    def image(self, rng: random.Random, syntaxes: tuple[str, ...] = wire.SYNTAXES) -> Subject:
        """Return a real image in one of the syntaxes."""
        syntax = rng.choice([s for s in syntaxes if s in self._images])
        return Subject(what="image", syntax=syntax, encoded=self._images[syntax])

    def _mangled(self, rng: random.Random) -> Subject:
        subject = self.image(rng)
        return replace(subject, encoded=wire.mangle(subject.encoded, rng))

    def _mangled_header(self, rng: random.Random) -> Subject:
        subject = self.image(rng, (wire.EXPLICIT, wire.IMPLICIT, wire.BIG_ENDIAN, wire.RLE))
        head, rest = subject.encoded[:700], subject.encoded[700:]
        return replace(subject, encoded=wire.mangle(head, rng) + rest)

    def _truncated(self, rng: random.Random) -> Subject:
        subject = self.image(rng)
        return replace(subject, encoded=subject.encoded[: rng.randrange(len(subject.encoded))])

    def _promise(self, rng: random.Random) -> Subject:
        """Promise sizes that overflow, or terabytes."""
        shape = plane(rng.choice(SIZES), rng.choice(SIZES), rng.choice((None, *FRAMES)))
        if rng.random() < 0.5:
            pixels = raw(0x7FE00010, "OW", bytes(rng.choice((0, 2, 512))))
            return _raw_subject(wire.EXPLICIT, identity() + shape + pixels)
        pixels = fragments(*[rng.randbytes(20)] * rng.choice((0, 1, 2, 50)))
        return _raw_subject(
            rng.choice((wire.RLE, wire.J2K, wire.JPEG)), identity() + shape + pixels
        )

    def _nested(self, rng: random.Random) -> Subject:
        depth = rng.choice((3, 30, 300, 1000, 3000))
        start = raw(0x00081140, "SQ", b"", UNDEFINED) + ITEM + struct.pack("<L", UNDEFINED)
        end = (ITEM_END + bytes(4) + SEQUENCE_END + bytes(4)) * rng.choice((depth, depth, 0))
        inner = start * depth + end
        if rng.random() < 0.3:  # hidden in a private element, implicit VR
            start = wire.element(0x00091001, b"", UNDEFINED) + ITEM + struct.pack("<L", UNDEFINED)
            return _raw_subject(
                wire.EXPLICIT, identity() + raw(0x00091001, "UN", start * depth + end)
            )
        return _raw_subject(wire.EXPLICIT, identity() + plane(1, 1) + inner)

    def _lengths(self, rng: random.Random) -> Subject:
        vr = rng.choice(("LO", "OW", "UN", "SQ", "UT", "OB", "DS", "AT", "FD", "XX", "\0\0"))
        length = rng.choice((None, 1, 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFF0, UNDEFINED))
        odd = raw(
            rng.choice((0x00081030, 0x00091001, 0x7FE00010, 0x00020010, 0x00000002, 0xFFFEE000)),
            vr,
            rng.randbytes(rng.choice((0, 1, 7, 64))),
            length,
        )
        return _raw_subject(wire.EXPLICIT, identity() + odd + plane(1, 1))

    def _encapsulated(self, rng: random.Random) -> Subject:
        count, size = rng.choice(((1, 0), (1, 7), (5000, 0), (300, 64), (2, 65537)))
        pixels = fragments(*[rng.randbytes(size)] * count, closed=rng.random() < 0.7)
        shape = plane(32, 32, rng.choice((None, b"1", str(count).encode())))
        return _raw_subject(
            rng.choice((wire.RLE, wire.J2K, wire.JPEG, wire.EXPLICIT)), identity() + shape + pixels
        )

    def _deflate(self, rng: random.Random) -> Subject:
        if rng.random() < 0.1:
            return _raw_subject(wire.DEFLATED, self._bomb)
        inner = self._images[wire.EXPLICIT]
        packed = deflated(rng.choice((inner, inner + bytes(2**20), bytes(2**20), b"")))
        return _raw_subject(
            wire.DEFLATED, rng.choice((packed, packed[: len(packed) // 2], inner, packed + packed))
        )

    def _codec(self, rng: random.Random) -> Subject:
        syntax, stream = rng.choice(CODEC_BOMBS)
        stream = wire.mangle(stream, rng) if rng.random() < 0.3 else stream
        rows, columns = rng.choice(((32, 48), (65535, 65535), (16384, 16384)))
        return _raw_subject(syntax, identity() + plane(rows, columns) + fragments(stream))

    def _characters(self, rng: random.Random) -> Subject:
        names = raw(0x00080005, "CS", wire.even(rng.choice(CHARACTER_SETS), b" "))
        texts = b"".join(
            raw(tag, vr, wire.even(rng.choice((*TEXTS, rng.randbytes(60))), b" "))
            for tag, vr in ((0x0008103E, "LO"), (0x00100010, "PN"), (0x00181030, "LO"))
        )
        return _raw_subject(
            wire.EXPLICIT, names + identity() + texts + plane(1, 1) + raw(0x7FE00010, "OW", b"\0\0")
        )

    def _values(self, rng: random.Random) -> Subject:
        odd = b"".join(
            raw(tag, vr, wire.even(rng.choice(TEXTS), b" "))
            for tag, vr in VALUE_TAGS
            if rng.random() < 0.4
        )
        return _raw_subject(
            wire.EXPLICIT, identity() + odd + plane(1, 1) + raw(0x7FE00010, "OW", b"\0\0")
        )

    def _named(self, rng: random.Random) -> Subject:
        """Be named like a file elsewhere."""
        hostile, place = rng.choice(wire.HOSTILE_UIDS), rng.randrange(3)
        names = [SOP, SERIES, wire.MR]
        names[place] = hostile
        pixels = raw(0x7FE00010, "OW", b"\0\0")
        body = identity(*names) + plane(1, 1) + pixels
        subject = _raw_subject(wire.EXPLICIT, body)
        keyword = ("sop_uid", "series_uid", "sop_class")[place]
        return replace(subject, **{keyword: hostile})

    def _disorder(self, rng: random.Random) -> Subject:
        parts = [
            identity(),
            plane(1, 1),
            plane(2, 2, b"3"),
            raw(0x7FE00010, "OW", b"\0\0"),
            raw(0x00090010, "LO", b"X "),
            raw(0x00080000, "UL", rng.randbytes(4)),
            raw(0x00020010, "UI", b"1.2\0"),
            raw(0xFFFCFFFC, "OB", bytes(10)),
        ]
        return _raw_subject(wire.EXPLICIT, b"".join(rng.choices(parts, k=rng.randint(1, 12))))

    def _grown(self, rng: random.Random) -> Subject:
        tree = rng.choice(self._trees)
        body = identity() + rng.choice((b"", plane(2, 2))) + tree
        return _raw_subject(
            wire.EXPLICIT, body + rng.choice((b"", raw(0x7FE00010, "OW", bytes(8))))
        )

    def _frames(self, rng: random.Random) -> Subject:
        return replace(
            _raw_subject(wire.EXPLICIT, wire.mangle(self._enhanced, rng)),
            sop_class=wire.ENHANCED_MR,
        )

    def _noise(self, rng: random.Random) -> Subject:
        return _raw_subject(
            rng.choice(wire.SYNTAXES), rng.randbytes(rng.choice((0, 1, 8, 200, 5000)))
        )


VALUE_TAGS = (
    (0x00080008, "CS"), (0x00180050, "DS"), (0x00180080, "DS"), (0x00180081, "DS"),
    (0x00180087, "DS"), (0x00200012, "IS"), (0x00200013, "IS"), (0x00200032, "DS"),
    (0x00200037, "DS"), (0x00200052, "UI"), (0x00200105, "IS"), (0x00201002, "IS"),
    (0x00280030, "DS"), (0x00281052, "DS"), (0x00281053, "DS"), (0x00189087, "FD"),
)  # fmt: skip
IDEAS: tuple[Callable[[Maker, random.Random], Subject], ...] = (
    Maker._mangled, Maker._mangled, Maker._mangled_header, Maker._mangled_header, Maker._truncated,
    Maker._promise, Maker._promise, Maker._nested, Maker._lengths, Maker._encapsulated,
    Maker._deflate, Maker._codec, Maker._characters, Maker._values, Maker._values, Maker._named,
    Maker._disorder, Maker._grown, Maker._grown, Maker._frames, Maker._noise,
)  # fmt: skip


def deflated(start: bytes, megabytes: int = 0) -> bytes:
    """Return `start` and megabytes of zeros, deflated: a thousandth of it."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # stands for itself
    return head + block * megabytes + packer.flush()


def _raw_subject(syntax: str, body: bytes) -> Subject:
    return Subject(what="", syntax=syntax, encoded=body)


def _jpeg2000(size: int) -> bytes:
    """Return a JPEG 2000 code stream that promises an image of size x size, and ends."""
    siz = struct.pack(">H8LHBBB", 0, size, size, 0, 0, size, size, 0, 0, 1, 15, 1, 1)
    return (
        b"\xff\x4f\xff\x51"
        + struct.pack(">H", len(siz) + 2)
        + siz
        + b"\xff\x52\0\x0c\0\0\0\1\0\5\4\4\0\1\xff\xd9"
    )


def _jpeg(size: int) -> bytes:
    """Return a lossless JPEG that promises an image of size x size, and ends."""
    frame = struct.pack(">HBHHBBBB", 11, 16, size, size, 1, 1, 0x11, 0)
    return b"\xff\xd8\xff\xc3" + frame + b"\xff\xda\0\x08\1\1\0\1\0\0" + bytes(20) + b"\xff\xd9"


def _rle(segments: int, offset: int, body: bytes) -> bytes:
    return struct.pack("<16L", segments, 64, *[offset] * 14) + body


CODEC_BOMBS = (
    *((wire.J2K, _jpeg2000(size)) for size in (48, 65535, 2**31 - 1)),
    *((wire.JPEG, _jpeg(size)) for size in (48, 65535)),
    (wire.RLE, _rle(2, 64, b"\x81\0" * 30000)),
    (wire.RLE, _rle(2, 0xFFFFFFFF, b"\x81\0" * 100)),
    (wire.RLE, _rle(0xFFFFFFFF, 64, b"")),
    (wire.RLE, _rle(15, 64, b"\x7f")),
)


def renamed(subject: Subject, rng: random.Random) -> Subject:
    """Return the data set with UIDs of its own; a tenth of them collide."""
    sop_uid = f"1.2.826.0.1.3680043.1{rng.randrange(10**11 if rng.random() < 0.9 else 50):011d}"
    series_uid = f"1.2.826.0.1.3680043.2{rng.randrange(300):011d}"
    swapped = subject.encoded.replace(SOP.encode(), sop_uid.encode())
    return replace(
        subject,
        encoded=swapped.replace(SERIES.encode(), series_uid.encode()),
        sop_uid=sop_uid if subject.sop_uid == SOP else subject.sop_uid,
        series_uid=series_uid if subject.series_uid == SERIES else subject.series_uid,
    )
