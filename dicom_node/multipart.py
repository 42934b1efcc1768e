"""Bodies of several parts (RFC 2046 5.1, RFC 2387), split as they come; one part is in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

from dicom_node.errors import NodeError

MOST_HEADER_BYTES = 16384
MOST_BOUNDARY = 256  # characters: 70 by the book, but Orthanc's have 73
TYPE = "multipart/related"
DICOM = "application/dicom"


class MultipartError(NodeError):
    """The body is not what its Content-Type says."""


class PartTooLarge(MultipartError):
    """One part is larger than allowed; the body is not read on."""


@dataclass(frozen=True, kw_only=True)
class MediaType:
    """A Content-Type with its parameters."""

    name: str  # in lower case
    parameters: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a body; the names of its headers are in lower case."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """Return what the part says it is; a part that says nothing is a DICOM file."""
        return media_type(self.headers.get("content-type", DICOM)).name


def media_type(text: str) -> MediaType:
    """Return a Content-Type in its parts; whatever cannot be read has an empty name."""
    message = Message()
    message["content-type"] = text
    pairs = message.get_params(failobj=[]) or [("", "")]
    parameters = {name.lower(): str(value) for name, value in pairs[1:]}
    return MediaType(name=pairs[0][0].strip().lower(), parameters=parameters)


class Splitter:
    """Splits a body that comes in pieces of any size."""

    def __init__(self, boundary: str, most_bytes: int) -> None:
        """Split at `boundary`; a part has `most_bytes` at most.

        Raises
        ------
        MultipartError
            If it cannot be a boundary.
        """
        if not 1 <= len(boundary) <= MOST_BOUNDARY or not boundary.isascii():
            raise MultipartError("the Content-Type has no usable boundary")
        self._delimiter = b"\r\n--" + boundary.encode()
        self._most = most_bytes
        self._data = bytearray(b"\r\n")  # the first delimiter may stand at the very beginning
        self._looked = 0  # no delimiter begins before this
        self._inside = False  # a delimiter has been seen
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Part]:
        """Yield the parts that are whole now.

        Raises
        ------
        MultipartError
            If the body is damaged; PartTooLarge, if a part is too large.
        """
        self._data += data
        while not self._at_the_end() and (at := self._find()) >= 0:
            chunk = bytes(self._data[:at])
            del self._data[: at + len(self._delimiter)]
            self._looked = 0
            if self._inside:
                yield self._part(chunk)
            self._inside = True
        if not self._ended and len(self._data) > self._most + MOST_HEADER_BYTES:
            raise PartTooLarge(f"a part is larger than {self._most} bytes")

    def end(self) -> None:
        """Raise MultipartError unless the body came to its end."""
        self._at_the_end()
        if not self._ended:
            raise MultipartError("the body ends before its last boundary")

    def _at_the_end(self) -> bool:
        """Return whether the closing delimiter has come; what follows it means nothing."""
        self._ended = self._ended or (self._inside and self._data[:2] == b"--")
        if self._ended:
            self._data.clear()
        return self._ended

    def _find(self) -> int:
        at = self._data.find(self._delimiter, self._looked)
        self._looked = max(self._looked, len(self._data) - len(self._delimiter) + 1)
        return at

    def _part(self, chunk: bytes) -> Part:
        padding, found, rest = chunk.partition(b"\r\n")
        if not found or padding.strip(b" \t"):
            raise MultipartError("something stands behind a boundary")
        head, found, body = (b"", b"\r\n", rest[2:]) if rest[:2] == b"\r\n" else parted(rest)
        if not found or len(head) > MOST_HEADER_BYTES:
            raise MultipartError("a part has no end of its headers")
        if len(body) > self._most:
            raise PartTooLarge(f"a part is larger than {self._most} bytes")
        return Part(headers=headers_in(head), body=body)


def parted(rest: bytes) -> tuple[bytes, bytes, bytes]:
    """Return headers, the empty line and the body of a part."""
    return rest.partition(b"\r\n\r\n")


def headers_in(head: bytes) -> dict[str, str]:
    """Return the header fields of a part."""
    fields = {}
    for line in head.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip().lower()] = value.strip()
    return fields


def opening(boundary: str, content_type: str, *, first: bool) -> bytes:
    """Return what stands before the body of a part."""
    line = f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    return line if first else b"\r\n" + line


def closing(boundary: str) -> bytes:
    """Return what stands behind the last part."""
    return f"\r\n--{boundary}--\r\n".encode()
