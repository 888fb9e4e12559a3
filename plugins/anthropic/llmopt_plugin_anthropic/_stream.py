"""Streams of Anthropic: a message begins, its blocks follow one by one, each in pieces, and then how it ended.

A block is complete with the event that stops it, and its signature comes last. The state is the blocks so far, which go
back with the next request. It has them as bytes, because a state is a value, and each event gets copies of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from llmopt import ChatCall, ChatEvent, Failure, ServerEvent, StreamStep, ToolCallPart, reading
from llmopt.values.error_shape import is_error
from llmopt_plugin_anthropic._answers import (
    Details,
    Message,
    counts_of,
    kept,
    read_block,
    reason_of,
    refusal_of,
    usage_of,
)

_JOIN_AT: Final = 256
"""Pieces that are joined at once: to join two with each event would copy a long answer again and again."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the events so far have said.

    Attributes:
        blocks: the blocks that are complete, as JSON.
        begun: the block that is being sent, as JSON; None between two.
        kind: its type.
        pieces: of its text, its thinking or its arguments.
        signature: of its thinking.
        citations: of its text, as JSON.
        usage: the counts that were told.
    """

    blocks: tuple[bytes, ...] = ()
    begun: bytes | None = None
    kind: str = ""
    pieces: tuple[str, ...] = ()
    signature: str = ""
    citations: tuple[bytes, ...] = ()
    usage: Mapping[str, int] = {}

    def __repr__(self) -> str:
        # Without the texts.
        return f"State(blocks={len(self.blocks)}, kind={self.kind!r})"


_BEGIN: Final = State()


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    citation: dict[str, Any] | None = None
    content: str | None = None
    stop_reason: str | None = None
    stop_details: Details | None = None


def step_of(call: ChatCall, event: ServerEvent, state: State | None) -> StreamStep | Failure:
    """Read one event.

    Raises:
        InvalidResponse: it cannot be read.
    """
    state = state or _BEGIN
    if not event.data.strip():
        return StreamStep((), state)
    value = reading.event(event)
    kind = value.get("type")
    if kind == "content_block_delta":
        return _added(reading.as_type(value.get("delta"), _Delta), value, state)
    if kind == "error" or is_error(value):
        return Failure.from_event(event, model=call.model)
    return _step(kind, value, state)


def _step(kind: object, value: dict[str, Any], state: State) -> StreamStep:
    match kind:
        case "message_start":
            step = _started(value, state)
        case "content_block_start":
            step = _begun(reading.as_type(value.get("content_block"), dict[str, Any]), value, state)
        case "content_block_stop":
            step = _stopped(value, state)
        case "message_delta":
            step = _ended(value, state)
        case "message_stop":
            step = StreamStep((ChatEvent(last=True, raw=value),), state)
        case "ping":
            step = StreamStep((), state)
        case _:
            name = kind[:64] if isinstance(kind, str) and kind else "unnamed"
            step = StreamStep((ChatEvent(unknown=name, raw=value),), state)
    return step


def _started(value: dict[str, Any], state: State) -> StreamStep:
    message = reading.as_type(value.get("message"), Message)
    counts = counts_of(message.usage)
    event = ChatEvent(usage=usage_of(counts, {}), model=message.model, id=message.id, raw=value)
    return StreamStep((event,), replace(state, usage=counts))


def _begun(block: dict[str, Any], value: dict[str, Any], state: State) -> StreamStep:
    read = read_block(block)
    calls: tuple[ToolCallPart, ...] = ()
    if read.type == "tool_use":
        calls = (ToolCallPart(index=len(state.blocks), id=read.id, name=read.name),)
    # Anthropic begins with nothing; a server that begins with words means them.
    words = read.text or read.thinking
    event = ChatEvent(text=read.text, reasoning=read.thinking, tool_calls=calls, raw=value)
    begun = replace(
        state,
        begun=msgspec.json.encode(block),
        kind=read.type,
        pieces=(words,) if words else (),
        signature="",
        citations=(),
    )
    return StreamStep((event,) if event.adds else (), begun)


def _added(delta: _Delta, value: dict[str, Any], state: State) -> StreamStep:
    """A piece of the block that is being sent."""
    if state.begun is None:
        raise reading.invalid("a piece of a block comes before the block.", "type")
    calls: tuple[ToolCallPart, ...] = ()
    if delta.partial_json and state.kind == "tool_use":
        calls = (ToolCallPart(index=len(state.blocks), arguments=delta.partial_json),)
    event = ChatEvent(text=delta.text, reasoning=delta.thinking, tool_calls=calls, raw=value)
    piece = delta.text or delta.thinking or delta.partial_json or delta.content or ""
    more = replace(state, pieces=_with(state.pieces, piece)) if piece else state
    if delta.signature:
        more = replace(more, signature=state.signature + delta.signature)
    if delta.citation is not None:
        more = replace(more, citations=(*state.citations, msgspec.json.encode(delta.citation)))
    return StreamStep((event,) if event.adds else (), more)


def _with(pieces: tuple[str, ...], piece: str) -> tuple[str, ...]:
    return (*pieces, piece) if len(pieces) < _JOIN_AT else ("".join((*pieces, piece)),)


def _stopped(value: dict[str, Any], state: State) -> StreamStep:
    if state.begun is None:
        raise reading.invalid("a block ends before it begins.", "type")
    block = _complete(state)
    calls: tuple[ToolCallPart, ...] = ()
    if state.kind == "tool_use" and not any(state.pieces):
        # A tool without arguments sends one empty piece.
        calls = (
            ToolCallPart(index=len(state.blocks), arguments=reading.arguments(block.get("input") or {})),
        )
    blocks = (*state.blocks, msgspec.json.encode(block))
    data = kept([each for each in map(msgspec.json.decode, blocks) if _is_whole(each)])
    event = ChatEvent(tool_calls=calls, provider_data=data, raw=value)
    after = replace(state, blocks=blocks, begun=None, kind="", pieces=(), signature="", citations=())
    return StreamStep((event,) if calls or data else (), after)


def _complete(state: State) -> dict[str, Any]:
    """The block as a whole answer has it."""
    block: dict[str, Any] = msgspec.json.decode(state.begun or b"{}")
    joined = "".join(state.pieces)
    match state.kind:
        case "text":
            block["text"] = joined
        case "thinking":
            block["thinking"] = joined
            block["signature"] = state.signature or block.get("signature", "")
        case "compaction":
            block["content"] = joined or block.get("content")
        case _ if joined:
            block["input"] = _input(joined)
    if state.citations:
        block["citations"] = [*(block.get("citations") or []), *map(msgspec.json.decode, state.citations)]
    return block


def _is_whole(block: Mapping[str, Any]) -> bool:
    # A call whose arguments were cut at max_tokens cannot go back.
    return block.get("type") != "tool_use" or isinstance(block.get("input"), dict)


def _input(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _ended(value: dict[str, Any], state: State) -> StreamStep:
    delta = reading.as_type(value.get("delta"), _Delta)
    usage = value.get("usage")
    counts = counts_of(usage if isinstance(usage, Mapping) else None)
    event = ChatEvent(
        refusal=refusal_of(delta.stop_details),
        finish_reason=reason_of(delta.stop_reason),
        usage=usage_of(counts, state.usage),
        raw=value,
    )
    return StreamStep((event,), replace(state, usage={**state.usage, **counts}))
