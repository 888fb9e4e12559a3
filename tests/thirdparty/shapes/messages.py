"""A plugin for a server with Anthropic's Messages API: signed blocks that come back, and a usage in two parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import evolve, frozen

from llmopt import (
    Call,
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpRequest,
    HttpResponse,
    InvalidInput,
    Profile,
    ServerEvent,
    Settings,
    StreamStep,
    ToolCall,
    ToolCallPart,
    Usage,
    Verdict,
    compatible,
    hookimpl,
    reading,
)

REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
OWN = "messages"
"""The plugin's key in provider_data."""


@hookimpl
def provider_profile() -> Profile:
    """A stream ends with an event of its own."""
    return Profile(
        base_url="https://messages.example/v1", key_env=("MESSAGES_KEY",), auth="x-api-key", stream_end="done"
    )


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """As in the common dialect."""
    return compatible.classify(failure)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """The request; an answer of this provider goes back as the blocks that it came in."""
    if not isinstance(call, ChatCall):
        raise InvalidInput("this provider has chats only.")
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": call.max_tokens or 4_096,
        "messages": _turns(call.messages),
        "stream": call.stream,
    }
    if call.tools:
        body["tools"] = [
            {
                "name": tool["function"]["name"],
                "input_schema": tool["function"].get("parameters", {"type": "object"}),
            }
            for tool in call.tools
        ]
    headers = {**settings.headers, **settings.auth_headers(), "anthropic-version": "2023-06-01"}
    return HttpRequest(method="POST", path="/messages", headers=headers, json={**body, **call.extra})


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "assistant":
            turns.append({"role": "assistant", "content": _blocks(message)})
            continue
        block = {"type": "text", "text": message["content"]}
        if message["role"] == "tool":
            block = {
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": message["content"],
            }
        # All results of a turn go into one message.
        if turns and turns[-1]["role"] == "user":
            turns[-1]["content"].append(block)
        else:
            turns.append({"role": "user", "content": [block]})
    return turns


def _blocks(message: Mapping[str, Any]) -> list[Any]:
    own = message.get("provider_data", {}).get(OWN)
    if own is not None:
        return list(own["blocks"])
    blocks: list[Any] = [{"type": "text", "text": message["content"]}] if message.get("content") else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        value = msgspec.json.decode(function["arguments"] or "{}")
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": value})
    return blocks


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """A whole answer."""
    value = reading.body(response)
    if value.get("error"):
        return Failure.from_response(response, operation="chat", model=call.model)
    message = reading.as_type(value, _Message)
    blocks = [reading.as_type(block, _Block) for block in message.content]
    return ChatReply(
        text="".join(block.text for block in blocks),
        reasoning="".join(block.thinking for block in blocks),
        tool_calls=tuple(
            ToolCall(id=block.id, name=block.name, arguments=msgspec.json.encode(block.input).decode())
            for block in blocks
            if block.type == "tool_use"
        ),
        finish_reason=REASONS.get(message.stop_reason or "", message.stop_reason),
        usage=_usage(message.usage, {}),
        model=message.model,
        id=message.id,
        provider_data=_kept(message.content),
        raw=value,
    )


class _Message(msgspec.Struct):
    content: list[dict[str, Any]]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    usage: dict[str, Any] = {}


class _Block(msgspec.Struct):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] = {}


