"""The two circuits that a request passes: its origin's, and that of what it asks for there.

The origin's (E) learns from connections that fail, the other one (M: origin, credential, model, operation)
from answers that do. So a dead host opens for all its models at once, and one broken deployment
does not take its neighbours along (docs/development/resilience.md; Envoy separates local-origin failures likewise).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import islice
from typing import Final, Self

from attrs import evolve

from llmopt import errors
from llmopt.policies.circuit_breaker import (
    CallNotPermitted,
    CircuitBreaker,
    CircuitBreakerOptions,
    CircuitTransition,
    Mode,
    Permit,
    Result,
)
from llmopt.policies.clock import Clock, Now, new_rng

Results = tuple[Result, Result]
"""What an outcome says of the origin, and of the model."""
_CONNECT_FAILURES_IN_A_ROW: Final = 5
_FAILURES_IN_A_ROW: Final = 16
"""Without one good answer between them. The ratio alone is slow where much went well before: at 20
requests a second, half of a full window of 30 s are 300 requests into an outage."""
_MOST_CIRCUITS: Final = 4096


def results_of(error: BaseException | None) -> Results:
    """What an attempt's outcome says of the two circuits; None stands for a good answer.

    A 4xx or 429 is an answer: good news of the origin, none of the model's health. A local
    rejection or a cancellation says nothing of either.
    """
    if error is None:
        return "success", "success"
    if isinstance(error, errors.ConnectionLost):
        # A server may close an idle connection whenever it likes.
        return "neutral" if error.stale else "failure", "neutral"
    if isinstance(error, errors.ConnectFailed):
        return "failure", "neutral"
    if isinstance(error, (errors.AttemptTimeout, errors.StreamError)):
        return "neutral", "failure"
    if isinstance(error, (errors.ProviderError, errors.InvalidResponse)):
        return "success", "failure" if error.counts_for_breaker else "neutral"
    return "neutral", "neutral"


def counts_as_timeout(ran_s: float, timeout_s: float) -> bool:
    """Whether an attempt that the caller's own deadline cut off after so long counts as timed out.

    A caller in a hurry says nothing of the server; one who waited 10 s, or the attempt's whole time, does.
    """
    return ran_s >= min(timeout_s, 10.0)


class PairPermit:
    """A permit of each circuit. Leaving the ``with`` block without a report is neutral for both."""

    __slots__ = ("_model", "_origin")

    def __init__(self, origin: Permit, model: Permit) -> None:
        self._origin = origin
        self._model = model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.neutral()

    def success(self) -> None:
        """A good answer: good news of both."""
        self._origin.settle("success")
        self._model.settle("success")

    def neutral(self) -> None:
        """Nothing was learned."""
        self._origin.settle("neutral")
        self._model.settle("neutral")

    def failed(self, error: BaseException) -> None:
        """Report an error to whom it concerns, see `results_of`."""
        origin, model = results_of(error)
        self._origin.settle(origin)
        self._model.settle(model)


class BreakerPair:
    """The circuits of one origin and of one model behind it, asked and told as one."""

    __slots__ = ("model", "origin")

    def __init__(self, origin: CircuitBreaker, model: CircuitBreaker) -> None:
        self.origin = origin
        self.model = model

    def __repr__(self) -> str:
        return f"BreakerPair({self.origin!r}, {self.model!r})"

    def stats(self) -> dict[str, str]:
        """The state of each, as plain values."""
        return {"origin": self.origin.state, "model": self.model.state}

    @property
    def on_probation(self) -> bool:
        """Whether one of them is waiting for what a single request comes to."""
        return self.origin.state == "half_open" or self.model.state == "half_open"

    def peek(self) -> float | None:
        """Seconds until both admit a request, None if they do. Takes nothing."""
        origin, model = self.origin.peek(), self.model.peek()
        if origin is None or model is None:
            return model if origin is None else origin
        return max(origin, model)

    def patience(self) -> float | None:
        """As `peek`, for one who hears of news; see `CircuitBreaker.patience`."""
        return max((self.origin.patience(), self.model.patience()), key=lambda wait: wait or 0.0)

    def acquire(self, timeout_s: float = 60.0) -> PairPermit | CallNotPermitted:
        """A permit of both, or the refusal of one; see `CircuitBreaker.acquire`."""
        origin = self.origin.acquire(timeout_s)
        if isinstance(origin, CallNotPermitted):
            return origin
        model = self.model.acquire(timeout_s)
        if isinstance(model, CallNotPermitted):
            origin.neutral()
            return model
        return PairPermit(origin, model)


class CircuitBreakerRegistry:
    """All circuits of a client, made when first asked for. State is per process, never shared."""

    def __init__(
        self,
        rules: CircuitBreakerOptions | None = None,
        *,
        now: Now,
        rng: random.Random | None = None,
        on_transition: Callable[[CircuitTransition], None] | None = None,
        on_probe_end: Callable[[], None] | None = None,
        mode: Mode = "automatic",
    ) -> None:
        self._on_news = on_probe_end
        self._rules = rules or CircuitBreakerOptions()
        self._now = now
        self._rng = rng or new_rng()
        self._on_change = on_transition
        self._mode: Mode = mode
        self._origins: dict[str, CircuitBreaker] = {}
        self._models: dict[tuple[str, str, str, str], CircuitBreaker] = {}

    def pair(self, origin: str, credential: str, model: str, operation: str) -> BreakerPair:
        """The circuits of a request. ``credential`` is a fingerprint, never the key itself."""
        outer = self._origins.get(origin)
        if outer is None:
            outer = self._origins[origin] = self._make(origin, _CONNECT_FAILURES_IN_A_ROW)
        key = (origin, credential, model, operation)
        inner = self._models.get(key)
        if inner is None:
            self._make_room()
            # The name goes into events and messages: it does not hold the credential.
            inner = self._models[key] = self._make(f"{origin} {model} {operation}", _FAILURES_IN_A_ROW)
        return BreakerPair(outer, inner)

    def set_mode(self, mode: Mode) -> None:
        """The same mode for every circuit there is and will be."""
        self._mode = mode
        for breaker in (*self._origins.values(), *self._models.values()):
            breaker.set_mode(mode)

    def _make(self, name: str, consecutive_failures: int | None) -> CircuitBreaker:
        return CircuitBreaker(
            name,
            evolve(self._rules, consecutive_failures=consecutive_failures),
            now=self._now,
            rng=self._rng,
            on_transition=self._on_change,
            on_probe_end=self._on_news,
            mode=self._mode,
        )

    def _make_room(self) -> None:
        """A service with a key for each of its users must not keep a circuit for each for ever."""
        if len(self._models) < _MOST_CIRCUITS:
            return
        for key in list(islice(self._models, _MOST_CIRCUITS // 4)):
            if self._models[key].state == "closed":
                del self._models[key]


# Where those wait whose circuit is open: until it may admit somebody again, at the latest for so long.
#
# Who waits behind somebody else's probe is woken when that ends, and does not look again and again. All are
# woken: whether one may go is for the circuit to say, and it admits one at a time.


class CircuitWaitQueue:
    """The waiting room of one client, for any number of event loops, one after the other or at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._waiting: Final[dict[asyncio.Future[None], None]] = {}

    def __repr__(self) -> str:
        return f"CircuitWaitQueue({len(self._waiting)} waiting)"

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, seconds: float) -> None:
        """Wait until `notify_all` is called, at most for so long."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        timer = self._clock.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            del self._waiting[future]

    def notify_all(self) -> None:
        """Wake everybody: some circuit may admit a request now."""
        here = _running_loop()
        for future in tuple(self._waiting):
            loop = future.get_loop()
            if loop is here:
                _wake(future)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
