"""The cache of vectors: which texts of a call need no request.

Vectors are stored under the model that answered, not the one that was requested: behind a name such as
"latest" the model may change, and the vectors of two models must not be mixed in one result. Which model answers
to a name is stored beside them. Of a text only a keyed hash is stored.

It awaits the cache store; there is no other I/O. Which model answers to a name is remembered in the model's state
(`ModelState.answering_models`), which all calls share. The wall clock is the one that is passed in. Many vectors are
encoded and decoded in a worker thread. Hits and misses are reported to the user's listener.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from llmopt.cache.freshness import FreshnessRules, is_fresh
from llmopt.cache.store import CacheItem, SafeStore, read_record, write_record
from llmopt.engine.telemetry import Telemetry
from llmopt.operations.cache_keys import StoreSizeReporter, TextKeys
from llmopt.operations.embed_batches import ModelState
from llmopt.policies.clock import Clock
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.events import CacheHit, CacheMiss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
_VECTOR: Final = b"LOV1"
_MODEL: Final = b"LOA1"
_DIMENSIONS: Final = struct.Struct("<I")
_DEFAULT_TTL_S: Final = 30 * 24 * 3600.0
_RULES: Final = FreshnessRules()
_MAX_ON_LOOP: Final = 64
"""Most vectors that are encoded or decoded on the event loop; more would delay all other calls."""


class EmbeddingCache:
    """The cached vectors of texts that are embedded with the same options.

    Args:
        store: holds them.
        keys: of these texts.
        provider: name of the provider entry.
        model: as requested.
        dimensions: length that the call asks for, None for the model's own.
        ttl_s: how long a vector is fresh; None for thirty days.
        state: of the model.
        clock: the time.
        telemetry: gets the events of hits and misses.
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
        ttl_s: float | None,
        state: ModelState,
        clock: Clock,
        telemetry: Telemetry,
        size_reporter: StoreSizeReporter,
    ) -> None:
        self._store: Final = store
        self._keys: Final = keys
        self._provider: Final = provider
        self._model: Final = model
        self._dimensions: Final = dimensions
        self._ttl_s: Final = _DEFAULT_TTL_S if ttl_s is None else ttl_s
        self._state: Final = state
        self._clock: Final = clock
        self._telemetry: Final = telemetry
        self._size_reporter: Final = size_reporter
        self._model_key: Final = keys.answering_model()

    async def read(self, texts: Sequence[str]) -> tuple[tuple[int, ...], EmbeddedRows] | None:
        """The cached vectors of distinct texts, with the positions of their texts; None if there are none."""
        cached = await self._read(texts)
        hits = 0 if cached is None else len(cached[0])
        provider, model, emit = self._provider, self._model, self._telemetry.emit
        if hits:
            emit(CacheHit, provider=provider, model=model, cache="embeddings", items=hits)
        if misses := len(texts) - hits:
            emit(CacheMiss, provider=provider, model=model, cache="embeddings", items=misses)
        return cached

    async def store(self, texts: Sequence[str], rows: EmbeddedRows) -> None:
        """Store the vectors of a response, which were checked, and a row for each of the distinct texts."""
        answering = rows.model or self._model
        if len(texts) <= _MAX_ON_LOOP:
            items = [*self._items(texts, rows.vectors, answering)]
        else:
            items = await asyncio.to_thread(lambda: [*self._items(texts, rows.vectors, answering)])
        known, written = self._state.answering_models.get(self._model_key, ("", 0.0))
        now = self._clock.wall()
        if known != answering or not written <= now < written + self._ttl_s * _RULES.jitter:
            # Written anew now and then, so that it does not expire before the vectors do.
            self._state.answering_models[self._model_key] = answering, now
            items.append(self._item(_MODEL, self._model_key, answering.encode(), b""))
        await self._store.put(items)
        await self._size_reporter.stored("embeddings")

    async def _read(self, texts: Sequence[str]) -> tuple[tuple[int, ...], EmbeddedRows] | None:
        model = await self._answering_model()
        if model is None:
            return None
        keys = self._keys.for_texts(model, texts)
        values = await self._store.get(keys)
        if len(keys) <= _MAX_ON_LOOP:
            return self._decode(model, keys, values)
        return await asyncio.to_thread(self._decode, model, keys, values)

    async def _answering_model(self) -> str | None:
        """The model that answers to the requested name, None if that is not known."""
        known = self._state.answering_models.get(self._model_key)
        if known is not None:
            return known[0]
        (data,) = await self._store.get([self._model_key])
        record = None if data is None else read_record(_MODEL, self._model_key, data)
        if record is None:
            return None
        # Its age does not matter: each vector under it has an age of its own.
        known = record.head.decode(errors="replace"), record.created
        return self._state.answering_models.setdefault(self._model_key, known)[0]

    def _decode(
        self, model: str, keys: Sequence[bytes], values: Sequence[bytes | None]
    ) -> tuple[tuple[int, ...], EmbeddedRows] | None:
        import numpy as np

        vectors: list[NDArray[np.float32]] = []
        positions: list[int] = []
        dimensions = self._dimensions or self._state.dimensions
        for position, (key, value) in enumerate(zip(keys, values, strict=True)):
            vector = None if value is None else self._vector(key, value, model.encode(), dimensions)
            if vector is not None:
                # Vectors of another length than the first cached one are of another model version.
                dimensions = dimensions or len(vector)
                vectors.append(vector)
                positions.append(position)
        if not vectors:
            return None
        return tuple(positions), EmbeddedRows(vectors=np.stack(vectors), model=model)

    def _vector(
        self, key: bytes, value: bytes, model: bytes, dimensions: int | None
    ) -> NDArray[np.float32] | None:
        import numpy as np

        record = read_record(_VECTOR, key, value)
        if record is None or record.head[_DIMENSIONS.size :] != model:
            return None
        if not is_fresh(record.created, self._ttl_s, key, self._clock.wall(), _RULES):
            return None
        (stored,) = _DIMENSIONS.unpack_from(record.head)
        # The store is a file that anybody may have changed: damage counts as a miss.
        if stored * 4 != len(record.body) or not stored or dimensions not in (None, stored):
            return None
        # A copy on big-endian machines only.
        return np.frombuffer(record.body, dtype="<f4").astype(np.float32, copy=False)

    def _items(self, texts: Sequence[str], vectors: NDArray[np.float32], model: str) -> Iterator[CacheItem]:
        import numpy as np

        # A fixed byte order, so that machines of both kinds can share a store.
        little_endian = np.ascontiguousarray(vectors, dtype="<f4")
        head = _DIMENSIONS.pack(little_endian.shape[1]) + model.encode()
        for key, row in zip(self._keys.for_texts(model, texts), little_endian, strict=True):
            yield self._item(_VECTOR, key, head, row.data.cast("B"))

    def _item(self, kind: bytes, key: bytes, head: bytes, body: bytes | memoryview) -> CacheItem:
        created = self._clock.wall()
        # The store may drop it then; until then `is_fresh` decides, which spreads the expiry by the jitter.
        expires_at = created + self._ttl_s * (1 + 2 * _RULES.jitter)
        value = write_record(kind, key, created, head, body)
        return CacheItem(key=key, group=f"embeddings/{self._provider}", value=value, expires_at=expires_at)
