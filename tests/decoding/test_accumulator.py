"""The accumulator that joins a stream's events into a reply."""

from __future__ import annotations

import json
import pickle
from typing import Any

import msgspec
import pytest
from attrs import asdict, evolve
from hypothesis import given
from hypothesis import strategies as st

from llmopt import ChatEvent, ToolCall, ToolCallPart, Usage
from llmopt.decoding.accumulator import ReplyAccumulator, new_call_id


def accumulate(*events: ChatEvent) -> ReplyAccumulator:
    result = ReplyAccumulator()
    for event in events:
        result.add(event)
    return result


def calls(*fragments: ToolCallPart) -> list[tuple[str, str, str]]:
    result = accumulate(*(ChatEvent(tool_calls=(part,)) for part in fragments))
    return [(call.id, call.name, call.arguments) for call in result.tool_calls]


def unnumbered(*parts: ToolCallPart) -> list[tuple[str, str]]:
    return [(name, arguments) for _, name, arguments in calls(*parts)]


def part(index: int = 0, arguments: str = "", *, call: str = "", name: str = "") -> ToolCallPart:
    return ToolCallPart(index=index, id=call, name=name, arguments=arguments)


def test_no_events_give_an_empty_reply() -> None:
    """Before the first event, and for a stream without one."""
    result = ReplyAccumulator()
    assert (result.text, result.reasoning, result.refusal, result.tool_calls) == ("", "", "", ())
    assert (result.finish_reason, result.usage, result.model, result.id, result.last) == (
        None,
        None,
        "",
        "",
        False,
    )


def test_pieces_are_joined_in_their_order() -> None:
    """Text, reasoning and refusal separately."""
    result = accumulate(
        ChatEvent(reasoning="h", id="i", model="m"),
        ChatEvent(reasoning="m", text="a"),
        ChatEvent(text="b", refusal="n"),
        ChatEvent(refusal="o", finish_reason="stop"),
        ChatEvent(usage=Usage(total_tokens=3)),
        ChatEvent(last=True),
    )
    reply = result.reply("r")
    assert (reply.text, reply.reasoning, reply.refusal) == ("ab", "hm", "no")
    assert (reply.finish_reason, reply.model, reply.id, reply.request_id) == ("stop", "m", "i", "r")
    assert reply.usage == Usage(total_tokens=3, requests=1)
    assert result.last


def test_missing_fields_keep_their_value() -> None:
    """A later usage replaces an earlier one."""
    result = accumulate(
        ChatEvent(finish_reason="stop", usage=Usage(total_tokens=1), model="m", id="i"),
        ChatEvent(usage=Usage(total_tokens=2)),
        ChatEvent(),
    )
    assert (result.finish_reason, result.model, result.id) == ("stop", "m", "i")
    assert result.usage == Usage(total_tokens=2, requests=1)


def test_counts_that_an_event_does_not_tell_keep_their_value() -> None:
    """The split usage of Anthropic: the input first, the output last; a count of 0 that is told replaces another."""
    first = ChatEvent(usage=Usage(prompt_tokens=25, cached_tokens=9, completion_tokens=1))
    later = ChatEvent(usage=Usage(completion_tokens=31))
    assert accumulate(first).usage == Usage(
        prompt_tokens=25, cached_tokens=9, completion_tokens=1, total_tokens=26, requests=1
    )
    exact = Usage(prompt_tokens=25, cached_tokens=9, completion_tokens=31, total_tokens=56, requests=1)
    assert accumulate(first, later).usage == exact
    assert accumulate(first, later, ChatEvent(usage=Usage())).usage == exact
    null: Any = None
    assert accumulate(first, ChatEvent(usage=evolve(later.usage, prompt_tokens=null))).usage == exact
    assert accumulate(first, later, ChatEvent(usage=Usage(cached_tokens=0))).usage == evolve(
        exact, cached_tokens=0
    )


_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


@given(st.lists(st.dictionaries(st.sampled_from(_COUNTS), st.integers(0, 3)), min_size=1))
def test_the_last_count_that_was_told_holds(told: list[dict[str, int]]) -> None:
    """For each field apart, as a table of the last values has it; the events are pickled on their way."""
    events = [pickle.loads(pickle.dumps(ChatEvent(usage=Usage(**each)))) for each in told]
    last = {name: count for each in told for name, count in each.items()}
    total = last.get("prompt_tokens", 0) + last.get("completion_tokens", 0)
    assert accumulate(*events).usage == Usage(**last, total_tokens=total, requests=1)


