"""The common (OpenAI-compatible) dialect from the server's side: writes the bodies of responses, for fakes and kits.

`Samples` is what a plugin's author gives the conformance kit where the responses of a provider differ from this dialect.
`Dialect` writes each body with the author's function if there is one, else in the common form.

Pure: no I/O, no clock, no state, no randomness: a vector depends on its text alone.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, get_args

from attrs import evolve, field, frozen

from llmopt.values.calls import Operation
from llmopt.values.chat import ToolCall
from llmopt.values.secret import repr_names, repr_size

# Samples: what a conformance kit sends to a plugin, and how a provider's responses differ from the dialect.

Ignored = Literal["dimensions", "extra", "input_type", "model"]
"""A part of an `EmbedCall` that a provider may ignore."""
Spoken = Literal["reasoning", "tool_calls", "finish_reason", "usage", "model", "id"]
"""A part of a chat answer other than its text."""


@frozen(kw_only=True)
class SampleRows:
    """An embeddings answer for the kit to send, to be written in a provider's own format.

    Attributes:
        rows: the position of a text and its vector, in the order they are to be sent in.
        tokens: number of tokens in the answer's usage.
        model: the model that the answer names.
        base64: whether the request asked for base64, by ``"encoding_format": "base64"``.
    """

    rows: tuple[tuple[int, tuple[float, ...]], ...]
    tokens: int = 12
    model: str = "kit-model"
    base64: bool = False


@frozen(kw_only=True)
class SamplePage:
    """A page of a list of models for the kit to send, to be written in a provider's own format.

    Attributes:
        models: ids of the models.
        cursor: the cursor of the next page, None on the last one.
    """

    models: tuple[str, ...]
    cursor: str | None = None


@frozen(kw_only=True)
class SampleChat:
    """A chat answer for the kit to send, to be written in a provider's own format, whole or as a stream.

    Attributes:
        pieces: the text, in the pieces that a stream sends.
        reasoning: the reasoning before the answer, "" for none.
        tool_calls: tool calls in the answer.
        provider_data: what the provider wants back. The common dialect has no place for it: it is written for fakes alone.
        finish_reason: why it ended, as in the common dialect.
        prompt_tokens: tokens of the conversation in the answer's usage.
        completion_tokens: tokens of the answer in its usage.
        model: the model that the answer names.
        id: the answer's id.
    """

    pieces: tuple[str, ...] = field(default=(), repr=repr_size)
    reasoning: str = field(default="", repr=repr_size)
    tool_calls: tuple[ToolCall, ...] = ()
    provider_data: Mapping[str, Any] = field(factory=dict, repr=repr_size)
    finish_reason: str = "stop"
    prompt_tokens: int = 7
    completion_tokens: int = 5
    model: str = "kit-model"
    id: str = "kit-answer-1"

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


@frozen(kw_only=True)
class SampleError:
    """An error for the kit to send, to be written in a provider's own format."""

    status: int
    message: str


@frozen(kw_only=True)
class Samples:
    """How a conformance kit calls a plugin and writes its provider's responses. The common dialect needs none of it.

    Attributes:
        base_url: base URL of the provider in the checks; by default that of the profile.
        options: the plugin's own configuration keys, as an entry of ``llmopt.toml`` gives them.
        model: the model of all calls.
        embeddings: writes the body of an embeddings answer.
        catalog: writes the body of a list of models.
        error: writes the body of an error.
        chat: writes the body of a chat answer.
        stream: writes a chat answer as a stream: its events in order, with the end marker.
        stream_error: writes an error event of a stream.
        stream_type: the content type of a stream.
        says: what the provider's chat answers contain besides the text.
        indexed: whether ``embeddings`` writes the positions of the rows, so that they may come in any order.
        ignores: parts of a call that the provider ignores, so that the plugin may leave them out.
        without: operations that the provider does not have.
    """

    base_url: str | None = None
    options: Mapping[str, Any] = field(factory=dict, repr=repr_names)
    model: str = "kit-model"
    embeddings: Callable[[SampleRows], bytes] | None = None
    catalog: Callable[[SamplePage], bytes] | None = None
    error: Callable[[SampleError], bytes] | None = None
    chat: Callable[[SampleChat], bytes] | None = None
    stream: Callable[[SampleChat], Sequence[bytes]] | None = None
    stream_error: Callable[[SampleError], bytes] | None = None
    stream_type: str = "text/event-stream"
    says: frozenset[Spoken] = field(default=frozenset(get_args(Spoken)), converter=frozenset)
    indexed: bool = True
    ignores: frozenset[Ignored] = field(default=frozenset(), converter=frozenset)
    without: frozenset[Operation] = field(default=frozenset(), converter=frozenset)

    @property
    def common(self) -> bool:
        """Whether embeddings come in the common dialect."""
        return self.embeddings is None


