"""What the application asks for: words of its options, calls as plugins see them, endpoint settings and limits.

`EmbedCall`, `CatalogCall` and `ChatCall` are the checked requests that the hooks of a plugin get;
`llmopt.operations.call_options` has the arguments of the client's methods before they are checked.

Frozen values: no I/O, no clock, no shared state, nothing to await. The first check of JSON imports msgspec. `Settings`
holds the credential; all calls to an endpoint may share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from attrs import evolve, field, frozen
from attrs.validators import deep_iterable, ge, gt, in_, optional

from llmopt.errors import InvalidInput
from llmopt.values.secret import HiddenStr, Secret, repr_names, repr_size

# Options of a call, as given by the application.

WhenOpen = Literal["fail", "wait"]
"""What a call does while the circuit of its provider is open: raise `CircuitOpen`, or wait until it closes."""
Priority = Literal["interactive", "bulk"]
"""Which of the calls that wait for a provider are sent first; bulk calls keep at least a tenth."""
ErrorMode = Literal["raise", "return"]
"""What happens with texts that could not be embedded: an exception at the end, or entries in ``errors``."""
PartOrder = Literal["input", "completion"]
"""The order in which ``embed_iter`` yields its parts."""


def check_json(value: object, name: str, index: int | None = None) -> None:
    """Refuse what cannot be encoded as JSON.

    Args:
        value: a message, a tool, a schema or the like.
        name: names it in the error, which never contains its text.
        index: position among the messages, for the error.

    Raises:
        InvalidInput: it contains a value that JSON cannot express.
    """
    # Imported here, because making a client must not import it.
    import msgspec

    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{name} contains half of a surrogate pair, so it was cut or decoded wrongly. "
            "Read it with errors='replace', or repair it.",
            index=index,
        ) from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(f"{name} contains a value that JSON cannot express.", index=index) from None


# Calls, as the hooks of a plugin see them.

Operation = Literal["embeddings", "catalog", "chat"]


@frozen(kw_only=True)
class EmbedCall:
    """One request for embeddings.

    Attributes:
        model: the model, by the provider's name for it.
        texts: the texts of this request, in order; empty in a request for the server's limits.
        dimensions: requested length of a vector, None for the model's default.
        input_type: what the texts are for, such as "query" or "document"; None when not stated.
        extra: more keys for the request body, sent unchanged.
        headers: of this call; the hooks find them in ``Settings.headers`` too.
    """

    operation: ClassVar[Operation] = "embeddings"

    model: str
    texts: tuple[str, ...] = field(default=(), repr=repr_size)
    dimensions: int | None = None
    input_type: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=repr_names)
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)


@frozen(kw_only=True)
class CatalogCall:
    """A request for one page of a provider's list of models.

    Attributes:
        cursor: ``next_cursor`` of the previous page, None for the first page.
        etag: entity tag of the cached list, None when nothing is cached. The core sends it as ``If-None-Match``.
        model: always ""; every call has this attribute.
        headers: as for `EmbedCall`.
    """

    operation: ClassVar[Operation] = "catalog"

    cursor: str | None = None
    etag: str | None = None
    model: str = ""
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)


@frozen(kw_only=True)
class ChatCall:
    """One chat request. A field that is None or empty is not sent.

    Attributes:
        model: the model, by the provider's name for it.
        messages: the conversation, oldest message first; each a mapping with "role" and "content" in the common dialect.
        stream: whether the response is a stream of events.
        include_usage: whether to request the token usage of a stream; ``Profile.stream_usage`` decides.
        max_tokens: maximum number of generated tokens, reasoning included.
        temperature: sampling temperature; 0 is the least random.
        top_p: nucleus sampling: the share of probability to choose from, 0 to 1.
        stop: texts at which generation ends.
        seed: for reproducible sampling, where the provider supports it.
        presence_penalty: penalty for tokens that already occurred, -2 to 2.
        frequency_penalty: penalty for tokens by how often they occurred, -2 to 2.
        tools: definitions of the tools that the model may call, in the common dialect.
        tool_choice: "auto", "none", "required", or a mapping that names a tool.
        parallel_tool_calls: whether one response may call several tools.
        response_format: a mapping such as ``{"type": "json_object"}``, or one with a JSON schema.
        reasoning_effort: "none", "minimal", "low", "medium", "high" or another word that the provider defines.
        extra: more keys for the request body, sent unchanged; they override the fields above.
        headers: as for `EmbedCall`.
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
    # Not shown: these two may hold texts of the user's, such as descriptions in a schema.
    tool_choice: str | Mapping[str, Any] | None = field(default=None, repr=False)
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = field(default=None, repr=False)
    reasoning_effort: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=repr_names)
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)


