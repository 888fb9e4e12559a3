"""The reader of chat events from bytes, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import compatible
from llmopt.decoding.sse import SSEDecoder
from llmopt.engine.event_reader import EventReader
from llmopt.errors import LLMOptError, ServerError
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatEvent
from llmopt.values.embeddings import Usage
from llmopt.values.http import Failure
from llmopt.values.profile import StreamEnd

CALL = ChatCall(model="m", stream=True)


def reader(
    end: StreamEnd = "any", max_events: int = 100, on_unknown: Callable[[str], object] = bool
) -> EventReader:
    def judged(failure: Failure) -> LLMOptError:
        return ServerError(failure.error.message)

    return EventReader(
        SSEDecoder(),
        lambda event: compatible.parse_stream_event(CALL, event),
        judged,
        end=end,
        max_events=max_events,
        on_unknown=on_unknown,
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
    st.sampled_from(["done", "finish", "any"]),
)
def test_events_do_not_depend_on_chunk_boundaries(
    pieces: list[bytes], end: bytes, max_events: int, cuts: list[int], kind: StreamEnd
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
    assert (made.reply.usage, made.characters) == (whole.reply.usage, whole.characters)


@pytest.mark.parametrize(
    ("end", "pieces", "complete"),
    [
        ("done", [word("x", "stop")], False),
        ("done", [word("x"), DONE], False),
        ("done", [word("x", "stop"), DONE], True),
        ("finish", [word("x", "stop")], True),
        ("finish", [word("x", "stop"), USAGE], True),
        ("finish", [word("x", "stop"), DONE], True),
        ("finish", [word("x")], False),
        ("finish", [word("x"), DONE], False),
        ("finish", [], False),
        ("any", [word("x", "stop")], True),
        ("any", [word("x"), DONE], True),
        ("any", [word("x"), USAGE, DONE], True),
        ("any", [word("x")], False),
        # What came last is not understood, or there was nothing.
        ("any", [word("x"), event(type="news", text="y"), DONE], False),
        ("any", [word("x"), b'{"error": {\n "message": "it broke"}}\n\n', DONE], False),
        ("any", [DONE], False),
        ("any", [event(type="ping"), DONE], False),
        ("any", [], False),
    ],
)
def test_a_finish_reason_or_done_completes_a_stream(
    end: StreamEnd, pieces: list[bytes], complete: bool
) -> None:
    """A reason and an end; or one of the two, where the profile says so."""
    made = reader(end)
    made.feed(b"".join(pieces))
    made.feed(b"")
    everything(made)
    assert made.complete == complete
    assert isinstance(made.fault, LLMOptError) != complete


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
    assert made.reply.usage is not None
    assert made.reply.usage.total_tokens == 7
    assert made.new_content


def test_events_say_what_follows_from_earlier_ones() -> None:
    """Whoever reads the events alone sees the usage so far, and why the reply ended as the reply itself says it."""
    made = reader()
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": "{}"}}
    made.feed(event(choices=[{"index": 0, "delta": {"tool_calls": [call]}}], usage={"prompt_tokens": 25}))
    made.feed(event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    made.feed(event(choices=[], usage={"completion_tokens": 31}) + DONE)
    found = everything(made)
    assert [each.usage for each in found] == [
        Usage(prompt_tokens=25, total_tokens=25),
        None,
        Usage(prompt_tokens=25, completion_tokens=31, total_tokens=56),
        None,
    ]
    assert [each.finish_reason for each in found] == [None, "tool_calls", None, None]


def test_calls_without_a_finish_reason_do_not_complete_a_stream() -> None:
    """Where a reply needs one: the arguments may have been cut."""
    made = reader("finish")
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": "{}"}}
    made.feed(event(choices=[{"index": 0, "delta": {"tool_calls": [call]}}]) + DONE)
    assert len(everything(made)) == 1
    assert made.fault is not None


def whole(text: str | None, **more: Any) -> bytes:
    return event(
        choices=[
            {"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": None}
        ]
    )


def text_of(*pieces: bytes) -> str:
    made = reader()
    made.feed(b"".join(pieces) + word("", "stop") + DONE)
    found = everything(made)
    assert made.fault is None, made.fault
    assert not any(each.whole for each in found)
    assert made.reply.text == "".join(each.text for each in found)
    return made.reply.text


@given(
    st.text(max_size=12),
    st.lists(st.integers(0, 12), max_size=5),
    st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_a_whole_message_adds_what_is_new(text: str, cuts: list[int], as_whole: list[bool]) -> None:
    """Parts, whole messages that grow, a whole one at the end: every word is read once."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [
        whole(text[:end]) if full else word(text[start:end])
        for start, end, full in zip(places, places[1:], as_whole, strict=False)
    ]
    assert text_of(*pieces) == text
    assert text_of(*pieces, whole(text)) == text
    assert text_of(*pieces, whole(None)) == text
    assert text_of(*pieces, whole(f" {text}\n")) in (text, f" {text}\n")


