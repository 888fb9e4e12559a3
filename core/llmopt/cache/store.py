"""What every store is: bytes by key, kept for a while, never needed.

A store may forget anything at any time, and may fail: `llmopt.cache.guarded` turns its faults into
misses. It knows nothing of models and vectors; what the bytes mean, how old they are and whether they
are whole is for those who put them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from llmopt.values.shown import size


@frozen(kw_only=True)
class CacheItem:
    """Something to be kept.

    Attributes:
        key: 32 bytes that nobody else uses for anything else.
        group: what is let go together, such as "catalog/openai".
        value: the bytes.
        until: seconds since 1970 after which it is of no use to anybody.
    """

    key: bytes = field(repr=bytes.hex)
    group: str
    value: bytes = field(repr=size)
    until: float


@frozen(kw_only=True)
class CacheSize:
    """How much a store holds.

    Attributes:
        entries: number of entries.
        bytes: what they take, as the store counts.
        most: bytes that it may take.
        evicted: how many entries had to go for others since this store was made.
        groups: for each group the number of its entries.
    """

    entries: int = 0
    bytes: int = 0
    most: int = 0
    evicted: int = 0
    groups: Mapping[str, int] = field(factory=dict)


class CacheStore(Protocol):
    """Keeps bytes. Any object with these methods can be given to a client as ``cache=``."""

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of these keys in order, None for what is not there."""
        ...

    async def put(self, items: Sequence[CacheItem]) -> None:
        """Keep these, in the place of what was there. It may happen later, or not at all."""
        ...

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Let these go."""
        ...

    async def clear(self, group: str | None = None) -> None:
        """Let a group go, or everything."""
        ...

    async def size(self) -> CacheSize:
        """How much there is."""
        ...

    async def aclose(self) -> None:
        """Write what is still to be written, and let everything open go. It may be used again later."""
        ...
