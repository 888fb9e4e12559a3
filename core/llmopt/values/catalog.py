"""Lists of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from attrs import field, frozen

from llmopt.values.prices import Prices
from llmopt.values.shown import size

ModelKind = Literal[
    "chat", "embedding", "rerank", "image", "audio", "moderation", "completion", "ocr", "other", "unknown"
]


@frozen(kw_only=True)
class Model:
    """One model of a provider.

    Attributes:
        id: as the provider names it, and as a request must.
        provider: name of the provider entry; filled in by the core.
        kind: what it is for; "unknown" when neither the provider nor its plugin knows.
        name: a name for people, or "".
        context_length: tokens of input and output together, as the provider counts; None when not known.
        max_output_tokens: most tokens of an answer, or None.
        dimensions: length of its vectors when none is asked for, or None.
        inputs: what it takes, such as "text" and "image"; empty when not known.
        outputs: what it gives, likewise.
        prices: what it costs, None when not known.
        aliases: other ids of the same model.
        created: seconds since the epoch, or None.
        deprecated: date of its deprecation, ISO 8601, or None.
        shutdown: date after which it does not answer, ISO 8601, or None.
        replacement: id of the model to use instead, when it is deprecated, or None.
        known: names of the fields above that the provider's list leaves out and its plugin knows.
        raw: the provider's own entry, a table that is decoded when it is looked into.
    """

    id: str
    provider: str = ""
    kind: ModelKind = "unknown"
    name: str = ""
    context_length: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    prices: Prices | None = None
    aliases: tuple[str, ...] = ()
    created: int | None = None
    deprecated: str | None = None
    shutdown: str | None = None
    replacement: str | None = None
    known: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)


@frozen(kw_only=True)
class CatalogPage:
    """One page of a list.

    Attributes:
        models: the models on it.
        next_cursor: what to ask the next page with, None on the last one.
        dropped: number of entries that could not be read and are left out.
    """

    models: tuple[Model, ...] = ()
    next_cursor: str | None = None
    dropped: int = 0


@frozen(kw_only=True)
class Catalog(Sequence[Model]):
    """The models of one provider: a sequence of `Model` in the provider's order.

    Attributes:
        provider: name of the provider entry.
        models: the models; out of a cache each becomes an object when it is looked at.
        age: seconds since the provider was asked.
        stale: whether it is older than it should be, because nobody newer could be had.
        dropped: number of entries of the provider's list that could not be read and are left out.
    """

    provider: str
    models: Sequence[Model] = field(default=(), repr=size)
    age: float = 0.0
    stale: bool = False
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.models)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        found = self.models[index]
        return found if isinstance(found, (Model, tuple)) else tuple(found)
