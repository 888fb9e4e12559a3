"""Circuit breaker: stop sending to an endpoint that keeps failing, then let single requests test it.

A circuit is closed while requests pass, open while none may be sent, and half-open while one request at a
time (the probe) shows whether the server is back. The rules are those of Polly (failure ratio over 30 s, one
probe at a time, late results never extend a break), with Envoy's break durations, which grow and are
jittered. Each request passes two circuits, `CircuitPair`: that of its origin and that of its model.

No I/O and no locks. A circuit is made for one thread at a time; a client whose event loops run in several threads
shares it nevertheless, and may then lose a count or send a second probe. The monotonic clock is passed in; the random
generator of the jitter is passed in or made, and all circuits of a client share it. Changes are reported to a callback
in the thread of the request; the engine's callback writes to the log and calls the user's listener. A circuit keeps a
copy of the error that opened it. Permits are granted and reported on without awaiting, so that a cancelled call cannot
lose one. Only `CircuitWaitQueue` awaits: it sets timers through a `Clock`, and wakes waiters on any event loop, from
any thread.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final, Literal

from attrs import define, field, frozen

from llmopt import errors
from llmopt.policies.clock import Clock, Now, new_rng
from llmopt.policies.tasks import run_on, settle
from llmopt.values.events import BreakerChanged

State = Literal["closed", "open", "half_open"]
Result = Literal["success", "failure", "neutral"]
"""What a request says about the health of the server; "neutral" says nothing."""
_MAX_GROWTH_STEPS: Final = 64
"""Far beyond the longest break; 1.5 to the power of 2,000 does not fit into a float."""
_MAX_CIRCUITS: Final = 4096
_BROKEN: Final = frozenset({"truncated", "http", "decompression"})
"""Reasons of `InvalidResponse` that no request causes: the response did not arrive whole."""


@frozen(kw_only=True)
class CircuitBreakerOptions:
    """When a circuit opens and how it closes again.

    Attributes:
        window_s: seconds of results that count.
        buckets: number of parts that the window moves by.
        minimum_calls: the failure ratio is not looked at below this number of results in the window.
        failure_ratio: share of failures that opens the circuit.
        consecutive_failures: failures in a row that open it, None for no such rule.
        break_duration_s: seconds that the first break lasts.
        break_growth: each further break is longer by this factor.
        max_break_duration_s: the longest break before jitter; it bounds how late a recovered server is noticed.
        jitter: random part of a break, in either direction, so that clients do not return at the same moment.
        reset_after_s: after this time closed, the next break has the first duration again.
        half_open_calls: successful probes in a row that close the circuit.
        probe_grace_s: a probe that reports nothing is given up this long after its attempt's timeout.
        probe_retry_in_s: what `CircuitBreaker.retry_in` says while a probe is under way.
    """

    window_s: float = 30.0
    buckets: int = 10
    minimum_calls: int = 10
    failure_ratio: float = 0.5
    consecutive_failures: int | None = None
    break_duration_s: float = 5.0
    break_growth: float = 1.5
    max_break_duration_s: float = 8.0
    jitter: float = 0.2
    reset_after_s: float = 60.0
    half_open_calls: int = 2
    probe_grace_s: float = 5.0
    probe_retry_in_s: float = 0.5


_ORIGIN_OPTIONS: Final = CircuitBreakerOptions(consecutive_failures=5)
_MODEL_OPTIONS: Final = CircuitBreakerOptions(consecutive_failures=16)
"""Failures in a row, without one success between them, that open a circuit. The ratio alone is slow after a
good time: at 20 requests a second, half of a full window of 30 s is 300 requests sent into an outage."""


@define(eq=False, repr=False)
class CircuitBreaker:
    """One circuit. Not tied to an event loop; for use by one thread at a time.

    Args:
        name: used in events and log lines.
        options: when it opens and closes.
        now: the monotonic clock.
        rng: source of the jitter.
        on_transition: called with every change of state.
        on_probe_end: called when a probe has ended, so that callers that were refused can look again.
        provider: see `BreakerChanged`, and so for the next two; "" where several entries share the circuit.

    Attributes:
        cause: the failure that opened it last, None before the first time.
        state: an open circuit stays "open" after its break until the first request is let through.
    """

    name: str = ""
    _options: CircuitBreakerOptions = field(factory=CircuitBreakerOptions)
    _now: Now = field(kw_only=True)
    _rng: random.Random = field(factory=new_rng, kw_only=True)
    _on_transition: Callable[[BreakerChanged], object] = field(default=bool, kw_only=True)
    _on_probe_end: Callable[[], object] = field(default=bool, kw_only=True)
    provider: str = field(default="", kw_only=True)
    _endpoint: str = field(default="", kw_only=True)
    _model: str = field(default="", kw_only=True)
    cause: errors.LLMOptError | None = field(default=None, init=False)
    state: State = field(default="closed", init=False)
    _window: FailureWindow = field(init=False)
    # A result counts only in the generation in which its permit was granted; of another one it is late.
    _generation: int = field(default=0, init=False)
    # Failures in a row while closed, successful probes while half-open.
    _streak: int = field(default=0, init=False)
    # Breaks since the circuit was last closed for `reset_after_s`.
    _breaks: int = field(default=0, init=False)
    _open_until: float = field(default=-math.inf, init=False)
    _closed_at: float = field(default=-math.inf, init=False)
    _probe_until: float = field(default=-math.inf, init=False)  # a probe is under way until then
    _misfit: str = field(default="", init=False)  # reason of the last response that did not fit its request

    def __attrs_post_init__(self) -> None:
        self._window = FailureWindow(self._options.window_s, self._options.buckets)

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.name!r}, {self.state}, {self._window.failures}/{self._window.calls} failed)"

    def retry_in(self, *, notified: bool = False) -> float | None:
        """Seconds until a request may be let through, None if one would be now. Changes nothing.

        Args:
            notified: the caller hears of `on_probe_end`, so it can wait for as long as a probe may take.
        """
        if self.state == "closed":
            return None
        if self.state == "open":
            left = self._open_until - self._now()
            return left if left > 0 else None
        left = self._probe_until - self._now()
        if left <= 0:
            return None
        return left if notified else min(self._options.probe_retry_in_s, left)

    def suspect(self, error: errors.LLMOptError) -> None:
        """Another process has found the server broken: one request at a time, until the probes succeed."""
        if self.state == "closed":
            self._open_until, self.cause = self._now(), error
            self._change("open")

    def acquire(self, timeout_s: float = 60.0) -> int | None:
        """Let a request through: a ticket to `report` its result with, None while the circuit refuses.

        Args:
            timeout_s: the attempt's timeout. A probe that reports nothing for this time and a little more is
                given up, and the next one may go.
        """
        if self.state == "closed":
            return self._generation
        if self.retry_in() is not None:
            return None
        if self.state == "open":
            self._streak = 0
            self._change("half_open")
        # A new generation for each probe: one that was given up must not report for the next.
        self._generation += 1
        self._probe_until = self._now() + timeout_s + self._options.probe_grace_s
        return self._generation

    def report(self, ticket: int, result: Result, error: errors.LLMOptError | None = None) -> None:
        """Record the result of a request. To be called once for each ticket.

        Args:
            ticket: of the request.
            result: what it says about the server.
            error: of the request, None if it succeeded.
        """
        if ticket != self._generation:
            return
        if result == "failure" and self._is_misfit(error):
            result = "neutral"
        if self.state == "half_open":
            self._probe_ended(result, error)
        elif result != "neutral":
            self._count(result, error)

    def _is_misfit(self, error: errors.LLMOptError | None) -> bool:
        """Whether a response is unusable for the same reason as the one before it.

        A server that ignores ``dimensions``, or has no index, answers every request of that kind so: it is not down,
        and other requests for the same model succeed. One that sends now this and now that is broken.
        """
        if not isinstance(error, errors.InvalidResponse) or error.reason in _BROKEN:
            return False
        before, self._misfit = self._misfit, error.reason
        return before in ("", error.reason)

    def _count(self, result: Result, error: errors.LLMOptError | None) -> None:
        now = self._now()
        window = self._window
        window.add(now, failed=result == "failure")
        if result == "success":
            self._streak = 0
            return
        self._streak += 1
        options = self._options
        limit = options.consecutive_failures
        if (limit is not None and self._streak >= limit) or (
            window.calls >= options.minimum_calls and window.failures >= options.failure_ratio * window.calls
        ):
            self._open(now, error)

    def _probe_ended(self, result: Result, error: errors.LLMOptError | None) -> None:
        self._probe_until = -math.inf
        if result == "failure":
            self._open(self._now(), error)
        elif result == "success":
            self._streak += 1
            if self._streak >= self._options.half_open_calls:
                self._close()
        self._on_probe_end()

    def _open(self, now: float, error: errors.LLMOptError | None) -> None:
        options = self._options
        if self.state == "closed" and now - self._closed_at >= options.reset_after_s:
            self._breaks = 0
        growth = options.break_growth ** min(self._breaks, _MAX_GROWTH_STEPS)
        duration = min(options.max_break_duration_s, options.break_duration_s * growth)
        duration *= self._rng.uniform(1 - options.jitter, 1 + options.jitter)
        self._breaks += 1
        self._open_until = now + duration
        # Without its cause, whose traceback would keep the frames of that request alive.
        self.cause = None if error is None else error.copy(cause=False)
        self._change("open", duration)

    def _close(self) -> None:
        self._closed_at = self._now()
        self._streak = 0
        self._window.clear()
        self._change("closed")

    def _change(self, new: State, break_duration_s: float = 0.0) -> None:
        old, self.state = self.state, new
        self._generation += 1
        cause = self.cause if new == "open" else None
        self._on_transition(
            BreakerChanged(
                provider=self.provider,
                model=self._model,
                endpoint=self._endpoint,
                circuit=self.name,
                old=old,
                new=new,
                break_duration_s=break_duration_s,
                cause="" if cause is None else type(cause).__name__,
                message="" if cause is None else str(cause),
            )
        )


@define(eq=False)
class CircuitPair:
    """The two circuits that a request passes, used as one.

    The origin's circuit learns from connections that fail, the model's (of one origin, credential, model and
    operation) from responses. So a dead host opens for all its models at once, and one broken deployment does
    not close its neighbours; Envoy separates locally originated failures in the same way.

    Attributes:
        origin: the circuit of the origin.
        model: the circuit of the model behind it.
    """

    origin: CircuitBreaker
    model: CircuitBreaker

    def stats(self) -> dict[str, str]:
        """The states of both circuits."""
        return {"origin": self.origin.state, "model": self.model.state}

    @property
    def cause(self) -> errors.LLMOptError | None:
        """The failure that opened the circuit that refuses requests."""
        return self.model.cause if self.origin.retry_in() is None else self.origin.cause

    @property
    def half_open(self) -> bool:
        """Whether one of the circuits waits for the result of a probe."""
        return self.origin.state == "half_open" or self.model.state == "half_open"

    def retry_in(self, *, notified: bool = False) -> float | None:
        """As `CircuitBreaker.retry_in`, for both circuits."""
        origin = self.origin.retry_in(notified=notified)
        model = self.model.retry_in(notified=notified)
        if origin is None or model is None:
            return model if origin is None else origin
        return max(origin, model)

    def acquire(self, timeout_s: float = 60.0) -> Permit | None:
        """A permit to send one request, None while one of the circuits refuses; see `CircuitBreaker.acquire`."""
        origin = self.origin.acquire(timeout_s)
        if origin is None:
            return None
        model = self.model.acquire(timeout_s)
        if model is None:
            self.origin.report(origin, "neutral")
            return None
        return Permit(self, origin, model)


@define(eq=False)
class Permit:
    """Permission to send one request through both circuits. The first report counts, later ones do nothing."""

    _pair: CircuitPair | None
    _origin: int
    _model: int

    def success(self) -> None:
        """Report a good response."""
        self._report("success", "success")

    def neutral(self) -> None:
        """Report that the request said nothing about the server, for example because it was cancelled."""
        self._report("neutral", "neutral")

    def failed(self, error: errors.LLMOptError) -> None:
        """Report an error to the circuits that it concerns, see `results_of`."""
        self._report(*results_of(error), error)

    def _report(self, origin: Result, model: Result, error: errors.LLMOptError | None = None) -> None:
        pair = self._pair
        if pair is not None:
            self._pair = None
            pair.origin.report(self._origin, origin, error)
            pair.model.report(self._model, model, error)


class CircuitBreakerRegistry:
    """All circuits of a client, made when first needed.

    Args:
        now: the monotonic clock.
        rng: source of the jitter.
        on_transition: see `CircuitBreaker`.
        on_probe_end: see `CircuitBreaker`.
    """

    def __init__(
        self,
        *,
        now: Now,
        rng: random.Random | None = None,
        on_transition: Callable[[BreakerChanged], object] = bool,
        on_probe_end: Callable[[], object] = bool,
    ) -> None:
        self._new_circuit = partial(
            CircuitBreaker,
            now=now,
            rng=rng or new_rng(),
            on_transition=on_transition,
            on_probe_end=on_probe_end,
        )
        self._origins: dict[str, CircuitBreaker] = {}
        self._models: dict[tuple[str, str, str, str], CircuitBreaker] = {}

    def pair(
        self, origin: str, credential: str, model: str, operation: str, *, provider: str = ""
    ) -> CircuitPair:
        """The circuits of a request. ``credential`` is a fingerprint, never the key itself."""
        of_origin = self._origins.get(origin)
        if of_origin is None:
            of_origin = self._new_circuit(origin, _ORIGIN_OPTIONS, provider=provider, endpoint=origin)
            self._origins[origin] = of_origin
        key = (origin, credential, model, operation)
        of_model = self._models.get(key)
        if of_model is None:
            self._make_room()
            # The name goes into events and log lines, so the credential is not part of it.
            name = f"{origin} {model} {operation}"
            of_model = self._new_circuit(
                name, _MODEL_OPTIONS, provider=provider, endpoint=origin, model=model
            )
            self._models[key] = of_model
        for circuit in (of_origin, of_model):
            if circuit.provider != provider:
                circuit.provider = ""
        return CircuitPair(of_origin, of_model)

    def suspect(self, is_meant: Callable[[str], bool], error: errors.LLMOptError) -> None:
        """As `CircuitBreaker.suspect`, for the circuits whose name is meant."""
        for circuit in (*self._origins.values(), *self._models.values()):
            if is_meant(circuit.name):
                circuit.suspect(error)

    def _make_room(self) -> None:
        # A service that uses a key for each of its own users must not keep their circuits for ever.
        if len(self._models) < _MAX_CIRCUITS:
            return
        for key in list(islice(self._models, _MAX_CIRCUITS // 4)):
            if self._models[key].state == "closed":
                del self._models[key]


def results_of(error: BaseException | None) -> tuple[Result, Result]:
    """What the outcome of an attempt says about its origin and about its model; None is a good response.

    A 4xx or 429 is a response: a success of the origin, neutral for the model's health. A local rejection or
    a cancellation says nothing about either.
    """
    if error is None:
        return "success", "success"
    if isinstance(error, errors.ConnectionLost):
        # A server may close an idle connection at any time.
        return "neutral" if error.stale else "failure", "neutral"
    if isinstance(error, errors.ConnectFailed):
        return "failure", "neutral"
    if isinstance(error, (errors.AttemptTimeout, errors.StreamError)):
        return "neutral", "failure"
    if isinstance(error, (errors.ProviderError, errors.InvalidResponse)):
        return "success", "failure" if error.counts_for_breaker else "neutral"
    return "neutral", "neutral"


def counts_as_timeout(ran_s: float, timeout_s: float) -> bool:
    """Whether an attempt that the caller's deadline cut off after ``ran_s`` counts as a timeout.

    A short deadline says nothing about the server; 10 s without an answer, or the whole timeout, do.
    """
    return ran_s >= min(timeout_s, 10.0)


class FailureWindow:
    """Results of a sliding window, in buckets. The sums are kept, so that reading them costs nothing.

    Args:
        window_s: seconds that the window covers.
        buckets: number of parts that it moves by.

    Attributes:
        calls: results in the window when the last one was added.
        failures: how many of them were failures.
    """

    def __init__(self, window_s: float, buckets: int) -> None:
        self._span = window_s / buckets
        self._size = buckets
        self.clear()

    def clear(self) -> None:
        """Forget all results."""
        # Each with its position and its sums; the first one stands for no results.
        self._buckets = [[-1, 0, 0]]
        self.calls = self.failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        """Count a result. ``now`` must not be before that of the last one."""
        position = int(now / self._span)
        bucket = self._buckets[-1]
        if bucket[0] != position:
            bucket = [position, 0, 0]
            # A new list, and sums counted anew: two threads that do this at once lose a count at most.
            kept = [each for each in self._buckets if each[0] > position - self._size]
            self.calls = sum(calls for _, calls, _ in kept)
            self.failures = sum(failures for *_, failures in kept)
            self._buckets = [*kept, bucket]
        bucket[1] += 1
        self.calls += 1
        if failed:
            bucket[2] += 1
            self.failures += 1


class CircuitWaitQueue:
    """Waiters for an open circuit: woken when a probe has ended, at the latest after a given time.

    All of them are woken and look at the circuit again, which admits one at a time. So a caller behind
    another one's probe neither polls nor sleeps longer than necessary. One queue serves all circuits of a
    client, on any number of event loops.

    Args:
        clock: for the timers of the waiters.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._waiters: Final[dict[asyncio.Future[None], None]] = {}

    def __repr__(self) -> str:
        return f"CircuitWaitQueue({len(self._waiters)} waiting)"

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, seconds: float) -> None:
        """Wait for `notify_all`, for ``seconds`` at most."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        timer = self._clock.call_later(seconds, settle, future, None)
        try:
            await future
        finally:
            timer.cancel()
            del self._waiters[future]

    def notify_all(self) -> None:
        """Wake all waiters. May be called from any thread, with or without a running loop."""
        for future in tuple(self._waiters):
            run_on(future.get_loop(), settle, future, None)