Call = EmbedCall | CatalogCall | ChatCall


@frozen(kw_only=True)
class Settings:
    """The endpoint that an attempt uses, as its hooks see it.

    Attributes:
        provider: name of the provider entry.
        plugin: name under which the plugin serves it; a plugin for several providers tells them apart by this.
        base_url: without a trailing slash; "" for an engine in this process.
        credential: the key or token of this attempt, None when there is none.
        credential_kind: "key" for a key from the configuration or the environment, "token" for one from a
            token provider.
        auth: the authentication scheme of the profile: "bearer", "none" or the name of a header.
        headers: configured headers of the entry, and those of the call.
        query: configured parameters that llmopt adds to the URL of every request.
        options: values of the configuration keys that the plugin's profile declares.
    """

    provider: str
    plugin: str = ""
    base_url: str = ""
    credential: Secret | None = None
    credential_kind: Literal["key", "token"] = "key"
    auth: str = "bearer"
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)
    query: Mapping[str, str] = field(factory=dict, repr=repr_names)
    options: Mapping[str, Any] = field(factory=dict, repr=repr_names)

    def with_headers(self, headers: Mapping[str, str | None]) -> Settings:
        """A copy with more headers; entries whose value is None are ignored."""
        # The usual case of every request, decided without a Python loop.
        if set(headers.values()) <= {None}:
            return self
        added = {name: value for name, value in headers.items() if value is not None}
        return evolve(self, headers={**self.headers, **added})

    def auth_headers(self) -> dict[str, str]:
        """The header that carries the credential, by the scheme in ``auth``; empty without a credential."""
        if self.credential is None or self.auth == "none":
            return {}
        if self.auth == "bearer":
            return {"authorization": HiddenStr(f"Bearer {self.credential.reveal()}")}
        return {self.auth: HiddenStr(self.credential.reveal())}


# Limits: what fits into one request, and how much is allowed per minute.

_positive = optional(gt(0))
BATCH_NUMBERS: Final = ("max_items", "max_item_tokens", "max_tokens", "max_bytes")
"""The limits of a `BatchLimit` that are numbers."""


@frozen(kw_only=True)
class BatchLimit:
    """The limits of one request. None means that no limit is known.

    A number is the word of the server or its documentation, unless ``guesses`` names it. The user's ``max_batch_size``
    may exceed a guess, and nothing else.

    Attributes:
        max_items: texts in one request.
        max_item_tokens: tokens in one text.
        max_tokens: tokens in all texts of one request together.
        max_bytes: bytes of the encoded request body.
        truncates: whether the server truncates a text over ``max_item_tokens`` instead of refusing it.
        guesses: names of the numbers above that are guesses: sizes that are likely to be accepted.
    """

    max_items: int | None = field(default=None, validator=_positive)
    max_item_tokens: int | None = field(default=None, validator=_positive)
    max_tokens: int | None = field(default=None, validator=_positive)
    max_bytes: int | None = field(default=None, validator=_positive)
    truncates: bool = False
    guesses: tuple[str, ...] = field(default=(), validator=deep_iterable(in_(BATCH_NUMBERS)))


@frozen(kw_only=True)
class RequestCost:
    """What one request counts under the provider's rate limits.

    Attributes:
        requests: how many requests it counts as; a provider may count each text as one.
        tokens: its tokens, whatever usage the response reports; None for llmopt's estimate, and then that usage.
        output_tokens: the part of them that the reply may have, None for llmopt's estimate.
    """

    requests: float = field(default=1.0, validator=ge(0))
    tokens: float | None = field(default=None, validator=optional(ge(0)))
    output_tokens: float | None = field(default=None, validator=optional(ge(0)))


Dimension = Literal["requests", "tokens", "output_tokens"]
"""What a rate limit counts. ``tokens`` are those of the input, or all of them, whatever the provider counts."""


@frozen(kw_only=True)
class RateLimit:
    """One rate limit, as the headers of a response state it.

    Attributes:
        limit: allowance per ``window_s`` seconds, None if not stated.
        remaining: what is left of it, None if not stated.
        reset_s: seconds until the whole allowance is available again, None if not stated.
        window_s: length of the window in seconds.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    window_s: float = 60.0


@frozen(kw_only=True)
class RateLimits:
    """The rate limits that a response states; None for a limit that it does not state.

    Attributes:
        requests: the limit of requests.
        tokens: the limit of tokens; of those of the input, where ``output_tokens`` is stated.
        output_tokens: the limit of tokens of replies, where the provider counts them apart.
    """

    requests: RateLimit | None = None
    tokens: RateLimit | None = None
    output_tokens: RateLimit | None = None
