"""HTTP/1.1 without I/O, against h11 as the reference: whatever is sent, and however it is cut."""

from __future__ import annotations

import gc
import itertools
import sys
import weakref
import zlib
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmopt.transport.http1 import (
    MAX_HEAD,
    BodyBuffer,
    LazyHeaders,
    MalformedResponse,
    ResponseParser,
    TruncatedResponse,
)
from tests.support.faults import chunked
from tests.support.scale import scaled

Outcome = tuple[int, dict[str, str], bytes, bool] | str


def read(
    pieces: list[bytes],
    *,
    method: str = "POST",
    max_whole: int = 10**6,
    eof: bool = True,
    direct: bool = False,
) -> Outcome:
    """What the parser makes of a response: status, headers, body and whether the connection is kept, or its error.

    Args:
        pieces: what the server sends.
        method: of the request.
        max_whole: see `ResponseParser.start`.
        eof: whether the server closes then.
        direct: whether the rest of a plain body is written into its buffer, as a socket does it.
    """
    parser = ResponseParser()
    parser.start(method, max_whole=max_whole)
    body = b""
    try:
        for piece in pieces:
            rest = piece
            while direct and rest and parser.buffer is not None:
                space = parser.buffer.free_space
                count = min(len(space), len(rest))
                space[:count] = rest[:count]
                del space
                parser.advance(count)
                rest = rest[count:]
            if rest or not piece:
                parser.feed(rest)
            body += parser.take()
        if eof and not parser.complete:
            if not parser.status:
                return "lost"
            parser.feed_eof()
    except MalformedResponse:
        return "malformed"
    except TruncatedResponse:
        return "truncated"
    if not parser.complete:
        return "waiting"
    return parser.status, dict(parser.headers), parser.body or body, parser.keep_alive


def read_by_h11(data: bytes, *, method: str = "POST") -> Outcome:
    """The same by h11."""
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method=method, target="/", headers=[("host", "a"), ("content-length", "0")]))
    peer.send(h11.EndOfMessage())
    head: Any = None
    body = b""
    try:
        peer.receive_data(data)
        peer.receive_data(b"") if data else None
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, (h11.ConnectionClosed, type(h11.PAUSED), type(h11.NEED_DATA))):
                return "truncated" if head else "lost"
    except h11.RemoteProtocolError as error:
        if "incomplete" in str(error) or "without sending complete" in str(error):
            return "truncated"
        return "malformed"
    joined: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode(), value.decode("utf-8", "replace")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return head.status_code, joined, body, peer.their_state is h11.DONE


TOKEN = st.text("abcdefgXYZ-_0123456789", min_size=1, max_size=12).filter(
    lambda name: name.lower() not in ("content-length", "transfer-encoding", "connection", "content-encoding")
)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@st.composite
def responses(draw: Any) -> tuple[bytes, bytes]:
    """Head and body of a valid response in one of the framings, with an interim response before it now and then."""
    status = draw(st.sampled_from([200, 200, 200, 201, 204, 304, 404, 429, 500, 599]))
    body = draw(st.binary(max_size=300))
    lines = [
        f"{name}: {value}".encode() for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))
    ]
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    data = body
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        data = chunked(body, draw(st.integers(1, 100)))
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from([b"Connection: close", b"connection: keep-alive"])))
    if status in (204, 304):
        data = b""
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n"]))
    head = b"\r\n".join([b"HTTP/%b %d Words of it" % (version, status), *lines, b"", b""])
    return interim + head, data


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=scaled(60, nightly=100_000), deadline=None)
@given(
    response=responses(),
    places=st.lists(st.integers(0, 2000), max_size=6),
    method=st.sampled_from(["POST", "POST", "HEAD"]),
    direct=st.booleans(),
    max_whole=st.sampled_from([0, 100, 10**6]),
)
def test_a_valid_response_is_read_as_h11_reads_it(
    response: tuple[bytes, bytes], places: list[int], method: str, direct: bool, max_whole: int
) -> None:
    """Cut anywhere, by `feed` or straight into the buffer, whole or piece by piece."""
    data = response[0] if method == "HEAD" else b"".join(response)
    expected = read_by_h11(data, method=method)
    got = read(cuts(data, places), method=method, direct=direct, max_whole=max_whole)
    if isinstance(expected, str) or isinstance(got, str):
        assert got == expected
        return
    assert got[:3] == expected[:3]
    # A connection that h11 would give up is not kept, unless HTTP/1.0 asks for it, which h11 does not know.
    assert expected[3] or not got[3] or b"HTTP/1.0" in data