def test_a_whole_message_that_says_something_else_is_an_error() -> None:
    """Neither of the two can be the answer."""
    made = reader()
    made.feed(word("Hello") + whole(" world") + DONE)
    assert [each.text for each in everything(made)] == ["Hello"]
    assert str(made.fault).startswith("a whole message in the stream does not begin with")


def test_a_whole_message_brings_what_no_part_brought() -> None:
    """Thoughts and tool calls, if there were none."""
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    made = reader()
    made.feed(
        word("Hi")
        + whole("Hi", reasoning="hm", tool_calls=[call])
        + whole("Hi", reasoning="hm", tool_calls=[call])
        + DONE
    )
    everything(made)
    assert (made.reply.text, made.reply.reasoning, len(made.reply.tool_calls)) == ("Hi", "hm", 1)


def test_an_error_between_the_events_is_told_at_the_end() -> None:
    """Gemini writes some without \"data:\"; the standard ignores such lines."""
    for end in (b"", DONE):
        made = reader()
        made.feed(word("Hi") + b'{\n  "error": {\n    "message": "it broke"\n  }\n}\n\n' + end)
        made.feed(b"")
        assert [each.text for each in everything(made)] == ["Hi"]
        assert isinstance(made.fault, ServerError)
        assert str(made.fault) == "it broke"


def test_unknown_events_are_counted_and_kept() -> None:
    """By their names; they are not content."""
    names: list[str] = []
    made = reader(on_unknown=names.append)
    made.feed(event(type="a.b", at=1) + b"event: tick\ndata: 7\n\n" + event(nothing=1))
    assert [each.unknown for each in everything(made)] == names == ["a.b", "tick", "unnamed"]
    assert not made.new_content


UNITS = st.sampled_from(["a", "é", "\ud83d", "\ude00", "\ufffd", "\n", "\\"])


@pytest.mark.row("E09")
@given(st.lists(st.lists(UNITS).map("".join)), st.sampled_from(["content", "reasoning"]), st.booleans())
def test_halves_of_a_surrogate_pair_in_two_events_are_joined(
    pieces: list[str], key: str, pings: bool
) -> None:
    """A text that was cut anywhere between its UTF-16 units is whole again; what has no other half is replaced."""
    made = reader()
    for piece in pieces:
        made.feed(event(choices=[{"index": 0, "delta": {key: piece}, "finish_reason": None}]) + USAGE * pings)
    made.feed(word("", "stop") + DONE)
    events = everything(made)
    assert made.complete
    expected = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "".join(each.text if key == "content" else each.reasoning for each in events) == expected
    assert (made.reply.text, made.reply.reasoning) == ((expected, "") if key == "content" else ("", expected))


@given(st.sampled_from(["NaN", "-Infinity", '"\\ud83d"']), st.booleans())
def test_values_that_are_no_json_cost_no_word(value: str, last: bool) -> None:
    """In a key beside the text, of any event."""
    made = reader()
    for number, text in enumerate(("good", " word")):
        odd = value if number == last else "1"
        made.feed(word(text, "stop").replace(b'"index": 0', b'"index": 0, "score": ' + odd.encode()))
    made.feed(DONE)
    assert "".join(each.text for each in everything(made)) == "good word"
    assert made.complete
