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
    """One chat request.

    Attributes:
        model: the model as the provider names it.
        messages: the conversation, each a mapping with "role" and "content".
        stream: whether the answer comes as a stream of events.
        extra: further keys for the request body, passed on as given.
    """

    operation: ClassVar[Operation] = "chat"

    model: str
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=size)
    stream: bool = False
    extra: Mapping[str, Any] = field(factory=dict, repr=names)


Call = EmbedCall | CatalogCall | ChatCall