def _kept(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What has to come back: all blocks as they came, once one of them is signed or calls a tool."""
    plain = all(block.get("type") == "text" for block in blocks)
    return {} if plain else {OWN: {"blocks": list(blocks)}}


def _usage(told: Mapping[str, Any], earlier: Mapping[str, Any]) -> Usage:
    """The counts that an event tells. The tokens of the input are a sum, which one of its parts changes."""
    known = {**earlier, **_counts(told)}
    counts = {}
    if any(name in _counts(told) for name in INPUT):
        counts["prompt_tokens"] = sum(known.get(name, 0) for name in INPUT)
    for name, own in (("completion_tokens", "output_tokens"), ("cached_tokens", "cache_read_input_tokens")):
        if own in _counts(told):
            counts[name] = known[own]
    return Usage(**counts)


def _counts(told: Mapping[str, Any]) -> dict[str, int]:
    return {name: count for name, count in told.items() if type(count) is int and count >= 0}


@frozen(kw_only=True)
class State:
    """What the events so far have said.

    Attributes:
        blocks: the blocks that are complete.
        begun: the block that is being sent, None between two.
        pieces: of its text or its arguments.
        signature: of a reasoning.
        usage: the counts of the input.
    """

    blocks: tuple[Mapping[str, Any], ...] = ()
    begun: Mapping[str, Any] | None = None
    pieces: tuple[str, ...] = ()
    signature: str = ""
    usage: Mapping[str, int] = {}


@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent, state: State | None) -> StreamStep | Failure:
    """One event of a stream: a block is complete with the event that stops it."""
    state = state or State()
    if not event.data.strip():
        return StreamStep((), state)
    value = reading.event(event)
    if value.get("error") or value.get("type") == "error":
        return Failure.from_event(event, model=call.model)
    return _step(value, state)


def _step(value: Mapping[str, Any], state: State) -> StreamStep:
    match value.get("type"):
        case "message_start":
            message = reading.as_type(value.get("message"), _Message)
            usage = _usage(message.usage, {})
            event = ChatEvent(usage=usage, model=message.model, id=message.id, raw=value)
            return StreamStep((event,), evolve(state, usage=_counts(message.usage)))
        case "content_block_start":
            return _begun(reading.as_type(value.get("content_block"), dict[str, Any]), state)
        case "content_block_delta":
            return _added(reading.as_type(value.get("delta"), _Delta), state)
        case "content_block_stop" if state.begun is not None:
            return _stopped(state)
        case "message_delta":
            delta = reading.as_type(value.get("delta"), _Delta)
            reason = REASONS.get(delta.stop_reason or "", delta.stop_reason)
            usage = _usage(reading.as_type(value.get("usage") or {}, dict[str, Any]), state.usage)
            return StreamStep((ChatEvent(finish_reason=reason, usage=usage, raw=value),), state)
        case "message_stop":
            return StreamStep((ChatEvent(last=True, raw=value),), state)
        case "ping" | "content_block_stop":
            return StreamStep((), state)
        case kind:
            return StreamStep((ChatEvent(unknown=str(kind), raw=value),), state)


class _Delta(msgspec.Struct):
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


def _begun(block: Mapping[str, Any], state: State) -> StreamStep:
    read = reading.as_type(block, _Block)
    events: tuple[ChatEvent, ...] = ()
    if read.type == "tool_use":
        part = ToolCallPart(index=len(state.blocks), id=read.id, name=read.name)
        events = (ChatEvent(tool_calls=(part,)),)
    return StreamStep(events, evolve(state, begun=block, pieces=(), signature=""))


def _added(delta: _Delta, state: State) -> StreamStep:
    calls: tuple[ToolCallPart, ...] = ()
    if delta.partial_json:
        calls = (ToolCallPart(index=len(state.blocks), arguments=delta.partial_json),)
    piece = delta.text or delta.thinking or delta.partial_json
    event = ChatEvent(text=delta.text, reasoning=delta.thinking, tool_calls=calls)
    pieces = (*state.pieces, piece)
    return StreamStep((event,), evolve(state, pieces=pieces, signature=state.signature + delta.signature))


def _stopped(state: State) -> StreamStep:
    block = _complete(state)
    blocks = (*state.blocks, block)
    calls: tuple[ToolCallPart, ...] = ()
    if block.get("type") == "tool_use" and not "".join(state.pieces):
        calls = (ToolCallPart(index=len(state.blocks), arguments="{}"),)
    event = ChatEvent(tool_calls=calls, provider_data=_kept(blocks))
    return StreamStep((event,), State(blocks=blocks, usage=state.usage))


def _complete(state: State) -> dict[str, Any]:
    """The block as a whole answer has it."""
    block, joined = dict(state.begun or {}), "".join(state.pieces)
    match block.get("type"):
        case "text":
            block["text"] = joined
        case "thinking":
            block.update(thinking=joined, signature=state.signature)
        case "tool_use":
            # A tool without arguments sends one empty piece.
            block["input"] = msgspec.json.decode(joined or "{}")
    return block