@settings(max_examples=scaled(60, nightly=100_000), deadline=None)
@given(
    data=responses().map(b"".join),
    place=st.integers(0, 2000),
    changed=st.binary(max_size=6),
    length=st.integers(0, 6),
)
@example(
    data=b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    place=16,
    changed=b"Content-Length: 2\r\n",
    length=0,
)
def test_a_changed_response_is_never_more_than_h11_makes_of_it(
    data: bytes, place: int, changed: bytes, length: int
) -> None:
    """Where both accept it, both read the same; the result does not depend on where it is cut."""
    place %= len(data)
    data = data[:place] + changed + data[place + length :]
    whole = read([data])
    assert read([data], max_whole=0) == whole
    bytewise = read([data[at : at + 1] for at in range(len(data))])
    # Surplus bytes that come later than the response cannot change it any more.
    if whole != "malformed":
        assert bytewise == whole or not isinstance(bytewise, str)
    expected = read_by_h11(data)
    lenient = b"\n" in data.replace(b"\r\n", b"") or any(
        code in data for code in b"\0\t\x01\x0b\x0c\x1c\x1d\x1e\x1f\x7f"
    )
    if not isinstance(whole, str) and not isinstance(expected, str) and not lenient:
        assert (whole[0], whole[2]) == (expected[0], expected[2])


@pytest.mark.parametrize("max_whole", [0, 10**6])
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Wait\r\ncontent-length: 3\r\n\r\nabc",
        b"\r\nHTTP/1.1 200 OK\ncontent-length: 3\n\nabc",
    ],
)
def test_cut_at_every_point(head: bytes, max_whole: int) -> None:
    """In two and in three pieces; and truncated there it is no response."""
    expected = read([head], max_whole=max_whole)
    assert expected[2] == b"abc"
    for first in range(len(head) + 1):
        assert read([head[:first], head[first:]], max_whole=max_whole) == expected
        assert read([head[:first]], max_whole=max_whole) in ("lost", "truncated", expected)
        for second in range(first, len(head) + 1, 7):
            assert read([head[:first], head[first:second], head[second:]], max_whole=max_whole) == expected


