"""Requests as the fault server reads them: one value, and the reader that parses it from a connection's bytes."""

from __future__ import annotations

import gzip
import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from attrs import field, frozen

HEAD_LIMIT = 1 << 20  # a client that never ends its header must not fill the memory of the test run


class MalformedRequestError(ValueError):
    """The client sent bytes that are not a request; the text says which rule they break."""


@frozen
class Message:
    """The content of one request, without its place and time."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""


@frozen
class Request(Message):
    """One request with its place: the number of its connection, its number on that connection, and its time of arrival.

    `connection` counts accepted connections from 1, `nth` the requests of that connection from 1, and `time` is
    the reading of the server's clock, in seconds.
    """

    connection: int = field(kw_only=True)
    nth: int = field(kw_only=True)
    time: float = field(kw_only=True)

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The query parameters, the last of each name."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever the case of its name."""
        return next(iter(self.header_values(name)), None)

    def header_values(self, name: str) -> list[str]:
        """Return every value of a header, in the order sent."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def content(self) -> bytes:
        """Return the body with its content encoding, if it is gzip, removed."""
        return gzip.decompress(self.body) if self.header("content-encoding") == "gzip" else self.body

    def json(self) -> Any:
        """Return the decoded JSON body.

        Raises:
            ValueError: the body is not JSON.
        """
        return json.loads(self.content())


class RequestReader:
    """Reads requests from a growing buffer, from which others may read between two requests."""

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self._head: Message | None = None
        self._chunks = bytearray()

    @property
    def within(self) -> bool:
        """Whether the header of a request was taken and its body is awaited."""
        return self._head is not None

    def next(self) -> Message | None:
        """Take the next complete request out of the buffer, or give None while it is incomplete.

        Raises:
            MalformedRequestError: no later byte can make a request of this.
        """
        head = self._head or self._take_head()
        body = self._take_body(head) if head else None
        if head is None or body is None:
            self._head = head
            return None
        self._head = None
        return Message(head.method, head.target, head.headers, body)

    def _take_head(self) -> Message | None:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self.buffer) > HEAD_LIMIT:
                raise MalformedRequestError(f"no end of the header in {len(self.buffer)} bytes")
            return None
        head = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        return parse_head(head)

    def _take_body(self, head: Message) -> bytes | None:
        fields = {name.lower(): value for name, value in head.headers}
        if fields.get("transfer-encoding", "").lower() == "chunked":
            return self._take_chunks()
        length = _length(fields.get("content-length", "0"))
        if len(self.buffer) < length:
            return None
        body = bytes(self.buffer[:length])
        del self.buffer[:length]
        return body

    def _take_chunks(self) -> bytes | None:
        while (end := self.buffer.find(b"\r\n")) >= 0:
            size = _chunk_size(bytes(self.buffer[:end]))
            if len(self.buffer) < end + 2 + size + 2:
                return None
            if self.buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise MalformedRequestError(
                    f"chunk of {size} bytes (or the trailer after the last) has no CRLF"
                )
            self._chunks += self.buffer[end + 2 : end + 2 + size]
            del self.buffer[: end + 4 + size]
            if size == 0:
                body, self._chunks = bytes(self._chunks), bytearray()
                return body
        return None


def parse_head(head: bytes) -> Message:
    """Read a request line and its header lines, given without the empty line that ends them."""
    line, *rest = head.decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise MalformedRequestError(f"not a request line: {line[:80]!r}")
    return Message(parts[0], parts[1], tuple(_header(text) for text in rest))


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name or name != name.strip():
        raise MalformedRequestError(f"not a header line: {text[:80]!r}")
    return name, value.strip(" \t")


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise MalformedRequestError(f"not a content-length: {text[:80]!r}")
    return int(text)


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise MalformedRequestError(f"not a chunk size: {line[:80]!r}") from None
