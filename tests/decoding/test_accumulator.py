"""The accumulator that joins a stream's events into a reply."""

from __future__ import annotations

import pytest

from llmopt import ChatEvent, ToolCall, ToolCallPart, Usage
from llmopt.decoding.accumulator import ReplyAccumulator


def gathered(*events: ChatEvent) -> ReplyAccumulator:
    found = ReplyAccumulator()
    for event in events:
        found.add(event)
    return found


def calls(*parts: ToolCallPart) -> list[tuple[str, str, str]]:
    found = gathered(*(ChatEvent(tool_calls=(part,)) for part in parts))
    return [(call.id, call.name, call.arguments) for call in found.tool_calls]


def part(index: int = 0, arguments: str = "", *, call: str = "", name: str = "") -> ToolCallPart:
    return ToolCallPart(index=index, id=call, name=name, arguments=arguments)


def test_nothing_is_an_empty_answer() -> None:
    """Before the first event, and for a stream without one."""
    found = ReplyAccumulator()
    assert (found.text, found.reasoning, found.refusal, found.tool_calls) == ("", "", "", ())
    assert (found.finish_reason, found.usage, found.model, found.id, found.last) == (
        None,
        None,
        "",
        "",
        False,
    )


def test_pieces_come_together_in_their_order() -> None:
    """Words, thoughts and a refusal, each apart."""
    found = gathered(
        ChatEvent(reasoning="h", id="i", model="m"),
        ChatEvent(reasoning="m", text="a"),
        ChatEvent(text="b", refusal="n"),
        ChatEvent(refusal="o", finish_reason="stop"),
        ChatEvent(usage=Usage(total_tokens=3)),
        ChatEvent(last=True),
    )
    reply = found.reply("r")
    assert (reply.text, reply.reasoning, reply.refusal) == ("ab", "hm", "no")
    assert (reply.finish_reason, reply.model, reply.id, reply.request_id) == ("stop", "m", "i", "r")
    assert reply.usage == Usage(total_tokens=3, requests=1)
    assert found.last


def test_what_was_told_is_not_taken_back() -> None:
    """An event that does not say leaves it; a later usage replaces an earlier one."""
    found = gathered(
        ChatEvent(finish_reason="stop", usage=Usage(total_tokens=1), model="m", id="i"),
        ChatEvent(usage=Usage(total_tokens=2)),
        ChatEvent(),
    )
    assert (found.finish_reason, found.model, found.id) == ("stop", "m", "i")
    assert found.usage == Usage(total_tokens=2, requests=1)


def test_fragments_belong_to_their_index() -> None:
    """Also when two calls take turns."""
    assert calls(
        part(0, call="a", name="f"),
        part(1, call="b", name="g"),
        part(0, '{"x'),
        part(1, "{}"),
        part(0, '":1}'),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_an_id_that_is_repeated_is_the_same_call() -> None:
    """Some servers send id and name with every fragment."""
    assert calls(part(0, "[", call="a", name="f"), part(0, "]", call="a", name="f")) == [("a", "f", "[]")]


def test_another_id_is_another_call() -> None:
    """Some servers give every call the index 0."""
    assert calls(part(0, "{}", call="a", name="f"), part(0, "[1]", call="b", name="f")) == [
        ("a", "f", "{}"),
        ("b", "f", "[1]"),
    ]


def test_without_ids_a_name_after_whole_arguments_is_another_call() -> None:
    """Some servers send whole calls and number none."""
    assert calls(part(0, "{}", name="f"), part(0, "{}", name="f")) == [("", "f", "{}"), ("", "f", "{}")]
    assert calls(part(0, '{"a', name="f"), part(0, '":1}', name="f")) == [("", "f", '{"a":1}')]


def test_calls_are_ordered_by_index() -> None:
    """Whenever their first fragment came."""
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
def test_which_events_add_to_an_answer(event: ChatEvent, adds: bool) -> None:
    """Signs of life do not."""
    assert event.adds is adds


def test_an_answer_becomes_the_next_message() -> None:
    """With its tool calls, in the common dialect."""
    found = gathered(
        ChatEvent(tool_calls=(part(0, "{}", call="a", name="f"),)), ChatEvent(reasoning="h")
    ).reply()
    assert found.tool_calls == (ToolCall(id="a", name="f", arguments="{}"),)
    assert found.message.as_dict() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert gathered(ChatEvent(text="a")).reply().message.as_dict() == {"role": "assistant", "content": "a"}
    assert gathered(ChatEvent(refusal="no")).reply().message.as_dict() == {
        "role": "assistant",
        "content": "no",
    }


def test_words_do_not_show_themselves() -> None:
    """Texts stay out of logs."""
    event = ChatEvent(
        text="secret",
        reasoning="secret",
        refusal="secret",
        tool_calls=(part(0, "secret"),),
        raw={"a": "secret"},
    )
    assert "secret" not in f"{event!r}{gathered(event).reply()!r}{gathered(event).reply().message!r}"
