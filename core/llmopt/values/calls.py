"""What the application asks for, as the plugins see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs.validators import gt, optional

from llmopt.values.secret import Secret, repr_names, repr_size

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
    texts: tuple[str, ...] = field(default=(), repr=repr_size)
    dimensions: int | None = None
    input_type: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=repr_names)


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
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=repr_size)
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = field(default=(), repr=repr_size)
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=repr_size)
    tool_choice: str | Mapping[str, Any] | None = field(default=None, repr=False)
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = field(default=None, repr=False)
    reasoning_effort: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=repr_names)


Call = EmbedCall | CatalogCall | ChatCall


# What a hook may know of the endpoint it works for.


@frozen(kw_only=True)
class Settings:
    """One endpoint of one provider entry, resolved for one attempt.

    Attributes:
        provider: name of the entry.
        plugin: the name that the plugin serves it under, which tells the providers of a general plugin apart.
        base_url: without a slash at the end; "" for an engine inside the process.
        credential: the key or token of this attempt, None when there is none.
        credential_kind: "key" for a configured or environment key, "token" for one that a token
            provider gave.
        auth: the profile's scheme: "bearer", "none" or a header's name.
        headers: configured headers of the entry.
        options: the plugin's own keys, as its profile declares them.
    """

    provider: str
    plugin: str = ""
    base_url: str = ""
    credential: Secret | None = None
    credential_kind: Literal["key", "token"] = "key"
    auth: str = "bearer"
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)
    options: Mapping[str, Any] = field(factory=dict, repr=repr_names)

    def with_headers(self, headers: Mapping[str, str | None]) -> Settings:
        """The same with further headers; those that are None are left out."""
        added = {name: value for name, value in headers.items() if value is not None}
        if not added:
            return self
        return evolve(self, headers={**self.headers, **added})

    def auth_headers(self) -> dict[str, str]:
        """The header that carries the credential, by the profile's scheme; empty without one."""
        if self.credential is None or self.auth == "none":
            return {}
        if self.auth == "bearer":
            return {"authorization": f"Bearer {self.credential.reveal()}"}
        return {self.auth: self.credential.reveal()}


# How much fits into one request, and into one minute.

_positive = optional(gt(0))


@frozen(kw_only=True)
class BatchLimit:
    """The most that one request may hold. None means that no limit is known.

    Attributes:
        max_items: texts in a request.
        max_item_tokens: tokens in one text.
        max_tokens: tokens in all the texts of a request together.
        max_bytes: bytes of the encoded request body.
        truncates: whether a text over ``max_item_tokens`` is cut by the server instead of refused.
    """

    max_items: int | None = field(default=None, validator=_positive)
    max_item_tokens: int | None = field(default=None, validator=_positive)
    max_tokens: int | None = field(default=None, validator=_positive)
    max_bytes: int | None = field(default=None, validator=_positive)
    truncates: bool = False


@frozen(kw_only=True)
class RateLimit:
    """One rate limit as the headers of an answer tell it.

    Attributes:
        limit: allowance per ``window_s`` seconds, None if not told.
        remaining: what is left of it, None if not told.
        reset_s: seconds until it is whole again, None if not told.
        window_s: length of the window in seconds.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    window_s: float = 60.0


@frozen(kw_only=True)
class RateLimits:
    """What an answer tells of the rate limits; None where it is silent."""

    requests: RateLimit | None = None
    tokens: RateLimit | None = None
