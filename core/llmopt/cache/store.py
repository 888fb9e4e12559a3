"""What every store is: bytes by key, kept for a while, never needed.

A store may forget anything at any time, and may fail: `llmopt.cache.store` turns its faults into
misses. It knows nothing of models and vectors; what the bytes mean, how old they are and whether they
are whole is for those who put them there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakSet
from zlib import crc32

from attrs import field, frozen

from llmopt.values.secret import repr_size


@frozen(kw_only=True)
class CacheItem:
    """Something to be kept.

    Attributes:
        key: 32 bytes that nobody else uses for anything else.
        group: what is let go together, such as "catalog/openai".
        value: the bytes.
        expires_at: seconds since 1970 after which it is of no use to anybody.
    """

    key: bytes = field(repr=bytes.hex)
    group: str
    value: bytes = field(repr=repr_size)
    expires_at: float


@frozen(kw_only=True)
class CacheSize:
    """How much a store holds.

    Attributes:
        entries: number of entries.
        bytes: what they take, as the store counts.
        max_bytes: bytes that it may take.
        evicted: how many entries had to go for others since this store was made.
        groups: for each group the number of its entries.
    """

    entries: int = 0
    bytes: int = 0
    max_bytes: int = 0
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


# Any store, made harmless: whatever goes wrong with it is a miss, said once, and never a call's failure.

T = TypeVar("T")
_log: Final = logging.getLogger("llmopt")
_PATIENCE_S: Final = 2.0
"""An answer that takes longer may as well be asked of the provider."""
_FAREWELL_S: Final = 10.0
"""What is still to be written is worth waiting for."""


class SafeStore:
    """A store that does not fail. Closed, it is empty for good: nothing opens again behind a client's back.

    Args:
        store: what it guards.
    """

    def __init__(self, store: CacheStore) -> None:
        self._store: Final = store
        self._told = False
        self._closed = False

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of these keys, None for what is not there or cannot be had."""
        nothing: Sequence[bytes | None] = ()
        found = await self._try(lambda: self._store.get(keys), nothing)
        if isinstance(found, Sequence) and len(found) == len(keys):
            return [value if isinstance(value, bytes) else None for value in found]
        return [None] * len(keys)

    async def put(self, items: Sequence[CacheItem]) -> None:
        """Keep these, if it can be done."""
        await self._try(lambda: self._store.put(items), None)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Let these go, if it can be done."""
        await self._try(lambda: self._store.remove(keys), None)

    async def clear(self, group: str | None = None) -> None:
        """Let a group go, or everything, if it can be done."""
        await self._try(lambda: self._store.clear(group), None)

    async def size(self) -> CacheSize:
        """How much there is, as far as can be told."""
        found = await self._try(self._store.size, CacheSize())
        return found if isinstance(found, CacheSize) else CacheSize()

    async def aclose(self) -> None:
        """See `CacheStore.aclose`."""
        if self._closed:
            return
        self._closed = True
        await self._try(self._store.aclose, None, patience=_FAREWELL_S)

    async def _try(
        self, act: Callable[[], Awaitable[T]], otherwise: T, *, patience: float = _PATIENCE_S
    ) -> T:
        if self._closed and act != self._store.aclose:
            return otherwise
        try:
            async with asyncio.timeout(patience):
                return await act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the call goes on without a cache
            self._tell(error)
            return otherwise

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            # The kind alone: the text of a foreign store's error may hold what it was given.
            _log.warning(
                "the cache %s failed (%s); calls go on without it.",
                type(self._store).__name__,
                type(error).__name__,
            )


# What must stand still while this process forks.


class ForkListener(Protocol):
    """Is told of a fork before and after it."""

    def before_fork(self) -> None:
        """Come to rest, and hold still."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew."""


_WATCHED: Final[WeakSet[ForkListener]] = WeakSet()
_RESTING: Final[list[ForkListener]] = []
"""Who was told of the fork that is under way: others may be made or collected meanwhile."""


def notify_on_fork(watched: ForkListener) -> None:
    """Have an object told of every fork as long as it lives."""
    _WATCHED.add(watched)


def _before() -> None:
    for each in list(_WATCHED):
        # Whatever goes wrong with one, the program must be able to fork.
        with suppress(Exception):
            each.before_fork()
            _RESTING.append(each)


def _in_parent() -> None:
    while _RESTING:
        _RESTING.pop().after_fork_in_parent()


def _in_child() -> None:
    while _RESTING:
        _RESTING.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


# What was used last is kept, up to so many bytes.

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_EACH: Final = 200
"""Bytes that an entry takes besides its value: without them a million empty ones would be free."""


class LRUCache(Generic[K, V]):
    """Values by key, the least recently used of which go first. Not for several threads at once.

    Args:
        most: bytes of all values together, with what keeping them takes.
        size: bytes of one value.

    Attributes:
        bytes: what is in use.
        evicted: how many had to go since the beginning.
    """

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._most: Final = most
        self._size: Final = size
        # With its size as it came: a value may change while it is kept.
        self._kept: Final[OrderedDict[K, tuple[V, int]]] = OrderedDict()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> Iterator[tuple[K, V]]:
        """All of it, what was used last at the end. Looking is not using."""
        return ((key, value) for key, (value, _) in self._kept.items())

    def get(self, key: K) -> V | None:
        """A value, used just now; None when it is not there."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V) -> int:
        """Keep a value, unless it alone is too large; how many others had to go for it."""
        self.remove(key)
        size = self._size(value) + _EACH
        if size > self._most:
            return 0
        self._kept[key] = value, size
        self.bytes += size
        gone = 0
        while self.bytes > self._most:
            _, (_, oldest) = self._kept.popitem(last=False)
            self.bytes -= oldest
            gone += 1
        self.evicted += gone
        return gone

    def remove(self, key: K) -> V | None:
        """Let a value go; what it was, None when it was not there."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self.bytes -= found[1]
        return found[0]

    def clear(self) -> None:
        """Let all go."""
        self._kept.clear()
        self.bytes = 0


