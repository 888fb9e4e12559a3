"""HTTP/1.1 without I/O: the heads of requests as bytes, and responses from the bytes that a server sends.

Each head is read by llhttp, the parser of Node.js, and so is each body but a plain one, which has a length and neither a
transfer coding nor a content coding: a socket can write that straight into a `BodyBuffer`.

Nothing here waits, reads a clock or knows a socket. A `ResponseParser` belongs to one connection. The connections of an
event loop share a `HeadCache`, whose heads hold keys. `LazyHeaders` may be read in a worker thread; a module-level
cache keeps 256 names of headers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from io import BytesIO
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from llmopt.transport.body import ACCEPT_ENCODING, MAX_ERROR_BODY
from llmopt.transport.request import TransportRequest
from llmopt.transport.urls import Target
from llmopt.values.secret import HiddenBytes, HiddenStr

# RFC 9110: a name is a token (5.6.2), a value has visible characters, spaces and tabs (5.5); here ASCII only.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]*")
_DEFAULT_HEADERS: Final = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": "llmopt"}
# Requests with these methods send no content-length if they have no body (RFC 9110, 8.6).
_METHODS_WITHOUT_BODY: Final = ("GET", "HEAD", "OPTIONS", "TRACE", "CONNECT")
_MAX_HEADS: Final = 256
# Up to this size, copying the body behind the head is cheaper than a second system call.
_MAX_JOINED_WRITE: Final = 64 * 1024


class HeadCache:
    """The heads of requests as bytes: requests to one endpoint differ in their content-length only.

    Args:
        close: whether to send ``connection: close``, as every connection is used for one request only.
    """

    def __init__(self, *, close: bool) -> None:
        more = {"connection": "close"} if close else {}
        # The values are part of the key: a new API key must not be answered with the old head. Bounded, because a token
        # may change every hour, and a path with each call.
        self._render: Final = lru_cache(_MAX_HEADS)(partial(_render_head, {**_DEFAULT_HEADERS, **more}))
        self._last: tuple[Mapping[str, str], str, str, bytes] = ({}, "", "", b"")

    def writes(self, target: Target, request: TransportRequest) -> tuple[memoryview, bytes | None]:
        """Return the head with a short body behind it, and a long body apart.

        The head is a view, whose ``repr`` does not show the API key.

        Raises:
            ValueError: the method, the URL or a header contains characters that HTTP forbids.
        """
        headers, url, method, head = self._last
        # Requests to one endpoint share one mapping of headers, which is never changed: identity is enough.
        if headers is not request.headers or url != request.url or method != request.method:
            head = self._render(target, request.method, tuple(request.headers.items()))
            self._last = (request.headers, request.url, request.method, head)
        body = request.body
        if body is None:
            end = b"\r\n" if request.method in _METHODS_WITHOUT_BODY else b"content-length: 0\r\n\r\n"
            return memoryview(head + end), None
        joined, later = (body, None) if len(body) <= _MAX_JOINED_WRITE else (b"", body)
        return memoryview(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), joined)), later


def _render_head(
    defaults: Mapping[str, str], target: Target, method: str, request_headers: tuple[tuple[str, str], ...]
) -> bytes:
    headers = {"host": target.route.authority, **defaults}
    # Lower case, so that a caller's "User-Agent" replaces the default instead of being sent beside it.
    headers.update((name.lower(), value) for name, value in request_headers)
    proxy = target.route.proxy
    # Through a tunnel the server would get it.
    direct = method == "CONNECT" or not target.route.tunnelled
    if proxy is not None and proxy.authorization is not None and direct:
        headers["proxy-authorization"] = HiddenStr(proxy.authorization)
    if not (_HEADER_NAME.fullmatch(method) and _VISIBLE.fullmatch(target.written)):
        raise ValueError("invalid method or URL")
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            # The message contains neither name nor value: they may be a key.
            raise ValueError("invalid header")
    # The lines are not given a name: they hold the API key, and tracebacks can show local variables.
    return HiddenBytes(
        "\r\n".join(
            [
                f"{method} {target.written} HTTP/1.1",
                *(f"{name}: {value}" for name, value in headers.items()),
                "",
            ]
        ).encode("ascii")
    )


class LazyHeaders(Mapping[str, str]):
    """Response headers with lower-case names and repeated values joined, computed on first use.

    The headers of most successful responses are never looked at.

    Args:
        head: the head as it was received, which llhttp has checked.
    """

    __slots__ = ("_head", "_joined")

    def __init__(self, head: bytes) -> None:
        self._head: Final = head
        self._joined: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        if self._joined is None:
            joined: dict[str, str] = {}
            key = ""
            # Bytes that are not UTF-8 are replaced: as lone surrogates they could not be printed or stored.
            for line in self._head.decode("utf-8", "replace").strip("\r\n").split("\n")[1:]:
                if key and line.startswith((" ", "\t")):
                    # A value that continues on the next line (RFC 9112, 5.2).
                    joined[key] = f"{joined[key]} {line.strip(_BLANK)}"
                    continue
                name, _, value = line.partition(":")
                key, value = _lower_name(name.strip(_BLANK)), value.strip(_BLANK)
                joined[key] = f"{joined[key]}, {value}" if key in joined else value
            self._joined = joined
        return self._joined


_BLANK: Final = " \t\r"


@lru_cache(maxsize=256)
def _lower_name(name: str) -> str:
    # A server sends the same names each time; interned strings also compare by identity.
    return sys.intern(name.lower())


# Bytes read from a socket at once: copying a mebibyte takes half a millisecond of the event loop.
_MAX_READ: Final = 1 << 20


class BodyBuffer:
    """The body of a response of known length, written by the socket itself: nothing is copied twice.

    Args:
        size: length of the body, above 0.
    """

    __slots__ = ("_filled", "_free", "_memory", "_size")

    def __init__(self, size: int) -> None:
        # BytesIO, because its getvalue() returns its own memory as bytes, not a copy.
        self._memory: Final = BytesIO(bytes(size))
        self._free = memoryview(b"")
        self._size: Final = size
        self._filled = 0

    @property
    def free_space(self) -> memoryview:
        """Where the next bytes go; limited, because the kernel fills as much as it is given while more arrives."""
        self.release()
        self._free = self._memory.getbuffer()[self._filled : self._filled + _MAX_READ]
        return self._free

    @property
    def remaining(self) -> int:
        """Bytes that are still missing; 0 when the body is complete."""
        return self._size - self._filled

    def append(self, data: bytes | memoryview) -> None:
        """Copy bytes that were read elsewhere; at most `remaining`."""
        self._memory.getbuffer()[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def advance(self, count: int) -> None:
        """Count bytes that were written into `free_space`."""
        self._filled += count

    def release(self) -> None:
        """End the use of `free_space`: while there is a view of it, BytesIO copies its memory.

        The garbage collector of Python 3.13 also reports a BufferError for a BytesIO that it frees with such a view.
        """
        # uvloop holds the view until its callback has returned.
        with suppress(BufferError):
            self._free.release()

    def getvalue(self) -> bytes:
        """Return the body; without a copy if no `free_space` is in use any more."""
        self.release()
        return self._memory.getvalue()


class MalformedResponse(Exception):
    """What the server has sent is not HTTP/1.1, or breaks its rules."""


class TruncatedResponse(Exception):
    """The server has closed the connection in the middle of the body."""


MAX_HEAD: Final = 32 * 1024
"""Bytes of the head of a response, and of what may stand between two chunks of a body: twice what Node.js accepts."""
_SUCCESS: Final = range(200, 300)
# 101 ends the HTTP exchange (RFC 9110, 15.2.2), unlike the other 1xx, after which a final response follows.
_SWITCHING_PROTOCOLS: Final = 101
_MIN_STATUS: Final = 100
_MIN_FINAL_STATUS: Final = 200
_MAX_DIGITS: Final = 18
_LENGTH: Final = b"\ncontent-length:"
_CODING: Final = b"\ntransfer-encoding:"


class ResponseParser:
    """Reads the responses of one connection, one after the other; interim responses (1xx) are skipped.

    `start` prepares for a response, then `feed` takes its bytes, in pieces of any size, and `feed_eof` their end. After
    a failure, and if ``keep_alive`` is false at the end, the parser is of no more use.

    Attributes:
        status: of the response, 0 before its head is complete.
        head: the head as received.
        headers: its headers.
        buffer: where the rest of a plain body goes: `feed` copies there, or a socket writes and `advance` counts. None
            for any other body.
        body: a plain body, once it is complete; None for any other body, which `take` returns.
        complete: whether the whole response was read.
        keep_alive: whether the connection can carry another request; known when the response is complete.
    """

    def __init__(self) -> None:
        self._pieces: Final[list[bytes]] = []
        # llhttp calls this with each part of a body.
        self.on_body: Final = self._pieces.append
        self.start("GET")

    def start(self, method: str, *, max_whole: int = 0) -> None:
        """Prepare for the response to a request.

        Args:
            method: of the request.
            max_whole: bytes of a plain body that are collected in ``buffer``; a longer one, and with 0 each, is read
                piece by piece with `take`.
        """
        self.status = 0
        self.head = b""
        self.headers: Mapping[str, str] = {}
        self.buffer: BodyBuffer | None = None
        self.body: bytes | None = None
        self.complete = self.keep_alive = False
        self._method = method
        self._max_whole = max_whole
        # For each response a new one, which nothing that came before can have confused.
        self._llhttp: HttpResponseParser | None = None
        self._begun = b""
        self._heads, self._until_close = 0, False
        self._quiet = 0
        self._surplus_from = sys.maxsize
        self._pieces.clear()

    @property
    def reason(self) -> str:
        """The words behind the status."""
        *_, reason = (*self.head.strip().partition(b"\n")[0].split(b" ", 2), b"", b"")[:3]
        return reason.strip().decode("utf-8", "replace")

    def feed(self, data: bytes | bytearray, size: int | None = None) -> None:
        """Take the first ``size`` bytes of what was received, None for all of them.

        Raises:
            MalformedResponse: they break the rules of HTTP.
        """
        size = len(data) if size is None else size
        if self.complete:
            self.keep_alive = self.keep_alive and not size
        elif self.buffer is not None:
            received = memoryview(data)[:size]
            missing = self.buffer.remaining
            self.buffer.append(received[:missing])
            self.advance(0)
            self.keep_alive = self.keep_alive and size <= missing
        elif self.status:
            self._feed_body(memoryview(data)[:size])
        else:
            self._feed_head(data, size)

    def advance(self, count: int) -> None:
        """Count bytes that were written into the free space of ``buffer``."""
        if self.buffer is not None:
            self.buffer.advance(count)
            if not self.buffer.remaining:
                self.body, self.buffer, self.complete = self.buffer.getvalue(), None, True

    def feed_eof(self) -> None:
        """Tell that the server has closed its side, after the head: this ends a body without a length.

        Raises:
            TruncatedResponse: the body is not complete.
        """
        if not self._until_close:
            raise TruncatedResponse
        self.complete = True

    def take(self) -> bytes:
        """Return what was read of a body that is not plain since the last call."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return data

    def on_headers_complete(self) -> None:
        """Called by llhttp at the end of a head."""
        self._heads += 1
        if self._llhttp is not None and not self.complete:
            # llhttp forgets this when the message ends, which may be now.
            self.keep_alive = self._llhttp.should_keep_alive()

    def on_message_begin(self) -> None:
        """Called by llhttp at the first byte of a message."""
        if self.complete:
            # Nobody has asked for another one; llhttp only tells whether it is HTTP.
            self._surplus_from = min(self._surplus_from, len(self._pieces))
            self.keep_alive = False

    def on_message_complete(self) -> None:
        """Called by llhttp at the end of a message."""
        self.complete = True

    def _parse(self, data: memoryview) -> int:
        """Let llhttp read; returns the status that it knows."""
        llhttp = self._llhttp
        if llhttp is None:
            llhttp = self._llhttp = HttpResponseParser(self)
            # What servers get wrong without doubt about where a message ends: bare line feeds, values that continue on
            # the next line, and spaces behind the size of a chunk.
            llhttp.set_dangerous_leniencies(
                lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )
        try:
            llhttp.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # It stops after a 101.
            if not self._heads or llhttp.get_status_code() != _SWITCHING_PROTOCOLS:
                raise MalformedResponse from None
            self.keep_alive = False
        return llhttp.get_status_code()

    def _feed_head(self, data: bytes | bytearray, size: int) -> None:
        seen = len(self._begun)
        if seen:
            data = self._begun + data[:size]
            size = len(data)
        received, start = memoryview(data)[:size], 0
        while start < size:
            end = _end_of_head(data, start + max(seen - 2, 0), size)
            # At once, not when the head is complete: what is no HTTP may never end.
            status = self._parse(received[start + seen : end or size])
            # llhttp takes a line of blanks for the end of a head, and finds none in empty lines.
            agreed = self._heads == 1 and status >= _MIN_STATUS if end else not self._heads
            if not agreed or (end or size) - start > MAX_HEAD:
                raise MalformedResponse
            if not end:
                self._begun = bytes(received[start:])
                return
            if status >= _MIN_FINAL_STATUS or status == _SWITCHING_PROTOCOLS:
                self._begin_body(status, bytes(received[start:end]), received[end:])
                if self.complete or self.buffer is not None:
                    # It holds this object, which the garbage collector would have to find.
                    self._llhttp = None
                return
            # An interim response.
            self._begun, self._heads, self.complete = b"", 0, False
            start, seen = end, 0

    def _begin_body(self, status: int, head: bytes, rest: memoryview) -> None:
        """Decide, at the end of the head, how the body is read."""
        # llhttp accepts a few other protocols and versions, zero bytes, and two carriage returns for the end of the head.
        if not head.lstrip(b"\r\n").startswith(b"HTTP/1.") or b"\0" in head or b"\r\r" in head:
            raise MalformedResponse
        self.status, self.head, self.headers = status, head, LazyHeaders(head)
        if self._method == "HEAD" or (self._method == "CONNECT" and status in _SUCCESS):
            # Its headers are about a body that does not come (RFC 9110, 9.3.2), or about none (9.3.6).
            self.complete = True
            self.keep_alive = self.keep_alive and not rest
        elif status == _SWITCHING_PROTOCOLS:
            self.complete = True
        elif (size := self._plain_length()) and len(rest) < size:
            self.buffer = BodyBuffer(size)
            self.buffer.append(rest)
        elif size and len(rest) == size:
            self.body, self.complete = bytes(rest), True
        else:
            coding = self.headers.get("transfer-encoding")
            # No other was asked for. llhttp would take everything up to the close for the body, also behind a tab.
            if coding is not None and (coding.lower() != "chunked" or b"chunked\t" in head.lower()):
                raise MalformedResponse
            self._until_close = coding is None and "content-length" not in self.headers
            self._feed_body(rest)

    def _plain_length(self) -> int:
        """The length of a plain body, 0 for any other."""
        head = self.head.lower()
        start = head.find(_LENGTH) + len(_LENGTH)
        # llhttp has ended the message if its status has no body.
        if self.complete or start < len(_LENGTH) or b"\ncontent-encoding:" in head or _CODING in head:
            return 0
        length = head[start : head.index(b"\n", start)].strip()
        # Without a bound, thousands of leading zeros would be an error of `int`.
        size = int(length) if length.isdigit() and len(length) <= _MAX_DIGITS else 0
        # The body of an error is cut, which only `take` can do.
        most = self._max_whole if self.status in _SUCCESS else min(self._max_whole, MAX_ERROR_BODY)
        return size if size <= most else 0

    def _feed_body(self, data: memoryview) -> None:
        """Read any other body, through llhttp."""
        if data:
            self._parse(data)
            del self._pieces[self._surplus_from :]
        self._quiet = 0 if self._pieces else self._quiet + len(data)
        # The line of a chunk's size, and what follows the last chunk, may be of any length for llhttp.
        if self._quiet > MAX_HEAD:
            raise MalformedResponse


def _end_of_head(data: bytes | bytearray, start: int, size: int) -> int:
    """The index behind the first empty line, 0 if there is none. A bare line feed ends a line too (RFC 9112, 2.2)."""
    end = data.find(b"\n\r\n", start, size)
    bare = data.find(b"\n\n", start, size if end < 0 else end + 1)
    if bare >= 0:
        return bare + 2
    return 0 if end < 0 else end + 3
