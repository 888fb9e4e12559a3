"""Batches: which texts go into one request, and the limits by items, tokens and bytes that decide it.

A limit comes from the plugin, the server, the configuration and from what earlier requests taught; the smallest
number holds, but the configuration counts more than a guess of the plugin.

I/O is in two places, both awaited: `fetch_server_limits` sends a request through the endpoint's transport and calls
the plugin's hooks for it, and `ModelState` loads and saves the learned limits in the cache store. All calls with a
model share its `ModelState` and the limits that the server stated, which the endpoint keeps as long as the client
lives; neither has a lock. An asyncio lock for each event loop keeps a server from being asked twice at once. The wall
clock is passed in.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Final, Literal

from attrs import evolve, field, frozen

from llmopt.cache.store import SafeStore
from llmopt.engine.endpoint import LiveEndpoint
from llmopt.errors import LLMOptError
from llmopt.operations.batch_size import AdaptiveBatchSize
from llmopt.operations.learned_rates import LearnedRates, SavedRecord
from llmopt.operations.token_estimate import TokenCounter, TokenEstimator
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.tasks import PerLoop
from llmopt.providers.hooks import ProviderHooks
from llmopt.transport.request import TransportRequest
from llmopt.values.calls import BATCH_NUMBERS, BatchLimit, EmbedCall
from llmopt.values.http import HttpResponse
from llmopt.values.secret import repr_size

_OVERHEAD_BYTES: Final = 512
"""Of a request's body, besides the texts."""
_PER_TEXT_BYTES: Final = 3  # two quotes and a comma
_MAX_BYTES_PER_TOKEN: Final = 256
"""No tokenizer in use is known to put more into one token: the longest tokens are runs of some 128 spaces."""
_UNLIMITED: Final = 1 << 62


@frozen(kw_only=True)
class Batch:
    """Texts that are sent in one request.

    Attributes:
        start: position of the first text among all texts of the call.
        texts: the texts.
        tokens: estimate of their tokens.
    """

    start: int
    texts: tuple[str, ...] = field(repr=repr_size)
    tokens: int = 0


class Batcher:
    """Takes texts one by one, and returns a batch whenever the next text does not fit into it.

    Args:
        limit: called for each batch, because the limit may change during a call.
        estimate: tokens of a text.
        total: tokens of several texts, where that is faster than the sum of their estimates.
    """

    def __init__(
        self,
        limit: Callable[[], BatchLimit],
        estimate: Callable[[str], int],
        total: Callable[[Sequence[str]], int] | None = None,
    ) -> None:
        self._limit: Final = limit
        self._estimate: Final = estimate
        self._total: Final = total
        self._start = 0
        self._texts: list[str] = []

    def add(self, text: str) -> Batch | None:
        """Take a text; the batch that is full, if one is."""
        tokens = self._estimate(text)
        size = body_bytes(text)
        full = None
        if not self._texts:
            self._begin()
        elif self._tokens + tokens > self._max_tokens or self._bytes + size > self._max_bytes:
            full = self.flush()
            self._begin()
        self._texts.append(text)
        self._tokens += tokens
        self._bytes += size
        if full is None and len(self._texts) >= self._max_items:
            return self.flush()
        return full

    def take(self, texts: Sequence[str], start: int) -> Batch | None:
        """The batch that `add` would give for the texts from ``start`` on, if a look at all of them at once decides it.

        None when they exceed the limit in tokens or bytes, are not ASCII, or when texts were added before.
        """
        if self._texts:
            return None
        self._begin()
        chosen = tuple(texts[start : start + self._max_items])
        if not all(map(str.isascii, chosen)):
            return None
        tokens = sum(map(self._estimate, chosen)) if self._total is None else self._total(chosen)
        size = sum(map(len, chosen)) + _PER_TEXT_BYTES * len(chosen)
        if tokens > self._max_tokens or size > self._max_bytes:
            return None
        batch = Batch(start=self._start, texts=chosen, tokens=tokens)
        self._start += len(chosen)
        return batch

    def skip(self) -> None:
        """Leave out the position of a text that is not sent. Only when no text was added since `flush`."""
        self._start += 1

    def flush(self) -> Batch | None:
        """The batch of the texts added since the last one, None if there are none."""
        if not self._texts:
            return None
        batch = Batch(start=self._start, texts=tuple(self._texts), tokens=self._tokens)
        self._start += len(self._texts)
        self._texts = []
        return batch

    def _begin(self) -> None:
        limit = self._limit()
        self._max_items = limit.max_items or _UNLIMITED
        self._max_tokens = limit.max_tokens or _UNLIMITED
        self._max_bytes = (limit.max_bytes or _UNLIMITED) - _OVERHEAD_BYTES
        self._tokens = 0
        self._bytes = 0


