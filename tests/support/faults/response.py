"""Answers as values, and the bytes that they become on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from http import HTTPStatus
from typing import Any

from attrs import evolve, field, frozen

HeaderText = str | bytes
Header = tuple[HeaderText, HeaderText]


class Framing(Enum):
    """How an answer says where its body ends."""

    LENGTH = "content-length"
    CHUNKED = "chunked"
    EOF = "the end of the connection"
    AS_GIVEN = "whatever the headers say, correct or not"


def _headers(given: Iterable[Header]) -> tuple[Header, ...]:
    return tuple(given)


@frozen
class Answer:
    """One HTTP/1.1 answer; `bytes(answer)` is exactly what goes over the wire.

    Nothing is checked, so that every broken answer can be written: statuses may be any number, header texts any
    bytes. `chunk` is the size of the pieces, in bytes, when the framing is chunked.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[Header, ...] = field(default=(), converter=_headers)
    framing: Framing = Framing.LENGTH
    reason: str | None = None
    chunk: int = 16384

    def __bytes__(self) -> bytes:
        body = chunked(self.body, self.chunk) if self.framing is Framing.CHUNKED else self.body
        return self.head() + body

    @property
    def closes(self) -> bool:
        """Whether the server ends the connection after this answer."""
        if self.framing is Framing.EOF:
            return True
        return any(
            _raw(name).lower() == b"connection" and _raw(value).lower() == b"close"
            for name, value in self.headers
        )

    def head(self) -> bytes:
        """Return the status line and the headers, with the empty line that ends them."""
        lines = [
            f"HTTP/1.1 {self.status} {_reason(self.status) if self.reason is None else self.reason}".encode()
        ]
        lines += [
            _raw(name) + b": " + _raw(value) for name, value in (*self.headers, *self._framing_headers())
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def plus(self, *headers: Header) -> Answer:
        """Return the same answer with more headers after its own."""
        return evolve(self, headers=(*self.headers, *headers))

    def _framing_headers(self) -> tuple[Header, ...]:
        if self.framing is Framing.LENGTH:
            return (("content-length", str(len(self.body))),)
        if self.framing is Framing.CHUNKED:
            return (("transfer-encoding", "chunked"),)
        return (("connection", "close"),) if self.framing is Framing.EOF else ()


def json_answer(
    value: Any, *, status: int = 200, headers: Iterable[Header] = (), framing: Framing = Framing.LENGTH
) -> Answer:
    """Return an answer whose body is a value as JSON, NaN and Infinity included."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Answer(status, body, (("content-type", "application/json"), *headers), framing)


def chunked(body: bytes, size: int = 16384) -> bytes:
    """Write a body as HTTP chunks of at most `size` bytes, the last empty chunk included."""
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _raw(text: HeaderText) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Odd"
