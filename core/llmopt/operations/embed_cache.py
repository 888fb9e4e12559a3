"""Vectors that were paid for, kept by text. Of a text nothing is kept but a hash that nobody can turn back.

Vectors stand under the model that answered, not the one that was asked for: behind a name such as "latest" the
model may change, and vectors of two models do not belong into one result. Which model answers to a
name is kept beside them.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from llmopt.cache.freshness import FreshnessRules, is_fresh
from llmopt.cache.store import CacheItem, SafeStore, read_record, write_record
from llmopt.engine.telemetry import Telemetry
from llmopt.operations.cache_keys import StoreSizeReporter, TextKeys
from llmopt.operations.embed_batches import ModelState
from llmopt.operations.embed_recovery import Recovered, Work
from llmopt.policies.clock import Clock
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.events import CacheHit, CacheMiss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
_VECTOR: Final = b"LOV1"
_ANSWERING: Final = b"LOA1"
_DIMENSIONS: Final = struct.Struct("<I")
_MONTH_S: Final = 30 * 24 * 3600.0
_RULES: Final = FreshnessRules()
_FEW: Final = 64
"""So many vectors are read or written on the event loop; more would hold up everybody else."""


@frozen(kw_only=True, eq=False)
class CachedVectors:
    """Vectors that were kept.

    Attributes:
        at: for each row the position of its text.
        vectors: float32, shape (len(at), dimensions).
        model: the model that gave them.
    """

    at: tuple[int, ...] = ()
    vectors: NDArray[np.float32] | None = field(default=None, repr=False)
    model: str = ""

    def __bool__(self) -> bool:
        return bool(self.at)


NO_CACHED_VECTORS: Final = CachedVectors()


class EmbeddingCache:
    """The vectors of texts that are embedded in one way.

    Args:
        store: where they are kept.
        keys: of these texts.
        provider: name of the provider entry.
        model: as it is asked for.
        dimensions: length that the call asks for, None for the model's own.
        seconds: for which a vector is good; None for thirty days.
        memory: of the model.
        clock: the time.
        telemetry: told of hits and misses.
        size_reporter: reports the size of the store after something was stored.
    """

    def __init__(
        self,
        store: SafeStore,
        keys: TextKeys,
        *,
        provider: str,
        model: str,
        dimensions: int | None,
        seconds: float | None,
        memory: ModelState,
        clock: Clock,
        telemetry: Telemetry,
        size_reporter: StoreSizeReporter,
    ) -> None:
        self._store: Final = store
        self._keys: Final = keys
        self._provider: Final = provider
        self._model: Final = model
        self._dimensions: Final = dimensions
        self._seconds: Final = _MONTH_S if seconds is None else seconds
        self._memory: Final = memory
        self._clock: Final = clock
        self._telemetry: Final = telemetry
        self._size_reporter: Final = size_reporter
        self._pointer: Final = keys.answering_model()

    async def recall(self, texts: Sequence[str]) -> CachedVectors:
        """The vectors there are of distinct texts."""
        found = await self._recalled(texts)
        if self._telemetry.enabled:
            self._tell(len(found.at), len(texts))
        return found

    async def _recalled(self, texts: Sequence[str]) -> CachedVectors:
        model = await self._answering()
        if model is None:
            return CachedVectors()
        keys = self._keys.for_texts(model, texts)
        values = await self._store.get(keys)
        if len(keys) <= _FEW:
            return self._read(model, keys, values)
        return await asyncio.to_thread(self._read, model, keys, values)

    async def _answering(self) -> str | None:
        """The model that answers to the name that is asked for, None when that is not known."""
        known = self._memory.answering.get(self._pointer)
        if known is not None:
            return known[0]
        (data,) = await self._store.get([self._pointer])
        record = None if data is None else read_record(_ANSWERING, self._pointer, data)
        if record is None:
            return None
        # It does not run out: whether what is found under it is good is told by that itself.
        found = record.head.decode(errors="replace"), record.created
        return self._memory.answering.setdefault(self._pointer, found)[0]

    def _good(self, created: float, key: bytes) -> bool:
        return is_fresh(created, self._seconds, key, self._clock.wall(), _RULES)

    def _read(self, model: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> CachedVectors:
        import numpy as np

        rows: list[NDArray[np.float32]] = []
        at: list[int] = []
        length = self._dimensions or self._memory.length
        for place, (key, value) in enumerate(zip(keys, values, strict=True)):
            vector = None if value is None else self._vector(key, value, model.encode(), length)
            if vector is not None:
                length = length or len(vector)
                rows.append(vector)
                at.append(place)
        return CachedVectors(at=tuple(at), vectors=np.stack(rows) if rows else None, model=model)

    def _vector(
        self, key: bytes, value: bytes, model: bytes, length: int | None
    ) -> NDArray[np.float32] | None:
        import numpy as np

        record = read_record(_VECTOR, key, value)
        if record is None or record.head[_DIMENSIONS.size :] != model or not self._good(record.created, key):
            return None
        (dimensions,) = _DIMENSIONS.unpack_from(record.head)
        if dimensions * 4 != len(record.body) or not dimensions or length not in (None, dimensions):
            return None
        return np.frombuffer(record.body, dtype="<f4").astype(np.float32, copy=False)

    async def keep(self, texts: Sequence[str], vectors: NDArray[np.float32], model: str | None) -> None:
        """Keep the vectors of distinct texts. They were checked.

        Args:
            texts: the texts.
            vectors: float32, a row for each.
            model: that answered, None where the answer does not say.
        """
        answering = model or self._model
        if len(texts) <= _FEW:
            items = [*self._items(texts, vectors, answering)]
        else:
            items = await asyncio.to_thread(lambda: [*self._items(texts, vectors, answering)])
        known, written = self._memory.answering.get(self._pointer, ("", 0.0))
        now = self._clock.wall()
        if known != answering or not written <= now < written + self._seconds * _RULES.jitter:
            # Now and then again, so that it does not go before the vectors do.
            self._memory.answering[self._pointer] = answering, now
            items.append(self._item(_ANSWERING, self._pointer, answering.encode(), b""))
        await self._store.put(items)
        await self._size_reporter.stored("embeddings")

    def _items(self, texts: Sequence[str], vectors: NDArray[np.float32], model: str) -> Iterator[CacheItem]:
        import numpy as np

        plain = np.ascontiguousarray(vectors, dtype="<f4")
        head = _DIMENSIONS.pack(plain.shape[1]) + model.encode()
        for key, row in zip(self._keys.for_texts(model, texts), plain, strict=True):
            yield self._item(_VECTOR, key, head, row.data.cast("B"))

    def _item(self, kind: bytes, key: bytes, head: bytes, body: bytes | memoryview) -> CacheItem:
        created = self._clock.wall()
        expires_at = created + self._seconds * (1 + 2 * _RULES.jitter)
        value = write_record(kind, key, created, head, body)
        return CacheItem(key=key, group=f"embeddings/{self._provider}", value=value, expires_at=expires_at)

    def _tell(self, hits: int, texts: int) -> None:
        if hits:
            self._telemetry.emit(
                CacheHit(provider=self._provider, model=self._model, cache="embeddings", items=hits)
            )
        if hits < texts:
            self._telemetry.emit(
                CacheMiss(provider=self._provider, model=self._model, cache="embeddings", items=texts - hits)
            )


# A batch of texts, some of which were embedded before: those are not sent.


def same_model(recalled: CachedVectors, vectors: NDArray[np.float32], model: str | None, asked: str) -> bool:
    """Whether vectors that were kept and vectors that just came are of one model.

    Args:
        recalled: what was kept.
        vectors: what came, shape (n, dimensions).
        model: that answered, None where it does not say.
        asked: the model that was asked for.
    """
    assert recalled.vectors is not None  # noqa: S101 - whoever calls has looked
    return recalled.model == (model or asked) and recalled.vectors.shape[1] == vectors.shape[1]


async def embed_through_cache(
    cache: EmbeddingCache, texts: Sequence[str], work: Work, asked: str
) -> Recovered:
    """What can be had of distinct texts, from the cache where it can.

    Args:
        cache: of these texts.
        texts: the texts.
        work: embeds texts.
        asked: the model that is asked for.
    """
    recalled = await cache.recall(texts)
    if not recalled:
        return await work(tuple(texts))
    known = set(recalled.at)
    missed = [at for at in range(len(texts)) if at not in known]
    found = await _of(missed, texts, work) if missed else Recovered()
    strange = [rows for _, rows in found.rows if not same_model(recalled, rows.vectors, rows.model, asked)]
    if strange:
        # Another model answers to the name by now.
        found.add(await _of(recalled.at, texts, work))
    elif recalled.vectors is not None:
        rows = EmbeddedRows(vectors=recalled.vectors, model=recalled.model)
        found.add(Recovered(rows=[(recalled.at, rows)]))
    return found


async def _of(places: Sequence[int], texts: Sequence[str], work: Work) -> Recovered:
    recovered = await work(tuple(texts[at] for at in places))
    return recovered.moved(dict(enumerate(places)))