def make_batches(texts: Sequence[str], batcher: Batcher) -> Iterator[Batch]:
    """All texts in batches. Each batch is made when it is asked for, by the limit of that moment."""
    at = 0
    while at < len(texts):
        batch = batcher.take(texts, at)
        if batch is None:
            batch = batcher.add(texts[at])
            at += 1
        else:
            at += len(batch.texts)
        if batch is not None:
            yield batch
    if (batch := batcher.flush()) is not None:
        yield batch


def body_bytes(text: str) -> int:
    """Bytes of a text in a JSON body, without escapes."""
    return (len(text) if text.isascii() else len(text.encode())) + _PER_TEXT_BYTES


def any_may_be_too_long(texts: Sequence[str], limit: BatchLimit) -> bool:
    """Whether one of the texts might be `certainly_too_long`. Only the longest is looked at."""
    # UTF-8 has at most four bytes for a character.
    max_size = 4 * max(map(len, texts)) + _PER_TEXT_BYTES
    if limit.max_bytes is not None and max_size + _OVERHEAD_BYTES > limit.max_bytes:
        return True
    return limit.max_item_tokens is not None and max_size > limit.max_item_tokens * _MAX_BYTES_PER_TOKEN


def certainly_too_long(text: str, limit: BatchLimit) -> bool:
    """Whether a text exceeds the limits by any tokenizer, so that a request for it is useless."""
    size = body_bytes(text)
    if limit.max_bytes is not None and size + _OVERHEAD_BYTES > limit.max_bytes:
        return True
    # A server that truncates accepts a text of any length.
    if limit.max_item_tokens is None or limit.truncates:
        return False
    return size > limit.max_item_tokens * _MAX_BYTES_PER_TOKEN


# Limits that earlier requests taught.

_MAX_ITEMS: Final = 4_096
_MAX_TOKENS: Final = 10_000_000
_SAFE_SHARE: Final = 0.95
"""Of a stated limit in tokens that is used: the provider's count and our estimate differ a little."""


@frozen(kw_only=True)
class LimitChange:
    """A limit that was learned.

    Attributes:
        limit: its name in `BatchLimit`.
        value: its new value.
        source: "server" if the server reported it when asked, "stated" if an error stated it, "observed" if it was
            inferred from a failure.
    """

    limit: str
    value: int
    source: Literal["server", "stated", "observed"]


class AdaptiveBatchLimit:
    """The sizes of batches in items and tokens for one model, adapted to what succeeds and what is refused.

    Args:
        limit: the declared limit, which is never exceeded.
        wall: the calendar's clock.
        state: what `state` returned in an earlier process, None for nothing.

    Attributes:
        changes: grows with everything that is learned and worth saving.
    """

    def __init__(
        self, limit: BatchLimit, *, wall: Callable[[], float], state: Mapping[str, Any] | None
    ) -> None:
        saved = state or {}
        self._items: Final = AdaptiveBatchSize(
            limit.max_items or _MAX_ITEMS, wall=wall, state=_mapping(saved.get("items"))
        )
        self._tokens: Final = AdaptiveBatchSize(
            limit.max_tokens or _MAX_TOKENS, wall=wall, state=_mapping(saved.get("tokens"))
        )
        self.changes = 0
        self._applied: tuple[BatchLimit, int, BatchLimit] | None = None

    def apply(self, limit: BatchLimit) -> BatchLimit:
        """A declared limit, lowered to the learned sizes."""
        # The last result is kept: this is called for every request, and next to never changes.
        applied = self._applied
        if applied is None or applied[0] is not limit or applied[1] != self.changes:
            lowered = evolve(
                limit,
                max_items=min(limit.max_items or _MAX_ITEMS, self._items.size),
                max_tokens=min(limit.max_tokens or _MAX_TOKENS, self._tokens.size),
            )
            self._applied = applied = (limit, self.changes, lowered)
        return applied[2]

    def succeeded(self, items: int, tokens: int) -> None:
        """A request of that size succeeded."""
        self._items.succeeded(items)
        self._tokens.succeeded(tokens)
        # Written out: this is called for every request.
        self.changes = self._items.changes + self._tokens.changes

    def refused(self, items: int, tokens: int, stated: BatchLimit | None) -> LimitChange | None:
        """A request of that size was too large; the limit that this taught, None if it taught nothing.

        Args:
            items: number of its texts.
            tokens: estimate of their tokens.
            stated: the limit that the provider states, which is used at once; None if it states none.
        """
        # A stated number of tokens says that the number of texts was not the problem.
        if stated is not None and stated.max_tokens is not None:
            changed = self._tokens.too_large(tokens, stated=max(1, int(stated.max_tokens * _SAFE_SHARE)))
            change = LimitChange(limit="max_tokens", value=self._tokens.size, source="stated")
        else:
            max_items = None if stated is None else stated.max_items
            changed = self._items.too_large(items, stated=max_items)
            source: Literal["stated", "observed"] = "stated" if self._items.size == max_items else "observed"
            change = LimitChange(limit="max_items", value=self._items.size, source=source)
        self._count_changes()
        return change if changed else None

    def timed_out(self, items: int) -> LimitChange | None:
        """A request of that size timed out; the new limit if the next batches are smaller for it."""
        smaller = self._items.timed_out(items)
        self._count_changes()
        if not smaller:
            return None
        return LimitChange(limit="max_items", value=self._items.size, source="observed")

    def state(self) -> dict[str, Any]:
        """What was learned, as plain values."""
        return {"items": self._items.state(), "tokens": self._tokens.state()}

    def _count_changes(self) -> None:
        self.changes = self._items.changes + self._tokens.changes


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


