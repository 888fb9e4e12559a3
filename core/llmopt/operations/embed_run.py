"""One call of ``embed`` or ``embed_iter``: builds and sends the request for each batch.

A batch passes, in this order: texts that are certainly too long are set aside; texts that another call is embedding
are waited for (`SharedCall`); the others are sent through the engine; what fails is recovered (`embed_recovery`); what
was learned is saved.

Network access goes through the engine, but for the request for the server's limits, which goes to the endpoint's
transport; learned limits and cached vectors go through the cache store. All are awaited. Requests run in tasks of the
event loop. Calls share the state of the model, the limits that an endpoint's server stated, and the requests for equal
texts on one event loop, without a lock. The plugin's hooks `batch_limit` and `parse_embeddings` run here, and those for
the server's limits; large responses are parsed in a worker thread. Splits and learned limits are reported to the user's
listener. Deadlines and pauses before retries use the engine's clock, and waits for the store and for another call's
texts the event loop's; a pause takes from the endpoint's retry budget, which all calls share. An asyncio lock of the
call, in `embed_recovery`, lets one of its batches at a time be searched first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial, reduce
from operator import attrgetter
from typing import Final

import msgspec
from attrs import evolve

from llmopt import errors
from llmopt.engine.attempt import CallScope
from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.engine import Engine
from llmopt.engine.pipeline import LaneAttempt
from llmopt.engine.request import Request
from llmopt.engine.responses import SLOW, may_be_item_error
from llmopt.engine.singleflight import Finish, Group, SharedCall
from llmopt.engine.telemetry import CANCELLED
from llmopt.operations.cache_keys import headers_of_result
from llmopt.operations.embed_batches import (
    AdaptiveBatchLimit,
    Batcher,
    LimitChange,
    ModelState,
    OptionsKey,
    any_may_be_too_long,
    certainly_too_long,
    fetch_server_limits,
    known_limits,
    limit_items,
    merge_limits,
)
from llmopt.operations.embed_cache import EmbeddingCache
from llmopt.operations.embed_recovery import BatchSplitter, CallRecovery, Step, is_too_large
from llmopt.operations.embed_results import BatchResult, in_input_order
from llmopt.policies import retry
from llmopt.policies.adaptive_rate import BURST_S
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.tasks import gather_first_error
from llmopt.providers.registry import Provider
from llmopt.values.calls import BatchLimit, EmbedCall, Priority, Settings
from llmopt.values.embeddings import EmbeddedRows, Usage
from llmopt.values.events import BatchSplit, LimitLearned
from llmopt.values.http import Failure, HttpResponse
from llmopt.values.secret import HiddenBytes

_RESPONSE_BYTES_PER_NUMBER: Final = 24
"""The longest way to write a number in JSON, and a comma."""
_ASSUMED_DIMENSIONS: Final = 4_096
"""Before the first response."""
_RESPONSE_OVERHEAD_BYTES: Final = 1 << 20
_MAX_RESPONSE_BYTES: Final = 512 << 20
_MAX_OPTIONS: Final = 64
"""Combinations of options per model whose limits are remembered; a program may have one for each of its users."""
_NO_LIMIT: Final = BatchLimit()
_Pairs = list[tuple[int, int]]
"""The position of a text in this call, and its position in the call that embeds it."""
_SEARCH_LEVEL: Final = retry.RetryDecision(delay=0.0, reason="timeout")
_usage_of: Final[Callable[[EmbeddedRows], Usage | None]] = attrgetter("usage")


class EmbedRun(CallScope):
    """One call, with what its requests have in common.

    Args:
        engine: sends the requests.
        provider: the provider entry.
        call: the options of the call, without texts.
        state: what earlier calls learned about the model.
        deadline: of the whole call.
        wait_when_open: whether to wait while the provider's circuit is open.
        priority: which of the calls that wait are sent first.
        cache: opens the cache of the texts' vectors, which may be off all the same; None if it is off for the client.

    Attributes:
        may_cache: whether the client caches vectors.
        limits_known: whether `fetch_limits` is not necessary any more.
        answered: whether a request of the call succeeded.
        fatal: the error of a whole batch that no other batch of the call can avoid, None for none so far.
    """

    def __init__(
        self,
        engine: Engine,
        provider: Provider,
        call: EmbedCall,
        *,
        state: ModelState,
        deadline: Deadline,
        wait_when_open: bool = False,
        priority: Priority = "interactive",
        cache: Callable[[], Awaitable[EmbeddingCache | None]] | None = None,
    ) -> None:
        config = engine.endpoints(provider)[0].config
        self._config: Final = config
        super().__init__(engine.telemetry, "embeddings", call.model, config)
        self._engine: Final = engine
        self._provider: Final = provider
        self._call: Final = call
        self._state: Final = state
        self._estimator: Final = state.estimator
        self._deadline: Final = deadline
        self._wait_when_open: Final = wait_when_open
        self._priority: Final[Priority] = priority
        self._open_cache: Final = cache
        self._cache: EmbeddingCache | None = None
        self._max_retries: Final = config.max_retries if config.flags.retry else 0
        self._options: Final = _options_key(call)
        self._key: Final = (provider.name, call.model, *self._options)
        # Made at the first failure: most calls never need it.
        self._recovery: CallRecovery | None = None
        self._batches = 0
        self._queued = False
        self.answered = False
        self.fatal: errors.LLMOptError | None = None
        self._adaptive: AdaptiveBatchLimit | None = None
        self._declared = _NO_LIMIT
        self.may_cache: Final = cache is not None
        limit = state.declared_limits.get(self._options)
        self.limits_known = limit is not None
        if limit is not None:
            self._declared = limit
            self._adaptive = state.adaptive_limit

    @property
    def dimensions(self) -> int | None:
        """Length of a vector, as requested or as in the first response; None before that."""
        if self._options[2]:
            # A key or header of the provider's own may set the length.
            return self._call.dimensions
        return self._call.dimensions or self._state.dimensions

    @property
    def clock(self) -> Clock:
        """The client's clock."""
        return self._engine.clock

    @property
    def max_concurrency(self) -> int:
        """Maximum number of concurrent requests."""
        return sum(endpoint.config.max_concurrency for endpoint in self._engine.endpoints(self._provider))

    async def open_cache(self) -> None:
        """Open the cache. Without it nothing is read from the cache and nothing stored in it."""
        if self._open_cache is None:
            return
        # Before a cache store is opened, which a closed client would not close any more.
        self._engine.check_open(self._provider)
        self._cache = await self._open_cache()

    async def read_cache(self, texts: Sequence[str]) -> tuple[tuple[int, ...], EmbeddedRows] | None:
        """As `EmbeddingCache.read`; None if nothing is cached, or the cache is off."""
        return None if self._cache is None else await self._cache.read(texts)

    async def fetch_limits(self) -> None:
        """Learn the limits of a request, by asking the server where that is possible. Before the first batch."""
        self._engine.check_open(self._provider)
        self._state.rates.restore_soon(self._call)
        endpoints = self._engine.endpoints(self._provider)
        # Looked up before the request, so that a limit is reported once and not at each call.
        unknown = [endpoint for endpoint in endpoints if self.model not in endpoint.server_limits]
        reported = await fetch_server_limits(endpoints, self._provider.hooks, self._call, self._deadline)
        for endpoint in unknown:
            for name, value in known_limits(endpoint.server_limits.get(self.model, _NO_LIMIT)):
                self._report_limit(LimitChange(limit=name, value=value, source="server"), endpoint.name)
        limit = self._merged_limit(reported)
        # An endpoint that could not be asked now is asked by the next call, so nothing is remembered.
        if all(self.model in endpoint.server_limits for endpoint in endpoints):
            remembered = self._state.declared_limits
            if len(remembered) >= _MAX_OPTIONS:
                remembered.clear()
            # The first one stays: limits are compared by identity.
            limit = remembered.setdefault(self._options, limit)
        if self._config.flags.adaptive_batches and not self._config.in_process:
            # After the deadline the call goes on without: its first request raises `DeadlineExceeded`.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._deadline.remaining() if self._deadline.bounded else None):
                    self._adaptive = await self._state.load(limit)
        self._declared = limit
        self.limits_known = True

    def _merged_limit(self, reported: BatchLimit) -> BatchLimit:
        """The limit that plugin, server and configuration declare."""
        declared = (self._declared_by(endpoint) for endpoint in self._engine.endpoints(self._provider))
        # A batch may be sent to any of the endpoints.
        return self._within_burst(reduce(merge_limits, declared, reported))

    def _declared_by(self, endpoint: LiveEndpoint) -> BatchLimit:
        settings = endpoint.settings_without_credential
        maximum = endpoint.config.max_batch_size if endpoint.config.flags.batching else 1
        return limit_items(self._provider.hooks.batch_limit(self._call, settings), maximum)

    def _within_burst(self, limit: BatchLimit) -> BatchLimit:
        # A batch of more than the rate limiter grants at once would wait until that is saved up, and the requests of
        # other calls with it.
        limited = [each for each in self._engine.endpoints(self._provider) if each.config.flags.limiter]
        tpm = [rate for each in limited if (rate := each.config.tpm.get(self.model)) is not None]
        if tpm:
            burst = max(1, int(min(tpm) / 60 * BURST_S[1]))
            limit = evolve(limit, max_tokens=min(burst, limit.max_tokens or burst))
        items = [each for endpoint in limited if (each := self._max_items(endpoint)) is not None]
        return evolve(limit, max_items=min(*items, limit.max_items or items[0])) if items else limit

    def _max_items(self, endpoint: LiveEndpoint) -> int | None:
        """How many texts the limit of requests allows in one burst, where each of them counts as a request."""
        rpm = endpoint.config.rpm.get(self.model)
        if rpm is None or not self._provider.hooks.counts_cost:
            return None
        one, two = (
            self._provider.hooks.request_cost(
                evolve(self._call, texts=("text",) * count), endpoint.settings_without_credential
            ).requests
            for count in (1, 2)
        )
        return max(1, int(rpm / 60 * BURST_S[1] / (two - one))) if two > one else None

    def limit(self) -> BatchLimit:
        """What fits into one request now."""
        return self._declared if self._adaptive is None else self._adaptive.apply(self._declared)

    def batcher(self) -> Batcher:
        """Makes batches of texts by the limit of the moment."""
        return Batcher(self.limit, self._estimator.estimate, self._estimator.total)

    async def send(self, texts: tuple[str, ...]) -> BatchResult:
        """Embed one batch of distinct texts. Errors of the provider are in the result, never raised."""
        self._batches += 1
        too_long: dict[int, errors.LLMOptError] = {}
        sent = texts
        # A provider would refuse the whole batch for one such text.
        if any_may_be_too_long(texts, self._declared):
            too_long = self._too_long(texts)
            sent = tuple(text for at, text in enumerate(texts) if at not in too_long)
            if not sent:
                return BatchResult(errors=too_long)
        result = await (self._share(sent) if self._config.flags.coalesce else self._embed(sent))
        if result.errors:
            self._note_fatal(result, len(sent))
        if too_long:
            positions = (at for at in range(len(texts)) if at not in too_long)
            result = result.moved(dict(enumerate(positions)))
            result.errors.update(too_long)
        return result

    def _too_long(self, texts: tuple[str, ...]) -> dict[int, errors.LLMOptError]:
        limit = self._declared
        maximum = f"{limit.max_item_tokens} tokens" if limit.max_item_tokens else f"{limit.max_bytes} bytes"
        return {
            at: errors.ItemTooLong(
                f"the text has {len(text)} characters, far more than the {maximum} that {self.model!r} takes; "
                "shorten it, or cut it into several texts.",
                provider=self._provider.name,
                model=self.model,
            )
            for at, text in enumerate(texts)
            if certainly_too_long(text, limit)
        }

    def _note_fatal(self, result: BatchResult, count: int) -> None:
        """If a whole batch failed for a permanent cause, such as a wrong key, no other batch of this call is sent."""
        # A batch that failed in part shows that the key and the model are right.
        if self.fatal is not None or len(result.errors) < count:
            return
        error = next(iter(result.errors.values()))
        if not _next_batch_may_succeed(error):
            self.fatal = error

    # Each text is sent once when several calls with the same options need its vector at the same time.

    async def _share(self, texts: tuple[str, ...]) -> BatchResult:
        """Embed distinct texts, but for those that another call is embedding."""
        group = self._engine.singleflight.group(self._key)
        # One set operation in C decides the usual case, in which no text is shared.
        if not group.keys().isdisjoint(texts):
            return await self._share_some(texts, group)
        call = self._start(texts)
        result = await call.wait()
        # Others copy their vectors from this result later, when this caller may have written to its own.
        return result.moved({at: at for at in range(len(texts))}) if call.joined else result

    def _start(self, texts: tuple[str, ...]) -> SharedCall[BatchResult]:
        """Embed texts in a call that others can join."""
        first = None
        if self.fatal is None:
            first = self._engine.begin(self._provider, self._new_request(texts))
        call: SharedCall[BatchResult] = self._engine.singleflight.group(self._key).start(texts)
        call.attend(first, partial(self._finish, texts, first))
        return call

    def _finish(self, texts: tuple[str, ...], first: LaneAttempt[EmbeddedRows] | None) -> Finish[BatchResult]:
        """The result of a request that was begun; a coroutine if there is more to wait for."""
        if first is None or not first.succeeded or self._cache is not None or self._state.unsaved:
            return self._embed(texts, first)
        self._learn(first.value, texts, first.steps.request.tokens)
        return BatchResult(rows=[(range(len(texts)), first.value)], requests=1)

    async def _share_some(self, texts: tuple[str, ...], group: Group) -> BatchResult:
        own: list[int] = []
        joined: dict[SharedCall[BatchResult], _Pairs] = {}
        positions: dict[SharedCall[BatchResult], dict[str, int]] = {}
        for at, text in enumerate(texts):
            if text not in group:
                own.append(at)
                continue
            call, names = group[text]
            if call not in positions:
                # The other call copies its result if it was joined, because its caller may write to its
                # array.
                call.joined = True
                positions[call] = {name: position for position, name in enumerate(names)}
            joined.setdefault(call, []).append((at, positions[call][text]))
        waits = [self._join(call, pairs) for call, pairs in joined.items()]
        if own:
            waits.append(self._embed_own(texts, own))
        result = BatchResult()
        for part in await gather_first_error(waits):
            result.add(part)
        # Texts are sent again whose request failed for a reason of the other call: its deadline, or a full queue.
        local = [at for at, error in result.errors.items() if isinstance(error, errors.LocalRejection)]
        if local and not self._deadline.expired():
            again = await self._embed_own(texts, local)
            for at in local:
                del result.errors[at]
            result.add(again)
        return result

    async def _embed_own(self, texts: Sequence[str], positions: Sequence[int]) -> BatchResult:
        result = await self._start(tuple(texts[at] for at in positions)).wait()
        return result.moved(dict(enumerate(positions)))

    async def _join(self, call: SharedCall[BatchResult], pairs: _Pairs) -> BatchResult:
        try:
            async with asyncio.timeout(self._deadline.remaining() if self._deadline.bounded else None):
                result = await call.wait()
        except TimeoutError:
            late = errors.DeadlineExceeded(
                "the deadline passed while waiting for the answer.", phase="coalesce"
            )
            return BatchResult(errors={at: late.copy() for at, _ in pairs})
        # The requests are counted in the call that sent them.
        return evolve(result.moved({position: at for at, position in pairs}), requests=0)

    async def _embed(
        self, texts: tuple[str, ...], first: LaneAttempt[EmbeddedRows] | None = None
    ) -> BatchResult:
        try:
            rows = await self._request(texts, first)
        except errors.LLMOptError as error:
            result = await self._call_recovery().recover(texts, error, several=self._batches > 1)
        else:
            result = BatchResult(rows=[(range(len(texts)), rows)], requests=1)
        # Not where it is learned, because saving has to wait for the store.
        if self._state.unsaved:
            await self._state.save()
        return result

    def _call_recovery(self) -> CallRecovery:
        if self._recovery is None:
            splitter = partial(
                BatchSplitter,
                estimate=self._estimator.estimate,
                limit=self.limit,
                adaptive=self._adaptive,
                on_change=self._report_limit,
            )
            self._recovery = CallRecovery(
                self,
                send=partial(self._request, part=True),
                splitter=splitter,
                on_split=self._report_split,
                pause=self._pause,
                max_retries=self._max_retries,
            )
        return self._recovery

    async def _pause(self, history: retry.RetryHistory, error: errors.LLMOptError) -> Step:
        """Wait before a retry of what took too long, as the retry policy says."""
        group = self._engine.endpoint_group(self._provider)
        policies = group.endpoints[0].policies
        decision: retry.RetryDecision | retry.GiveUp = retry.GiveUp(reason="attempts")
        if self._max_retries:
            facts = retry.RetryFacts(
                wait_when_open=self._wait_when_open, circuit_retry_in=group.retry_in(self._call)
            )
            decision = policies.retry_policy.decide(error, history, self._deadline, facts)
        if isinstance(decision, retry.GiveUp):
            # One level more than there are retries, up to two: two slow texts are often in different halves.
            levels = min(2, self._max_retries + 1)
            if decision.reason != "attempts" or history.counted >= levels:
                return "give up"
            decision = evolve(_SEARCH_LEVEL, cost=retry.NO_COST) if error.local else _SEARCH_LEVEL
        if retry.inside_attempt() or not policies.retry_budget.acquire(decision.cost):
            return "give up"
        history.add(decision)
        if decision.reason == "circuit_open":
            # An outage is no search: the request itself waits until the circuit lets it through.
            return "again"
        await self._engine.clock.sleep(decision.delay)
        return "split"

    def _report_split(self, items: int, error: errors.LLMOptError) -> None:
        self.emit(BatchSplit, items=items, cause=type(error).__name__)

    def _report_limit(self, change: LimitChange, endpoint: str = "") -> None:
        endpoint = endpoint or self._config.name
        self.emit(
            LimitLearned,
            endpoint=endpoint,
            limit=change.limit,
            value=change.value,
            source=change.source,
        )

    async def _request(
        self,
        texts: tuple[str, ...],
        first: LaneAttempt[EmbeddedRows] | None = None,
        *,
        part: bool = False,
        suspect: bool = False,
    ) -> EmbeddedRows:
        """Send one request.

        Args:
            texts: the texts.
            first: its first attempt, None if it has not begun.
            part: whether they are a part of a batch that failed.
            suspect: whether one of them is suspected to make requests fail.
        """
        if self.fatal is not None and (first is None or first.blocked is not None):
            if first is not None:
                first.end(CANCELLED)
            # A copy: a raised exception collects the traceback and context of each place it passes.
            raise self.fatal.copy()
        if first is None:
            first = self._engine.begin(self._provider, self._new_request(texts, part=part, suspect=suspect))
        try:
            rows = await self._engine.finish(first)
        except errors.QueueFull as error:
            # Before the other batches of the call begin to wait: it is refused as a whole.
            self.fatal = error
            raise
        self._learn(rows, texts, first.steps.request.tokens)
        if self._cache is not None:
            await self._cache.store(texts, rows)
        return rows

    def _new_request(
        self, texts: tuple[str, ...], *, part: bool = False, suspect: bool = False
    ) -> Request[EmbeddedRows]:
        options = self._call
        # Not attrs.evolve, which takes five times as long.
        call = EmbedCall(
            model=options.model,
            texts=texts,
            dimensions=options.dimensions,
            input_type=options.input_type,
            extra=options.extra,
            headers=options.headers,
        )
        tokens = self._estimator.total(texts)
        request = Request(
            call=call,
            parse=partial(self._parse, call),
            deadline=self._deadline,
            max_body=self._max_body(len(texts)),
            items=len(texts),
            tokens=tokens,
            fill=self._fill(len(texts)),
            wait_when_open=self._wait_when_open,
            priority=self._priority,
            first_of_call=not self._queued,
            suspect=suspect,
            worth_retrying=_part_is_worth_retrying if part else self._is_worth_retrying,
            usage_of=_usage_of,
            scope=self,
        )
        self._queued = True
        return request

    def _is_worth_retrying(self, request: Request[EmbeddedRows], error: errors.LLMOptError) -> bool:
        """Whether a batch is sent again as it is, before its recovery."""
        if isinstance(error, SLOW):
            # It is retried in halves.
            return request.items == 1
        if not isinstance(error, errors.InvalidResponse) or self.answered:
            return True
        # A response that is wrong in the same way for two batches is not wrong by chance.
        return not self._call_recovery().was_seen(error)

    def _parse(self, call: EmbedCall, response: HttpResponse, settings: Settings) -> EmbeddedRows | Failure:
        rows = self._provider.hooks.parse_embeddings(call, response, settings)
        if isinstance(rows, Failure):
            return rows
        # Checked here, as a part of the attempt: a wrong response is then retried, and counts for the circuit
        # breaker.
        requested = call.dimensions is not None
        ordered = in_input_order(rows, len(call.texts), self.dimensions, requested=requested)
        if ordered is rows.vectors:
            return rows
        return EmbeddedRows(vectors=ordered, usage=rows.usage, model=rows.model)

    def _learn(self, rows: EmbeddedRows, texts: tuple[str, ...], tokens: int) -> None:
        self.answered = True
        # The length that a caller asks for says nothing about the model's own.
        if self._call.dimensions is None and not self._options[2]:
            self._state.dimensions = int(rows.vectors.shape[1])
        if rows.usage is not None:
            self._estimator.learn(texts, rows.usage.prompt_tokens)
        if self._adaptive is not None:
            self._adaptive.succeeded(len(texts), tokens)

    def _fill(self, items: int) -> float:
        """The share of a full batch that these texts are, from 0 for one text to 1."""
        return min(1.0, (items - 1) / max(1, (self.limit().max_items or items) - 1))

    def _max_body(self, items: int) -> int:
        dimensions = self.dimensions or _ASSUMED_DIMENSIONS
        size = _RESPONSE_BYTES_PER_NUMBER * items * dimensions + _RESPONSE_OVERHEAD_BYTES
        return min(size, _MAX_RESPONSE_BYTES)


def _options_key(call: EmbedCall) -> OptionsKey:
    headers = headers_of_result(call.headers) if call.headers else {}
    if not call.extra and not headers:
        return call.dimensions, call.input_type, b""
    more = msgspec.json.encode([dict(call.extra), headers], order="sorted")
    return call.dimensions, call.input_type, HiddenBytes(more)


def _part_is_worth_retrying(_: Request[EmbeddedRows], error: errors.LLMOptError) -> bool:
    # A part is a retry itself, and the same failure is expected of the one with the text at fault.
    return not (may_be_item_error(error) or isinstance(error, SLOW))


def _next_batch_may_succeed(error: errors.LLMOptError) -> bool:
    # Transient errors, and those that may be about one text or one size.
    of_request = may_be_item_error(error) or is_too_large(error)
    return error.retryable or of_request or isinstance(error, errors.DeadlineExceeded)
