"""What the application asks for, as the plugins see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from llmopt.values.shown import names, size

Operation = Literal["embeddings", "catalog", "chat"]


@frozen(kw_only=True)
class EmbedCall:
    """One request for embeddings.

    Attributes:
        model: the model as the provider names it.
        texts: the texts of this request, in order; empty while limits are asked for.
        dimensions: wanted length of a vector, or None for the model's own.
        input_type: what the texts are for, such as "query" or "document", or None.
        extra: further keys for the request body, passed on as given.
    """

    operation: ClassVar[Operation] = "embeddings"

    model: str
    texts: tuple[str, ...] = field(default=(), repr=size)
    dimensions: int | None = None
    input_type: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=names)


@frozen(kw_only=True)
class CatalogCall:
    """One page of a provider's list of models.

    Attributes:
        cursor: what the page before gave, None at first.
        etag: of the list as it is known, None for none; the core asks with it whether there is a new one.
    """

    operation: ClassVar[Operation] = "catalog"

    cursor: str | None = None
    etag: str | None = None
    model: str = ""


@frozen(kw_only=True)
class ChatCall:
    """One chat request. What is None, empty or not asked for is not sent.

    Attributes:
        model: the model as the provider names it.
        messages: the conversation, each a mapping with "role" and "content" in the common dialect.
        stream: whether the answer comes as a stream of events.
        include_usage: whether a stream is asked to tell its usage; the profile says where that helps.
        max_tokens: most tokens of the answer, reasoning among them.
        temperature: how freely to choose, 0 for hardly.
        top_p: the share of likely tokens to choose from, 0 to 1.
        stop: texts at which the answer ends.
        seed: asks for the same answer each time, where the provider can.
        presence_penalty: against tokens that occurred, -2 to 2.
        frequency_penalty: against tokens by how often they occurred, -2 to 2.
        tools: the tools that the model may call, in the common dialect.
        tool_choice: "auto", "none", "required", or a mapping that names a tool.
        parallel_tool_calls: whether several tools may be called at once.
        response_format: a mapping such as ``{"type": "json_object"}`` or one with a JSON schema.
        reasoning_effort: how long to think: "none", "minimal", "low", "medium", "high" or the provider's own word.
        extra: further keys for the request body, passed on as given; they win over all others.
    """

    operation: ClassVar[Operation] = "chat"

    model: str
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=size)
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = field(default=(), repr=size)
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=size)
    tool_choice: str | Mapping[str, Any] | None = field(default=None, repr=False)
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = field(default=None, repr=False)
    reasoning_effort: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=names)


Call = EmbedCall | CatalogCall | ChatCall
