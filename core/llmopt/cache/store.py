"""Cache stores: the `CacheStore` protocol, the store in memory, and a wrapper that protects stores.

A store keeps bytes by key. It may forget any of them, and may delete those past their ``expires_at``; the store in
memory reads no clock and evicts the least recently used. A store knows nothing of models and vectors: the operations
decide what the bytes mean, how old they may be, and check that they are intact (`read_record`).

No file is touched here; `llmopt.cache.disk` has the store on disk. `MemoryStore` has a lock, because clients in
several threads may share it; `LRUCache` has none. A module-level set holds the objects that `notify_on_fork` calls
around a fork. `SafeStore` awaits the store that it wraps, which may be the user's, for 2 seconds at most (10 for
closing), and logs the first fault.
"""

from __future__ import annotations

import asyncio
import math
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakSet
from zlib import crc32

from attrs import field, frozen

from llmopt._platform import register_at_fork
from llmopt.log import CACHE, WARNING
from llmopt.values.redaction import place_of
from llmopt.values.secret import repr_size

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")
MAX_MEMORY_BYTES: Final = 64 << 20
_NOT_OF_STORES: Final = (__file__, str(Path(asyncio.__file__).parent))
# A slower answer is no gain: the provider itself could have been asked by then.
_TIMEOUT_S: Final = 2.0
# Closing writes what is still buffered, which is worth a longer wait.
_CLOSE_TIMEOUT_S: Final = 10.0
# Estimated memory of an entry besides its value. Without it a million empty values would count as nothing.
_ENTRY_OVERHEAD_BYTES: Final = 200


@frozen(kw_only=True)
class CacheItem:
    """One entry to store.

    Attributes:
        key: 32 bytes, unique to what the value stands for.
        group: entries that are cleared together, such as "catalog/openai".
        value: the bytes.
        expires_at: seconds since 1970; a store may delete the entry after that.
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
        bytes: space in use, as the store counts it.
        max_bytes: space that the store may use.
        evicted: entries deleted to make room for others since this store was made.
        groups: number of entries by group.
    """

    entries: int = 0
    bytes: int = 0
    max_bytes: int = 0
    evicted: int = 0
    groups: Mapping[str, int] = field(factory=dict)


class CacheStore(Protocol):
    """A store of bytes by key. Any object with these methods can be given to a client as ``cache=``.

    A store may forget entries at any time, and may raise: the client then goes on without a cache.
    """

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, in order; None for a key that is not stored."""

    async def put(self, items: Sequence[CacheItem]) -> None:
        """Store entries, replacing those with the same keys. Writing them later, or never, is allowed."""

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Delete entries by key."""

    async def clear(self, group: str | None = None) -> None:
        """Delete all entries of a group, or all entries."""

    async def size(self) -> CacheSize:
        """Return how much is stored."""

    async def aclose(self) -> None:
        """Write what is buffered and release files and connections. The store may be used again later."""


