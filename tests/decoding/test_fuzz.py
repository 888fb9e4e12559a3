"""Fuzzing of the stream decoders and chat parsers.

A few seconds; minutes with ``LLMOPT_TESTS=nightly``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt import (
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpResponse,
    InvalidResponse,
    ServerEvent,
    Settings,
)
from llmopt.decoding.accumulator import ReplyAccumulator
from llmopt.decoding.ndjson import NDJSONDecoder
from llmopt.decoding.sse import SSEDecoder, StreamDecodeError, StreamDecoder
from tests.plugins.helpers import hooks
from tests.support.scale import scaled

PLUGINS = ("openai", "mistral", "azure", "local")
LIMIT = 24
AT_LENGTH = settings(
    max_examples=scaled(2, nightly=10) * settings().max_examples, suppress_health_check=[HealthCheck.too_slow]
)
"""Several times the examples of the profile, because one example takes little time here."""
CALL = ChatCall(model="m")
WHERE = Settings(provider="p", base_url="http://127.0.0.1:1")

# Streams: tokens of the format, in any order, among random bytes.

_PARTS = [
    b"data: ", b"data:", b"data", b"event: x", b"event", b"id: 1", b"id: \0", b"retry: 1", b"error: {}", b":", b": ping", b" ",
    b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf", b"{}", b"[DONE]", b"\0",
    "ä€𝄞".encode(), "\u2028\x85".encode(), b"\xff", b"\xe2\x82", b"x" * LIMIT, b"x" * (LIMIT - 6),
]  # fmt: skip
_BYTES = st.lists(st.one_of(st.sampled_from(_PARTS), st.binary(max_size=4)), max_size=20).map(b"".join)


@st.composite
def cut(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream, and its pieces."""
    body = draw(_BYTES)
    places = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    return body, [body[start:stop] for start, stop in zip([0, *places], [*places, len(body)], strict=True)]


def outcome(decoder: StreamDecoder, pieces: list[bytes]) -> tuple[list[ServerEvent], str]:
    """The events of a stream, and the reason for which decoding stopped."""
    result: list[ServerEvent] = []
    try:
        for piece in pieces:
            result += decoder.feed(piece)
        result += decoder.end()
    except StreamDecodeError as fault:
        return [*result, *fault.events], fault.reason
    return result, ""


