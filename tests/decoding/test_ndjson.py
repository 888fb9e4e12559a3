"""Newline-delimited JSON."""

from __future__ import annotations

import pytest

from llmopt import ServerEvent
from llmopt.decoding.ndjson import NDJSONDecoder, decoder_for
from llmopt.decoding.sse import MAX_LINE_BYTES, SSEDecoder, StreamDecodeError
from tests.decoding.splits import events, halves, random_cuts, single_bytes

BOM = b"\xef\xbb\xbf"
CASES: dict[str, tuple[bytes, list[str]]] = {
    "nothing": (b"", []),
    "lines": (b'{"a":1}\n{"b":2}\n', ['{"a":1}', '{"b":2}']),
    "no end of line at the end": (b'{"a":1}\n{"b":2}', ['{"a":1}', '{"b":2}']),
    "CRLF": (b'{"a":1}\r\n{"b":2}\r\n', ['{"a":1}', '{"b":2}']),
    "CRLF without its LF at the end": (b'{"a":1}\r', ['{"a":1}']),
    "a CR alone is white space": (b'{"a":\r1}\n', ['{"a":\r1}']),
    "blank lines": (b'\n\r\n \t \n{"a":1}\n\n', ['{"a":1}']),
    "BOM": (BOM + b'{"a":1}\n', ['{"a":1}']),
    "BOM and nothing": (BOM, []),
    "line separators of Unicode": ('{"a":"\u2028\x85"}\n'.encode(), ['{"a":"\u2028\x85"}']),
    "text of several bytes": ('{"a":"ä€𝄞"}\n'.encode(), ['{"a":"ä€𝄞"}']),
    "no JSON is for others to judge": (b"error\n", ["error"]),
}


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES.keys())
def test_a_line_is_an_event_in_any_pieces(body: bytes, expected: list[str]) -> None:
    """Whole, split at every place, byte by byte."""
    wanted = [ServerEvent(event="line", data=data) for data in expected]
    assert events(NDJSONDecoder(), [body]) == wanted
    assert events(NDJSONDecoder(), single_bytes(body)) == wanted
    for pieces in halves(body):
        assert events(NDJSONDecoder(), pieces) == wanted
    for seed in range(20):
        assert events(NDJSONDecoder(), random_cuts(body, seed)) == wanted


def test_an_event_is_returned_with_the_last_byte_of_its_line() -> None:
    """The decoder does not wait for the next line."""
    decoder = NDJSONDecoder()
    assert [len(decoder.feed(piece)) for piece in (b"1", b"\n", b"2\n3\n4", b"\n")] == [0, 1, 2, 1]


@pytest.mark.row("E05")
@pytest.mark.parametrize("size", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_the_maximum_line_length_is_exact(size: int) -> None:
    body = b"x" * size + b"\n"
    for pieces in ([body], [body[:9], body[9:]], [body[i : i + 70_000] for i in range(0, len(body), 70_000)]):
        if size <= MAX_LINE_BYTES:
            assert [len(each.data) for each in events(NDJSONDecoder(), pieces)] == [size]
        else:
            with pytest.raises(StreamDecodeError, match="line of more than 1048576 bytes"):
                events(NDJSONDecoder(), pieces)


@pytest.mark.row("E09")
def test_invalid_utf8_is_an_error_and_never_replaced() -> None:
    """The good lines before it are returned, and nothing after it."""
    decoder = NDJSONDecoder()
    with pytest.raises(StreamDecodeError, match="not UTF-8") as caught:
        decoder.feed(b'{"a":1}\n{"b":"\xff"}\n{"c":3}\n')
    assert [each.data for each in caught.value.events] == ['{"a":1}']
    for again in (lambda: decoder.feed(b"1\n"), decoder.end):
        with pytest.raises(StreamDecodeError) as caught:
            again()
        assert caught.value.events == ()


# The decoder of a content type.


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", SSEDecoder),
        ("text/event-stream; charset=utf-8", SSEDecoder),
        ("Text/Event-Stream ;charset=latin1", SSEDecoder),
        ("", SSEDecoder),
        ("application/x-ndjson", NDJSONDecoder),
        ("application/jsonl", NDJSONDecoder),
        ("application/x-ndjson; charset=utf-8", NDJSONDecoder),
        ("application/json", type(None)),
        ("text/html; charset=utf-8", type(None)),
        ("text/plain", type(None)),
    ],
)
def test_the_content_type_selects_the_decoder(content_type: str, expected: type) -> None:
    """Other types are not decoded as streams."""
    assert type(decoder_for(content_type)) is expected
    assert decoder_for("text/event-stream") is not decoder_for("text/event-stream")
