"""Chats, written for a plugin as its provider would and read by it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from attrs import field, frozen

from llmopt.decoding.framing import decoder_for
from llmopt.decoding.gather import Gathered
from llmopt.errors import InvalidResponse
from llmopt.testing.kit.asking import chat, refused
from llmopt.testing.kit.check import CheckFailed, NotApplicable, explain
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import MESSAGES
from llmopt.testing.samples import SampleChat, Spoken
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatReply, ToolCall
from llmopt.values.failure import Failure
from llmopt.values.stream import ServerEvent

CHAT_REFUSED: Final = "parse_chat raises llmopt.InvalidResponse or returns a Failure."
EVENT_REFUSED: Final = "parse_stream_event raises llmopt.InvalidResponse or returns a Failure."
TOOL: Final = {
    "type": "function",
    "function": {"name": "kit_tool", "description": "", "parameters": {"type": "object", "properties": {}}},
}
CHAT_OPTIONS: Final[dict[str, Any]] = {
    "max_tokens": 1_357,
    "temperature": 0.37,
    "top_p": 0.73,
    "stop": ("kit-stop",),
    "seed": 24_680,
    "presence_penalty": 0.21,
    "frequency_penalty": 0.12,
    "tools": (TOOL,),
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "high",
}
"""A value for each parameter that a chat may have."""
WORDS: Final = SampleChat(pieces=("kit says: ", "\u6771\u4eac", " \U0001f642\n", " two  blanks"))
CALLS: Final = SampleChat(
    finish_reason="tool_calls",
    tool_calls=(
        ToolCall(id="kit-call-1", name="kit_tool", arguments='{"x": "\u00fc"}'),
        ToolCall(id="kit-call-2", name="kit_tool", arguments="{}"),
    ),
)


def full_chat(subject: Subject) -> ChatCall:
    """A chat with every parameter."""
    return ChatCall(
        model=subject.samples.model, messages=MESSAGES, stream=True, include_usage=True, **CHAT_OPTIONS
    )


def chats(subject: Subject) -> None:
    """Leave the running check when the provider does not chat.

    Raises:
        NotApplicable: it does not.
    """
    subject.without("chat")
    if not subject.base_url and not subject.implements("parse_chat"):
        raise NotApplicable("the plugin works inside the process and has no chat")
    if refused(subject, chat(subject)):
        raise NotApplicable("the plugin says that its provider does not chat")


def says(subject: Subject, part: Spoken) -> None:
    """Leave the running check when the provider's answers do not tell a part of one.

    Raises:
        NotApplicable: they do not.
    """
    if part not in subject.samples.says:
        raise NotApplicable(f"the samples say that the provider's answers have no {part}")


def replied(subject: Subject, body: bytes) -> Any:
    """What the plugin reads in an answer: a reply, a failure, or the InvalidResponse it raises."""
    chats(subject)
    try:
        return subject.hooks.parse_chat(chat(subject), subject.answer(body), subject.settings())
    except InvalidResponse as error:
        return error


def reply(subject: Subject, answer: SampleChat) -> ChatReply:
    """The plugin's reading of a right answer.

    Raises:
        CheckFailed: it has none.
    """
    found = replied(subject, subject.dialect.chat(answer))
    if isinstance(found, ChatReply):
        return found
    raise CheckFailed(f"parse_chat gave {_word(found)} for a right answer.", "the answer.")


def decoded(subject: Subject, pieces: Iterable[bytes]) -> list[ServerEvent]:
    """The events of a stream, as the core decodes them."""
    decoder = decoder_for(subject.samples.stream_type)
    if decoder is None:
        raise CheckFailed(
            f"a stream of type {subject.samples.stream_type!r} cannot be decoded.",
            "text/event-stream or application/x-ndjson.",
        )
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.end()


@frozen(kw_only=True)
class Heard:
    """What came of a stream.

    Attributes:
        answer: what its events added.
        parts: what the plugin gave for each event.
    """

    answer: Gathered
    parts: tuple[Any, ...] = field(repr=False)


def event_read(subject: Subject, event: ServerEvent) -> Any:
    """What the plugin reads in an event: a tuple, a failure, or the InvalidResponse it raises."""
    call = chat(subject, stream=True)
    try:
        return subject.hooks.parse_stream_event(call, event, subject.settings())
    except InvalidResponse as error:
        return error


def heard(subject: Subject, pieces: Sequence[bytes]) -> Heard:
    """What the plugin makes of a right stream that comes in these pieces.

    Raises:
        CheckFailed: it takes an event of it for an error.
    """
    chats(subject)
    answer, parts = Gathered(), []
    for number, event in enumerate(decoded(subject, pieces)):
        found = event_read(subject, event)
        if not isinstance(found, tuple):
            raise CheckFailed(
                f"parse_stream_event gave {_word(found)} for event {number} of a right stream.",
                "what it adds.",
            )
        for part in found:
            answer.add(part)
        parts.append(found)
    return Heard(answer=answer, parts=tuple(parts))


def spoken(subject: Subject, answer: SampleChat) -> Gathered:
    """The plugin's reading of a right stream."""
    return heard(subject, subject.dialect.stream(answer)).answer


def called(calls: Iterable[ToolCall]) -> list[tuple[str, Any]]:
    """Tool calls as they can be compared: names, and arguments whatever their spaces; text that is no JSON as it is."""
    return [(call.name, _value_of(call.arguments)) for call in calls]


def _value_of(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def is_refusal(found: object) -> bool:
    """Whether what a plugin gave says that there was nothing right to read."""
    return isinstance(found, (Failure, InvalidResponse))


def _word(found: object) -> str:
    return explain(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"