def reference(body: bytes) -> list[tuple[str, str, str]] | None:
    """The rules of the standard, as simple as possible; None for invalid UTF-8."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    result, data, kind, number = [], [], "", ""
    for line in [*text.split("\n"), ""]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                result.append((kind or "message", "\n".join(data), number))
            data, kind = [], ""
        elif name in ("data", "error"):
            data.append(value)
            kind = "error" if name == "error" else kind
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            number = value
    return result


@AT_LENGTH
@given(cut())
def test_sse_is_the_same_in_any_pieces(stream: tuple[bytes, list[bytes]]) -> None:
    """The events, and whether and why decoding stops; with low limits."""
    body, pieces = stream

    def decoder() -> SSEDecoder:
        return SSEDecoder(LIMIT)

    assert outcome(decoder(), pieces) == outcome(decoder(), [body])


@AT_LENGTH
@given(cut())
def test_sse_agrees_with_the_standard(stream: tuple[bytes, list[bytes]]) -> None:
    """Against a second, simple implementation."""
    body, pieces = stream
    events, reason = outcome(SSEDecoder(), pieces)
    expected = reference(body)
    if expected is not None:
        assert reason == ""
        assert [(event.event, event.data, event.id) for event in events] == expected
    else:
        assert reason in ("", "utf8")


@AT_LENGTH
@given(cut())
def test_ndjson_is_the_same_in_any_pieces(stream: tuple[bytes, list[bytes]]) -> None:
    """The lines, and whether and why decoding stops."""
    body, pieces = stream
    assert outcome(NDJSONDecoder(LIMIT), pieces) == outcome(NDJSONDecoder(LIMIT), [body])
    events, reason = outcome(NDJSONDecoder(), pieces)
    if not reason:
        lines = [line.removesuffix(b"\r") for line in body.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        assert [event.data.encode() for event in events] == [line for line in lines if line.strip()]


# The JSON of an event: known keys with any value.

_TEXTS = st.sampled_from(["", "a", "text", "thinking", "error", "stop", "[DONE]", "429", "\u2028", "\ud800"])
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 600), st.just(10**30), st.floats(), _TEXTS)
_KEYS = st.sampled_from(
    [
        "choices", "delta", "message", "content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function",
        "name", "arguments", "id", "index", "type", "text", "thinking", "finish_reason", "usage", "prompt_tokens",
        "total_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens", "model", "error", "code",
        "status_code", "detail", "object", "done", "done_reason", "eval_count", "innererror", "metadata",
    ]
)  # fmt: skip
_ANY = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)


def _maybe(**shape: Any) -> Any:
    """Objects with some of these keys, each with a fitting value or with anything."""
    return st.fixed_dictionaries({}, optional={key: value | _ANY for key, value in shape.items()})


_FUNCTION = _maybe(name=_TEXTS, arguments=_TEXTS)
_CALLS = st.lists(_maybe(index=st.integers(0, 3), id=_TEXTS, function=_FUNCTION), max_size=3)
_PART = _maybe(type=_TEXTS, text=_TEXTS, thinking=st.lists(_maybe(type=_TEXTS, text=_TEXTS), max_size=2))
_SAID = _maybe(content=_TEXTS | st.lists(_PART, max_size=3), reasoning=_TEXTS, refusal=_TEXTS, tool_calls=_CALLS, thinking=_TEXTS)  # fmt: skip
_CHOICE = _maybe(index=st.just(0), delta=_SAID, message=_SAID, finish_reason=_TEXTS)
_CHUNK = _maybe(
    choices=st.lists(_CHOICE, max_size=2),
    usage=_ANY,
    error=_ANY,
    model=_TEXTS,
    id=_TEXTS,
    message=_SAID,
    done=st.booleans(),
)
_DATA = st.one_of(
    (_CHUNK | _ANY).map(json.dumps), st.text(max_size=30), st.just("[DONE]"), _CHUNK.map(json.dumps).map(lambda text: text[:-3])
)  # fmt: skip


def parse_or_refusal(plugin: str, read: Callable[[], Any]) -> Any:
    """The result of a hook, which may raise only InvalidResponse; every Failure must be classifiable."""
    try:
        result = read()
    except InvalidResponse as refusal:
        return refusal
    if isinstance(result, Failure):
        hooks(plugin).classify_error(result, WHERE)
    return result


@AT_LENGTH
@given(
    data=_DATA, kind=st.sampled_from(["message", "error", "ping", "line"]), plugin=st.sampled_from(PLUGINS)
)
def test_every_event_is_parsed_classified_or_refused(data: str, kind: str, plugin: str) -> None:
    """The checked hooks return only the types of the contract; parsed events can be accumulated."""
    event = ServerEvent(event=kind, data=data.encode("utf-8", "replace").decode())
    result = parse_or_refusal(plugin, lambda: hooks(plugin).stream_parser(CALL, WHERE)(event))
    assert isinstance(result, (tuple, Failure, InvalidResponse))
    gathered = ReplyAccumulator()
    for part in result if isinstance(result, tuple) else ():
        assert isinstance(part, ChatEvent)
        gathered.add(part)
        gathered.add(part)
    for text in (gathered.text, gathered.reasoning, gathered.refusal, gathered.model, gathered.id):
        assert isinstance(text, str)
    assert isinstance(gathered.reply(), ChatReply)


@AT_LENGTH
@given(data=_DATA, plugin=st.sampled_from(PLUGINS))
def test_every_response_is_parsed_classified_or_refused(data: str, plugin: str) -> None:
    """The same for a response that is not streamed."""
    response = HttpResponse(status=200, body=data.encode("utf-8", "replace"))
    result = parse_or_refusal(plugin, lambda: hooks(plugin).parse_chat(CALL, response, WHERE))
    assert isinstance(result, (ChatReply, Failure, InvalidResponse))


@AT_LENGTH
@given(st.binary(max_size=40))
def test_random_bytes_are_refused(body: bytes) -> None:
    """They need not be UTF-8."""
    for plugin in PLUGINS:
        response = HttpResponse(status=200, body=body)
        parse_or_refusal(
            plugin, lambda plugin=plugin, response=response: hooks(plugin).parse_chat(CALL, response, WHERE)
        )
