"""What the conformance kit asks a plugin and answers it, where that differs from the common dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from attrs import field, frozen

from llmopt.values.calls import Operation
from llmopt.values.chat import ToolCall
from llmopt.values.shown import names, size

Ignored = Literal["dimensions", "extra", "input_type", "model"]
"""A part of an `EmbedCall` that a provider may have no use for."""
Spoken = Literal["reasoning", "tool_calls", "finish_reason", "usage", "model", "id"]
"""A part of a chat answer besides its text."""


@frozen(kw_only=True)
class SampleRows:
    """An embeddings answer for the kit to send, to be written in a provider's own format.

    Attributes:
        rows: the position of a text and its vector, in the order they are to be sent in.
        tokens: what the answer says the texts cost.
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
        pieces: the answer's text, cut as a stream is to bring it.
        reasoning: what the model thought, before the answer; "" for nothing.
        tool_calls: the tools that it wants called.
        finish_reason: why it ended, in the common dialect's word.
        prompt_tokens: what the answer says the conversation costs.
        completion_tokens: what it says that it costs itself.
        model: the model that the answer names.
        id: the answer's id.
    """

    pieces: tuple[str, ...] = field(default=(), repr=size)
    reasoning: str = field(default="", repr=size)
    tool_calls: tuple[ToolCall, ...] = ()
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
    """How a plugin is to be asked and answered. A plugin for the common dialect needs none of it.

    Attributes:
        base_url: where the kit pretends the server to be; by default the profile's own.
        options: the plugin's own configuration keys, as an entry of ``llmopt.toml`` gives them.
        model: the model asked for.
        embeddings: writes the body of an embeddings answer.
        catalog: writes the body of a list of models.
        error: writes the body of an error.
        chat: writes the body of a chat answer.
        stream: writes a chat answer as a stream: its events in order, the stream's own end among them.
        stream_error: writes the event of an error within a stream.
        stream_type: the content type of a stream.
        says: what a chat answer of the provider's tells besides its text.
        indexed: whether ``embeddings`` writes the positions of the rows, so that they may come in any order.
        ignores: parts of a call that the provider has no use for, so that dropping them is right.
        without: operations that the provider does not have.
    """

    base_url: str | None = None
    options: Mapping[str, Any] = field(factory=dict, repr=names)
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
