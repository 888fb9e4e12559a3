"""The policies that watch over one endpoint, and what they have learned of it."""

from __future__ import annotations

import math
from typing import Any, Final, Protocol, Self

from llmopt.config.resolve import Endpoint
from llmopt.errors import AuthError, LLMOptError, QuotaExhausted
from llmopt.policies.circuit_breaker import CircuitBreakerRegistry, CircuitPair
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.concurrency_limit import ConcurrencyLimiter
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry import RetryBudget, RetryPolicy
from llmopt.policies.tasks import PerLoop
from llmopt.policies.timeouts import AdaptiveTimeout, static_timeout
from llmopt.values.calls import Call, ChatCall, RateLimits

# How an attempt is paced: the place of the rate limiter in the pipeline, and none for those who want none.


class RateLimitLease(Protocol):
    """Leave to send one request now. Leaving the ``with`` block settles it to its estimate."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def wants_headers(self) -> bool:
        """Whether `observe` would learn from headers now; they need not be read otherwise."""
        ...

    def settle(self, tokens: float | None) -> None:
        """The request cost so many tokens, None for as many as estimated."""

    def accept(self) -> None:
        """The answer has begun; what it cost is settled when it ends."""

    def refund(self) -> None:
        """Nothing was sent."""

    def observe(self, limits: RateLimits) -> bool:
        """The headers of the answer tell this; True when a limit was learned or has changed."""
        ...

    def throttled(self, retry_after: float | None, *, limits: RateLimits | None) -> bool:
        """The server answered that it was too much; True as `observe`."""
        ...


class RateLimiterLike(Protocol):
    """Gives leave, in order."""

    @property
    def paused(self) -> float:
        """Seconds that nothing goes out because the server refused; 0 when that is not so."""
        ...

    @property
    def has_capacity(self) -> bool:
        """Whether a small request would go at once."""
        ...

    @property
    def server_limits(self) -> tuple[float | None, float | None]:
        """Requests and tokens a minute that headers told of; None where they did not."""
        ...

    def try_acquire(self, tokens: float) -> RateLimitLease | None:
        """Leave at once, None when there is a wait."""
        ...

    async def acquire(self, tokens: float, *, deadline: Deadline, max_pause: float) -> RateLimitLease:
        """Leave, when it is this caller's turn; `RateLimited` before a pause longer than its patience."""
        ...


class NullLease:
    """Leave that costs nothing."""

    __slots__ = ()

    wants_headers = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def settle(self, tokens: float | None) -> None:
        """Nothing to settle."""

    def accept(self) -> None:
        """Nobody waits for that."""

    def refund(self) -> None:
        """Nothing to give back."""

    def observe(self, limits: RateLimits) -> bool:  # noqa: ARG002 - nothing is learned
        """Nobody to tell."""
        return False

    def throttled(self, retry_after: float | None, *, limits: RateLimits | None) -> bool:  # noqa: ARG002 - as above
        """Nobody to slow down: the retry waits by itself."""
        return False


class NullRateLimiter:
    """No pacing."""

    __slots__ = ("_lease",)

    paused = 0.0
    has_capacity = True
    server_limits = (None, None)

    def __init__(self) -> None:
        self._lease = NullLease()

    def try_acquire(self, tokens: float) -> RateLimitLease:  # noqa: ARG002 - free of charge
        """Always."""
        return self._lease

    async def acquire(
        self,
        tokens: float,  # noqa: ARG002 - as above
        *,
        deadline: Deadline,  # noqa: ARG002
        max_pause: float,  # noqa: ARG002
    ) -> RateLimitLease:
        """Always."""
        return self._lease


_QUOTA_BLOCK_S: Final = 300.0
_AUTH_BLOCK_S: Final = 60.0
_TOKEN_BLOCK_S: Final = 5.0
"""A function that gives tokens may give another one any moment, which only the next attempt finds out."""
_REASONING_FACTOR: Final = 5.0
"""So much longer may the first event take of a model that is told to think first: 300 s for the usual 60."""
_LITTLE_REASONING: Final = (None, "none", "minimal")


