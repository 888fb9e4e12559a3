"""Lists of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from attrs import field, frozen

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
        context_length: tokens of input, or None when not known.
        dimensions: length of its vectors, or None.
        aliases: other ids of the same model.
        created: seconds since the epoch, or None.
        deprecated: date of its deprecation, ISO 8601, or None.
        shutdown: date after which it does not answer, ISO 8601, or None.
        known: names of the fields above that the provider's list leaves out and its plugin knows.
        raw: the provider's own entry.
    """

    id: str
    provider: str = ""
    kind: ModelKind = "unknown"
    name: str = ""
    context_length: int | None = None
    dimensions: int | None = None
    aliases: tuple[str, ...] = ()
    created: int | None = None
    deprecated: str | None = None
    shutdown: str | None = None
    known: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)


@frozen(kw_only=True)
class CatalogPage:
    """One page of a list. ``next_cursor`` is None on the last one."""

    models: tuple[Model, ...] = ()
    next_cursor: str | None = None


@frozen(kw_only=True)
class Catalog(Sequence[Model]):
    """The models of one provider: a sequence of `Model` in the provider's order.

    Attributes:
        provider: name of the provider entry.
        models: the models.
        age: seconds since the provider was asked.
        stale: whether it is older than it should be, because nobody newer could be had.
    """

    provider: str
    models: tuple[Model, ...] = field(default=(), repr=size)
    age: float = 0.0
    stale: bool = False

    def __len__(self) -> int:
        return len(self.models)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        return self.models[index]
