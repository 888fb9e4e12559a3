"""Server-sent events by the rules of the WHATWG, and by the practice of servers."""

from __future__ import annotations

import sys

import pytest

from llmopt import ServerEvent
from llmopt.decoding.sse import SSEDecoder, StreamDecodeError
from tests.decoding.splits import events, halves, random_cuts, single_bytes
from tests.support.scale import scaled


def event(data: str, kind: str = "message", *, number: str = "") -> ServerEvent:
    return ServerEvent(event=kind, data=data, id=number)


BOM = b"\xef\xbb\xbf"
LIMIT = 1_000_000
CASES: dict[str, tuple[bytes, list[ServerEvent]]] = {
    "nothing": (b"", []),
    "an event": (b"data: a\n\n", [event("a")]),
    "two events": (b"data: a\n\ndata: b\n\n", [event("a"), event("b")]),
    # The examples of the standard, section 9.2.6.
    "the standard: lines of data": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [event("YHOO\n+2\n10")]),
    "the standard: comment, ids and a space": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [event("first event", number="1"), event("second event"), event(" third event")],
    ),
    "the standard: data without a colon": (b"data\n\ndata\ndata\n\n", [event(""), event("\n")]),
    "the standard: the space may lack": (b"data:test\n\ndata: test\n\n", [event("test"), event("test")]),
    # Ends of lines.
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [event("a"), event("b")]),
    "CR": (b"data: a\r\rdata: b\r\r", [event("a"), event("b")]),
    "mixed": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\ndata: d\r\r\n", [event("a"), event("b"), event("c\nd")]),
    "CR, then LF, is one end": (b"data: a\r\ndata: b\r\n\n", [event("a\nb")]),
    "many blank lines": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [event("a"), event("b")]),
    # The byte order mark.
    "BOM": (BOM + b"data: a\n\n", [event("a")]),
    "BOM and nothing": (BOM, []),
    "a second BOM is part of a name": (BOM + BOM + b"data: a\n\ndata: b\n\n", [event("b")]),
    "BOM later": (b"data: a\n\n" + BOM + b"data: b\n\n", [event("a")]),
    "BOM in data": (b"data: " + BOM + b"\n\n", [event("\ufeff")]),
    "half a BOM": (b"\xef\xbb", []),
    # Fields.
    "data before event": (b"data: a\nevent: x\n\n", [event("a", "x")]),
    "event before data": (b"event: x\ndata: a\n\n", [event("a", "x")]),
    "the last event name counts": (b"event: x\nevent: y\ndata: a\n\n", [event("a", "y")]),
    "an empty event name": (b"event: x\nevent:\ndata: a\n\n", [event("a")]),
    "event without data": (b"event: x\n\ndata: a\n\n", [event("a")]),
    "id without data": (b"id: 7\n\ndata: a\n\n", [event("a", number="7")]),
    "an id stays": (b"id: 7\ndata: a\n\ndata: b\n\n", [event("a", number="7"), event("b", number="7")]),
    "an id with NUL is none": (b"id: 7\n\nid: a\0b\ndata: a\n\n", [event("a", number="7")]),
    "retry": (b"retry: 10\ndata: a\n\nretry: 10\n\n", [event("a")]),
    "unknown fields": (b"dat: x\ndatax: x\nDATA: x\n data: x\ndata: a\n\n", [event("a")]),
    "one space is taken": (b"data:  a \n\n", [event(" a ")]),
    "a tab is not": (b"data:\ta\n\n", [event("\ta")]),
    "colons in data": (b"data: a: b:c\n\ndata::\n\n", [event("a: b:c"), event(":")]),
    "comments": (b": ping\n\n:\n\n:x\ndata: a\n:y\n\n", [event("a")]),
    "empty data": (b"data:\n\ndata: \n\n", [event(""), event("")]),
    # Text.
    "line separators of Unicode": ("data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\n".encode(), [event("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg")]),
    "NUL in data": (b"data: a\0b\n\n", [event("a\0b")]),
    "text of several bytes": ("data: ä€𝄞\n\n".encode(), [event("ä€𝄞")]),
    # Deviations of servers from the standard.
    "no blank line at the end": (b"data: a\n\ndata: [DONE]\n", [event("a"), event("[DONE]")]),
    "no end of line at the end": (b"data: a\n\ndata: [DONE]", [event("a"), event("[DONE]")]),
    "an event name at the end": (b"data: a\nevent: x", [event("a", "x")]),
    "the field of old llama.cpp": (b'error: {"code":500}\n\ndata: [DONE]\n\n', [event('{"code":500}', "error"), event("[DONE]")]),
    "half a field at the end": (b"data: a\n\ndat", [event("a")]),
}  # fmt: skip


@pytest.mark.row("E02")
@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES.keys())
def test_events_by_the_standard_in_any_pieces(body: bytes, expected: list[ServerEvent]) -> None:
    """Whole, split at every place, byte by byte."""
    assert events(SSEDecoder(), [body]) == expected
    assert events(SSEDecoder(), single_bytes(body)) == expected
    for pieces in halves(body):
        assert events(SSEDecoder(), pieces) == expected
    for seed in range(20):
        assert events(SSEDecoder(), random_cuts(body, seed)) == expected


