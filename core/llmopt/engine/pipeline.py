"""One request through all policies, in the one order there is.

::

    retry( choose an endpoint whose breakers admit
           -> wait for a concurrency slot -> wait for a rate lease
           -> credential, build, encode
           -> breaker permit, taken last and without a pause before the send
           -> send -> judge -> settle lease, slot and permit )

The limiter is inside retry because each attempt spends quota. The breaker is looked at before the
queues, so that an open circuit costs nothing, and its permit is taken just before the send, so that
those who waited in line while it opened do not go. If it opened meanwhile, lease and slot are given
back and another endpoint is chosen. Every permit is returned on every way out, cancellation included:
each is a context manager whose exit does not await.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Coroutine, Mapping
from importlib import import_module
from typing import Any, Final, Generic, TypeVar

from llmopt.engine.attempt import CANCELLED, OK, Account, Held, explain, should_retry
from llmopt.engine.endpoint import Fleet, LiveEndpoint
from llmopt.engine.endpoint_policies import Pace, PaceLease
from llmopt.engine.request import Prepared, Request, conditional
from llmopt.engine.responses import T, judge, may_be_an_items
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import Attempt, AuthError, CircuitOpen, DeadlineExceeded, LLMOptError, RateLimited, Sent
from llmopt.policies.circuit_breaker import Refusal
from llmopt.policies.clock import Clock, aside
from llmopt.policies.concurrency_limit import Slot
from llmopt.policies.retry import Facts, SingleRetrier, inside_attempt
from llmopt.transport.request import WireRequest
from llmopt.values.calls import Operation, Settings
from llmopt.values.events import WaitCause
from llmopt.values.http import HttpResponse

_W = TypeVar("_W")
_LONG: Final[Mapping[Operation, int]] = {"embeddings": 8 << 20, "catalog": 1 << 20, "chat": 1 << 20}
"""From how many bytes reading an answer takes long: 4 ms for vectors in base64, 8 ms for numbers and lists of models."""
_RETRIER: Final = "llmopt.policies.retry_loop"


class Pipeline(Generic[T]):
    """One request and all its attempts.

    Args:
        fleet: the endpoints of the provider.
        request: what to send.
        clock: the time.
        telemetry: told of what happens.
    """

    def __init__(self, fleet: Fleet, request: Request[T], clock: Clock, telemetry: Telemetry) -> None:
        self._fleet: Final = fleet
        self._request: Final = request
        self._call: Final = request.call
        self._clock: Final = clock
        self._account: Final = Account(request.call, fleet.endpoints[0].config.provider, telemetry)
        self._history: tuple[Attempt, ...] = ()
        self._tried: tuple[int, ...] = ()
        self._should_retry: bool | None = None
        self._new_credential = False
        self._packed: Prepared | None = None
        self._endpoint = fleet.endpoints[0]

    def run(self) -> Coroutine[Any, Any, T]:
        """The parsed answer, after as many attempts as it takes and the policy allows.

        Raises:
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        return self._told() if self._account.on else self._attempts()

    async def _told(self) -> T:
        started = self._clock.now()
        self._account.started(self._request.items, self._request.tokens)
        outcome = CANCELLED
        try:
            value = await self._attempts()
            outcome = OK
        except LLMOptError as error:
            outcome = type(error).__name__
            raise
        else:
            return value
        finally:
            self._account.ended(self._endpoint, outcome, self._clock.now() - started)

    async def _attempts(self) -> T:
        try:
            if self._fleet.in_process:
                return await self._in_process()
            try:
                value = await self._attempt(1)
            except LLMOptError as error:
                if not self._worth_retrying(error):
                    raise
                return await self._retried(error)
            self._endpoint.guards.budget.succeeded()
        except LLMOptError as error:
            error.provider = error.provider or self._endpoint.config.provider
            error.model = error.model or self._call.model or None
            error.endpoint = error.endpoint or self._endpoint.name
            error.attempts = self._history
            raise
        else:
            return value

    def _worth_retrying(self, error: LLMOptError) -> bool:
        # Inside another attempt of llmopt's it is that one's to retry.
        if not self._endpoint.config.flags.retry or inside_attempt():
            return False
        return not (self._request.suspect and may_be_an_items(error))

    async def _retried(self, error: LLMOptError) -> T:
        # A client whose requests all succeed never pays for stamina. It is a large import, so that the
        # first retry has it made beside the loop, which goes on with other requests.
        if _RETRIER not in sys.modules:
            await aside(import_module, _RETRIER)
        from llmopt.policies.retry_loop import with_retries

        return await with_retries(
            error,
            self._attempt,
            self._endpoint.guards.retry,
            deadline=self._request.deadline,
            budget=lambda _: self._endpoint.guards.budget,
            facts=lambda _: Facts(
                idempotent=self._call.operation != "chat",
                should_retry=self._should_retry,
                new_credential=self._new_credential,
                wait_when_open=self._request.wait_when_open,
                rest=self._fleet.rest(self._call),
                elsewhere=self._fleet.elsewhere(self._endpoint, self._call, self._tried),
            ),
            on_retry=lambda retry: self._account.retrying(self._endpoint, retry),
        )

    async def _in_process(self) -> T:
        """An engine inside the process: no queues, nothing that needs sparing."""
        endpoint = self._endpoint
        self._check_deadline("before it began")
        settings = await endpoint.settings()
        prepared = self._prepare(endpoint, settings)
        response: HttpResponse | None = None
        self._account.sending(endpoint)
        started = self._clock.now()
        outcome, usage = CANCELLED, None
        try:
            response = await self._exchange(endpoint, prepared, None)
            value = await self._value(endpoint, response, settings)
            outcome, usage = OK, self._request.usage_of(value)
        except LLMOptError as error:
            outcome = type(error).__name__
            self._note(error, endpoint, response, self._clock.now() - started)
            raise
        else:
            return value
        finally:
            seconds = self._clock.now() - started
            self._account.attempted(endpoint, 1, outcome, response, seconds, sent="yes", usage=usage)

    async def _attempt(self, number: int) -> T:
        """One HTTP request, or the reason why none may be made."""
        while True:
            self._should_retry = None
            self._new_credential = False
            self._check_deadline("before it was sent")
            # What need not wait is not awaited: a coroutine for each would cost more than the policies themselves.
            endpoint = self._endpoint = self._at_hand() or await self._chosen()
            guards = endpoint.guards
            with Held(endpoint, self._call, self._request.tokens, suspect=self._request.suspect) as held:
                held.slot = guards.concurrency().try_acquire() or await self._slot(endpoint)
                lease = guards.pace(self._call).try_acquire(self._request.tokens)
                if lease is None:
                    lease = await self._lease(endpoint)
                    if lease is None:
                        continue
                held.lease = lease
                settings = endpoint.fixed or await endpoint.settings()
                prepared = self._prepare(endpoint, settings)
                if endpoint.packing is not None:
                    prepared = await endpoint.packing.pack(prepared, self._packed, self._call.model)
                    self._packed = prepared
                timeout = guards.timeout(self._call, self._request.tokens, self._request.fill)
                breakers = guards.breakers(self._call)
                permit = breakers.acquire(timeout) if breakers is not None else None
                if isinstance(permit, Refusal):
                    lease.refund()
                    continue
                held.admitted(permit, timeout)
                try:
                    if not endpoint.foreign:
                        return await self._send(number, held, prepared, settings)
                    with SingleRetrier():
                        return await self._send(number, held, prepared, settings)
                except AuthError:
                    self._new_credential = await self._another_key(endpoint, settings)
                    raise

    async def _send(self, number: int, held: Held, prepared: Prepared, settings: Settings) -> T:
        endpoint = held.endpoint
        self._tried = (*self._tried, endpoint.config.index)
        self._account.sending(endpoint)
        response: HttpResponse | None = None
        started = self._clock.now()
        try:
            if self._request.deadline.bounded:
                response = await self._exchange(endpoint, prepared, held.timeout)
            else:
                # As `_exchange` does then, with a coroutine less under way.
                response = await endpoint.wire.send(self._wire_request(endpoint, prepared, held.timeout))
            # How long reading takes says nothing of the server.
            seconds = self._clock.now() - started
            value = await self._value(endpoint, response, settings)
        except LLMOptError as error:
            self._failed(number, held, settings, error, response, self._clock.now() - started)
            raise
        except asyncio.CancelledError:
            seconds = self._clock.now() - started
            self._account.attempted(endpoint, number, CANCELLED, response, seconds, sent="maybe")
            raise
        usage = self._request.usage_of(value)
        if held.succeeded(response, settings, seconds, usage.total_tokens if usage is not None else None):
            self._account.learned(endpoint)
        self._fleet.took(endpoint, seconds)
        self._account.attempted(endpoint, number, OK, response, seconds, sent="yes", usage=usage)
        return value

    async def _value(self, endpoint: LiveEndpoint, response: HttpResponse, settings: Settings) -> T:
        """What the answer says; a long one is read in a thread, while the loop goes on with other requests."""
        call, parse = self._call, self._request.parse
        started = self._clock.now() if self._account.on else 0.0
        if len(response.body) < _LONG[call.operation]:
            value = judge(endpoint.hooks, call, response, settings, parse)
        else:
            value = await aside(judge, endpoint.hooks, call, response, settings, parse)
        if self._account.on:
            self._account.read(response, self._clock.now() - started)
        return value

    async def _another_key(self, endpoint: LiveEndpoint, used: Settings) -> bool:
        """Whether the credential's provider gives another one now than that which was refused."""
        if endpoint.config.credential.is_static:
            return False
        try:
            with SingleRetrier():
                settings = await endpoint.settings()
        except LLMOptError:
            return False
        if settings.credential == used.credential:
            return False
        endpoint.guards.unlatch()
        return True

    def _failed(
        self,
        number: int,
        held: Held,
        settings: Settings,
        error: LLMOptError,
        response: HttpResponse | None,
        seconds: float,
    ) -> None:
        endpoint = held.endpoint
        self._should_retry = should_retry(response)
        self._note(error, endpoint, response, seconds)
        if held.failed(error, settings, seconds, response):
            self._account.learned(endpoint)
        outcome = type(error).__name__
        self._account.attempted(endpoint, number, outcome, response, seconds, sent=error.sent)

    def _note(
        self, error: LLMOptError, endpoint: LiveEndpoint, response: HttpResponse | None, seconds: float
    ) -> None:
        self._history = (*self._history, explain(error, endpoint, self._call, response, seconds))

    def _prepare(self, endpoint: LiveEndpoint, settings: Settings) -> Prepared:
        request = endpoint.hooks.build_request(self._call, settings)
        return endpoint.prepare(conditional(request, self._call), settings)

    async def _exchange(
        self, endpoint: LiveEndpoint, prepared: Prepared, timeout: float | None
    ) -> HttpResponse:
        request = self._wire_request(endpoint, prepared, timeout)
        if not self._request.deadline.bounded:
            return await endpoint.wire.send(request)
        try:
            async with asyncio.timeout(self._request.deadline.remaining()):
                return await endpoint.wire.send(request)
        except TimeoutError:
            raise late("while waiting for the answer", "send", sent="maybe") from None

    def _wire_request(
        self, endpoint: LiveEndpoint, prepared: Prepared, timeout: float | None, idle: float | None = None
    ) -> WireRequest:
        return WireRequest(
            method=prepared.method,
            url=prepared.url,
            headers=prepared.headers,
            body=prepared.body,
            unpacked=prepared.unpacked,
            connect_timeout=endpoint.config.timeouts.connect,
            pool_timeout=endpoint.config.timeouts.pool,
            timeout=timeout,
            idle=idle,
            max_body=self._request.max_body,
        )

    def _at_hand(self) -> LiveEndpoint | None:
        """The endpoint for the next attempt, None while all are given a rest."""
        try:
            return self._fleet.choose(self._call, self._tried)
        except CircuitOpen:
            return None

    async def _chosen(self) -> LiveEndpoint:
        """The endpoint for the next attempt; while all are given a rest, whoever may wait waits here."""
        while True:
            try:
                return self._fleet.choose(self._call, self._tried)
            except CircuitOpen as error:
                rest = error.retry_after
                if rest is None or not self._request.wait_when_open:
                    raise
                # With too little time left it is for the retry policy to say so.
                if not self._request.deadline.leaves(rest, spare=self._endpoint.guards.retry.min_attempt):
                    raise
            patience = self._fleet.patience(self._call) or rest
            wait = self._fleet.recess.wait(self._request.deadline.clamp(patience))
            await self._waiting("breaker", self._endpoint, wait)

    async def _slot(self, endpoint: LiveEndpoint) -> Slot:
        line = endpoint.guards.concurrency()
        return await self._waiting("concurrency", endpoint, line.acquire(self._request.deadline))

    async def _lease(self, endpoint: LiveEndpoint) -> PaceLease | None:
        """Leave to send; none when the server wants a pause and another endpoint is free."""
        pace = endpoint.guards.pace(self._call)
        if len(self._fleet.endpoints) > 1:
            try:
                return await self._in_line(endpoint, pace, patience=0.0)
            except RateLimited:
                if self._fleet.elsewhere(endpoint, self._call):
                    return None
        return await self._in_line(endpoint, pace, patience=endpoint.guards.retry.max_retry_after)

    async def _in_line(self, endpoint: LiveEndpoint, pace: Pace, *, patience: float) -> PaceLease:
        deadline = self._request.deadline
        wait = pace.acquire(self._request.tokens, deadline=deadline, patience=patience)
        return await self._waiting("limiter", endpoint, wait)

    async def _waiting(self, cause: WaitCause, endpoint: LiveEndpoint, wait: Awaitable[_W]) -> _W:
        started = self._clock.now()
        self._account.waits(endpoint, cause)
        got = await wait
        self._account.waited(endpoint, cause, self._clock.now() - started)
        return got

    def _check_deadline(self, when: str) -> None:
        if self._request.deadline.expired():
            raise late(when, "queue")


def late(when: str, phase: str, *, sent: Sent = "no") -> DeadlineExceeded:
    """The caller's time is up."""
    return DeadlineExceeded(f"the deadline passed {when}.", phase=phase, sent=sent)