class EndpointPolicies:
    """Budget, breakers, concurrency, limiters and time-outs of one endpoint.

    Args:
        endpoint: as configured; its flags switch each of them off.
        breakers: the client's circuits.
        clock: the time.
    """

    def __init__(self, endpoint: Endpoint, breakers: CircuitBreakerRegistry, clock: Clock) -> None:
        self._endpoint: Final = endpoint
        self._clock: Final = clock
        self._breakers: Final = breakers
        self._credential: Final = endpoint.credential.fingerprint()
        self._circuit_pairs: Final[dict[tuple[str, str], CircuitPair]] = {}
        self._null_limiter: Final = NullRateLimiter()
        self._limiters: Final[dict[str, RateLimiter]] = {}
        self._timeouts: Final[dict[str, AdaptiveTimeout]] = {}
        self._concurrency_limits: Final[PerLoop[ConcurrencyLimiter]] = PerLoop(self._new_concurrency_limit)
        self._blocked: tuple[LLMOptError, float] | None = None
        self._has_answered = False
        self.retry_budget: Final = RetryBudget()
        self.retry_policy: Final = RetryPolicy(
            max_retries=endpoint.max_retries, retry_delay=endpoint.retry_delay
        )

    def breakers(self, call: Call) -> CircuitPair | None:
        """The circuits that a call passes, None when they are switched off."""
        if not self._endpoint.flags.breaker:
            return None
        key = (call.model, call.operation)
        pair = self._circuit_pairs.get(key)
        if pair is None:
            pair = self._breakers.pair(self._endpoint.origin, self._credential, *key)
            pair = self._circuit_pairs.setdefault(key, pair)
        return pair

    def concurrency(self) -> ConcurrencyLimiter:
        """The line before this endpoint on the running event loop."""
        return self._concurrency_limits.current()

    def _new_concurrency_limit(self) -> ConcurrencyLimiter:
        maximum = self._endpoint.max_concurrency
        return ConcurrencyLimiter(clock=self._clock, initial=maximum, maximum=maximum)

    def rate_limiter(self, call: Call) -> RateLimiterLike:
        """The limiter of the quota that a call spends: that of its model; lists of models have one of their own."""
        if not self._endpoint.flags.limiter:
            return self._null_limiter
        limiter = self._limiters.get(call.model)
        if limiter is None:
            # Atomic, as all of these are: another loop's thread may have been quicker.
            limiter = self._limiters.setdefault(call.model, self._new_limiter(call))
        return limiter

    def _new_limiter(self, call: Call) -> RateLimiter:
        # A number in the configuration is meant for a model, or for what an option names (a deployment).
        endpoint = self._endpoint
        names = (call.model, *(value for value in endpoint.options.values() if isinstance(value, str)))
        spends = call.operation != "catalog"
        return RateLimiter(
            clock=self._clock,
            rpm=endpoint.rpm_for(*names) if spends else None,
            tpm=endpoint.tpm_for(*names) if spends else None,
        )

    def timeout(self, call: Call, size: int, fill: float) -> float:
        """Seconds for one attempt at a call of this size."""
        timeouts = self._endpoint.timeouts
        if call.operation == "catalog":
            return timeouts.catalog
        if isinstance(call, ChatCall):
            return self._chat_timeout(call)
        maximum = static_timeout(timeouts, fill)
        if not self._has_answered and timeouts.first is not None:
            # The engine may have to load its model first.
            return max(maximum, timeouts.first)
        if not self._endpoint.flags.adaptive_timeouts:
            return maximum
        return self._adaptive_timeout(call.model).limit(size, maximum)

    def record_latency(self, call: Call, size: int, seconds: float) -> None:
        """A complete answer came after so long."""
        self._has_answered = True
        if call.operation == "embeddings":
            self._adaptive_timeout(call.model).record(size, seconds)

    def record_timeout(self, call: Call, size: int, seconds: float) -> None:
        """No complete answer came in so long."""
        if call.operation == "embeddings":
            self._adaptive_timeout(call.model).timed_out(size, seconds)

    def _chat_timeout(self, call: ChatCall) -> float:
        """Until the whole answer, or the first event of a stream. Not adaptive: it depends on what is asked."""
        timeouts = self._endpoint.timeouts
        maximum = timeouts.first_event if call.stream else timeouts.chat
        if call.stream and call.reasoning_effort not in _LITTLE_REASONING:
            maximum *= _REASONING_FACTOR
        return maximum if self._has_answered or timeouts.first is None else max(maximum, timeouts.first)

    @property
    def has_answered(self) -> bool:
        """Whether the endpoint has answered before."""
        return self._has_answered

    def _adaptive_timeout(self, model: str) -> AdaptiveTimeout:
        found = self._timeouts.get(model)
        if found is None:
            found = self._timeouts.setdefault(model, AdaptiveTimeout(now=self._clock.now))
        return found

    def block_credential(self, error: LLMOptError) -> None:
        """Remember that the credential was refused, so that nobody asks with it for a while."""
        if isinstance(error, QuotaExhausted):
            self._blocked = (error, self._clock.now() + _QUOTA_BLOCK_S)
        elif isinstance(error, AuthError):
            fixed = self._endpoint.credential.is_static
            self._blocked = (error, self._clock.now() + (_AUTH_BLOCK_S if fixed else _TOKEN_BLOCK_S))

    def unblock_credential(self) -> None:
        """There is another credential now."""
        self._blocked = None

    def credential_error(self) -> LLMOptError | None:
        """The refusal of the credential that still stands, None when there is none."""
        if self._blocked is None:
            return None
        error, until = self._blocked
        if self._clock.now() >= until:
            self._blocked = None
            return None
        return error

    def stats(self) -> dict[str, Any]:
        """What the policies stand at, as plain values."""
        lines = list(self._concurrency_limits)
        return {
            "budget": self.retry_budget.left,
            "in_flight": sum(line.in_flight for line in lines),
            "waiting": sum(line.waiting for line in lines),
            "concurrency": max((line.limit for line in lines), default=float(self._endpoint.max_concurrency)),
            "limiters": {model: _limiter_stats(limiter) for model, limiter in self._limiters.items()},
            "breakers": {" ".join(key): pair.stats() for key, pair in self._circuit_pairs.items()},
        }


def _limiter_stats(limiter: RateLimiter) -> dict[str, float | None]:
    """Where a limiter stands: limits in force a minute, None where there is none."""
    requests, tokens = limiter.rates
    return {
        "waiting": limiter.waiting,
        "paused_s": limiter.paused,
        "rpm": round(requests * 60, 3) if math.isfinite(requests) else None,
        "tpm": round(tokens * 60, 3) if math.isfinite(tokens) else None,
    }
