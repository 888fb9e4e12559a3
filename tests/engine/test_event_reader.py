"""The reader of chat events from bytes, without a network."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import compatible
from llmopt.decoding.sse import SSEDecoder
from llmopt.engine.event_reader import EventReader
from llmopt.errors import InvalidResponse, LLMOptError, ServerError
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatEvent
from llmopt.values.http import Failure

CALL = ChatCall(model="m", stream=True)


def reader(end: Literal["done", "finish"] = "done", max_events: int = 100) -> EventReader:
    def judged(failure: Failure) -> LLMOptError:
        return ServerError(failure.error.message)

    return EventReader(
        SSEDecoder(),
        lambda event: compatible.parse_stream_event(CALL, event),
        judged,
        end=end,
        max_events=max_events,
    )


def event(**value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def word(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


def everything(made: EventReader) -> list[ChatEvent]:
    """All that can be taken, in as many goes as it takes."""
    found: list[ChatEvent] = []
    while True:
        some = made.take()
        found += some
        if not some and (made.finished or not made.pending):
            return found


DONE = b"data: [DONE]\n\n"
USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})


def test_no_more_are_parsed_at_once_than_allowed() -> None:
    """And none is lost."""
    made = reader(max_events=3)
    made.feed(b"".join(word(str(number)) for number in range(8)))
    taken = []
    while some := made.take():
        taken.append(len(some))
    assert taken == [3, 3, 2]


PIECES = [word("Hello "), b": ping\n\n", b"data:\n\n", event(type="ping"), word("world", "stop"), USAGE]
ENDS: list[bytes] = [
    DONE,
    b"",
    event(error={"message": "it broke"}),
    b"data: {broken\n\n",
    b"data: \xff\n\n",
    DONE + word("x"),
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=8),
    st.sampled_from(ENDS),
    st.sampled_from([1, 2, 3, 10, 100]),
    st.lists(st.integers(1, 200), max_size=30),
    st.sampled_from(["done", "finish"]),
)
def test_events_do_not_depend_on_chunk_boundaries(
    pieces: list[bytes], end: bytes, max_events: int, cuts: list[int], kind: Literal["done", "finish"]
) -> None:
    """Neither on the bytes that arrive together nor on the events that are parsed together."""
    body = b"".join(pieces) + end
    whole = reader(kind)
    whole.feed(body)
    expected = everything(whole)
    if not whole.finished:
        whole.feed(b"")
        expected += everything(whole)
    made, found = reader(kind, max_events), []
    start = 0
    for cut in [*cuts, len(body)]:
        if body[start : start + cut]:
            made.feed(body[start : start + cut])
        start += cut
        found += everything(made)
    if not made.finished:
        made.feed(b"")
        found += everything(made)
    assert found == expected
    assert made.finished
    assert made.complete == whole.complete
    assert type(made.fault) is type(whole.fault)
    assert str(made.fault) == str(whole.fault)
    assert (made.usage, made.characters) == (whole.usage, whole.characters)


@pytest.mark.parametrize(
    ("end", "pieces", "complete"),
    [
        ("done", [word("x", "stop")], False),
        ("done", [word("x"), DONE], True),
        ("finish", [word("x", "stop")], True),
        ("finish", [word("x", "stop"), USAGE], True),
        ("finish", [word("x")], False),
        ("finish", [word("x"), DONE], True),
        ("finish", [], False),
    ],
)
def test_a_finish_reason_or_done_completes_a_stream(
    end: Literal["done", "finish"], pieces: list[bytes], complete: bool
) -> None:
    """The provider's own end; or a reason and the body's end, where the profile says so."""
    made = reader(end)
    made.feed(b"".join(pieces))
    made.feed(b"")
    everything(made)
    assert made.complete == complete
    assert isinstance(made.fault, InvalidResponse) != complete


def test_valid_events_before_a_fault_are_delivered_first() -> None:
    """In one go or in several; the fault is known when they are used up."""
    made = reader()
    made.feed(word("a") + word("b") + event(error={"message": "it broke"}) + word("c"))
    assert [each.text for each in everything(made)] == ["a", "b"]
    assert isinstance(made.fault, ServerError)
    made.feed(word("d"))
    assert made.take() == []


def test_usage_and_length_are_recorded() -> None:
    """For the limiter: the last usage told, and what was written."""
    made = reader()
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"a"'}}
    made.feed(word("four") + event(choices=[{"index": 0, "delta": {"tool_calls": [call]}}]) + USAGE)
    everything(made)
    assert made.characters == len("four") + len("look") + len('{"a"')
    assert made.usage is not None
    assert made.usage.total_tokens == 7
    assert made.new_content
