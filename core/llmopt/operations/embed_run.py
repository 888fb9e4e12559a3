"""One embedding call: what all its batches have in common, and how one batch is carried out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec
from attrs import evolve

from llmopt.engine.engine import Engine
from llmopt.engine.request import Request
from llmopt.engine.responses import may_be_item_error
from llmopt.errors import ClientClosed, DeadlineExceeded, ItemTooLong, LLMOptError, RequestTooLarge
from llmopt.operations.embed_batches import (
    AdaptiveBatchLimit,
    Batch,
    Batcher,
    Kind,
    LimitChange,
    ModelState,
    any_may_be_too_long,
    certainly_too_long,
    fetch_server_limits,
    known_limits,
    merge_limits,
)
from llmopt.operations.embed_cache import (
    NO_CACHED_VECTORS,
    CachedVectors,
    EmbeddingCache,
    embed_through_cache,
)
from llmopt.operations.embed_recovery import BatchSplitter, Coalescer, Part, Recovered, Recovery, SearchBudget
from llmopt.operations.embed_results import Outcome, assemble, in_input_order, whole
from llmopt.policies.adaptive_rate import BURST_S
from llmopt.policies.clock import Deadline
from llmopt.providers.registry import Provider
from llmopt.values.calls import BatchLimit, EmbedCall, Settings
from llmopt.values.embeddings import EmbeddedRows, Usage
from llmopt.values.events import BatchSplit
from llmopt.values.http import Failure, HttpResponse

_ANSWER_BYTES_PER_NUMBER: Final = 24
_UNKNOWN_DIMENSIONS: Final = 4_096
_SLACK_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 512 << 20
_MOST_KINDS: Final = 64
_NOTHING: Final = BatchLimit()


class EmbedRun:
    """One call of ``embed`` or ``embed_iter``: what its batches have in common.

    Args:
        engine: sends the requests.
        provider: whom to ask.
        call: the call's options, without texts.
        memory: what earlier calls learned of the model.
        deadline: of the whole call.
        wait_when_open: whether to wait while the provider is given a rest.
        cache: gives what is kept of the texts, None where nothing is.
    """

    def __init__(
        self,
        engine: Engine,
        provider: Provider,
        call: EmbedCall,
        *,
        memory: ModelState,
        deadline: Deadline,
        wait_when_open: bool = False,
        cache: Callable[[], Awaitable[EmbeddingCache | None]] | None = None,
    ) -> None:
        self._open_cache: Final = cache
        self._cache: EmbeddingCache | None = None
        self._engine: Final = engine
        self._provider: Final = provider
        self._call: Final = call
        self._memory: Final = memory
        self._estimator: Final = memory.estimator
        self._deadline: Final = deadline
        self._wait_when_open: Final = wait_when_open
        self._endpoint: Final = engine.endpoints(provider)[0]
        self._extra: SearchBudget | None = None
        self._kind: Final = _kind(call)
        self._shared: Final = self._sharing()
        self._declared = _NOTHING
        self._fatal: LLMOptError | None = None
        self.model: Final = call.model

    def _sharing(self) -> Coalescer | None:
        if not self._endpoint.config.flags.coalesce:
            return None
        key = (self._provider.name, self._call.model, *self._kind)
        return Coalescer(self._engine.singleflight, key, self._deadline)

    @property
    def dimensions(self) -> int | None:
        """Length of a vector, as asked for or as first seen; None before either."""
        return self._call.dimensions or self._memory.length

    @property
    def width(self) -> int:
        """Requests under way at once."""
        return sum(endpoint.config.max_concurrency for endpoint in self._engine.endpoints(self._provider))

    @property
    def keeps(self) -> bool:
        """Whether something may be kept of its texts."""
        return self._open_cache is not None

    async def recall(self, texts: Sequence[str]) -> CachedVectors:
        """What is kept of distinct texts. Before the first batch."""
        if self._open_cache is None:
            return NO_CACHED_VECTORS
        if self._engine.closed:
            raise ClientClosed("the client is closed; make a new one.", provider=self._provider.name)
        self._cache = await self._open_cache()
        return NO_CACHED_VECTORS if self._cache is None else await self._cache.recall(texts)

    async def ask_limits(self) -> None:
        """Ask the server for its limits, where it can be asked and was not yet. Before the first batch."""
        known = self._memory.declared.get(self._kind)
        if known is not None:
            self._declared = known
            return
        endpoints = self._engine.endpoints(self._provider)
        unasked = [endpoint for endpoint in endpoints if self.model not in endpoint.server_limits]
        told = await fetch_server_limits(endpoints, self._provider.hooks, self._call, self._deadline)
        for endpoint in unasked:
            for name, value in known_limits(endpoint.server_limits.get(self.model, _NOTHING)):
                self._engine.telemetry.limit_learned(
                    self._provider.name, self.model, endpoint.name, name, value, "server"
                )
        self._declared = self._declare(told)
        if all(self.model in endpoint.server_limits for endpoint in endpoints):
            if len(self._memory.declared) >= _MOST_KINDS:
                self._memory.declared.clear()
            # The first one stays, so that whoever compares limits sees by identity that they are the same.
            self._declared = self._memory.declared.setdefault(self._kind, self._declared)

    def limit(self) -> BatchLimit:
        """What fits into one request now."""
        sizes = self._sizes()
        return self._declared if sizes is None else sizes.apply(self._declared)

    def _declare(self, told: BatchLimit) -> BatchLimit:
        """The limit by plugin, server and configuration, the same for the whole call."""
        limit = merge_limits(
            self._provider.hooks.batch_limit(self._call, self._endpoint.settings_without_credential), told
        )
        config = self._endpoint.config
        configured = config.max_batch_size if config.flags.batching else 1
        limit = self._within_a_burst(limit)
        if configured is None:
            return limit
        return evolve(limit, max_items=min(configured, limit.max_items or configured))

    def _within_a_burst(self, limit: BatchLimit) -> BatchLimit:
        """A batch of no more tokens than are let through at once: a larger one would wait for others to save up."""
        rates = [
            endpoint.config.tpm_for(self.model)
            for endpoint in self._engine.endpoints(self._provider)
            if endpoint.config.flags.limiter
        ]
        least = min((rate for rate in rates if rate is not None), default=None)
        if least is None:
            return limit
        burst = max(1, int(least / 60 * BURST_S[1]))
        return evolve(limit, max_tokens=min(burst, limit.max_tokens or burst))

    def _sizes(self) -> AdaptiveBatchLimit | None:
        config = self._endpoint.config
        if config.in_process or not config.flags.adaptive_batches:
            return None
        return self._memory.sizes(self._declared)

    def cutter(self) -> Batcher:
        """Cuts texts into batches by the limit of the moment."""
        return Batcher(self.limit, self._estimator.estimate)

    async def run(self, batch: Batch, *, recall: bool = False) -> Outcome:
        """Embed one batch. Errors of the provider are in the outcome, never raised.

        Args:
            batch: the batch.
            recall: whether its texts are looked for in the cache, and were not yet.
        """
        limit = self.limit()
        hopeless: dict[int, LLMOptError] = {}
        slots: dict[str, list[int]] = {}
        texts = batch.texts
        distinct = len(set(texts)) == len(texts) and not any_may_be_too_long(texts, limit)
        if not distinct:
            for row, text in enumerate(texts):
                if certainly_too_long(text, limit):
                    hopeless[row] = self._too_long(text, limit)
                else:
                    slots.setdefault(text, []).append(row)
            if not slots:
                return Outcome(batch=batch, errors=hopeless)
            texts = tuple(slots)
        if recall and self._cache is not None:
            recovered = await embed_through_cache(self._cache, texts, self._recovered, self.model)
        else:
            shared = self._shared
            recovered = await (self._work(texts) if shared is None else shared.run(texts, self._work))
        self._note_fatal(recovered, len(texts))
        if distinct and (outcome := whole(batch, recovered)) is not None:
            return outcome
        rows = [[row] for row in range(len(texts))] if distinct else list(slots.values())
        return assemble(batch, rows, recovered, hopeless)

    async def _recovered(self, texts: tuple[str, ...]) -> Recovered:
        if self._shared is not None:
            return await self._shared.run(texts, self._work)
        return await self._work(texts)

    async def _work(self, texts: tuple[str, ...]) -> Recovered:
        try:
            rows = await self._request(texts)
        except LLMOptError as error:
            return await self._recovery(texts).run(len(texts), error)
        return Recovered(rows=[(tuple(range(len(texts))), rows)], requests=1)

    def _recovery(self, texts: tuple[str, ...]) -> Recovery:
        def send(part: Part) -> Awaitable[EmbeddedRows]:
            return self._request(tuple(texts[at] for at in part), suspect=True)

        cuts = BatchSplitter(texts, self._estimator.estimate, self.limit, self._sizes(), self._learned)
        self._extra = self._extra or SearchBudget()
        return Recovery(send, cuts, self._extra, self._split)

    def _split(self, items: int, error: LLMOptError) -> None:
        telemetry = self._engine.telemetry
        if telemetry.enabled:
            name, cause = self._provider.name, type(error).__name__
            telemetry.emit(BatchSplit(provider=name, model=self.model, items=items, cause=cause))

    def _learned(self, found: LimitChange) -> None:
        self._engine.telemetry.limit_learned(
            self._provider.name, self.model, "", found.limit, found.value, found.source
        )

    def _note_fatal(self, recovered: Recovered, count: int) -> None:
        """After a batch of which nothing came through for a cause that will not pass, no other is sent."""
        if self._fatal is not None or len(recovered.errors) < count:
            return
        first = next(iter(recovered.errors.values()))
        if not _passes(first):
            self._fatal = first

    def _too_long(self, text: str, limit: BatchLimit) -> ItemTooLong:
        most = f"{limit.max_item_tokens} tokens" if limit.max_item_tokens else f"{limit.max_bytes} bytes"
        return ItemTooLong(
            f"the text has {len(text)} characters, far more than the {most} that {self._call.model!r} takes; "
            "shorten it, or cut it into several texts.",
            provider=self._provider.name,
            model=self._call.model,
        )

    async def _request(self, texts: tuple[str, ...], *, suspect: bool = False) -> EmbeddedRows:
        if self._fatal is not None:
            raise self._fatal.copy()
        asked = self._call
        # Not evolve, which costs five times as much.
        call = EmbedCall(
            model=asked.model,
            texts=texts,
            dimensions=asked.dimensions,
            input_type=asked.input_type,
            extra=asked.extra,
        )
        tokens = self._estimator.total(texts)
        rows = await self._engine.run(
            self._provider,
            Request(
                call=call,
                parse=partial(self._parse, call),
                deadline=self._deadline,
                max_body=self._max_body(len(texts)),
                items=len(texts),
                tokens=tokens,
                fill=self._fill(len(texts)),
                wait_when_open=self._wait_when_open,
                suspect=suspect,
                usage_of=_usage_of,
            ),
        )
        self._learn(rows, len(texts), tokens)
        if self._cache is not None:
            await self._cache.keep(texts, rows.vectors, rows.model)
        return rows

    def _parse(self, call: EmbedCall, response: HttpResponse, settings: Settings) -> EmbeddedRows | Failure:
        found = self._provider.hooks.parse_embeddings(call, response, settings)
        if isinstance(found, Failure):
            return found
        ordered = in_input_order(found, len(call.texts), self.dimensions)
        if ordered is found.vectors:
            return found
        return EmbeddedRows(vectors=ordered, usage=found.usage, model=found.model)

    def _learn(self, rows: EmbeddedRows, items: int, tokens: int) -> None:
        if self._call.dimensions is None:
            self._memory.length = int(rows.vectors.shape[1])
        if rows.usage is not None:
            self._estimator.learn(tokens, rows.usage.prompt_tokens)
        sizes = self._sizes()
        if sizes is not None:
            sizes.clean(items, tokens)

    def _fill(self, items: int) -> float:
        """How much of a full batch so many texts are."""
        full = max(1, (self.limit().max_items or items) - 1)
        return min(1.0, (items - 1) / full)

    def _max_body(self, items: int) -> int:
        dimensions = self.dimensions or _UNKNOWN_DIMENSIONS
        size = _ANSWER_BYTES_PER_NUMBER * items * dimensions + _SLACK_BYTES
        return min(size, _MOST_BYTES)


def _kind(call: EmbedCall) -> Kind:
    if not call.extra:
        return call.dimensions, call.input_type, b""
    return call.dimensions, call.input_type, msgspec.json.encode(dict(call.extra), order="sorted")


def _usage_of(rows: EmbeddedRows) -> Usage | None:
    return rows.usage


def _passes(error: LLMOptError) -> bool:
    """Whether the next batch may fare better: what passes by itself, and what may be a text's fault."""
    return (
        error.retryable or may_be_item_error(error) or isinstance(error, (RequestTooLarge, DeadlineExceeded))
    )