def test_a_count_that_was_not_told_is_a_zero_to_everybody() -> None:
    """In a comparison, in a hash, in JSON and in a sum."""
    usage, zeros = Usage(prompt_tokens=3), Usage(**dict.fromkeys(_COUNTS, 0), total_tokens=0)
    assert (usage, hash(usage)) == (evolve(zeros, prompt_tokens=3), hash(evolve(zeros, prompt_tokens=3)))
    assert json.loads(json.dumps(asdict(usage))) == json.loads(msgspec.json.encode(usage)) == asdict(usage)
    assert repr(usage) == repr(evolve(zeros, prompt_tokens=3))
    assert sum([usage, usage], Usage()) == Usage(prompt_tokens=6)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("stop", "tool_calls"), ("STOP", "tool_calls"), ("length", "length"), ("tool_use", "tool_use")],
)
def test_a_reply_that_calls_tools_says_so(stated: str, expected: str) -> None:
    """Where the server says "stop", and not where its word contradicts."""
    called = ChatEvent(tool_calls=(part(0, "{}", name="f"),))
    assert accumulate(called).finish_reason is None
    assert accumulate(called, ChatEvent(finish_reason=stated)).finish_reason == expected
    assert accumulate(ChatEvent(text="a"), ChatEvent(finish_reason=stated)).finish_reason == stated
    assert accumulate(called, ChatEvent(last=True)).finish_reason == "tool_calls"


def test_provider_data_of_all_events_come_together() -> None:
    """The last value of a key holds, for the reply and for each of its calls, and becomes a part of the next message."""

    def call(index: int, **data: int) -> ChatEvent:
        return ChatEvent(tool_calls=(ToolCallPart(index=index, name=f"f{index}", provider_data=data),))

    events = [
        *(call(0, a=1), call(1, a=2), call(0, b=3)),
        *(ChatEvent(provider_data={"x": 1, "y": 1}), ChatEvent(text="a"), ChatEvent(provider_data={"y": 2})),
    ]
    reply = accumulate(*events).reply()
    assert reply.provider_data == {"x": 1, "y": 2}
    assert [each.provider_data for each in reply.tool_calls] == [{"a": 1, "b": 3}, {"a": 2}]
    assert pickle.loads(pickle.dumps(reply)) == reply
    message = reply.message.as_dict()
    assert message["provider_data"] == {"x": 1, "y": 2}
    assert [each["provider_data"] for each in message["tool_calls"]] == [{"a": 1, "b": 3}, {"a": 2}]
    assert len({*reply.tool_calls, *events[0].tool_calls}) == 3, "calls can still be members of a set"


def test_tool_call_fragments_are_joined_by_index() -> None:
    """Also when two calls alternate."""
    assert calls(
        part(0, call="a", name="f"),
        part(1, call="b", name="g"),
        part(0, '{"x'),
        part(1, "{}"),
        part(0, '":1}'),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_a_repeated_id_is_the_same_call() -> None:
    """Some servers send id and name with every fragment."""
    assert calls(part(0, "[", call="a", name="f"), part(0, "]", call="a", name="f")) == [("a", "f", "[]")]


def test_whole_arguments_and_another_id_are_another_call() -> None:
    """Some servers give every call the index 0."""
    assert calls(part(0, "{}", call="a", name="f"), part(0, "[1]", call="b", name="f")) == [
        ("a", "f", "{}"),
        ("b", "f", "[1]"),
    ]


def test_without_ids_a_name_after_complete_arguments_is_another_call() -> None:
    """Some servers send complete calls without indexes."""
    assert unnumbered(part(0, "{}", name="f"), part(0, "{}", name="f")) == [("f", "{}"), ("f", "{}")]
    assert unnumbered(part(0, '{"a', name="f"), part(0, '":1}', name="f")) == [("f", '{"a":1}')]


def test_an_id_alone_begins_no_call() -> None:
    """Some servers make a new one for each fragment, and repeat the name."""
    assert calls(
        part(0, "{", call="a", name="f"), part(0, '"x":', call="b"), part(0, "1}", call="c", name="f")
    ) == [("a", "f", '{"x":1}')]
    # What follows whole arguments without a word of another call belongs to them.
    assert calls(part(0, "{}", call="a", name="f"), part(0, "\n", call="a", name="f"), part(0, call="b")) == [
        ("a", "f", "{}\n")
    ]


def test_a_new_name_begins_a_call() -> None:
    """Whatever its id and index."""
    assert unnumbered(part(0, '{"x"', call="a", name="f"), part(0, "{}", call="a", name="g")) == [
        ("f", '{"x"'),
        ("g", "{}"),
    ]
    assert unnumbered(part(0, name="f"), part(0, name="g")) == [("f", ""), ("g", "")]


def test_an_id_finds_its_call_again() -> None:
    """Where the index does not tell calls apart."""
    assert calls(
        part(0, '{"x"', call="a", name="f"),
        part(0, '{"y"', call="b", name="g"),
        part(0, ":1}", call="a"),
        part(0, ":2}", call="b"),
    ) == [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')]


def test_a_call_without_an_id_gets_one() -> None:
    """It stays the same, and no two are equal."""
    found = ReplyAccumulator(new_call_id)
    found.add(ChatEvent(tool_calls=(part(0, "{}", name="f"), part(1, "{}", name="f"))))
    first, second = found.tool_calls
    assert first.id.startswith("call_")
    assert first.id != second.id
    assert found.reply().tool_calls == (first, second)
    found.add(ChatEvent(tool_calls=(part(1, call="late"),)))
    assert [call.id for call in found.tool_calls] == [first.id, "late"]


_objects = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), min_size=1, max_size=3)


