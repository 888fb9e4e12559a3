"""The accumulator that joins a stream's events into a reply."""

from __future__ import annotations

import pytest

from llmopt import ChatEvent, ToolCall, ToolCallPart, Usage
from llmopt.decoding.accumulator import ReplyAccumulator


def accumulate(*events: ChatEvent) -> ReplyAccumulator:
    result = ReplyAccumulator()
    for event in events:
        result.add(event)
    return result


def calls(*fragments: ToolCallPart) -> list[tuple[str, str, str]]:
    result = accumulate(*(ChatEvent(tool_calls=(part,)) for part in fragments))
    return [(call.id, call.name, call.arguments) for call in result.tool_calls]


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


def test_another_id_is_another_call() -> None:
    """Some servers give every call the index 0."""
    assert calls(part(0, "{}", call="a", name="f"), part(0, "[1]", call="b", name="f")) == [
        ("a", "f", "{}"),
        ("b", "f", "[1]"),
    ]


def test_without_ids_a_name_after_complete_arguments_is_another_call() -> None:
    """Some servers send complete calls without indexes."""
    assert calls(part(0, "{}", name="f"), part(0, "{}", name="f")) == [("", "f", "{}"), ("", "f", "{}")]
    assert calls(part(0, '{"a', name="f"), part(0, '":1}', name="f")) == [("", "f", '{"a":1}')]


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
        tool_calls=(part(0, "secret"),),
        raw={"a": "secret"},
    )
    assert "secret" not in f"{event!r}{accumulate(event).reply()!r}{accumulate(event).reply().message!r}"
