"""The circuit breaker: an endpoint that keeps failing is left alone for a while.

A sliding window of results opens it, a growing rest follows, then one watched probe at a time decides
(docs/development/resilience.md). The shape is Polly's (ratio over 30 s, a single probe, late results never extend a
break) with Envoy's growing, jittered ejection and Resilience4j's modes for operators.

Time comes in through ``now``; nothing here waits, and a permit is given and settled synchronously, so a
cancelled call cannot skip it. Results carry the generation they were permitted in; a result of
another generation is late and is ignored, whatever it says.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, Literal, Self

from attrs import frozen

from llmopt.policies.clock import Now, new_rng

# How many of the calls of the last seconds failed.


class FailureWindow:
    """Results of a sliding window, in a ring of buckets. The sums are kept, so that reading them is free.

    Attributes:
        calls: results in the window, as of the last one added.
        failures: how many of them were failures.
    """

    __slots__ = ("_at", "_calls", "_failures", "_span", "calls", "failures")

    def __init__(self, window_s: float, buckets: int) -> None:
        self._span = window_s / buckets
        self._calls = [0] * buckets
        self._failures = [0] * buckets
        self._at = 0
        self.calls = 0
        self.failures = 0

    def clear(self) -> None:
        """Forget everything."""
        for ring in (self._calls, self._failures):
            ring[:] = [0] * len(ring)
        self.calls = self.failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        """Count a result at a moment not before that of the last one."""
        at = int(now / self._span)
        if at != self._at:
            self._move(at)
        slot = at % len(self._calls)
        self._calls[slot] += 1
        self.calls += 1
        if failed:
            self._failures[slot] += 1
            self.failures += 1

    def _move(self, at: int) -> None:
        """Empty the buckets that were passed; a whole turn empties them all."""
        size = len(self._calls)
        for passed in range(max(self._at + 1, at - size + 1), at + 1):
            slot = passed % size
            self.calls -= self._calls[slot]
            self.failures -= self._failures[slot]
            self._calls[slot] = self._failures[slot] = 0
        self._at = at


# Leave to send one request through a circuit, and the answer when there is none.

Result = Literal["success", "failure", "neutral"]
"""What a request says of the server's health; neutral is nothing."""


@frozen
class CallNotPermitted:
    """No permit now. ``retry_after`` is in seconds, ``math.inf`` when an operator holds the circuit open."""

    name: str
    retry_after: float


class Permit:
    """Leave to send one request. The first report counts, later ones do nothing.

    Leaving the ``with`` block without a report is neutral: a cancelled call says nothing of the server.
    """

    __slots__ = ("_report", "_ticket")

    def __init__(self, report: Callable[[int, Result], None], ticket: int) -> None:
        self._report: Callable[[int, Result], None] | None = report
        self._ticket = ticket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle("neutral")

    def success(self) -> None:
        """The server answered as it should."""
        self.settle("success")

    def failure(self) -> None:
        """The server failed."""
        self.settle("failure")

    def neutral(self) -> None:
        """Nothing was learned of the server: a refusal for cause, a 429, a cancellation."""
        self.settle("neutral")

    def settle(self, result: Result) -> None:
        """Report a result; only the first report counts."""
        report = self._report
        if report is not None:
            self._report = None
            report(self._ticket, result)


State = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]
Mode = Literal["automatic", "forced_open", "disabled", "metrics_only"]
"""What an operator may set: "metrics_only" counts and reports, and refuses nothing (for a roll-out)."""
_UNCOUNTED: Final = -1
_MOST_GROWTH: Final = 64


