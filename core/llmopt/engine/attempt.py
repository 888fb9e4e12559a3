"""One attempt of a request: what it acquires, how it is settled, and what is recorded about it.

`AttemptScope` holds slot, lease and permit and reports the result to the policies. `RequestRecorder` counts, and emits
the events, with the ids that `CallScope` makes when the first event needs them. `AttemptScope.explain` completes the
error of an attempt.

No I/O but lines in the log, no awaiting and no clock: durations are passed in. It changes the policies and counters
that all requests of the endpoint share, and calls the plugin's hook `rate_limits` and the user's listener.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from llmopt import errors
from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.endpoint_policies import SET_ASIDE_S
from llmopt.engine.responses import SLOW, hide_keys, may_be_item_error, request_id
from llmopt.engine.telemetry import CANCELLED, OK, Scope, Telemetry
from llmopt.log import DEBUG, REQUEST
from llmopt.policies.circuit_breaker import counts_as_timeout
from llmopt.policies.concurrency_limit import Slot, load_signal
from llmopt.policies.quota import Lease, Refusal
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry_after import exceeded_by, parse_retry_after, reset_wait
from llmopt.policies.timeouts import explains_timeout
from llmopt.values import events
from llmopt.values.calls import Call, Operation, RateLimits, Settings
from llmopt.values.embeddings import Usage
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    from llmopt.config.resolve import Endpoint
    from llmopt.policies.circuit_breaker import Permit
    from llmopt.policies.retry_loop import Retry
    from llmopt.transport.request import TransportRequest
_REQUEST_TIMEOUT: Final = 408
_LOOP_WAS_LATE: Final = (
    "The event loop was {:.1f} s late meanwhile: something blocks it, or the machine is too busy."
)
Used = tuple[int, int]
"""Tokens of a response: all of them, and those of the reply."""
_NO_SLOT: Final = Slot(lambda _: None)


class AttemptScope:
    """What one attempt has acquired from the policies: concurrency slot, rate-limit lease, circuit breaker permit.

    `release` releases what is left of them, neutrally where the attempt said nothing about the server. No method awaits,
    so that a cancellation cannot leave anything acquired.

    Args:
        endpoint: receives the request.
        call: what is asked for.
        tokens: estimated tokens of the request; adaptive timeouts are learned by them.
        suspect: see `Request.suspect`.

    Attributes:
        timeout: seconds that the attempt may take.
        slot: of the concurrency limiter; a slot of no limiter until it is set.
        lease: of the rate limiter; one that has ended until it is set.
        reply_lease: of the limiter of the tokens of replies, likewise.
        cost_stated: whether the plugin has stated the cost in tokens, so that the usage in the response does not correct it.
        permit: of the circuit breakers, None before it is acquired and where they are switched off.
        settings: of the endpoint, with the credential; set when the request is built.
        encoded: the request, likewise.
    """

    settings: Settings
    encoded: TransportRequest

    def __init__(self, endpoint: LiveEndpoint, call: Call, tokens: int, *, suspect: bool = False) -> None:
        self.endpoint: Final = endpoint
        self.call: Final = call
        self.tokens: Final = tokens
        self.timeout = 0.0
        self.slot = _NO_SLOT
        self.lease: Lease = endpoint.policies.no_lease
        self.permit: Permit | None = None
        self.reply_lease = self.lease
        self.cost_stated = False
        self._suspect: Final = suspect
        self._timeouts_count = True

    def release(self) -> None:
        """Release what was not released yet."""
        if self.permit is not None:
            self.permit.neutral()
        self.lease.__exit__()
        self.reply_lease.__exit__()
        self.slot.release()

    def begin(self, permit: Permit | None, timeout: float) -> None:
        """The circuit breakers admit the attempt; it may take ``timeout`` seconds from now."""
        self.permit, self.timeout = permit, timeout
        # A server that loads its model for the first request is slow, but neither broken nor overloaded.
        self.endpoint.policies.loop_lag.current().watch()
        first = self.endpoint.config.timeouts.first
        self._timeouts_count = self.endpoint.policies.has_answered or first is None or timeout < first

    def succeeded(self, response: HttpResponse, seconds: float, used: Used | None) -> bool:
        """Record a complete response.

        Args:
            response: with the headers that may state rate limits.
            seconds: from sending to the end of the response.
            used: tokens as the response reports them, None if it does not.

        Returns:
            Whether the headers stated a limit that was unknown or different before.
        """
        self.endpoint.policies.record_latency(self.call, self.tokens, seconds)
        self.completed(used)
        # After the lease is settled: what the headers say is left is compared with what the limiter has counted.
        return self.lease.wants_headers and self._observe(
            self.endpoint.hooks.rate_limits(response, self.settings)
        )

    def completed(self, used: Used | None) -> None:
        """Settle everything for a complete response; ``used`` is its cost, None to keep the estimate."""
        self.slot.release("success" if self.endpoint.config.flags.concurrency else "neutral")
        if self.permit is not None:
            self.permit.success()
        self.settle(used)

    def settle(self, used: Used | None) -> None:
        """Settle the leases at the cost of what was received; None to keep the estimate."""
        tokens, reply = (None, None) if used is None or self.cost_stated else used
        if self.reply_lease.open:
            self.reply_lease.settle(reply)
            tokens = None if tokens is None or reply is None else tokens - reply
        self.lease.settle(tokens)

    def _observe(self, limits: RateLimits) -> bool:
        if limits.output_tokens is not None and (limiter := self._reply_limiter()) is not None:
            # The first response that states the limit had no lease for its reply.
            lease = self.reply_lease if self.reply_lease.number else limiter.try_acquire()
            if lease is not None:
                lease.observe(RateLimits(tokens=limits.output_tokens))
        return self.lease.observe(limits)

    def _reply_limiter(self) -> RateLimiter | None:
        return self.endpoint.policies.reply_limiter(self.call, create=True)

    def explain(
        self, error: errors.LLMOptError, response: HttpResponse | None, seconds: float
    ) -> errors.Attempt:
        """Add to an error what only the engine knows about it: provider, model, endpoint, request id, retry-after.

        Keys in its message are removed.

        Returns:
            The entry for the error's history of attempts.
        """
        error.provider = error.provider or self.endpoint.config.provider
        error.model = error.model or self.call.model or None
        error.endpoint = error.endpoint or self.endpoint.name
        if response is not None:
            error.request_id = error.request_id or request_id(response.headers, self.settings)
            if isinstance(error, (errors.ProviderError, errors.InvalidResponse)):
                # A header is more exact than what a plugin reads from the text of an error.
                header = parse_retry_after(response.headers, response.received)
                error.retry_after = header if header is not None else error.retry_after
                if error.retry_after is not None and isinstance(
                    error, (errors.RateLimited, errors.Overloaded)
                ):
                    error.args = (f"{error.message}; the server asks to wait {error.retry_after:g} s",)
        hide_keys(error, self.settings)
        return errors.Attempt(
            endpoint=self.endpoint.name,
            outcome=type(error).__name__,
            status=response.status if response is not None else None,
            seconds=seconds,
            message=error.message,
        )

    def failed(self, error: errors.LLMOptError, seconds: float, response: HttpResponse | None) -> bool:
        """Record a failed attempt.

        Returns:
            Whether the headers of the response stated a limit that was unknown or different before.
        """
        policies = self.endpoint.policies
        policies.block_credential(error, self.call.model)
        timed_out = isinstance(error, errors.AttemptTimeout)
        # A text that the server cannot process, or takes long for, says nothing about the server's health.
        of_text = self._suspect and (may_be_item_error(error) or isinstance(error, SLOW))
        if self._loop_was_late(error, seconds):
            error.local = True
        if timed_out and not error.local:
            policies.record_timeout(self.call, self.tokens, self.timeout)
        elif response is not None:
            policies.record_latency(self.call, self.tokens, seconds)
        if not error.local and (self._timeouts_count or not timed_out):
            adaptive = self.endpoint.config.flags.concurrency and not (of_text and timed_out)
            self.slot.release(load_signal(error) if adaptive else "neutral")
            if self.permit is not None and not of_text:
                self.permit.failed(self._breaker_error(error, seconds))
        limits = None if response is None else self.endpoint.hooks.rate_limits(response, self.settings)
        return self._settle_lease(error, limits)

    def stream_started(self, response: HttpResponse, seconds: float) -> bool:
        """Record the first event of a stream.

        Returns:
            As `succeeded`.
        """
        self.endpoint.policies.record_latency(self.call, self.tokens, seconds)
        breakers = self.endpoint.policies.breakers(self.call)
        if self.permit is not None and breakers is not None and breakers.half_open:
            # A half-open circuit must not stay so until the end of a long stream.
            self.permit.success()
        # The requests that the limiter holds back until it has seen a first response need not wait for its end.
        self.lease.accept()
        self.reply_lease.accept()
        return self.lease.wants_headers and self._observe(
            self.endpoint.hooks.rate_limits(response, self.settings)
        )

    def stream_failed(self, error: errors.LLMOptError, used: Used) -> None:
        """Record a stream that broke off; ``used`` is its cost until then."""
        if not isinstance(error, errors.RateLimited):
            self.settle(used)
        self.failed(error, 0.0, None)

    def _loop_was_late(self, error: errors.LLMOptError, seconds: float) -> bool:
        """Whether a late event loop may have caused the timeout. The error then says so."""
        limit = self._expired_limit(error, seconds)
        if limit is None:
            return False
        late = self.endpoint.policies.loop_lag.current().seconds(seconds or limit)
        if not explains_timeout(late, limit):
            return False
        error.args = (f"{error.message} {_LOOP_WAS_LATE.format(late)}",)
        return True

    def _expired_limit(self, error: errors.LLMOptError, seconds: float) -> float | None:
        """The seconds whose passing alone is the failure, None for a failure of another kind."""
        timeouts = self.endpoint.config.timeouts
        if isinstance(error, errors.AttemptTimeout):
            return self.timeout
        if isinstance(error, errors.ConnectFailed):
            return timeouts.connect if error.cause == "timeout" else None
        if isinstance(error, errors.StreamIdle):
            return timeouts.idle
        if isinstance(error, errors.PoolTimeout):
            return timeouts.pool
        # With status 408 the server says that it has waited for the request.
        waited_for_us = isinstance(error, errors.RequestTimeout) and error.status == _REQUEST_TIMEOUT
        return seconds if waited_for_us or isinstance(error, errors.DeadlineExceeded) else None

    def _breaker_error(self, error: errors.LLMOptError, seconds: float) -> errors.LLMOptError:
        """The error for the circuit breakers: a deadline that left enough time counts as a timeout."""
        if isinstance(error, errors.DeadlineExceeded) and counts_as_timeout(seconds, self.timeout):
            return errors.AttemptTimeout(error.message)
        return error

    def _settle_lease(self, error: errors.LLMOptError, limits: RateLimits | None) -> bool:
        if error.sent == "no":
            self.lease.refund()
            self.reply_lease.refund()
            return False
        if isinstance(error, errors.RateLimited):
            return self._throttled(error, limits or RateLimits())
        # A request that is refused for good costs no tokens; for any other failure the estimate stands.
        self.settle((0, 0) if isinstance(error, errors.ProviderError) and not error.retryable else None)
        return limits is not None and self._observe(limits)

    def _throttled(self, error: errors.RateLimited, limits: RateLimits) -> bool:
        error.exceeded = error.exceeded or exceeded_by(limits, self.tokens)
        error.retry_after = error.retry_after or reset_wait(limits, error.exceeded)
        if error.exceeded == "output_tokens" and (limiter := self._reply_limiter()) is not None:
            self.lease.refund()
            # The first response that names the limit had no lease for its reply.
            lease = self.reply_lease if self.reply_lease.open else limiter.try_acquire()
            replies = RateLimits(tokens=limits.output_tokens)
            return lease is not None and lease.throttled(Refusal(error.retry_after, replies, "tokens"))
        self.reply_lease.refund()
        dimension = None if error.exceeded == "output_tokens" else error.exceeded
        return self.lease.throttled(Refusal(error.retry_after, limits, dimension))


# Recording: what the events of one call have in common, and the counters and events of one request.


class CallScope(Scope):
    """One call of the user's. What an operation keeps of its call derives from it, so that it costs no object.

    Args:
        telemetry: of the client.
        operation: what is asked for.
        model: of the call, "" without one.
        endpoint: the first one of the provider entry, None for a call that concerns several entries.

    Attributes:
        telemetry, operation, model: as passed to the constructor.
        recording: whether each request has events: for a listener, or for a log at DEBUG.
        requests: HTTP requests sent so far, failed ones included.
    """

    requests = 0
    _ids: tuple[str, Iterator[int]] | None = None

    def __init__(
        self, telemetry: Telemetry, operation: Operation, model: str, endpoint: Endpoint | None = None
    ) -> None:
        self.telemetry = telemetry
        self.operation: Final = operation
        self.model: Final = model
        self.recording: Final = telemetry.on_event is not None or REQUEST.enabled(DEBUG)
        self._endpoint: Final = endpoint

    def fields(self) -> dict[str, Any]:
        """Provider, endpoint, model and the id of the call."""
        endpoint = self._endpoint
        provider, name = ("", "") if endpoint is None else (endpoint.provider, endpoint.name)
        return {"provider": provider, "endpoint": name, "model": self.model, "call_id": self.ids[0]}

    @property
    def ids(self) -> tuple[str, Iterator[int]]:
        """The id of the call, and the numbers of its requests. As long as a span id of W3C Trace Context."""
        if self._ids is None:
            self._ids = secrets.token_hex(8), itertools.count(1)
        return self._ids

    def count_request(self) -> None:
        """An HTTP request is about to be sent."""
        self.requests += 1


class RequestRecorder(Scope):
    """Records one request and all its attempts.

    An outcome is `OK`, `CANCELLED` or the name of an exception class.

    Args:
        call: what the request asks for.
        scope: the call of the user's that the request is for.
        endpoint: the first of the provider.

    Attributes:
        call: as passed to the constructor.
        telemetry: gets the events.
        recording: as in the scope of the call; without it nothing is computed that only an event needs.
        endpoint: the one that was chosen last.
        attempt: number of the current attempt, 0 before the first.
        sent: HTTP requests sent so far.
    """

    def __init__(self, call: Call, scope: CallScope, endpoint: LiveEndpoint) -> None:
        self.call: Final = call
        self._call_scope: Final = scope
        self._key = ""
        self.telemetry = scope.telemetry
        self.recording: Final = scope.recording
        self.endpoint = endpoint
        self.attempt = 0
        self.sent = 0

    def fields(self) -> dict[str, Any]:
        """Those of the call, the endpoint that was chosen last, the key of the request and the number of the attempt."""
        if not self._key:
            call_id, numbers = self._call_scope.ids
            self._key = f"{call_id}-{next(numbers)}"
        own = {"endpoint": self.endpoint.name, "request_key": self._key, "attempt": self.attempt}
        return {**self._call_scope.fields(), **own}

    def attempt_started(self) -> None:
        """An HTTP request is about to be sent."""
        self.sent += 1
        self._call_scope.count_request()
        self.endpoint.metrics.requests += 1

    def attempt_ended(
        self,
        outcome: str,
        response: HttpResponse | None,
        seconds: float,
        *,
        sent: errors.Sent,
        usage: Usage | None = None,
    ) -> None:
        """The HTTP request is over."""
        metrics = self.endpoint.metrics
        metrics.on_the_wire_s += seconds
        if usage is not None:
            metrics.input_tokens += usage.prompt_tokens
            metrics.output_tokens += usage.completion_tokens
        if outcome == OK:
            metrics.succeeded += 1
        elif outcome == CANCELLED:
            metrics.cancelled += 1
        else:
            metrics.errors[outcome] += 1
        if response is not None and response.info.compressed_size is not None:
            self.response_decoded(response.info.compressed_size, len(response.body))
        if self.recording:
            self.emit(
                events.RequestAttempt,
                outcome=outcome,
                status=response.status if response is not None else None,
                seconds=seconds,
                sent=sent,
                reused=response.info.reused if response is not None else False,
            )

    def response_decoded(self, received: int, size: int) -> None:
        """The response was compressed: ``received`` bytes were decoded to ``size`` bytes."""
        self.endpoint.metrics.compression.saved_received += size - received
        if self.recording:
            self.emit(events.ResponseCompression, received=received, size=size)

    def response_parsed(self, response: HttpResponse, seconds: float) -> None:
        """The response was parsed in ``seconds``."""
        if size := len(response.body):
            self.emit(events.JsonParse, operation=self.call.operation, size=size, seconds=seconds)

    def wait_ended(self, cause: events.WaitCause, seconds: float, outcome: str) -> None:
        """The request has waited so long."""
        waited = self.endpoint.metrics.waited_s
        waited[cause] = waited.get(cause, 0.0) + seconds
        if self.telemetry.wants(events.RequestWait):
            limits = self.endpoint.policies.limits_in_force(self.call, cause)
            self.emit(events.RequestWait, cause=cause, seconds=seconds, outcome=outcome, limits=limits)

    def retry_scheduled(self, retry: Retry) -> None:
        """The request will be sent again. A wait for an open circuit is recorded as a wait, not as a retry."""
        if retry.decision.reason != "circuit_open":
            self.endpoint.metrics.retries += 1
            cause, endpoint = type(retry.error).__name__, retry.error.endpoint or ""
            self.emit(
                events.RequestRetry, endpoint=endpoint, attempt=retry.attempt, delay=retry.delay, cause=cause
            )

    def endpoint_set_aside(self, error: errors.LLMOptError) -> None:
        """The endpoint does not serve the model: others are asked for a while."""
        self.emit(
            events.EndpointSetAside,
            index=self.endpoint.config.index,
            operation=self.call.operation,
            cause=type(error).__name__,
            seconds=SET_ASIDE_S,
            message=str(error),
        )

    def credential_refused(self, error: errors.LLMOptError) -> None:
        """Nothing is sent with the credential for a while, because of this error."""
        if self.endpoint.policies.credential_error(self.call.model) is error:
            self.emit(events.CredentialRefused, cause=type(error).__name__, message=str(error))

    def limits_changed(self) -> None:
        """Something was learned of the rate limits, from headers or from a 429."""
        self.telemetry.on_limits_changed(self.endpoint.config.provider, self.call.model)

    def limits_learned(self) -> None:
        """Response headers stated a rate limit that was unknown or different before."""
        self.limits_changed()
        limits = self.endpoint.policies.rate_limiter(self.call).learned[:2]
        for name, value in zip(("rpm", "tpm"), limits, strict=True):
            if value is not None:
                self.emit(events.LimitLearned, limit=name, value=value, source="headers")

    def stream_chunk(self, size: int, completed: int, seconds: float) -> None:
        """A chunk of a streamed response was received, after the first; it completed this number of events."""
        self.emit(events.StreamChunk, size=size, events=completed, seconds=seconds)

    def unknown_event(self, kind: str) -> None:
        """An event of a stream has a type that llmopt does not know."""
        self.endpoint.metrics.unknown_events += 1
        self.emit(events.StreamUnknown, kind=kind)