# Limits that the server reports, where the plugin knows how to ask for them.
#
# Asked once for each endpoint and model, before the first batch, with one attempt and without rate limiter, circuit
# breaker and retries: the limits are useful, not necessary. If the request fails, the call goes on with the plugin's
# `batch_limit`; only after a failure that may be transient does the next call ask again.

_MAX_LIMITS_S: Final = 10.0
"""Most seconds of that request: a call should not wait longer for something that it can do without."""
_MAX_LIMITS_BYTES: Final = 4 << 20
_TRANSIENT: Final = (408, 425, 429)
_NO_LIMIT: Final = BatchLimit()


def merge_limits(first: BatchLimit, second: BatchLimit) -> BatchLimit:
    """The smaller of each number. Long texts are truncated by the server if either of the two says so."""
    if second == _NO_LIMIT:
        return first
    smaller = {name: _smaller(getattr(first, name), getattr(second, name)) for name in BATCH_NUMBERS}
    # A number is a guess if nobody's word is as low.
    guesses = {
        name
        for name in (*first.guesses, *second.guesses)
        if all(name in each.guesses or getattr(each, name) != smaller[name] for each in (first, second))
    }
    return BatchLimit(
        **smaller, truncates=first.truncates or second.truncates, guesses=tuple(sorted(guesses))
    )


def limit_items(limit: BatchLimit, maximum: int | None) -> BatchLimit:
    """A limit with the user's maximum number of texts, which counts more than a guess; None for no maximum."""
    if maximum is None:
        return limit
    declared = None if "max_items" in limit.guesses else limit.max_items
    guesses = tuple(name for name in limit.guesses if name != "max_items")
    return evolve(limit, max_items=min(maximum, declared or maximum), guesses=guesses)


def known_limits(limit: BatchLimit) -> list[tuple[str, int]]:
    """The limits that are not None, by name."""
    values = ((name, getattr(limit, name)) for name in BATCH_NUMBERS)
    return [(name, value) for name, value in values if value is not None]