@frozen(kw_only=True)
class CircuitBreakerOptions:
    """When a breaker opens and how it closes again.

    Attributes:
        window_s: seconds of results that count.
        buckets: parts the window moves by.
        minimum_calls: fewest results in the window for the ratio to mean something.
        failure_ratio: share of failures that opens.
        consecutive_failures: failures in a row that open, None for no such rule.
        break_duration_s: first rest in seconds.
        break_growth: each further rest is so many times longer ...
        max_break_duration_s: ... up to this: it bounds how late a recovered server is noticed.
        jitter: part of the rest that is random, either way.
        reset_after_s: seconds closed after which the next rest is a first one again.
        half_open_calls: good probes in a row that close.
        probe_grace_s: how long after its attempt's time-out a probe that never reports is given up.
        probe_retry_in_s: when to look again while somebody else's probe is under way.
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


@frozen(kw_only=True)
class CircuitTransition:
    """A breaker went from one state to another.

    Attributes:
        name: the breaker's name.
        old: state before.
        new: state after.
        break_duration_s: seconds until the first probe, for a change to "open".
        calls: results in the window at that moment.
        failures: how many of them were failures.
        shadow: whether it had no effect, because the mode is "metrics_only".
    """

    name: str
    old: State
    new: State
    break_duration_s: float = 0.0
    calls: int = 0
    failures: int = 0
    shadow: bool = False


class CircuitBreaker:
    """One circuit. Not tied to an event loop; for use by one thread at a time."""

    def __init__(
        self,
        name: str = "",
        rules: CircuitBreakerOptions | None = None,
        *,
        now: Now,
        rng: random.Random | None = None,
        on_transition: Callable[[CircuitTransition], None] | None = None,
        on_probe_end: Callable[[], None] | None = None,
        mode: Mode = "automatic",
    ) -> None:
        """Start closed.

        Args:
            name: for people.
            rules: when it opens and closes.
            now: the clock.
            rng: source of the jitter.
            on_transition: told of each change of state.
            on_probe_end: told when those who were refused should look again, other than by a rest's end.
            mode: the operator's wish.
        """
        self.name = name
        self._rules = rules = rules or CircuitBreakerOptions()
        self._now = now
        self._report = self._settle  # bound once, not for each permit
        self._rng = rng or new_rng()
        self._on_change = on_transition
        self._on_news = on_probe_end
        self._mode: Mode = mode
        self._state: Literal["closed", "open", "half_open"] = "closed"
        self._window = FailureWindow(rules.window_s, rules.buckets)
        self._generation = 0
        self._row = 0  # failures in a row while closed, good probes in a row while half open
        self._rests = 0  # rests since the last calm time
        self._until = -math.inf  # end of the rest
        self._closed_at = -math.inf
        self._watch_until = -math.inf  # a probe is under way until then

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.name!r}, {self.state}, {self._window.failures}/{self._window.calls} failed)"

    @property
    def state(self) -> State:
        """The operator's mode if one is set, else the circuit's own state."""
        return self._state if self._mode == "automatic" else self._mode

    def peek(self) -> float | None:
        """Seconds until a request would be admitted, None if it would be now. Takes nothing."""
        if self._mode == "automatic":
            return None if self._state == "closed" else self._wait()
        return math.inf if self._mode == "forced_open" else None

    def patience(self) -> float | None:
        """As `peek`, for one who hears `on_probe_end`: behind a probe, as long as the probe may take."""
        if self._state == "half_open" and self._mode == "automatic":
            left = self._watch_until - self._now()
            return left if left > 0 else None
        return self.peek()

    def acquire(self, timeout_s: float = 60.0) -> Permit | CallNotPermitted:
        """A permit, or how long to stay away.

        Args:
            timeout_s: the attempt's time-out; a probe that reports nothing so long and a little more
                is given up, and the next one may go.
        """
        if self._state == "closed" and self._mode == "automatic":
            return Permit(self._report, self._generation)
        if self._mode == "disabled":
            return Permit(self._report, _UNCOUNTED)
        if self._mode == "forced_open":
            return CallNotPermitted(self.name, math.inf)
        return self._admit(timeout_s)

    def _wait(self) -> float | None:
        """Seconds until the circuit itself admits a request, None for now."""
        if self._state == "closed":
            return None
        now = self._now()
        if self._state == "open":
            return self._until - now if now < self._until else None
        if now < self._watch_until:
            return min(self._rules.probe_retry_in_s, self._watch_until - now)
        return None

    def _admit(self, timeout_s: float) -> Permit | CallNotPermitted:
        wait = self._wait()
        if wait is not None:
            shadow = self._mode == "metrics_only"
            return Permit(self._report, _UNCOUNTED) if shadow else CallNotPermitted(self.name, wait)
        if self._state == "open":
            self._row = 0
            self._change("half_open")
        if self._state == "half_open":
            # A new generation for each probe: one that was given up must not speak for the next.
            self._generation += 1
            self._watch_until = self._now() + timeout_s + self._rules.probe_grace_s
        return Permit(self._report, self._generation)

    def _settle(self, ticket: int, result: Result) -> None:
        if ticket != self._generation:
            return
        if self._state == "half_open":
            self._probe_ended(result)
        elif result != "neutral":
            self._count(result)

    def _count(self, result: Result) -> None:
        now = self._now()
        window = self._window
        window.add(now, failed=result == "failure")
        if result == "success":
            self._row = 0
            return
        self._row += 1
        rules = self._rules
        in_a_row = rules.consecutive_failures is not None and self._row >= rules.consecutive_failures
        if in_a_row or (
            window.calls >= rules.minimum_calls and window.failures >= rules.failure_ratio * window.calls
        ):
            self._open(now)

    def _probe_ended(self, result: Result) -> None:
        self._watch_until = -math.inf
        if result == "failure":
            self._open(self._now())
        elif result == "success":
            self._row += 1
            if self._row >= self._rules.half_open_calls:
                self._close()
        self._tell_news()

    def _open(self, now: float, break_duration_s: float | None = None) -> None:
        rules = self._rules
        if self._state == "closed" and now - self._closed_at >= rules.reset_after_s:
            self._rests = 0
        if break_duration_s is None:
            break_duration_s = min(
                rules.max_break_duration_s,
                rules.break_duration_s * rules.break_growth ** min(self._rests, _MOST_GROWTH),
            )
            break_duration_s *= self._rng.uniform(1 - rules.jitter, 1 + rules.jitter)
        self._rests += 1
        # Never sooner than was promised before (litellm #40130: the shorter of two rests won).
        self._until = max(self._until, now + break_duration_s)
        self._change("open", self._until - now)

    def _close(self) -> None:
        self._closed_at = self._now()
        self._row = 0
        self._window.clear()
        self._change("closed")

    def _change(self, new: Literal["closed", "open", "half_open"], break_duration_s: float = 0.0) -> None:
        old, self._state = self._state, new
        self._generation += 1
        if self._on_change is not None:
            self._tell(old, new, break_duration_s)

    def _tell(self, old: State, new: State, break_duration_s: float = 0.0) -> None:
        if self._on_change is None or old == new:
            return
        change = CircuitTransition(
            name=self.name,
            old=old,
            new=new,
            break_duration_s=break_duration_s,
            calls=self._window.calls,
            failures=self._window.failures,
            shadow=self._mode == "metrics_only",
        )
        self._on_change(change)

    def _tell_news(self) -> None:
        if self._on_news is not None:
            self._on_news()

    def trip(self, break_duration_s: float | None = None) -> None:
        """Open now, for so many seconds or the usual rest; a rest that ends later already stays."""
        self._open(self._now(), break_duration_s)

    def reset(self) -> None:
        """Close now and forget what was counted."""
        self._rests = 0
        self._until = -math.inf
        self._close()
        self._tell_news()

    def set_mode(self, mode: Mode) -> None:
        """Hold the circuit open, switch it off, let it only count, or give it back to itself."""
        old = self.state
        self._mode = mode
        self._generation += 1
        self._watch_until = -math.inf
        self._tell(old, self.state)
        self._tell_news()