# A store in this process's memory.

MOST_BYTES: Final = 64 << 20


class MemoryStore:
    """Keeps what was used last. It belongs to one process and ends with it.

    Args:
        max_bytes: what it may take, all in all.
    """

    def __init__(self, max_bytes: int = MOST_BYTES) -> None:
        self._most: Final = max_bytes
        self._kept: Final = LRUCache[bytes, CacheItem](max_bytes, _size)
        self._lock = threading.Lock()
        notify_on_fork(self)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        return self.get_nowait(keys)

    def get_nowait(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same at once."""
        with self._lock:
            found = map(self._kept.get, keys)
            return [None if item is None else item.value for item in found]

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`."""
        self.put_nowait(items)

    def put_nowait(self, items: Sequence[CacheItem]) -> None:
        """The same at once."""
        with self._lock:
            for item in items:
                self._kept.put(item.key, item)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        with self._lock:
            for key in keys:
                self._kept.remove(key)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        with self._lock:
            gone = [key for key, item in self._kept.items() if group in (None, item.group)]
            for key in gone:
                self._kept.remove(key)

    async def size(self) -> CacheSize:
        """See `CacheStore.size`."""
        with self._lock:
            return CacheSize(
                entries=len(self._kept),
                bytes=self._kept.bytes,
                max_bytes=self._most,
                evicted=self._kept.evicted,
                groups=Counter(item.group for _, item in self._kept.items()),
            )

    async def aclose(self) -> None:
        """Nothing is open."""

    def before_fork(self) -> None:
        """Nobody may be in the middle of something."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on, with what the parent had."""
        self._lock = threading.Lock()


def _size(item: CacheItem) -> int:
    return len(item.value)


# A store in memory above another one.


class LayeredStore:
    """What was used last is had from memory, all else from below.

    Use of what memory has is not written down below: there it may be let go for others, and is in memory.

    Args:
        memory: the upper one.
        below: the lower one.
    """

    def __init__(self, memory: MemoryStore, below: CacheStore) -> None:
        self._memory: Final = memory
        self._below: Final = below

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        found = self._memory.get_nowait(keys)
        missed = [at for at, value in enumerate(found) if value is None]
        if not missed:
            return found
        values = await self._below.get([keys[at] for at in missed])
        lifted = []
        for at, value in zip(missed, values, strict=True):
            found[at] = value
            if value is not None:
                lifted.append(CacheItem(key=keys[at], group="", value=value, expires_at=math.inf))
        self._memory.put_nowait(lifted)
        return found

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`."""
        self._memory.put_nowait(items)
        await self._below.put(items)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        await self._memory.remove(keys)
        await self._below.remove(keys)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        # Of what came from below the group is not known.
        await self._memory.clear()
        await self._below.clear(group)

    async def size(self) -> CacheSize:
        """How much there is below, which is what counts."""
        return await self._below.size()

    async def aclose(self) -> None:
        """See `CacheStore.aclose`."""
        await self._below.aclose()


# How a value is written: what it is, when it was made, its parts, and a checksum over all of it.
#
# ::
#
#     4 bytes   what it is, such as b"LOV1"
#     8 bytes   when it was made: seconds since 1970, float64, little-endian
#     4 bytes   length of the head, uint32, little-endian
#     head      text in UTF-8 or JSON
#     body      the rest
#     4 bytes   CRC32 of the key and of everything before, uint32, little-endian
#
# Nothing is ever executed or imported to read it (pickle is how caches became a way into a process:
# CVE-2025-69872). The key is in the checksum, so that a value moved to another key is no value.

_HEAD: Final = struct.Struct("<4sdI")
_CHECK: Final = struct.Struct("<I")


@frozen(kw_only=True)
class Record:
    """A value that was read and is whole.

    Attributes:
        created: when it was made, in seconds since 1970.
        head: its first part.
        body: its second part, not copied.
    """

    created: float
    head: bytes
    body: memoryview = field(repr=repr_size)


def write_record(kind: bytes, key: bytes, created: float, head: bytes, body: bytes | memoryview) -> bytes:
    """The bytes of a value.

    Args:
        kind: four bytes.
        key: what it is going to be kept under.
        created: when it was made.
        head: its first part.
        body: its second part.
    """
    start = _HEAD.pack(kind, created, len(head)) + head
    # Bodies may be megabytes, which are copied once.
    return b"".join((start, body, _CHECK.pack(crc32(body, crc32(start, crc32(key))))))


def read_record(kind: bytes, key: bytes, data: bytes) -> Record | None:
    """The value that bytes stand for; None when they are of another kind, cut, changed or another key's."""
    try:
        found, created, length = _HEAD.unpack_from(data)
        end = len(data) - _CHECK.size
        (check,) = _CHECK.unpack_from(data, end)
    except (struct.error, TypeError):
        return None
    start = _HEAD.size + length
    view = memoryview(data)
    if found != kind or start > end or crc32(view[:end], crc32(key)) != check:
        return None
    # A date that is none (NaN) is smaller than nothing and larger than nothing.
    if not 0 <= created < 1e12:
        return None
    return Record(created=created, head=bytes(view[_HEAD.size : start]), body=view[start:end])
