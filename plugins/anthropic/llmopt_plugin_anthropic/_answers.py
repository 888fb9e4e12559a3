"""Answers of Claude: blocks of text, thinking and calls of tools, why it stopped, and what it used.

All blocks of an answer go into ``provider_data`` once one of them is more than text: those that are signed must come
back unchanged, in their order. Blocks of a type that this version does not know are kept in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmopt import ChatCall, ChatReply, Failure, HttpResponse, ToolCall, Usage, reading
from llmopt.values.error_shape import is_error
from llmopt_plugin_anthropic._messages import OWN

REASONS: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "compaction": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Anthropic's stop reasons in the words of the common dialect. Others, such as "pause_turn", stay as they are."""
_INPUT: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""What the input consists of: the first one is what no cache was concerned with."""


class Details(msgspec.Struct):
    """Why the model refused."""

    explanation: str | None = None


class Message(msgspec.Struct):
    """An answer, or what the first event of a stream has of it."""

    content: list[dict[str, Any]]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    stop_details: Details | None = None
    usage: dict[str, Any] | None = None


_READ: Final = ("text", "thinking", "tool_use")


class Block(msgspec.Struct):
    """The keys of a block that are read."""

    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] = {}


def reply_of(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """Read a whole answer.

    Raises:
        InvalidResponse: the body is none.
    """
    value = response.json
    if is_error(value):
        return Failure.from_response(response, operation="chat", model=call.model)
    message = reading.as_type(reading.body(response), Message)
    blocks = [read_block(block) for block in message.content]
    return ChatReply(
        text="".join(block.text for block in blocks),
        reasoning="".join(block.thinking for block in blocks),
        refusal=refusal_of(message.stop_details),
        tool_calls=tuple(
            ToolCall(id=block.id, name=block.name, arguments=reading.arguments(block.input))
            for block in blocks
            if block.type == "tool_use"
        ),
        finish_reason=reason_of(message.stop_reason),
        usage=usage_of(counts_of(message.usage), {}),
        model=message.model,
        id=message.id,
        provider_data=kept(message.content),
        raw=value,
    )


def read_block(block: Mapping[str, Any]) -> Block:
    """The block; of a type that adds nothing to a reply, such as a search of the server's, its type alone.

    Raises:
        InvalidResponse: it has another form.
    """
    kind = reading.text(block.get("type"), "type")
    return reading.as_type(block, Block) if kind in _READ else Block(type=kind)


def reason_of(stated: str | None) -> str | None:
    """The word of the common dialect for a stop reason."""
    return None if stated is None else REASONS.get(stated, stated)


def refusal_of(details: Details | None) -> str:
    """What the provider says about a refusal."""
    return (details.explanation if details is not None else None) or ""


def kept(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``provider_data`` of an answer with these blocks; nothing for text alone, which says all by itself."""
    return {} if all(block.get("type") == "text" for block in blocks) else {OWN: list(blocks)}


def counts_of(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """The plausible counts of a usage, by Anthropic's names."""
    told = dict(usage or {})
    details = told.get("output_tokens_details")
    if isinstance(details, Mapping):
        told["thinking_tokens"] = details.get("thinking_tokens")
    counts = {name: reading.count(value) for name, value in told.items()}
    return {name: count for name, count in counts.items() if type(count) is int}


def usage_of(counts: Mapping[str, int], earlier: Mapping[str, int]) -> Usage | None:
    """The usage that an event tells, None if it tells nothing.

    The tokens of the input are a sum. An event that changes one part of it may leave out the others, which are those of
    an earlier event then.

    Args:
        counts: of the event.
        earlier: those that events before it told.
    """
    told: dict[str, int] = {}
    if not counts.keys().isdisjoint(_INPUT):
        every = {**earlier, **counts}
        told["prompt_tokens"] = sum(every.get(name, 0) for name in _INPUT)
    for name, own in (
        ("cached_tokens", "cache_read_input_tokens"),
        ("completion_tokens", "output_tokens"),
        ("reasoning_tokens", "thinking_tokens"),
    ):
        if own in counts:
            told[name] = counts[own]
    return Usage(**told) if told else None
