"""What happens at the cache, as it happens; see `llmopt.values.events`."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import frozen

from llmopt.values.events import Event

CacheKind = Literal["catalog", "embeddings"]
"""What is kept."""


@frozen(kw_only=True)
class CacheEvent(Event):
    """The base of what happens at the cache.

    Attributes:
        cache: "catalog" for lists of models, "embeddings" for vectors.
        items: lists, or texts, that it concerns.
    """

    cache: CacheKind
    items: int = 1


@frozen(kw_only=True)
class CacheHit(CacheEvent):
    """Something was had from the cache. ``age`` is in seconds, 0.0 where several were had at once."""

    name: ClassVar[str] = "cache.hit"

    age: float = 0.0


@frozen(kw_only=True)
class CacheMiss(CacheEvent):
    """Something was not in the cache, or too old."""

    name: ClassVar[str] = "cache.miss"


@frozen(kw_only=True)
class CacheStale(CacheEvent):
    """Something older than it should be was given; ``cause`` is "refreshing", or the exception's name."""

    name: ClassVar[str] = "cache.stale"

    age: float
    cause: str


@frozen(kw_only=True)
class CacheRefresh(CacheEvent):
    """Something was asked for anew beside its callers.

    Attributes:
        outcome: "new", "unchanged" or the name of the exception.
        seconds: it took.
    """

    name: ClassVar[str] = "cache.refresh"

    outcome: str
    seconds: float


@frozen(kw_only=True)
class CacheSized(CacheEvent):
    """How much the cache holds: ``items`` entries of ``size`` bytes, of ``most`` that it may take."""

    name: ClassVar[str] = "cache.size"

    size: int
    most: int


@frozen(kw_only=True)
class CacheEviction(CacheEvent):
    """``items`` entries had to go for others since this was last told."""

    name: ClassVar[str] = "cache.eviction"


@frozen(kw_only=True)
class CatalogDiscover(Event):
    """A provider's list of models was got, or could not be.

    Attributes:
        outcome: "ok" or the name of the exception.
        source: "cache" or "provider".
        models: number of models.
        seconds: it took.
    """

    name: ClassVar[str] = "catalog.discover"

    outcome: str
    source: Literal["cache", "provider"]
    models: int = 0
    seconds: float = 0.0


@frozen(kw_only=True)
class CatalogBatch(Event):
    """The lists of ``providers`` providers were got, but for those of ``failures`` of them; ``seconds`` it took."""

    name: ClassVar[str] = "catalog.batch"

    providers: int
    failures: int
    seconds: float
