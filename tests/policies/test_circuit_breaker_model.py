"""The breaker against a model that keeps every result in a list (Hypothesis, fake clock)."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from llmopt.policies.circuit_breaker import CircuitBreaker, CircuitBreakerOptions
from llmopt.testing.clock import SimulatedClock
from llmopt.values.events import BreakerChanged
from tests.support.scale import scaled

IN_A_ROW = 6
OPTIONS = CircuitBreakerOptions(minimum_calls=4, failure_ratio=0.5, consecutive_failures=IN_A_ROW, jitter=0.0)


class Model:
    """The rules of docs/development/resilience.md in the simplest form."""

    def __init__(self) -> None:
        self.state = "closed"
        self.results: list[tuple[int, bool]] = []
        self.row: list[str] = []
        self.until = self.watch = self.closed_at = float("-inf")
        self.breaks = 0
        self.epoch = 0  # the results of permits from another epoch are ignored

    def wait(self, now: float) -> float | None:
        if self.state == "open" and now < self.until:
            return self.until - now
        if self.state == "half_open" and now < self.watch:
            return min(OPTIONS.probe_retry_in_s, self.watch - now)
        return None

    def acquire(self, now: float, timeout: float) -> int | None:
        if self.wait(now) is not None:
            return None
        if self.state == "open":
            self.state, self.row = "half_open", []
        if self.state == "half_open":
            self.epoch += 1
            self.watch = now + timeout + OPTIONS.probe_grace_s
        return self.epoch

    def settle(self, epoch: int, result: str, now: float) -> None:
        if epoch != self.epoch:
            return
        if self.state == "half_open":
            self.watch = float("-inf")
        if result == "neutral":
            return
        self.row.append(result)
        if self.state == "half_open":
            if result == "failure":
                self.open(now)
            elif self.row == ["success"] * OPTIONS.half_open_calls:
                self.state, self.closed_at, self.row, self.results = "closed", now, [], []
                self.epoch += 1
            return
        self.results.append((int(now / 3.0), result == "failure"))
        recent = [bad for at, bad in self.results if at > int(now / 3.0) - 10]
        streak = self.row[-IN_A_ROW:] == ["failure"] * IN_A_ROW
        many = len(recent) >= OPTIONS.minimum_calls and sum(recent) >= len(recent) / 2
        if result == "failure" and (streak or many):
            self.open(now)

    def open(self, now: float) -> None:
        if self.state == "closed" and now - self.closed_at >= OPTIONS.reset_after_s:
            self.breaks = 0
        duration = min(
            OPTIONS.max_break_duration_s, OPTIONS.break_duration_s * OPTIONS.break_growth**self.breaks
        )
        self.breaks += 1
        self.until = now + duration
        self.state, self.watch, self.row = "open", float("-inf"), []
        self.epoch += 1


class BreakerMachine(RuleBasedStateMachine):
    permits = Bundle("permits")

    @initialize()
    def start(self) -> None:
        self.clock = SimulatedClock(start=999.0)
        self.changes: list[BreakerChanged] = []
        self.breaker = CircuitBreaker(
            "e",
            OPTIONS,
            now=self.clock.now,
            rng=random.Random(0),
            on_transition=self.changes.append,
        )
        self.model = Model()

    @rule(target=permits, timeout=st.sampled_from([0.0, 1.0, 60.0]))
    def acquire(self, timeout: float) -> Any:
        expected = self.model.acquire(self.clock.now(), timeout)
        permit = self.breaker.acquire(timeout)
        if permit is None:
            assert expected is None
            return multiple()
        assert expected is not None
        return permit, expected

    @rule(permit=consumes(permits), result=st.sampled_from(["success", "failure", "failure", "neutral"]))
    def settle(self, permit: Any, result: Any) -> None:
        self.model.settle(permit[1], result, self.clock.now())
        self.breaker.report(permit[0], result)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.9, 3.0, 5.0, 8.0, 30.0, 61.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(times=st.integers(1, 12), result=st.sampled_from(["success", "failure"]))
    def burst(self, times: int, result: Any) -> None:
        for _ in range(times):
            expected = self.model.acquire(self.clock.now(), 1.0)
            permit = self.breaker.acquire(1.0)
            assert (permit is None) == (expected is None)
            if permit is not None:
                self.settle((permit, expected), result)

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "breaker"):
            return
        assert self.breaker.state == self.model.state
        assert self.breaker.retry_in() == self.model.wait(self.clock.now())
        if self.changes:
            assert self.changes[-1].new == self.model.state
        for old, new in zip(self.changes, self.changes[1:], strict=False):
            assert old.new == new.old
            assert new.old != new.new


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=scaled(60, nightly=300), stateful_step_count=40, deadline=None)