def _smaller(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return first or second
    return min(first, second)


async def fetch_server_limits(
    endpoints: Iterable[LiveEndpoint], hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> BatchLimit:
    """The limits that the endpoints report, merged: a batch may be sent to any of them.

    Args:
        endpoints: of one provider.
        hooks: of its plugin.
        call: the options of the call, without texts.
        deadline: of the whole call.
    """
    endpoints = tuple(endpoints)
    unknown = [endpoint for endpoint in endpoints if call.model not in endpoint.server_limits]
    if unknown:
        await asyncio.gather(*(_fetch_once(endpoint, hooks, call, deadline) for endpoint in unknown))
    return reduce(merge_limits, (endpoint.server_limits.get(call.model, _NO_LIMIT) for endpoint in endpoints))


async def _fetch_once(
    endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> None:
    # A lock belongs to one event loop, and a client may be used in several, one after the other.
    key = (call.model, asyncio.get_running_loop())
    async with endpoint.limit_locks.setdefault(key, asyncio.Lock()):
        if call.model in endpoint.server_limits:
            return
        limits = await _fetch(endpoint, hooks, call, deadline)
        if limits is not None:
            endpoint.server_limits[call.model] = limits
            endpoint.limit_locks.pop(key, None)


async def _fetch(
    endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> BatchLimit | None:
    """The limits of one endpoint; empty if it reports none, None if it may report them later."""
    try:
        request = await _limits_request(endpoint, hooks, call)
        if request is None:
            return _NO_LIMIT
        response = await _send(endpoint, request, deadline)
        if 200 <= response.status < 300:
            return hooks.parse_limits(call, response, endpoint.settings_without_credential)
    except LLMOptError as error:
        return None if error.retryable else _NO_LIMIT
    # 404 and 405 mean that the server has no such page: it is not asked again.
    return None if response.status in _TRANSIENT or response.status >= 500 else _NO_LIMIT


async def _limits_request(
    endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall
) -> TransportRequest | None:
    # Built without a credential first: most plugins have no such request, and a token provider should be called
    # for requests only.
    if hooks.limits_request(call, endpoint.settings_without_credential) is None:
        return None
    settings = await endpoint.settings()
    request = hooks.limits_request(call, settings)
    return None if request is None else endpoint.encode_request(request, settings)


async def _send(endpoint: LiveEndpoint, request: TransportRequest, deadline: Deadline) -> HttpResponse:
    timeouts = endpoint.config.timeouts
    request.connect_timeout = deadline.clamp(timeouts.connect)
    request.pool_timeout = deadline.clamp(timeouts.pool)
    request.timeout = deadline.clamp(min(timeouts.catalog, _MAX_LIMITS_S))
    request.max_body = _MAX_LIMITS_BYTES
    return await endpoint.send(request)


# What a client knows about a model.

OptionsKey = tuple[int | None, str | None, bytes]
"""The options of a call that change its vectors: dimensions, input type, everything else as JSON."""
_SAVED_TTL_S: Final = 30 * 24 * 3600.0


class ModelState:
    """What the calls of a client learned about one model of one provider.

    Batch sizes are also saved in a cache store, so that the next process starts with them.

    Args:
        provider: name of the provider entry.
        name: the provider, its endpoints and the model, which tells the saved state from that of others.
        store: opens the store, None where nothing is saved.
        clock: the time.
        rates: what was learned of the rate limits.
        token_counter: counts the tokens of a text, None to estimate them.

    Attributes:
        rates: as given.
        estimator: tokens of a text, counted, or estimated and corrected by the usage that responses report.
        dimensions: length of the model's own vectors, None before the first response.
        answering_models: which model answers, and when that was stored, by its key in the cache.
        declared_limits: limits that plugin, server and configuration declare, by the options of the call.
        adaptive_limit: the learned batch sizes, None before `load`.
    """

    def __init__(
        self,
        provider: str,
        name: str,
        store: Callable[[], SafeStore | None],
        clock: Clock,
        rates: LearnedRates,
        token_counter: TokenCounter | None = None,
    ) -> None:
        self.rates: Final = rates
        self._group: Final = f"limits/{provider}"
        self._key: Final = hashlib.sha256(b"llmopt batch limits\0" + name.encode()).digest()
        self._store: Final = store
        self._clock: Final = clock
        self._saved_changes = 0
        self._first_read: Final = PerLoop(lambda: asyncio.get_running_loop().create_task(self._read()))
        self.estimator: Final = TokenEstimator(token_counter)
        self.dimensions: int | None = None
        self.answering_models: Final[dict[bytes, tuple[str, float]]] = {}
        self.declared_limits: Final[dict[OptionsKey, BatchLimit]] = {}
        self.adaptive_limit: AdaptiveBatchLimit | None = None

    async def load(self, declared: BatchLimit) -> AdaptiveBatchLimit:
        """The learned batch sizes, of this process and of those before it."""
        if self.adaptive_limit is None:
            # Thousands of calls may be the first at once: they share one read, and go on in the same turn of the
            # loop, so that equal texts among them still share one request.
            saved = await asyncio.shield(self._first_read.current())
            # A call on another event loop may have been faster.
            if self.adaptive_limit is None:
                self.adaptive_limit = AdaptiveBatchLimit(declared, wall=self._clock.wall, state=saved)
        return self.adaptive_limit

    @property
    def unsaved(self) -> bool:
        """Whether something was learned since the last `save`."""
        return self.adaptive_limit is not None and self.adaptive_limit.changes != self._saved_changes

    async def save(self) -> None:
        """Save the learned batch sizes. Of two processes the later one wins."""
        record, limit = self._record(), self.adaptive_limit
        if record is None or limit is None:
            return
        # Before the first await: what is learned during the write must count as unsaved.
        self._saved_changes = limit.changes
        await record.write(limit.state())

    async def _read(self) -> Mapping[str, Any]:
        record = self._record()
        return {} if record is None else await record.read()

    def _record(self) -> SavedRecord | None:
        store = self._store()
        if store is None:
            return None
        return SavedRecord(store, self._key, self._group, _SAVED_TTL_S, self._clock.wall)