class MemoryStore:
    """A store in this process's memory; the least recently used entries are evicted first.

    It may be used from several threads.

    Args:
        max_bytes: limit of all entries together.
    """

    def __init__(self, max_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._max_bytes: Final = max_bytes
        self._entries: Final = LRUCache[bytes, CacheItem](max_bytes, lambda item: len(item.value))
        self._lock = threading.Lock()
        # In a child that is forked while a thread holds the lock, nobody would ever release it.
        notify_on_fork(self)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        return self.get_nowait(keys)

    def get_nowait(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Like `get`, without a coroutine."""
        with self._lock:
            return [None if item is None else item.value for item in map(self._entries.get, keys)]

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`."""
        self.put_nowait(items)

    def put_nowait(self, items: Iterable[CacheItem]) -> None:
        """Like `put`, without a coroutine."""
        with self._lock:
            for item in items:
                self._entries.put(item.key, item)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        with self._lock:
            for key in keys:
                self._entries.remove(key)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        with self._lock:
            for key in [key for key, item in self._entries.items() if group in (None, item.group)]:
                self._entries.remove(key)

    async def size(self) -> CacheSize:
        """See `CacheStore.size`."""
        with self._lock:
            return CacheSize(
                entries=len(self._entries),
                bytes=self._entries.bytes,
                max_bytes=self._max_bytes,
                evicted=self._entries.evicted,
                groups=Counter(item.group for _, item in self._entries.items()),
            )

    async def aclose(self) -> None:
        """Do nothing: no resource is open, and the entries stay for other clients."""

    def before_fork(self) -> None:
        """Take the lock, so that no thread is in the middle of a change when memory is copied."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Release the lock."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on with the parent's entries and a new lock: the thread that would release the old one is gone."""
        self._lock = threading.Lock()


class SafeStore:
    """A store that never raises and never hangs: a fault of the wrapped store is a miss, logged once.

    Once closed it stays empty, so that no call of a closed client opens the store again.

    A hit in ``memory`` does not count as a use in the store. An entry may be evicted there while it is in use here,
    which costs nothing as long as this process lives.

    Args:
        store: the store to wrap.
        memory: what is asked before the store, and keeps what was found there.
    """

    def __init__(self, store: CacheStore, memory: MemoryStore | None = None) -> None:
        self._store: Final = store
        self._memory: Final = memory
        self._logged = False
        self._closed = False

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where it is not stored or cannot be read."""
        if self._memory is None or self._closed:
            return await self._get(keys)
        values = self._memory.get_nowait(keys)
        misses = [index for index, value in enumerate(values) if value is None]
        if misses:
            for index, value in zip(misses, await self._get([keys[index] for index in misses]), strict=True):
                values[index] = value
            # The protocol returns values alone: neither group nor expiry of an entry is known here.
            self._memory.put_nowait(
                CacheItem(key=keys[index], group="", value=value, expires_at=math.inf)
                for index in misses
                if (value := values[index]) is not None
            )
        return values

    async def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        none: Sequence[bytes | None] = ()
        values = await self._try(lambda: self._store.get(keys), none)
        # A store of the user's own may return anything; a shifted list would mix up the values of keys.
        if isinstance(values, Sequence) and len(values) == len(keys):
            return [value if isinstance(value, bytes) else None for value in values]
        return [None] * len(keys)

    async def put(self, items: Sequence[CacheItem]) -> None:
        """Store entries if possible."""
        if self._memory is not None:
            # First: another call finds the entries at once, however slow the store is.
            self._memory.put_nowait(items)
        await self._try(lambda: self._store.put(items), None)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Delete entries if possible."""
        if self._memory is not None:
            await self._memory.remove(keys)
        await self._try(lambda: self._store.remove(keys), None)

    async def clear(self, group: str | None = None) -> None:
        """Delete a group, or all entries, if possible."""
        if self._memory is not None:
            # All of it, because entries that were found in the store have lost their group.
            await self._memory.clear()
        await self._try(lambda: self._store.clear(group), None)

    async def size(self) -> CacheSize:
        """Return how much is stored, without what is in memory only; zeros where the store cannot tell."""
        result = await self._try(self._store.size, CacheSize())
        return result if isinstance(result, CacheSize) else CacheSize()

    async def aclose(self) -> None:
        """See `CacheStore.aclose`. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            await self._try(self._store.aclose, None, closing=True)

    async def _try(self, operation: Callable[[], Awaitable[T]], default: T, *, closing: bool = False) -> T:
        if self._closed and not closing:
            return default
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S if closing else _TIMEOUT_S):
                return await operation()
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the call goes on without a cache
            self._log_once(error)
            return default

    def _log_once(self, error: Exception) -> None:
        if not self._logged:
            self._logged = True
            # Type and place alone: the message of a store's error may quote keys or values.
            store, cause = type(self._store).__name__, type(error).__name__
            place = place_of(error, _NOT_OF_STORES)
            message = f"the cache store {store} failed with {cause}{place}; calls continue without the cache."
            CACHE.write(WARNING, "cache.failed", message, {"store": store, "cause": cause})


class LRUCache(Generic[K, V]):
    """A mapping bounded by bytes that evicts the least recently used values first. Not thread-safe.

    Args:
        max_bytes: limit of all values together, each counted with an overhead of 200 bytes.
        size_of: returns the bytes of one value.

    Attributes:
        bytes: bytes in use.
        evicted: values evicted since the beginning.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._max_bytes: Final = max_bytes
        self._size_of: Final = size_of
        # With the size at the time of `put`: a value may change while it is stored.
        self._entries: Final[OrderedDict[K, tuple[V, int]]] = OrderedDict()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[K, V]]:
        """All keys and values, the most recently used last. Iterating does not count as use."""
        return ((key, value) for key, (value, _) in self._entries.items())

    def get(self, key: K) -> V | None:
        """Return a value and mark it as used; None when it is not there."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V) -> None:
        """Store a value, unless it alone exceeds the limit."""
        # Before the check of the size: a value that is too large must not leave the old one behind.
        self.remove(key)
        size = self._size_of(value) + _ENTRY_OVERHEAD_BYTES
        # It would evict all others and then itself.
        if size > self._max_bytes:
            return
        self._entries[key] = value, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, oldest_size) = self._entries.popitem(last=False)
            self.bytes -= oldest_size
            self.evicted += 1

    def remove(self, key: K) -> V | None:
        """Remove and return a value; None when it is not there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.bytes -= entry[1]
        return entry[0]


# The format of a stored value:
#
#     4 bytes   kind, such as b"LOV1"
#     8 bytes   time of creation: seconds since 1970, float64, little-endian
#     4 bytes   length of the head, uint32, little-endian
#     head      UTF-8 text or JSON
#     body      the rest
#     4 bytes   CRC32 of the key and of everything before, uint32, little-endian
#
# Reading it never executes or imports anything: caches of pickles let an attacker who can write to the
# cache run code (CVE-2025-69872, diskcache). The key is part of the checksum, so that a value that was moved to
# another key is not accepted.

_HEADER: Final = struct.Struct("<4sdI")
_CHECKSUM: Final = struct.Struct("<I")


@frozen(kw_only=True)
class Record:
    """A stored value that was read and is intact.

    Attributes:
        created: time of creation, in seconds since 1970.
        head: the first part.
        body: the second part, a view of the stored bytes.
    """

    created: float
    head: bytes
    body: memoryview = field(repr=repr_size)


def write_record(kind: bytes, key: bytes, created: float, head: bytes, body: bytes | memoryview) -> bytes:
    """Return the bytes to store for a value.

    Args:
        kind: four bytes that say what the value is.
        key: the key it will be stored under.
        created: time of creation, in seconds since 1970.
        head: the first part.
        body: the second part.
    """
    start = _HEADER.pack(kind, created, len(head)) + head
    # One join: a body may be megabytes and is copied once only.
    return b"".join((start, body, _CHECKSUM.pack(crc32(body, crc32(start, crc32(key))))))


def read_record(kind: bytes, key: bytes, data: bytes) -> Record | None:
    """Parse stored bytes; None when they are of another kind or key, truncated or changed."""
    try:
        stored_kind, created, head_length = _HEADER.unpack_from(data)
        end = len(data) - _CHECKSUM.size
        (checksum,) = _CHECKSUM.unpack_from(data, end)
    except (struct.error, TypeError):
        return None
    start = _HEADER.size + head_length
    # A view: slicing bytes would copy a value of megabytes for the checksum.
    view = memoryview(data)
    if stored_kind != kind or start > end or crc32(view[:end], crc32(key)) != checksum:
        return None
    # Written so that NaN, which compares as neither smaller nor larger, is rejected too.
    if not 0 <= created < 1e12:
        return None
    return Record(created=created, head=bytes(view[_HEADER.size : start]), body=view[start:end])


class ForkListener(Protocol):
    """An object that must not be in the middle of a change when the process forks."""

    def before_fork(self) -> None:
        """Take locks and release what must not be open during a fork."""

    def after_fork_in_parent(self) -> None:
        """Undo `before_fork`."""

    def after_fork_in_child(self) -> None:
        """Replace what belongs to the parent, such as locks and threads."""


# `os.register_at_fork` cannot be undone, so the module registers once and holds its listeners weakly.
_listeners: Final[WeakSet[ForkListener]] = WeakSet()
# The listeners of the fork in progress: others may be made or collected before it ends.
_prepared: Final[list[ForkListener]] = []


def notify_on_fork(listener: ForkListener) -> None:
    """Call an object's methods around every fork, as long as the object lives."""
    _listeners.add(listener)


def _before_fork() -> None:
    for listener in list(_listeners):
        # An exception here would only be printed; one listener's fault must not keep the others from preparing.
        with suppress(Exception):
            listener.before_fork()
            _prepared.append(listener)


def _after_fork_in_parent() -> None:
    while _prepared:
        _prepared.pop().after_fork_in_parent()


def _after_fork_in_child() -> None:
    while _prepared:
        _prepared.pop().after_fork_in_child()


register_at_fork(_after_fork_in_child, before=_before_fork, after_in_parent=_after_fork_in_parent)