@pytest.mark.parametrize(
    ("pieces", "counts"),
    [
        ((b"data: a\n", b"\n"), (0, 1)),
        ((b"data: a\r\n\r", b"\ndata: b\r", b"\r"), (1, 0, 1)),
        ((b"data: a\r\r", b"data: b\n\n"), (1, 1)),
        ((b"data: a\n\nda", b"ta: b\n\ndata: c\n\n"), (1, 2)),
    ],
)
def test_an_event_is_returned_with_its_last_byte(pieces: tuple[bytes, ...], counts: tuple[int, ...]) -> None:
    """The decoder waits neither for the LF behind a CR nor for another event."""
    decoder = SSEDecoder()
    assert tuple(len(decoder.feed(piece)) for piece in pieces) == counts


@pytest.mark.row("E05")
def test_an_endless_line_is_an_error_at_the_maximum() -> None:
    """At the maximum, in pieces of any size, in data and in comments."""
    for start in (b"data: ", b": ", b"nothing", b""):
        decoder = SSEDecoder(LIMIT)
        decoder.feed(start)
        fed = 0
        with pytest.raises(StreamDecodeError, match="line of more than 1000000 bytes") as caught:
            while fed <= 2 * LIMIT:
                fed += 65_536
                decoder.feed(b"x" * 65_536)
        assert caught.value.reason == "line"
        assert fed <= LIMIT + 2 * 65_536


@pytest.mark.row("E05")
@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
@pytest.mark.parametrize("whole", [True, False])
def test_the_maximum_line_length_is_exact(size: int, whole: bool) -> None:
    line = b"data: " + b"x" * (size - 6)
    pieces = [line + b"\n\n"] if whole else [line[:500_000], line[500_000:], b"\n\n"]
    if size <= LIMIT:
        assert [len(each.data) for each in events(SSEDecoder(LIMIT), pieces)] == [size - 6]
    else:
        with pytest.raises(StreamDecodeError):
            events(SSEDecoder(LIMIT), pieces)


@pytest.mark.row("E05")
def test_an_event_of_many_lines_is_an_error_at_the_maximum() -> None:
    """In lines of 1 KiB; lines without data count too."""
    lines = b"data: " + b"x" * 1024 + b"\n", b"data\n"
    decoders = (
        (lines[0], SSEDecoder(LIMIT), LIMIT),
        (lines[1], SSEDecoder(1 << 16), 1 << 16),
    )
    for line, decoder, limit in decoders:
        with pytest.raises(StreamDecodeError, match=f"an event of more than {limit} bytes") as caught:
            for _ in range(2 * limit // 100):
                decoder.feed(line * 100)
        assert caught.value.reason == "event"


@pytest.mark.row("E05")
def test_a_long_stream_takes_steady_memory() -> None:
    """The decoder keeps no event that it has returned."""
    rounds = scaled(2_000, nightly=10_000)
    decoder = SSEDecoder()
    piece = b"data: x\n\n" * 100
    decoder.feed(piece)
    before = sys.getallocatedblocks()
    count, most = 0, 0
    for _ in range(rounds):
        count += len(decoder.feed(piece))
        most = max(most, sys.getallocatedblocks() - before)
    assert count == 100 * rounds
    assert most < 1_000


@pytest.mark.row("E09")
@pytest.mark.parametrize(
    "line", [b"data: \xff", b"data: \xe4\xf6", b"event: \xff\ndata: a", b"id: \x80", b"data: \xed\xa0\x80"]
)
def test_invalid_utf8_is_an_error_and_never_replaced(line: bytes) -> None:
    """Latin-1, half a character, a lone surrogate; the good events before it are returned."""
    body = b"data: good\n\n" + line + b"\n\ndata: after\n\n"
    decoder = SSEDecoder()
    with pytest.raises(StreamDecodeError, match="not UTF-8") as caught:
        decoder.feed(body)
    assert caught.value.reason == "utf8"
    assert caught.value.events == (event("good"),)
    for pieces in halves(body):
        decoder, result = SSEDecoder(), []
        with pytest.raises(StreamDecodeError):
            for piece in pieces:
                result += decoder.feed(piece)


def test_a_comment_need_not_be_utf8() -> None:
    """The decoder skips comments."""
    assert events(SSEDecoder(), [b": \xff\ndata: a\n\n"]) == [event("a")]


def test_after_an_error_a_decoder_returns_nothing() -> None:
    """The rest of the stream may mean anything."""
    decoder = SSEDecoder(8)
    with pytest.raises(StreamDecodeError):
        decoder.feed(b"data: far too long")
    for again in (lambda: decoder.feed(b"\n\ndata: a\n\n"), decoder.end):
        with pytest.raises(StreamDecodeError, match="more than 8 bytes") as caught:
            again()
        assert caught.value.events == ()


def test_an_unfinished_last_event_can_be_an_error() -> None:
    decoder = SSEDecoder()
    decoder.feed(b"data: \xc3")
    with pytest.raises(StreamDecodeError, match="not UTF-8"):
        decoder.end()


def test_the_repr_of_an_event_shows_no_data() -> None:
    """Texts stay out of logs."""
    assert "secret" not in repr(event("secret"))