def vector_of(text: str, dimensions: int) -> tuple[float, ...]:
    """A vector of norm 1 that depends on the text alone; different texts have different vectors."""
    size = 4 * dimensions
    noise = b"".join(sha256(f"{part}:{text}".encode()).digest() for part in range(size // 32 + 1))
    numbers = [number / 2**31 - 1 for number in struct.unpack(f"<{dimensions}I", noise[:size])]
    length = sum(number * number for number in numbers) ** 0.5 or 1.0
    return single(number / length for number in numbers)


def single(numbers: Any) -> tuple[float, ...]:
    """Numbers rounded to float32, so that they survive encoding exactly."""
    listed = list(numbers)
    return struct.unpack(f"<{len(listed)}f", struct.pack(f"<{len(listed)}f", *listed))


def encoded(vector: Sequence[float]) -> str:
    """A vector as base64 of little-endian float32."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def embeddings_body(answer: SampleRows) -> bytes:
    """An embeddings answer."""
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(row) if answer.base64 else list(row)}
        for index, row in answer.rows
    ]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return _json({"object": "list", "data": data, "model": answer.model, "usage": usage})


def catalog_body(page: SamplePage) -> bytes:
    """A page of a list of models."""
    data = [
        {"id": model, "object": "model", "created": 1_790_000_000, "owned_by": "kit"} for model in page.models
    ]
    more = {} if page.cursor is None else {"has_more": True, "last_id": page.cursor}
    return _json({"object": "list", "data": data, **more})


def error_body(error: SampleError, *, code: str | None = None, kind: str = "api_error") -> bytes:
    """An error."""
    return _json({"error": {"message": error.message, "type": kind, "param": None, "code": code}})


def chat_body(answer: SampleChat) -> bytes:
    """A chat answer in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [call.as_dict() for call in answer.tool_calls]
    if answer.provider_data:
        message["provider_data"] = answer.provider_data
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    head = {"id": answer.id, "object": "chat.completion", "created": 1_790_000_000, "model": answer.model}
    return _json({**head, "choices": [choice], "usage": _usage(answer)})


def chat_stream(answer: SampleChat, *, usage: bool = True) -> tuple[bytes, ...]:
    """The same as a stream, event by event.

    Args:
        answer: what to say.
        usage: whether the stream ends with its usage, as with ``stream_options.include_usage``.
    """
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if answer.reasoning:
        deltas.append({"reasoning_content": answer.reasoning})
    deltas += ({"content": piece} for piece in answer.pieces)
    for index, call in enumerate(answer.tool_calls):
        deltas += ({"tool_calls": [fragment]} for fragment in _fragments(index, call))
    if answer.provider_data:
        deltas.append({"provider_data": answer.provider_data})
    chunks: list[dict[str, Any]] = [{"choices": [_choice(delta, None)]} for delta in deltas]
    chunks.append({"choices": [_choice({}, answer.finish_reason)]})
    if usage:
        chunks.append({"choices": [], "usage": _usage(answer)})
    head = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": answer.model,
    }
    return (*(event_of(_json({**head, **chunk})) for chunk in chunks), event_of(b"[DONE]"))


def event_of(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def stream_error(error: SampleError) -> bytes:
    """An error within a stream."""
    return event_of(error_body(error))


def _choice(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _fragments(index: int, call: ToolCall) -> list[dict[str, Any]]:
    """A tool call as streams send it: id and name first, then the arguments in two pieces."""
    # In two pieces, which shows whether a plugin or an application joins them.
    middle = len(call.arguments) // 2
    pieces = (call.arguments[:middle], call.arguments[middle:])
    first = {"index": index, **evolve(call, arguments="").as_dict()}
    return [first, *({"index": index, "function": {"arguments": piece}} for piece in pieces)]


def _usage(answer: SampleChat) -> dict[str, Any]:
    total = answer.prompt_tokens + answer.completion_tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": total,
    }


class Dialect:
    """How answers are written for one plugin: its own samples, or the common dialect.

    Args:
        samples: the author's.
    """

    def __init__(self, samples: Samples) -> None:
        self.embeddings = samples.embeddings or embeddings_body
        self.catalog = samples.catalog or catalog_body
        self.error = samples.error or error_body
        self.chat = samples.chat or chat_body
        self.stream = samples.stream or chat_stream
        self.stream_error = samples.stream_error or stream_error


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
