"""The resilience policies of one endpoint: retry budget, circuit breakers, limiters and timeouts.

Most are created when first needed, by what they apply to: circuits by model and operation, rate limits and adaptive
timeouts by model, the concurrency limit and the measure of the loop's lag by event loop.

No I/O. Nothing here awaits but the limiters' own waits; the monotonic clock and its timers are passed in. All calls of
a client share an `EndpointPolicies`, with its blocked credentials and the models set aside, also from event loops in
several threads, without a lock: rate limits and timeouts are created by an atomic ``dict.setdefault``, and only a rate
limiter has a lock of its own. Circuits come from the client's registry, so that endpoints of one origin share them; two
threads may create one twice. Only jitter is random.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from llmopt.config.resolve import Endpoint
from llmopt.errors import AuthError, LLMOptError, QuotaExhausted
from llmopt.policies.circuit_breaker import CircuitBreakerRegistry, CircuitPair
from llmopt.policies.clock import Clock
from llmopt.policies.concurrency_limit import ConcurrencyLimiter
from llmopt.policies.quota import Lease
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry import RetryBudget, RetryPolicy
from llmopt.policies.tasks import PerLoop
from llmopt.policies.timeouts import AdaptiveTimeout, LoopLag, first_timeout, static_timeout
from llmopt.policies.wait_queue import WaitingCalls
from llmopt.values.calls import Call, ChatCall, Operation
from llmopt.values.events import WaitCause

if TYPE_CHECKING:
    from llmopt.shared.sharing import Sharing


_ALL_MODELS: Final = ""
_UNLIMITED: Final = 1 << 62
"""Requests at once of an engine inside this process, to which no policy but the deadline applies."""
_QUOTA_BLOCK_S: Final = 300.0
_AUTH_BLOCK_S: Final = 60.0
_TOKEN_BLOCK_S: Final = 5.0
"""Short, because a function may return another token at any time, and only the next attempt finds out."""
SET_ASIDE_S: Final = 300.0
"""For models that an endpoint lacks: deployments and permissions change within minutes, not seconds."""
_REASONING_FACTOR: Final = 5.0
"""A model that reasons may take this much longer to its first event: 300 s instead of the usual 60 s."""
_LITTLE_REASONING: Final = (None, "none", "minimal")


class EndpointPolicies:
    """The policies of one endpoint, and what they have learned about it.

    Args:
        endpoint: as configured; its flags switch single policies off.
        breakers: all circuit breakers of the client.
        clock: the time.
        sharing: shares rate limits with other processes, None where nothing is shared.

    Attributes:
        concurrency: the concurrency limiter of each event loop.
        loop_lag: the lag of each event loop.
        reply_limiters: see `reply_limiter`, by model; empty for next to all providers.
        no_lease: a lease that has ended, in place of one that is not granted yet.
        retry_budget: limits retries as a share of the successes.
        retry_policy: decides about each retry.
        has_answered: whether the endpoint has ever answered; before, it may have to load its model.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        breakers: CircuitBreakerRegistry,
        clock: Clock,
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing: Final = sharing
        self._endpoint: Final = endpoint
        self._clock: Final = clock
        self._breakers: Final = breakers
        # Circuits are also by credential: one account may be blocked while another one works.
        self._credential: Final = endpoint.credential.fingerprint()
        self._circuit_pairs: Final[dict[tuple[str, str], CircuitPair]] = {}
        self._unlimited: Final = RateLimiter(clock=clock, initial_window=0, learns=False)
        self.no_lease: Final = Lease(self._unlimited, 0.0, 0.0, 0, 0.0, 0.0, open=False)
        self._limiters: Final[dict[str, RateLimiter]] = {}
        self.reply_limiters: Final[dict[str, RateLimiter]] = {}
        self._waiting: Final[dict[str, WaitingCalls]] = {}
        self._timeouts: Final[dict[str, AdaptiveTimeout]] = {}
        self.concurrency: Final = PerLoop(self._new_concurrency_limit)
        self.loop_lag: Final = PerLoop(self._new_loop_lag)
        # By model; "" for all of them.
        self._blocked: Final[dict[str, tuple[LLMOptError, float]]] = {}
        self._set_aside: Final[dict[tuple[str, Operation], float]] = {}
        self.has_answered = False
        self.retry_budget: Final = RetryBudget()
        self.retry_policy: Final = RetryPolicy(
            max_retries=endpoint.max_retries, retry_delay=endpoint.retry_delay
        )

    def breakers(self, call: Call) -> CircuitPair | None:
        """The circuit breakers that a call passes, None where they are switched off."""
        if not self._endpoint.flags.breaker or self._endpoint.in_process:
            return None
        key = (call.model, call.operation)
        pair = self._circuit_pairs.get(key)
        if pair is None:
            pair = self._breakers.pair(
                self._endpoint.origin, self._credential, *key, provider=self._endpoint.provider
            )
            pair = self._circuit_pairs.setdefault(key, pair)
        return pair

    def _new_concurrency_limit(self) -> ConcurrencyLimiter:
        maximum = _UNLIMITED if self._endpoint.in_process else self._endpoint.max_concurrency
        return ConcurrencyLimiter(clock=self._clock, initial=maximum, maximum=maximum)

    def _new_loop_lag(self) -> LoopLag:
        limiter = self.concurrency.current()
        return LoopLag(self._clock, lambda: limiter.in_flight > 0)

    def rate_limiter(self, call: Call) -> RateLimiter:
        """The limiter of the quota that a call uses: one for each model, and one for listing models."""
        if not self._endpoint.flags.limiter or self._endpoint.in_process:
            return self._unlimited
        # setdefault is atomic: an event loop in another thread may have been faster.
        return self._limiters.get(call.model) or self._limiters.setdefault(
            call.model, self._new_limiter(call)
        )

    def reply_limiter(self, call: Call, *, create: bool = False) -> RateLimiter | None:
        """The limiter of the tokens of replies, where the provider has shown that it counts them apart.

        It is a limiter of its own, so that all that is known and learned of a limit holds for this one as well.
        """
        limiter = self.reply_limiters.get(call.model)
        if limiter is None and create and self._endpoint.flags.limiter:
            new = RateLimiter(clock=self._clock, initial_window=0)
            limiter = self.reply_limiters.setdefault(call.model, new)
        return limiter

    def waiting_calls(self, call: Call) -> WaitingCalls:
        """The count of the calls that wait for the quota of a call."""
        return self._waiting.get(call.model) or self._waiting.setdefault(call.model, WaitingCalls())

    def _new_limiter(self, call: Call) -> RateLimiter:
        # The configuration states limits by model, or by what an option names (a deployment on Azure).
        endpoint = self._endpoint
        names = (call.model, *(value for value in endpoint.options.values() if isinstance(value, str)))
        firm = endpoint.rpm.is_configured(*names), endpoint.tpm.is_configured(*names)
        if call.operation == "catalog":
            return RateLimiter(clock=self._clock, firm=firm)
        rpm, tpm = endpoint.rpm.get(*names), endpoint.tpm.get(*names)
        if self._sharing is not None:
            return self._sharing.limiter(endpoint, call.model, rpm, tpm, firm)
        return RateLimiter(clock=self._clock, rpm=rpm, tpm=tpm, firm=firm)

    def timeout(self, call: Call, size: int, fill: float) -> float:
        """Seconds for one attempt.

        Args:
            call: what is asked for.
            size: estimated tokens of the request.
            fill: see `Request.fill`.
        """
        timeouts = self._endpoint.timeouts
        if self._endpoint.in_process:
            return math.inf
        if call.operation == "catalog":
            return timeouts.catalog
        if isinstance(call, ChatCall):
            return self._chat_timeout(call)
        maximum = static_timeout(timeouts, fill)
        if not self.has_answered:
            return first_timeout(timeouts, maximum, "read", "read_large")
        if not self._endpoint.flags.adaptive_timeouts:
            return maximum
        return self._adaptive_timeout(call.model).limit(size, maximum)

    def record_latency(self, call: Call, size: int, seconds: float) -> None:
        """Record the latency of a complete response, or of a stream's first event, in seconds."""
        self.has_answered = True
        if call.operation == "embeddings":
            self._adaptive_timeout(call.model).record(size, seconds)

    def record_timeout(self, call: Call, size: int, seconds: float) -> None:
        """Record that a request timed out after ``seconds``."""
        if call.operation == "embeddings":
            self._adaptive_timeout(call.model).record(size, seconds, timed_out=True)

    def _chat_timeout(self, call: ChatCall) -> float:
        """Seconds until the whole reply, or the first event of a stream. Not adaptive: it depends on the question."""
        timeouts = self._endpoint.timeouts
        key, maximum = ("first_event", timeouts.first_event) if call.stream else ("chat", timeouts.chat)
        if call.stream and call.reasoning_effort not in _LITTLE_REASONING and key not in timeouts.configured:
            maximum *= _REASONING_FACTOR
        return maximum if self.has_answered else first_timeout(timeouts, maximum, key)

    def _adaptive_timeout(self, model: str) -> AdaptiveTimeout:
        return self._timeouts.get(model) or self._timeouts.setdefault(
            model, AdaptiveTimeout(now=self._clock.now)
        )

    def block_credential(self, error: LLMOptError, model: str) -> None:
        """If the error is a refused credential, send nothing with it for a while.

        Args:
            error: of an attempt.
            model: of its call. A quota of one model blocks that model only, and one of a single request nothing.
        """
        if isinstance(error, QuotaExhausted):
            if error.scope != "request":
                self._block(model if error.scope == "model" else _ALL_MODELS, error, _QUOTA_BLOCK_S)
        elif isinstance(error, AuthError):
            seconds = _AUTH_BLOCK_S if self._endpoint.credential.is_static else _TOKEN_BLOCK_S
            self._block(_ALL_MODELS, error, seconds)

    def _block(self, blocked: str, error: LLMOptError, seconds: float) -> None:
        now = self._clock.now()
        # Of many requests that are refused together the first one counts, so that it is reported once.
        if self._blocked.get(blocked, (None, now))[1] <= now:
            self._blocked[blocked] = (error, now + seconds)

    def unblock_credential(self) -> None:
        """Send requests again: there is another credential."""
        self._blocked.clear()

    def credential_error(self, model: str) -> LLMOptError | None:
        """The error while the credential is blocked for a model, else None."""
        # Asked for every attempt, and next to never is anything blocked.
        if not self._blocked:
            return None
        for blocked in (_ALL_MODELS, model):
            error, until = self._blocked.get(blocked, (None, 0.0))
            if error is not None and self._clock.now() < until:
                return error
            # The next request finds out whether the account works again.
            self._blocked.pop(blocked, None)
        return None

    def set_aside(self, call: Call) -> bool:
        """Prefer other endpoints for this model and operation for a while; False if that was so already."""
        if self.is_set_aside(call):
            return False
        self._set_aside[call.model, call.operation] = self._clock.now() + SET_ASIDE_S
        return True

    def is_set_aside(self, call: Call) -> bool:
        """Whether other endpoints are preferred for the call's model and operation."""
        # Empty for all endpoints but those that lack a model: this is asked for every request.
        return bool(self._set_aside) and self._clock.now() < self._set_aside.get(
            (call.model, call.operation), 0.0
        )

    def readmit(self, call: Call) -> None:
        """The endpoint has served the call's model: it is as good as the others again."""
        if self._set_aside:
            self._set_aside.pop((call.model, call.operation), None)

    def limits_in_force(self, call: Call, cause: WaitCause) -> dict[str, float]:
        """The limits that a call has waited for: "rpm" and "tpm", or "concurrency"."""
        if cause == "concurrency":
            return {"concurrency": self.concurrency.current().limit}
        stats = _limiter_stats(self.rate_limiter(call)) if cause == "limiter" else {"rpm": None, "tpm": None}
        return {name: value for name in ("rpm", "tpm") if (value := stats[name]) is not None}

    def stats(self) -> dict[str, Any]:
        """The state of the policies as plain values."""
        limiters = list(self.concurrency)
        return {
            "budget": self.retry_budget.available,
            "in_flight": sum(limiter.in_flight for limiter in limiters),
            "waiting": sum(limiter.waiting for limiter in limiters),
            "concurrency": max(
                (limiter.limit for limiter in limiters), default=float(self._endpoint.max_concurrency)
            ),
            # Copied first: calls in other threads may add to them meanwhile.
            "limiters": {model: _limiter_stats(limiter) for model, limiter in list(self._limiters.items())},
            "reply_limiters": {
                model: _limiter_stats(each) for model, each in list(self.reply_limiters.items())
            },
            "breakers": {" ".join(key): pair.stats() for key, pair in list(self._circuit_pairs.items())},
        } | ({} if self._sharing is None else {"shared": self._sharing.stats()})


def _limiter_stats(limiter: RateLimiter) -> dict[str, float | None]:
    """Waiting calls, seconds of pause left, and the limits in force per minute, None for no limit."""
    requests, tokens = limiter.rates
    return {
        "waiting": limiter.waiting,
        "paused_s": limiter.pause_left,
        "rpm": round(requests * 60, 3) if math.isfinite(requests) else None,
        "tpm": round(tokens * 60, 3) if math.isfinite(tokens) else None,
    }
