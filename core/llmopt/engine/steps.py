"""The steps of one attempt, in their order, and what all attempts of one request have in common.

::

    admit     choose an endpoint whose circuit breakers admit the request
              -> concurrency slot -> rate-limit lease -> credential, build, encode
              -> circuit breaker permit, acquired last and without a pause before the send
    complete  or fail: settle lease, slot and permit, count, report

Each attempt uses quota, so the rate limiter is asked at each. The breaker is asked before the waits, so that an open
circuit costs nothing, and its permit is acquired just before the send, so that requests that were waiting when it
opened are not sent. If it opened meanwhile, lease and slot are given back and another endpoint is chosen.

Nothing here awaits: `RequestSteps.admit` yields what has to be awaited before its next step. It has two drivers, which
ask no policy themselves (`llmopt.engine.pipeline`): the lane runs the first attempt by callbacks, and the pipeline awaits
what the lane cannot, retries included. The second one continues where the first one stopped.

No I/O. The monotonic clock is passed in. The plugin's hooks are called here. What happens is reported to the user's
listener. Shared with all other requests are the policies, the group, whose load balancer learns from each success, and
the endpoint with its compressor and the keys that it refused; the steps themselves belong to one request.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Generic

from attrs import evolve, frozen

from llmopt import errors
from llmopt.engine.attempt import AttemptScope, CallScope, RequestRecorder
from llmopt.engine.endpoint import LACKS_MODEL, EndpointGroup, LiveEndpoint, describe_failures
from llmopt.engine.request import Request, add_if_none_match
from llmopt.engine.responses import SLOW, T, parse_or_raise
from llmopt.engine.telemetry import CANCELLED, OK, Telemetry
from llmopt.policies import retry
from llmopt.policies.clock import Clock
from llmopt.policies.quota import Lease
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.transport.request import TransportRequest
from llmopt.values.calls import ChatCall, Settings
from llmopt.values.events import KeysRefused, RequestEnd, RequestStart, RequestWaiting, WaitCause
from llmopt.values.http import HttpResponse
from llmopt.values.resources import as_llmopt_error


@frozen
class Wait:
    """What has to be awaited before the next step.

    Attributes:
        begin: makes the awaitable, whose result `RequestSteps.admit` gets.
        cause: what is waited for, None for a wait that is not reported.
    """

    begin: Callable[[], Awaitable[Any]]
    cause: WaitCause | None = None


_PARSE_IN_THREAD_BYTES: Final = (1 << 20, 8 << 20)
"""Larger responses are parsed in a thread: from this size it takes 8 ms for JSON, 4 ms for vectors in base64."""
Admission = Generator[Wait, Any, AttemptScope]
"""The steps up to the send. Its driver awaits what it yields, and sends the result, or throws the error, into it."""


class RequestSteps(RequestRecorder, Generic[T]):
    """The steps of the attempts of one request.

    Args:
        group: the endpoints of the provider.
        request: what to send.
        clock: the time.
        telemetry: gets the events.

    Attributes:
        group, request, clock: as passed to the constructor.
        scope: what the current attempt has acquired, None between two of them.
        history: the attempts that failed.
        max_parsed_on_loop: bytes of a response; a larger one is parsed in a thread.
    """

    def __init__(self, group: EndpointGroup, request: Request[T], clock: Clock, telemetry: Telemetry) -> None:
        self.group: Final = group
        self.request: Final = request
        self.clock: Final = clock
        call, endpoint = request.call, group.endpoints[0]
        scope = request.scope or CallScope(telemetry, call.operation, call.model, endpoint.config)
        super().__init__(call, scope, endpoint)
        self.scope: AttemptScope | None = None
        self.history: tuple[errors.Attempt, ...] = ()
        self._tried: tuple[int, ...] = ()
        self._should_retry: bool | None = None
        self._worth_retrying = True
        self._new_credential = False
        self._compressed: TransportRequest | None = None
        self.max_parsed_on_loop: Final = _PARSE_IN_THREAD_BYTES[call.operation == "embeddings"]
        self._deadline_first = False
        self._started_at = self._sent_at = self._seconds = 0.0

    # The request as a whole

    def begin(self) -> None:
        """The request begins: called if it is recorded."""
        self._started_at = self.clock.now()
        operation, items, tokens = self.call.operation, self.request.items, self.request.tokens
        self.emit(RequestStart, operation=operation, items=items, tokens=tokens)

    def end(self, outcome: str) -> None:
        """The request is over, after all its attempts: likewise."""
        operation, seconds, sent = self.call.operation, self.clock.now() - self._started_at, self.sent
        self.emit(RequestEnd, attempt=0, operation=operation, outcome=outcome, attempts=sent, seconds=seconds)

    def explain(self, error: Exception) -> None:
        """Add to the error that the request ends with what all its attempts have in common."""
        if not isinstance(error, errors.LLMOptError):
            return
        error.provider = error.provider or self.endpoint.config.provider
        error.model = error.model or self.call.model or None
        error.endpoint = error.endpoint or self.endpoint.name
        error.attempts = self.history
        if isinstance(error, errors.CircuitOpen):
            error.requests = self.sent
            return
        if len(self.group.endpoints) == 1:
            return
        # The error itself is about one endpoint only: the others failed in earlier attempts, or are not asked now.
        failures: list[errors.LLMOptError | errors.Attempt] = [*self.group.failures(self.call), *self.history]
        others = {each.endpoint: each for each in failures if each.endpoint != error.endpoint}
        if others:
            before = describe_failures(others.values())
            error.args = (f"{error.endpoint}: {error.message.rstrip('.')}; before that, {before}",)

    # Retries

    @property
    def may_retry(self) -> bool:
        """Whether the retry policy is asked at all after a failed attempt."""
        # Within an attempt of another llmopt client, that client retries: two nested retriers multiply requests.
        retried = self.endpoint.config.flags.retry and not self.group.in_process
        return retried and self._worth_retrying and not retry.inside_attempt()

    @property
    def retry_policy(self) -> retry.RetryPolicy:
        """That of the endpoint of the last attempt."""
        return self.endpoint.policies.retry_policy

    @property
    def retry_budget(self) -> retry.RetryBudget:
        """That of the endpoint of the last attempt."""
        return self.endpoint.policies.retry_budget

    def retry_facts(self, error: errors.LLMOptError) -> retry.RetryFacts:
        """What the retry policy needs to know about the failure of the last attempt."""
        return retry.RetryFacts(
            idempotent=self.call.operation != "chat",
            should_retry=self._should_retry if self._worth_retrying else False,
            new_credential=self._new_credential,
            wait_when_open=self.request.wait_when_open,
            circuit_retry_in=self.group.retry_in(self.call),
            other_endpoint=self._has_alternative(error),
        )

    def _has_alternative(self, error: errors.LLMOptError) -> bool:
        # A model that this endpoint lacks is worth a wait for another one, also for one that was throttled before.
        tried = () if isinstance(error, LACKS_MODEL) else self._tried
        paused = isinstance(error, retry.OTHER_ENDPOINT_MAY_SERVE)
        return self.group.has_alternative(self.endpoint, self.call, tried, paused=paused)

    # The steps up to the send

    def admit(self, number: int) -> Admission:
        """Acquire what an attempt needs, and build its request.

        The driver calls `release` on every way out, cancellation included.

        Args:
            number: of the attempt.

        Raises:
            LLMOptError: nothing may be sent, and why.
        """
        self.attempt = number
        request = self.request
        while True:
            self._should_retry, self._new_credential = None, False
            if request.deadline.expired():
                raise deadline_error("before it was sent", "queue")
            endpoint = self.endpoint = yield from self._choose()
            policies = endpoint.policies
            scope = self.scope = AttemptScope(endpoint, self.call, request.tokens, suspect=request.suspect)
            slots = policies.concurrency.current()
            scope.slot = slots.try_acquire() or (
                yield Wait(partial(slots.acquire, request.deadline, priority=request.priority), "concurrency")
            )
            apart = endpoint.hooks.counts_cost or policies.reply_limiters
            cost = (yield from self._cost(scope)) if apart else (request.tokens,)
            limiter = policies.rate_limiter(self.call)
            lease = limiter.try_acquire(*cost) or (yield from self._wait_for_lease(scope, limiter, cost))
            if lease is not None:
                scope.lease = lease
                yield from self._build(scope)
                timeout = policies.timeout(self.call, request.tokens, request.fill)
                circuits = policies.breakers(self.call)
                permit = circuits.acquire(timeout) if circuits is not None else None
                if permit is not None or circuits is None:
                    scope.begin(permit, timeout)
                    self._set_timeouts(scope)
                    return scope
                # A circuit opened while this request was waiting: nothing was sent, so choose again.
                lease.refund()
            scope.reply_lease.refund()
            self.release()

    def release(self) -> None:
        """The attempt is over: release what it still holds."""
        scope, self.scope = self.scope, None
        if scope is not None:
            scope.release()

    def _choose(self) -> Generator[Wait, Any, LiveEndpoint]:
        """The endpoint for the next attempt, after a wait for an open circuit if the request allows that."""
        while True:
            try:
                return self.group.choose(self.call, self._tried)
            except errors.CircuitOpen as error:
                retry_in = error.retry_after
                if retry_in is None or not self.request.wait_when_open:
                    raise
                # If too little time is left, the retry policy decides which error the caller gets.
                min_attempt = self.retry_policy.min_attempt
                if not self.request.deadline.leaves(retry_in, spare=min_attempt):
                    raise
            # The queue notifies its callers, so that they need not poll while another request is the probe.
            retry_in = self.group.retry_in(self.call, notified=True) or retry_in
            yield Wait(
                partial(self.group.circuit_waiters.wait, self.request.deadline.clamp(retry_in)), "breaker"
            )

    def _cost(self, scope: AttemptScope) -> Generator[Wait, Any, tuple[float, ...]]:
        """What the request counts under the limits of tokens and of requests, as the plugin says.

        Where the provider limits the tokens of replies apart, those are acquired here, and are not in the cost.
        """
        endpoint, policies = scope.endpoint, scope.endpoint.policies
        tokens, requests, reply = float(self.request.tokens), 1.0, float(self.request.output_tokens)
        if endpoint.hooks.counts_cost:
            cost = endpoint.hooks.request_cost(self.call, endpoint.settings_without_credential)
            scope.cost_stated = cost.tokens is not None
            tokens = tokens if cost.tokens is None else cost.tokens
            reply = reply if cost.output_tokens is None else cost.output_tokens
            requests = cost.requests
        limiter = policies.reply_limiter(self.call)
        if limiter is None:
            return tokens, requests
        scope.reply_lease = limiter.try_acquire(reply) or (
            yield self._lease_of(limiter, (reply,), policies.retry_policy.max_retry_after)
        )
        return max(0.0, tokens - reply), requests

    def _wait_for_lease(
        self, scope: AttemptScope, limiter: RateLimiter, cost: tuple[float, ...]
    ) -> Generator[Wait, Any, Lease | None]:
        """A rate-limit lease; None if the server has throttled this endpoint and another one is free."""
        if len(self.group.endpoints) > 1:
            try:
                # Without a pause: another endpoint may be free now.
                return (yield self._lease_of(limiter, cost, 0.0))  # type: ignore[no-any-return] # what it asks for
            except errors.RateLimited:
                if self.group.has_alternative(scope.endpoint, self.call):
                    return None
        max_pause = scope.endpoint.policies.retry_policy.max_retry_after
        return (yield self._lease_of(limiter, cost, max_pause))  # type: ignore[no-any-return] # likewise

    def _lease_of(self, limiter: RateLimiter, cost: tuple[float, ...], max_pause: float) -> Wait:
        deadline, priority = self.request.deadline, self.request.priority
        acquire = partial(limiter.acquire, *cost, deadline=deadline, max_pause=max_pause, priority=priority)
        return Wait(acquire, "limiter")

    @contextmanager
    def waiting(self, cause: WaitCause) -> Iterator[None]:
        """Count and report the wait that the block awaits.

        Raises:
            QueueFull: too many calls wait, and nothing of this one was sent.
        """
        first = self.request.first_of_call
        waiting = self.endpoint.policies.waiting_calls(self.call) if first else None
        if waiting is not None:
            waiting.enter(self.request.tokens, bounded=not self.sent)
        began, outcome = self.clock.now(), CANCELLED
        try:
            self.emit(RequestWaiting, cause=cause)
            yield
            outcome = OK
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            if waiting is not None:
                waiting.leave(self.request.tokens)
            self.wait_ended(cause, self.clock.now() - began, outcome)

    def _build(self, scope: AttemptScope) -> Generator[Wait, Any, None]:
        """Resolve the settings with the credential of this moment, and build, encode and compress the request."""
        endpoint, call = scope.endpoint, self.call
        settings = endpoint.static_settings or (yield Wait(endpoint.settings))
        scope.settings = settings.with_headers(call.headers) if call.headers else settings
        if isinstance(call, ChatCall) and call.include_usage and not endpoint.config.stream_usage:
            # Another endpoint of the entry is to be asked for it.
            call = evolve(call, include_usage=False)
        request = endpoint.hooks.build_request(call, scope.settings)
        if call.operation == "catalog":
            request = add_if_none_match(request, call)
        if endpoint.optional_keys.any_refused:
            request = endpoint.optional_keys.remove_from(request, call)
        scope.encoded = endpoint.encode_request(request, scope.settings)
        if (compressor := endpoint.request_compressor) is not None and compressor.compresses(scope.encoded):
            scope.encoded = yield Wait(partial(compressor.compress, scope.encoded, self._compressed))
            self._compressed = scope.encoded

    def _set_timeouts(self, scope: AttemptScope) -> None:
        encoded, timeouts = scope.encoded, scope.endpoint.config.timeouts
        encoded.connect_timeout = timeouts.connect
        encoded.pool_timeout = timeouts.pool
        # The deadline of the call may come first.
        deadline, timeout = self.request.deadline, scope.timeout
        self._deadline_first = deadline.bounded and (left := deadline.remaining()) <= timeout
        if self._deadline_first:
            timeout = left
        encoded.timeout = None if timeout == math.inf else timeout
        encoded.max_body = self.request.max_body

    # The steps from the send on

    def mark_sent(self, scope: AttemptScope) -> None:
        """The request is sent now."""
        self._tried = (*self._tried, scope.endpoint.config.index)
        self.attempt_started()
        self._sent_at = self.clock.now()

    def received(self) -> float:
        """A response has come; the seconds since the send. The time for parsing, which is not the server's, comes after."""
        self._seconds = self.clock.now() - self._sent_at
        return self._seconds

    def parse(self, scope: AttemptScope, response: HttpResponse) -> T:
        """The value of a response. It may run in a thread.

        Raises:
            LLMOptError: there is none.
        """
        return parse_or_raise(scope.endpoint.hooks, self.call, response, scope.settings, self.request.parse)

    def complete(self, scope: AttemptScope, response: HttpResponse, value: T) -> T:
        """The attempt has succeeded."""
        seconds, usage = self._seconds, self.request.usage_of(value)
        if self.recording:
            self.response_parsed(response, self.clock.now() - self._sent_at - seconds)
        used = None if usage is None else (usage.total_tokens, usage.completion_tokens)
        if scope.succeeded(response, seconds, used):
            self.limits_learned()
        # It has released all that it had.
        self.scope = None
        self.answered(scope, seconds)
        self.attempt_ended(OK, response, seconds, sent="yes", usage=usage)
        return value

    def stream_started(self, scope: AttemptScope, head: HttpResponse) -> None:
        """The first event of a stream has come. From here on the stream releases slot, lease and permit."""
        if scope.stream_started(head, self._seconds):
            self.limits_learned()
        scope.endpoint.optional_keys.trial = None
        self.scope = None
        self.answered(scope, self._seconds)

    def answered(self, scope: AttemptScope, seconds: float) -> None:
        """The endpoint has served the request."""
        if len(self.group.endpoints) > 1:
            self.group.record_success(scope.endpoint, self.call, seconds)
        budget = scope.endpoint.policies.retry_budget
        if self.attempt == 1 and not budget.full:
            budget.succeeded()

    def fail(self, scope: AttemptScope, error: Exception, response: HttpResponse | None) -> Exception:
        """The attempt has failed.

        Returns:
            The error to raise: for one of the system, that of llmopt which says so.
        """
        if (failure := as_llmopt_error(error)) is None:
            return error
        if self._deadline_first and isinstance(failure, errors.AttemptTimeout):
            failure = deadline_error("while waiting for the response", "send", sent="maybe")
        seconds = self.clock.now() - self._sent_at
        endpoint = scope.endpoint
        header = "" if response is None else response.headers.get("x-should-retry", "")
        self._should_retry = {"true": True, "false": False}.get(header.strip().lower())
        # What took too long may do so because of its endpoint: another one is asked in any case.
        elsewhere = isinstance(failure, SLOW) and self._has_alternative(failure)
        self._worth_retrying = elsewhere or self.request.worth_retrying(self.request, failure)
        self.history += (scope.explain(failure, response, seconds),)
        if self.group.set_aside(endpoint, self.call, failure):
            self.endpoint_set_aside(failure)
        # The circuit breakers learn of it here, and their events are of this request.
        with self.bound():
            learned = scope.failed(failure, seconds, response)
        if learned:
            self.limits_learned()
        elif isinstance(failure, errors.RateLimited):
            self.limits_changed()
        self.attempt_ended(type(failure).__name__, response, seconds, sent=failure.sent)
        return failure

    def cancel(self, response: HttpResponse | None) -> None:
        """The caller gave up. The policies get no result: that says nothing about the server."""
        seconds = self.clock.now() - self._sent_at
        self.attempt_ended(CANCELLED, response, seconds, sent="maybe")

    # What the endpoint refused

    def learn_refusal(self, scope: AttemptScope, error: errors.ProviderError) -> bool:
        """Whether the request can be sent at once without what the endpoint refused."""
        if isinstance(error, (errors.AuthError, errors.QuotaExhausted)):
            self.credential_refused(error)
            return False
        encoded = scope.encoded
        # Other bodies have no keys.
        json = encoded.headers.get("content-type") == "application/json"
        body = (encoded.uncompressed_body or encoded.body or b"") if json else b""
        keys = scope.endpoint.optional_keys.learn(error, body, self.call)
        if keys:
            self.emit(KeysRefused, keys=tuple(keys))
        return bool(keys)

    def learn_credential(self, scope: AttemptScope, current: Settings) -> None:
        """The function that gives the credential was asked again after a refusal."""
        if current.credential != scope.settings.credential:
            # A token may have expired on the way: with another one the request is worth a retry.
            self._new_credential = True
            scope.endpoint.policies.unblock_credential()


def deadline_error(when: str, phase: str, *, sent: errors.Sent = "no") -> errors.DeadlineExceeded:
    """The error for a caller whose deadline has passed."""
    return errors.DeadlineExceeded(f"the deadline passed {when}.", phase=phase, sent=sent)
