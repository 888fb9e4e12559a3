"""Newline-delimited JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import ServerEvent
from llmopt.decoding.ndjson import Format, NDJSONDecoder, declared_format, decoder_of, detect_format
from llmopt.decoding.sse import SSEDecoder, StreamDecodeError
from tests.decoding.splits import events, halves, random_cuts, single_bytes

BOM = b"\xef\xbb\xbf"
LIMIT = 1_000_000
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
@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_maximum_line_length_is_exact(size: int) -> None:
    body = b"x" * size + b"\n"
    for pieces in ([body], [body[:9], body[9:]], [body[i : i + 70_000] for i in range(0, len(body), 70_000)]):
        if size <= LIMIT:
            assert [len(each.data) for each in events(NDJSONDecoder(LIMIT), pieces)] == [size]
        else:
            with pytest.raises(StreamDecodeError, match="line of more than 1000000 bytes"):
                events(NDJSONDecoder(LIMIT), pieces)


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
        ("text/event-stream, text/event-stream", SSEDecoder),
        ("application/json", type(None)),
        ("text/html; charset=utf-8", type(None)),
        ("text/plain", type(None)),
    ],
)
def test_the_content_type_selects_the_decoder(content_type: str, expected: type) -> None:
    """Other types are not decoded as streams."""
    assert type(decoder_of(declared_format(content_type))) is expected
    assert decoder_of(declared_format("text/event-stream")) is not decoder_of(
        declared_format("text/event-stream")
    )


# Which format a body has.

WRONG_TYPES = [
    "application/json",
    "text/plain",
    "text/html; charset=utf-8",
    "binary/octet-stream",
    "",
    "nonsense",
]
STREAM_TYPES = ["text/event-stream", "text/event-stream, text/event-stream", "application/x-ndjson"]
REPLY = b'{"choices":[]}'
BODIES: list[tuple[bytes, Format]] = [
    (b'data: {"a":1}\n\n', "sse"),
    (b"data:[DONE]", "sse"),
    (b": a comment\n\n", "sse"),
    (b"event: ping\ndata:\n\n", "sse"),
    (b"id: 1\n", "sse"),
    (b"retry: 1\r\n", "sse"),
    (b'error: {"a":1}\n', "sse"),
    (b"", "sse"),
    (b"\r\n \n", "sse"),
    (b"<html>data: x</html>", "whole"),
]


@given(
    st.sampled_from(BODIES), st.sampled_from([b"", BOM]), st.sampled_from([b"", b"\n", b" \r\n\n"]),
    st.sampled_from(WRONG_TYPES + STREAM_TYPES), st.integers(0, 40),
)  # fmt: skip
def test_the_first_bytes_tell_the_format(
    body: tuple[bytes, Format], mark: bytes, blanks: bytes, content_type: str, cut: int
) -> None:
    """Whatever the content type says, and wherever the body is cut."""
    data = mark + blanks + body[0]
    assert detect_format(content_type, data, ended=True) == body[1]
    assert detect_format(content_type, data[:cut], ended=False) in (None, body[1])


@pytest.mark.parametrize("content_type", WRONG_TYPES)
def test_json_is_an_answer_or_lines(content_type: str) -> None:
    """One value, over however many lines; several values, each on its line; nothing that is read by a stream's rules."""
    for whole in (
        REPLY,
        REPLY + b"\n\n",
        b'{\n "choices": [\n{}]\n}',
        b'[{"error":{}}]',
        b'[\n{"a":1}\n,\n{"b":2}]',
    ):
        assert detect_format(content_type, whole, ended=True) == "whole"
    assert detect_format(content_type, REPLY[:5], ended=False) == "whole"
    assert detect_format("application/x-ndjson", REPLY[:5], ended=False) == "lines"
    assert detect_format(content_type, REPLY + b"\n" + REPLY + b"\n", ended=True) == "lines"


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/event-stream", REPLY, "whole"),
        ("application/x-ndjson", REPLY, "whole"),
        ("application/x-ndjson", b'{\n "choices": []}', "whole"),
        ("text/event-stream", b"unknown: x\ndata: y\n\n", "sse"),
        ("text/event-stream", b"<html>", "whole"),
        ("text/plain", b"upstream connect error", "whole"),
        ("", b"upstream connect error", "whole"),
        ("text/plain", b"database: lost", "whole"),
        ("text/plain", b"eventually", "whole"),
    ],
)
def test_what_the_first_bytes_leave_open_the_content_type_tells(
    content_type: str, body: bytes, expected: Format
) -> None:
    """Words of a gateway are no stream."""
    assert detect_format(content_type, body, ended=True) == expected


def test_a_decoder_for_each_format() -> None:
    """None for what is no stream; with the limit that was asked for."""
    assert decoder_of("whole") is None
    for body_format in ("sse", "lines"):
        decoder = decoder_of(body_format, 10)  # type: ignore[arg-type]
        assert decoder is not None
        with pytest.raises(StreamDecodeError, match="more than 10 bytes; max_event_bytes"):
            decoder.feed(b"data: 12345678901234567890")
