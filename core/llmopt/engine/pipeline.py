"""The order in which one request passes the resilience policies.

::

    retry( choose an endpoint whose circuit breakers admit the request
           -> wait for a concurrency slot -> wait for a rate-limit lease
           -> credential, build, encode
           -> circuit breaker permit, acquired last and without a pause before the send
           -> send -> parse or raise -> settle lease, slot and permit )

The rate limiter is inside retry because each attempt uses quota. The breaker is asked before the waits, so that an open
circuit costs nothing, and its permit is acquired just before the send, so that requests that were waiting when it
opened are not sent. If it opened meanwhile, lease and slot are given back and another endpoint is chosen. Slot,
lease and permit are released on every way out, cancellation included: leaving an `AttemptScope` does not await.

Streams pass the same order; see `llmopt.engine.streaming`.

I/O happens in the transport of the endpoint and in a token provider, both awaited; so are the waits of the policies.
The monotonic clock is passed in. The plugin's hooks run on the event loop, except that large responses are parsed in
a worker thread, and large bodies are compressed in one. What happens is reported to the user's listener. Shared with
all other requests are the policies, the group, whose load balancer learns from each success, and the endpoint with its
compressor and the keys that it refused. A context variable stops clients inside an attempt from retrying as well.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Generic, TypeVar

from llmopt.engine.attempt import AttemptScope, CallScope, RequestRecorder, add_context, should_retry
from llmopt.engine.endpoint import LACKS_MODEL, EndpointGroup, LiveEndpoint, describe_failures
from llmopt.engine.request import Request, add_if_none_match
from llmopt.engine.responses import SLOW, T, parse_or_raise
from llmopt.engine.telemetry import CANCELLED, OK, Telemetry
from llmopt.errors import (
    Attempt,
    AuthError,
    CircuitOpen,
    DeadlineExceeded,
    LLMOptError,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    Sent,
)
from llmopt.policies.clock import Clock
from llmopt.policies.concurrency_limit import ConcurrencyLimiter, Slot
from llmopt.policies.quota import Lease
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry import OTHER_ENDPOINT_MAY_SERVE, RetryFacts, inside_attempt, retry_guard
from llmopt.policies.tasks import run_in_thread
from llmopt.transport.request import TransportRequest
from llmopt.values.calls import Operation, Settings
from llmopt.values.events import KeysRefused, RequestWaiting, WaitCause
from llmopt.values.http import HttpResponse
from llmopt.values.resources import as_llmopt_error

_W = TypeVar("_W")
_PARSE_IN_THREAD_BYTES: Final[Mapping[Operation, int]] = {
    "embeddings": 8 << 20,
    "catalog": 1 << 20,
    "chat": 1 << 20,
}
"""Larger responses are parsed in a thread: from this size it takes 4 ms for vectors in base64, 8 ms for other JSON."""


class Pipeline(Generic[T]):
    """One request and all its attempts.

    Args:
        group: the endpoints of the provider.
        request: what to send.
        clock: the time.
        telemetry: gets the events.

    Attributes:
        recorder: records it.
    """

    def __init__(self, group: EndpointGroup, request: Request[T], clock: Clock, telemetry: Telemetry) -> None:
        self._group: Final = group
        self._request = request
        self._call: Final = request.call
        self._clock: Final = clock
        call, endpoint = request.call, group.endpoints[0]
        scope = request.scope or CallScope(telemetry, call.operation, call.model, endpoint.config)
        self.recorder: Final = RequestRecorder(call, scope, endpoint)
        self._history: tuple[Attempt, ...] = ()
        self._tried: tuple[int, ...] = ()
        self._should_retry: bool | None = None
        self._worth_retrying = True
        self._new_credential = False
        self._compressed: TransportRequest | None = None
        self._started_at = 0.0

    async def run(self) -> T:
        """Send the request, with retries, and return its parsed response.

        Raises:
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        self._started_at = self._clock.now()
        if self.recorder.recording:
            self.recorder.request_started(self._request.items, self._request.tokens)
        outcome = CANCELLED
        try:
            try:
                value = await (self._in_process() if self._group.in_process else self._attempt(1))
                budget = self.recorder.endpoint.policies.retry_budget
                if not budget.full:
                    budget.succeeded()
            except LLMOptError as error:
                if not self._may_retry():
                    raise
                value = await self._run_retries(error)
            outcome = OK
        except Exception as error:
            failure = as_llmopt_error(error) or error
            outcome = type(failure).__name__
            self._complete(failure)
            if failure is error:
                raise
            raise failure from failure.__cause__
        else:
            return value
        finally:
            if self.recorder.recording:
                self._record_end(outcome)

    def _complete(self, error: Exception) -> None:
        """Add to the error that the call ends with what all its attempts have in common."""
        if not isinstance(error, LLMOptError):
            return
        error.provider = error.provider or self.recorder.endpoint.config.provider
        error.model = error.model or self._call.model or None
        error.endpoint = error.endpoint or self.recorder.endpoint.name
        error.attempts = self._history
        if isinstance(error, CircuitOpen):
            error.requests = self.recorder.sent
            return
        if len(self._group.endpoints) == 1:
            return
        # The error itself is about one endpoint only: the others failed in earlier attempts, or are not asked now.
        failures: list[LLMOptError | Attempt] = [*self._group.failures(self._call), *self._history]
        others = {each.endpoint: each for each in failures if each.endpoint != error.endpoint}
        if others:
            before = describe_failures(others.values())
            error.args = (f"{error.endpoint}: {error.message.rstrip('.')}; before that, {before}",)

    def _record_end(self, outcome: str) -> None:
        self.recorder.request_ended(outcome, self._clock.now() - self._started_at)

    def _may_retry(self) -> bool:
        # Within an attempt of another llmopt client, that client retries: two nested retriers multiply requests.
        retried = self.recorder.endpoint.config.flags.retry and not self._group.in_process
        return retried and self._worth_retrying and not inside_attempt()

    async def _run_retries(self, error: LLMOptError) -> T:
        # Loaded already, see `LiveEndpoint`: a process without free descriptors could not import it now.
        from llmopt.policies.retry_loop import with_retries

        return await with_retries(
            error,
            self._attempt,
            self.recorder.endpoint.policies.retry_policy,
            deadline=self._request.deadline,
            budget=lambda _: self.recorder.endpoint.policies.retry_budget,
            facts=lambda error: RetryFacts(
                idempotent=self._call.operation != "chat",
                should_retry=self._should_retry if self._worth_retrying else False,
                new_credential=self._new_credential,
                wait_when_open=self._request.wait_when_open,
                circuit_retry_in=self._group.retry_in(self._call),
                other_endpoint=self._has_alternative(error),
            ),
            on_retry=self.recorder.retry_scheduled,
        )

    def _has_alternative(self, error: LLMOptError) -> bool:
        # A model that this endpoint lacks is worth a wait for another one, also for one that was throttled before.
        tried = () if isinstance(error, LACKS_MODEL) else self._tried
        paused = isinstance(error, OTHER_ENDPOINT_MAY_SERVE)
        return self._group.has_alternative(self.recorder.endpoint, self._call, tried, paused=paused)

    async def _attempt(self, number: int) -> T:
        """Send one HTTP request, or raise the error why none may be sent."""
        request = self._request
        self.recorder.attempt = number
        while True:
            self._should_retry, self._new_credential = None, False
            if request.deadline.expired():
                raise deadline_error("before it was sent", "queue")
            # Awaited only if there is a wait: a coroutine for each policy would cost more than the policies do.
            endpoint = self.recorder.endpoint = self._try_choose() or await self._wait_for_endpoint()
            policies = endpoint.policies
            with AttemptScope(endpoint, self._call, request.tokens, suspect=request.suspect) as scope:
                slots = policies.concurrency.current()
                scope.slot = slots.try_acquire() or await self._acquire_slot(slots)
                apart = endpoint.hooks.counts_cost or policies.reply_limiters
                cost = await self._cost(scope) if apart else (request.tokens,)
                limiter = policies.rate_limiter(self._call)
                lease = limiter.try_acquire(*cost) or await self._acquire_lease(endpoint, cost)
                if lease is None:
                    scope.reply_lease.refund()
                    continue
                scope.lease = lease
                settings = endpoint.static_settings or await endpoint.settings()
                settings = settings.with_headers(more) if (more := self._call.headers) else settings
                encoded = self._build_request(endpoint, settings)
                if (compressor := endpoint.request_compressor) is not None:
                    encoded = await compressor.compress(encoded, self._compressed)
                    self._compressed = encoded
                timeout = policies.timeout(self._call, request.tokens, request.fill)
                circuits = policies.breakers(self._call)
                permit = circuits.acquire(timeout) if circuits is not None else None
                if permit is None and circuits is not None:
                    # A circuit opened while this request was waiting: nothing was sent, so choose again.
                    lease.refund()
                    scope.reply_lease.refund()
                    continue
                scope.begin(permit, timeout)
                try:
                    if not endpoint.custom_transport:
                        return await self._send(scope, encoded, settings)
                    # The transport may call llmopt itself, whose retries would multiply with these.
                    with retry_guard():
                        return await self._send(scope, encoded, settings)
                except ProviderError as error:
                    if not await self._can_be_changed(error, endpoint, encoded, settings):
                        raise

    async def _cost(self, scope: AttemptScope) -> tuple[float, float]:
        """What the request counts under the limits of tokens and of requests, as the plugin says.

        Where the provider limits the tokens of replies apart, those are acquired here, and are not in the cost.
        """
        endpoint, policies = scope.endpoint, scope.endpoint.policies
        tokens, requests, reply = float(self._request.tokens), 1.0, float(self._request.output_tokens)
        if endpoint.hooks.counts_cost:
            cost = endpoint.hooks.request_cost(self._call, endpoint.settings_without_credential)
            scope.cost_stated = cost.tokens is not None
            tokens = tokens if cost.tokens is None else cost.tokens
            reply = reply if cost.output_tokens is None else cost.output_tokens
            requests = cost.requests
        limiter = policies.reply_limiter(self._call)
        if limiter is None:
            return tokens, requests
        scope.reply_lease = limiter.try_acquire(reply) or await self._wait_for(
            limiter, (reply,), policies.retry_policy.max_retry_after
        )
        return max(0.0, tokens - reply), requests

    def _try_choose(self) -> LiveEndpoint | None:
        """The endpoint for the next attempt, None if all circuits are open."""
        try:
            return self._group.choose(self._call, self._tried)
        except CircuitOpen:
            return None

    async def _wait_for_endpoint(self) -> LiveEndpoint:
        """The endpoint for the next attempt, after a wait for an open circuit if the request allows that."""
        while True:
            try:
                return self._group.choose(self._call, self._tried)
            except CircuitOpen as error:
                retry_in = error.retry_after
                if retry_in is None or not self._request.wait_when_open:
                    raise
                # If too little time is left, the retry policy decides which error the caller gets.
                min_attempt = self.recorder.endpoint.policies.retry_policy.min_attempt
                if not self._request.deadline.leaves(retry_in, spare=min_attempt):
                    raise
            # The queue notifies its callers, so that they need not poll while another request is the probe.
            retry_in = self._group.retry_in(self._call, notified=True) or retry_in
            wait = partial(self._group.circuit_waiters.wait, self._request.deadline.clamp(retry_in))
            await self._wait("breaker", wait)

    async def _acquire_slot(self, limiter: ConcurrencyLimiter) -> Slot:
        wait = partial(limiter.acquire, self._request.deadline, priority=self._request.priority)
        return await self._wait("concurrency", wait)

    async def _acquire_lease(self, endpoint: LiveEndpoint, cost: tuple[float, ...]) -> Lease | None:
        """A rate-limit lease; None if the server has throttled this endpoint and another one is free."""
        limiter = endpoint.policies.rate_limiter(self._call)
        if len(self._group.endpoints) > 1:
            try:
                # Without a pause: another endpoint may be free now.
                return await self._wait_for(limiter, cost, 0.0)
            except RateLimited:
                if self._group.has_alternative(endpoint, self._call):
                    return None
        return await self._wait_for(limiter, cost, endpoint.policies.retry_policy.max_retry_after)

    async def _wait_for(self, limiter: RateLimiter, cost: tuple[float, ...], max_pause: float) -> Lease:
        deadline, priority = self._request.deadline, self._request.priority
        wait = partial(limiter.acquire, *cost, deadline=deadline, max_pause=max_pause, priority=priority)
        return await self._wait("limiter", wait)

    async def _wait(self, cause: WaitCause, wait: Callable[[], Awaitable[_W]]) -> _W:
        """Wait as a counted and reported call.

        Raises:
            QueueFull: too many calls wait, and nothing of this one was sent.
        """
        recorder, first = self.recorder, self._request.first_of_call
        waiting = recorder.endpoint.policies.waiting_calls(self._call) if first else None
        if waiting is not None:
            waiting.enter(self._request.tokens, bounded=not recorder.sent)
        started, outcome = self._clock.now(), CANCELLED
        try:
            recorder.emit(RequestWaiting, cause=cause)
            result = await wait()
            outcome = OK
        except Exception as error:
            outcome = type(error).__name__
            raise
        else:
            return result
        finally:
            if waiting is not None:
                waiting.leave(self._request.tokens)
            recorder.wait_ended(cause, self._clock.now() - started, outcome)

    def _build_request(self, endpoint: LiveEndpoint, settings: Settings) -> TransportRequest:
        request = endpoint.hooks.build_request(self._call, settings)
        if self._call.operation == "catalog":
            request = add_if_none_match(request, self._call)
        if endpoint.optional_keys.any_refused:
            request = endpoint.optional_keys.remove_from(request, self._call)
        return endpoint.encode_request(request, settings)

    async def _can_be_changed(
        self, error: ProviderError, endpoint: LiveEndpoint, encoded: TransportRequest, used: Settings
    ) -> bool:
        """Whether the request can be sent at once without what the endpoint refused."""
        if isinstance(error, (AuthError, QuotaExhausted)):
            if isinstance(error, AuthError):
                # A token may have expired on the way: with another one the request is worth a retry.
                self._new_credential = await self._credential_changed(endpoint, used)
            self.recorder.credential_refused(error)
            return False
        # Other bodies have no keys.
        json = encoded.headers.get("content-type") == "application/json"
        body = (encoded.uncompressed_body or encoded.body or b"") if json else b""
        keys = endpoint.optional_keys.learn(error, body, self._call)
        if keys:
            self.recorder.emit(KeysRefused, keys=tuple(keys))
        return bool(keys)

    async def _send(self, scope: AttemptScope, encoded: TransportRequest, settings: Settings) -> T:
        endpoint = scope.endpoint
        self._tried = (*self._tried, endpoint.config.index)
        self.recorder.attempt_started()
        response: HttpResponse | None = None
        started = self._clock.now()
        try:
            self._set_timeouts(endpoint, encoded, scope.timeout)
            if self._request.deadline.bounded:
                response = await self._send_within_deadline(endpoint, encoded)
            else:
                response = await endpoint.transport.send(encoded)
            # Without the time for parsing, which is not the server's.
            seconds = self._clock.now() - started
            value = await self._parse_response(endpoint, response, settings)
        except Exception as error:
            if (failure := as_llmopt_error(error)) is not None:
                self._record_failure(scope, settings, failure, response, self._clock.now() - started)
                if failure is not error:
                    raise failure from failure.__cause__
            raise
        except asyncio.CancelledError:
            # The policies get no result: a cancellation says nothing about the server.
            seconds = self._clock.now() - started
            self.recorder.attempt_ended(CANCELLED, response, seconds, sent="maybe")
            raise
        usage = self._request.usage_of(value)
        used = None if usage is None else (usage.total_tokens, usage.completion_tokens)
        if scope.succeeded(response, settings, seconds, used):
            self.recorder.limits_learned()
        self._group.record_success(endpoint, self._call, seconds)
        self.recorder.attempt_ended(OK, response, seconds, sent="yes", usage=usage)
        return value

    async def _send_within_deadline(self, endpoint: LiveEndpoint, request: TransportRequest) -> HttpResponse:
        try:
            async with asyncio.timeout(self._request.deadline.remaining()):
                return await endpoint.transport.send(request)
        except TimeoutError:
            raise deadline_error("while waiting for the response", "send", sent="maybe") from None

    def _set_timeouts(self, endpoint: LiveEndpoint, request: TransportRequest, timeout: float) -> None:
        request.connect_timeout = endpoint.config.timeouts.connect
        request.pool_timeout = endpoint.config.timeouts.pool
        request.timeout = None if timeout == math.inf else timeout
        request.max_body = self._request.max_body

    async def _parse_response(self, endpoint: LiveEndpoint, response: HttpResponse, settings: Settings) -> T:
        """The value of a response. A large one is parsed in a thread while the event loop goes on."""
        call, parse = self._call, self._request.parse
        started = self._clock.now() if self.recorder.recording else 0.0
        if len(response.body) < _PARSE_IN_THREAD_BYTES[call.operation]:
            value = parse_or_raise(endpoint.hooks, call, response, settings, parse)
        else:
            value = await run_in_thread(parse_or_raise, endpoint.hooks, call, response, settings, parse)
        if self.recorder.recording:
            self.recorder.response_parsed(response, self._clock.now() - started)
        return value

    def _record_failure(
        self,
        scope: AttemptScope,
        settings: Settings,
        error: LLMOptError,
        response: HttpResponse | None,
        seconds: float,
    ) -> None:
        endpoint = scope.endpoint
        self._should_retry = should_retry(response)
        # What took too long may do so because of its endpoint: another one is asked in any case.
        elsewhere = isinstance(error, SLOW) and self._has_alternative(error)
        self._worth_retrying = elsewhere or self._request.worth_retrying(self._request, error)
        self._history += (add_context(error, endpoint, self._call, response, seconds, settings),)
        if self._group.set_aside(endpoint, self._call, error):
            self.recorder.endpoint_set_aside(error)
        # The circuit breakers learn of it here, and their events are of this request.
        with self.recorder.bound():
            learned = scope.failed(error, settings, seconds, response)
        if learned:
            self.recorder.limits_learned()
        elif isinstance(error, RateLimited):
            self.recorder.limits_changed()
        outcome = type(error).__name__
        self.recorder.attempt_ended(outcome, response, seconds, sent=error.sent)

    async def _credential_changed(self, endpoint: LiveEndpoint, used: Settings) -> bool:
        """Whether the function that gives the credential returns another one than the one that was refused."""
        if endpoint.config.credential.is_static:
            return False
        try:
            # The function may call llmopt itself, as above.
            with retry_guard():
                settings = await endpoint.settings()
        except LLMOptError:
            return False
        if settings.credential == used.credential:
            return False
        endpoint.policies.unblock_credential()
        return True

    async def _in_process(self) -> T:
        """Run a request of an engine inside this process, which no policy but the deadline applies to."""
        endpoint = self.recorder.endpoint
        if self._request.deadline.expired():
            raise deadline_error("before it began", "queue")
        settings = (await endpoint.settings()).with_headers(self._call.headers)
        scope = AttemptScope(endpoint, self._call, self._request.tokens)
        scope.timeout = math.inf
        self.recorder.attempt = 1
        return await self._send(scope, self._build_request(endpoint, settings), settings)


def deadline_error(when: str, phase: str, *, sent: Sent = "no") -> DeadlineExceeded:
    """The error for a caller whose deadline has passed."""
    return DeadlineExceeded(f"the deadline passed {when}.", phase=phase, sent=sent)