@st.composite
def _streamed_calls(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[ToolCallPart]]:
    """Tool calls with distinct names, in fragments as servers send them: with or without index, id and name."""
    wanted, parts = [], []
    counted, ids, repeats_name = (
        draw(st.booleans()),
        draw(st.sampled_from(["same", "new", "first", "none"])),
        draw(st.booleans()),
    )
    for number in range(draw(st.integers(1, 3))):
        name, arguments = f"f{number}", json.dumps(draw(_objects))
        wanted.append((name, arguments))
        cuts = sorted(draw(st.lists(st.integers(0, len(arguments) - 1), max_size=4)))
        for position, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(arguments)], strict=True)):
            first = position == 0
            call_id = {
                "same": f"c{number}",
                "new": f"c{number}.{position}",
                "first": f"c{number}" * first,
                "none": "",
            }[ids]
            parts.append(
                part(
                    number * counted,
                    arguments[start:end],
                    call=call_id,
                    name=name if first or repeats_name else "",
                )
            )
    return wanted, parts


@given(_streamed_calls())
def test_fragments_of_any_kind_come_together(made: tuple[list[tuple[str, str]], list[ToolCallPart]]) -> None:
    """One index is one call, whatever ids its fragments bring; a new name is a new call."""
    wanted, parts = made
    assert unnumbered(*parts) == wanted


def test_calls_are_ordered_by_index() -> None:
    """Whatever the order of their first fragments."""
    assert [name for _, name, _ in calls(part(1, name="g"), part(0, name="f"))] == ["f", "g"]


@pytest.mark.parametrize(
    ("event", "adds"),
    [
        (ChatEvent(), False),
        (ChatEvent(usage=Usage(total_tokens=1), model="m", id="i", raw={"x": 1}), False),
        (ChatEvent(last=True), False),
        (ChatEvent(text="a"), True),
        (ChatEvent(reasoning="a"), True),
        (ChatEvent(refusal="a"), True),
        (ChatEvent(tool_calls=(part(),)), True),
        (ChatEvent(finish_reason="stop"), True),
    ],
)
def test_which_events_add_content(event: ChatEvent, adds: bool) -> None:
    """Usage and the end of the stream do not."""
    assert event.adds is adds


def test_a_reply_becomes_the_next_message() -> None:
    """With its tool calls, in the common dialect."""
    result = accumulate(
        ChatEvent(tool_calls=(part(0, "{}", call="a", name="f"),)), ChatEvent(reasoning="h")
    ).reply()
    assert result.tool_calls == (ToolCall(id="a", name="f", arguments="{}"),)
    assert result.message.as_dict() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert accumulate(ChatEvent(text="a")).reply().message.as_dict() == {"role": "assistant", "content": "a"}
    assert accumulate(ChatEvent(refusal="no")).reply().message.as_dict() == {
        "role": "assistant",
        "content": "no",
    }


def test_reprs_show_no_text() -> None:
    """Texts stay out of logs."""
    event = ChatEvent(
        text="secret",
        reasoning="secret",
        refusal="secret",
        tool_calls=(ToolCallPart(index=0, arguments="secret", provider_data={"a": "secret"}),),
        provider_data={"a": "secret"},
        raw={"a": "secret"},
    )
    assert "secret" not in f"{event!r}{accumulate(event).reply()!r}{accumulate(event).reply().message!r}"
