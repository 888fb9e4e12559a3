"""Recorded streams of real servers, split at every byte.

The recordings are in the directory next to the repository (../shared/samples/recorded); without them the tests
are skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmopt import ChatCall, ChatEvent, Failure, ServerEvent, VerdictKind, compatible
from llmopt.decoding.accumulator import ReplyAccumulator
from llmopt.decoding.ndjson import declared_format, decoder_of
from tests.decoding.splits import events, random_cuts, single_bytes
from tests.support.scale import NIGHTLY, scaled

FOLDER = Path(__file__).parents[3] / "shared" / "samples" / "recorded"
CALL = ChatCall(model="m", stream=True)


def streams() -> Iterator[Any]:
    for path in sorted(FOLDER.glob("*.json")):
        for number, exchange in enumerate(json.loads(path.read_text())["exchanges"]):
            response = exchange["response"]
            if "body_text" in response and "stream" in response["headers"].get("content-type", ""):
                yield pytest.param(response, id=f"{path.stem}-{number}")


STREAMS = list(streams())
WITHOUT = [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason="no recordings next to the repository"))
]


def decoded(response: Any, pieces: Any) -> list[ServerEvent]:
    decoder = decoder_of(declared_format(response["headers"]["content-type"]))
    assert decoder is not None
    return events(decoder, pieces)


@pytest.mark.row("E01")
@pytest.mark.parametrize("response", STREAMS or WITHOUT)
def test_a_recording_is_the_same_in_any_pieces(response: Any) -> None:
    """Split at every place, in single bytes, in random pieces: the events do not change."""
    body = response["body_text"].encode()
    whole = decoded(response, [body])
    assert len(whole) == body.replace(b"\r", b"").count(b"\ndata: ") + body.startswith(b"data: ")
    assert decoded(response, single_bytes(body)) == whole
    for seed in range(scaled(8, nightly=50)):
        assert decoded(response, random_cuts(body, seed)) == whole
    for place in places(body):
        assert decoded(response, [body[:place], body[place:]]) == whole


def places(body: bytes) -> Iterable[int]:
    """The places where a body is split: at night everywhere, else at line ends, where a decoder's state changes."""
    if NIGHTLY:
        return range(len(body) + 1)
    ends = [place for place in range(len(body)) if body[place] in b"\r\n"]
    return sorted(
        {near for place in ends[:60] for near in (place, place + 1)} | set(range(0, len(body), 101))
    )


@cache
def recording(name: str, number: int = 0) -> tuple[Any, ...]:
    """The parsed events of a recording, and the failures among them."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip("no recordings next to the repository")
    response = json.loads(path.read_text())["exchanges"][number]["response"]
    return tuple(
        compatible.parse_stream_event(CALL, event)
        for event in decoded(response, [response["body_text"].encode()])
    )


def accumulate(name: str, number: int = 0) -> ReplyAccumulator:
    result = ReplyAccumulator()
    for parts in recording(name, number):
        if not isinstance(parts, Failure):
            for part in parts:
                result.add(part)
    return result


def test_a_reply_with_a_tool_call() -> None:
    """Fragments are joined; the usage comes last, in an event without choices."""
    result = accumulate("openai-chat-stream-usage-last").reply("r1")
    (call,) = result.tool_calls
    assert (call.id, call.name, call.arguments) == (
        "call_ZR5UUuTt3pf61kjwAJIYdVMj",
        "get_capital",
        '{"country":"UK"}',
    )
    assert result.finish_reason == "tool_calls"
    assert result.usage is not None
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.total_tokens) == (
        53,
        15,
        68,
    )
    assert result.model == "gpt-4o-mini-2024-07-18"
    assert result.id.startswith("chatcmpl-")
    assert result.request_id == "r1"
    second = accumulate("openai-chat-stream-usage-last", 1)
    assert second.text == "The capital of the UK is London."
    assert second.finish_reason == "stop"
    assert second.last


def test_a_reply_in_typed_parts() -> None:
    """Reasoning is kept apart from text; the usage is sent without a request for it."""
    result = accumulate("mistral-chat-stream-typed-content")
    assert result.text.startswith("To cross the street safely, follow these steps:\n\n1. Look bot")
    assert result.reasoning.startswith("Okay, the user")
    assert (len(result.text), len(result.reasoning)) == (607, 421)
    assert result.usage is not None
    assert result.usage.total_tokens == 242
    assert result.last


def test_a_reply_with_comments_and_an_error() -> None:
    """Fifteen comments without an event; reasoning; an error in an event with choices; then a normal end."""
    kinds = Counter(type(parts) for parts in recording("openrouter-stream-comments-and-error"))
    assert kinds == {tuple: 4, Failure: 1}
    (failure,) = [
        parts for parts in recording("openrouter-stream-comments-and-error") if isinstance(parts, Failure)
    ]
    assert failure.error.message == "Token limit reached"
    assert (failure.status, failure.stated_status) == (200, 400)
    assert compatible.classify(failure).kind is VerdictKind.BAD_REQUEST
    assert accumulate("openrouter-stream-comments-and-error").reasoning.startswith("We need to respond")


def test_a_stream_of_another_dialect_gives_nothing() -> None:
    """Named events of a provider without a plugin are unknown; the caller can look at them."""
    found = [part for parts in recording("anthropic-stream") for part in parts]
    assert {"message_start", "ping", "content_block_delta", "message_stop"} <= {
        part.unknown for part in found
    }
    assert not any(part.adds or part.last for part in found)
    assert all(part.raw["type"] == part.unknown for part in found)


def test_events_are_returned_without_delay() -> None:
    """Each event adds its text in its own place, even when several arrive in one piece."""
    added = [
        part.text
        for parts in recording("openai-chat-stream-usage-last", 1)
        for part in parts
        if isinstance(part, ChatEvent) and part.text
    ]
    assert added == ["The", " capital", " of", " the", " UK", " is", " London", "."]