REFUSED = {
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "the same length twice": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
    "a length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\ntransfer-encoding : chunked\r\ncontent-length: 1\r\n\r\na",
    "a length with a sign": b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
    "a list of lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\na",
    "another coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\na",
    "a coding twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 1\r\n\r\na",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\ncontent-length: 1\r\n\r\na",
    "another protocol": b"RTSP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na",
    "status 0": b"HTTP/1.1 000 OK\r\ncontent-length: 1\r\n\r\na",
    "a zero byte in a header": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 1\r\n\r\na",
    "a zero byte in the reason": b"HTTP/1.1 200 O\0K\r\ncontent-length: 1\r\n\r\na",
    "a bare carriage return": b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 1\r\n\r\na",
    "a long head": b"HTTP/1.1 200 OK\r\nx: " + b"a" * MAX_HEAD + b"\r\ncontent-length: 1\r\n\r\na",
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"a" * MAX_HEAD,
    "empty lines without end": b"\r\n" * MAX_HEAD,
    "noise behind the body": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na{}",
    "a body for status 204": b"HTTP/1.1 204 None\r\n\r\n{}",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("max_whole", [0, 10**6])
def test_what_is_refused(name: str, max_whole: int) -> None:
    """A response whose end two programs may see at different places must not be used."""
    assert read([REFUSED[name]], max_whole=max_whole) == "malformed"


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 200 OK\r\ncontent-length:\r\n 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: %b1\r\n\r\na" % (b"0" * 5000), b"a"),
        (b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\n1 ;x=1\r\na\r\n0\r\nt: 1\r\n\r\n", b"a"),
        (b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nzz", b""),
        (b"HTTP/1.1 101 Switch\r\n\r\nzz", b""),
    ],
)
def test_what_is_unusual_and_accepted(data: bytes, body: bytes) -> None:
    outcome = read([data])
    assert outcome[2] == body


@pytest.mark.parametrize(
    "extra", [b"H", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong", b"\r\nHTTP/1.1 100 C\r\n\r\n"]
)
@pytest.mark.parametrize("max_whole", [0, 10**6])
@pytest.mark.parametrize("later", [False, True])
def test_bytes_behind_a_response_end_the_connection(extra: bytes, max_whole: int, later: bool) -> None:
    """Whether they come with it or after it."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright"
    outcome = read([answer, extra] if later else [answer + extra], max_whole=max_whole)
    assert outcome[2:] == (b"right", False)


def test_the_lines_between_chunks_are_bounded() -> None:
    """The line of a size, and the trailers, which llhttp reads without a limit."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert read([head, *[b"1;" + b"x" * 1000] + [b"x" * 1000] * 40]) == "malformed"
    assert read([head, b"0\r\n", *[b"t: " + b"x" * 1000 + b"\r\n"] * 40]) == "malformed"
    assert read([head, *[b"1\r\na\r\n"] * 10_000, b"0\r\n\r\n"])[2] == b"a" * 10_000


def test_the_reason_and_the_headers_are_text() -> None:
    """Also where their bytes are not UTF-8; a value may continue on the next line."""
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 407 Who are you\xe9\r\nA:  1 \r\na:2\r\nB: x\r\n\t y\r\nC: caf\xe9\r\n\r\n")
    assert parser.reason == "Who are you\ufffd"
    assert dict(parser.headers) == {"a": "1, 2", "b": "x y", "c": "caf\ufffd"}
    assert dict(LazyHeaders(b"HTTP/1.1 200\r\n\r\n")) == {}


def test_a_parser_reads_one_response_after_the_other() -> None:
    """Plain and not plain, without a trace of the one before."""
    parser = ResponseParser()
    for number in range(6):
        parser.start("POST", max_whole=100)
        body = b"%d" % number
        parser.feed(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + body
            if number % 2
            else b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(body)
        )
        assert (parser.body or parser.take(), parser.complete, parser.keep_alive) == (body, True, True)


def test_a_body_buffer_returns_its_memory_without_a_copy() -> None:
    buffer = BodyBuffer(2_000_000)
    buffer.append(b"abc")
    while buffer.remaining:
        space = buffer.free_space
        space[:] = b"x" * len(space)
        count = len(space)
        buffer.advance(count)
    body = buffer.getvalue()
    assert body is buffer.getvalue()
    assert zlib.crc32(body) == zlib.crc32(b"abc" + b"x" * 1_999_997)
    assert sys.getrefcount(body) < 5


def test_a_parser_needs_no_garbage_collector() -> None:
    """llhttp holds the parser that it calls, which must not hold it when a response has ended."""
    parser = ResponseParser()
    for head in (b"content-length: 1\r\n\r\na", b"content-length: 2\r\n\r\na"):
        parser.start("POST", max_whole=100)
        parser.feed(b"HTTP/1.1 200 OK\r\n" + head)
        assert parser.status == 200
    seen = weakref.ref(parser)
    gc.disable()
    try:
        del parser
        assert seen() is None
    finally:
        gc.enable()
