"""Freshness of cache entries against a model that keeps the whole history (Hypothesis, two clocks)."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmopt.cache.freshness import CacheLifetime, FreshnessRules
from llmopt.testing.clock import SimulatedClock
from tests.support.scale import scaled

RULES = FreshnessRules(
    ttl_s=100,
    stale_while_revalidate_s=200,
    stale_if_error_s=500,
    not_found_ttl_s=60,
    failure_pause_s=30,
    refresh_min_requests=2,
    jitter=0.0,
    refresh_ahead=0.5,
)
TIMES = st.one_of(
    st.sampled_from([0.0, 1.0, 29.0, 30.0, 31.0, 49.0, 51.0, 60.0, 100.0, 250.0, 700.0]), st.floats(0, 900)
)


class Model:
    """The rules of docs/development/resilience.md over a list of all events."""

    def __init__(self) -> None:
        self.history: list[tuple[str, float, float]] = []  # event, monotonic time, wall time

    def last(self, *events: str) -> int:
        return max((at for at, (event, _, _) in enumerate(self.history) if event in events), default=-1)

    def note(self, event: str, now: float, wall: float) -> None:
        self.history.append((event, now, wall))

    @property
    def entry(self) -> tuple[float, float] | None:
        stored = self.last("stored")
        if stored < 0 or self.last("refused", "not found", "reset") > stored:
            return None
        return self.history[stored][1], self.history[stored][2]

    def paused(self, now: float) -> bool:
        failed = self.last("failed")
        return failed > self.last("stored", "reset") and now < self.history[failed][1] + RULES.failure_pause_s

    def missing(self, now: float) -> bool:
        not_found = self.last("not found")
        return (
            not_found > self.last("stored", "failed", "reset")
            and now < self.history[not_found][1] + RULES.not_found_ttl_s
        )

    def refreshing(self) -> bool:
        started = self.last("refresh started")
        return started > self.last("stored", "failed", "refused", "not found", "reset", "abandoned")

    def requests_since_stored(self) -> int:
        stored = self.last("stored")
        return sum(event == "requested while fresh" for event, _, _ in self.history[stored + 1 :])

    def decide(self, now: float, wall: float) -> tuple[str, bool]:
        if self.missing(now):
            return "not_found", False
        if self.entry is None:
            return "fetch", False
        by_clock, by_calendar = now - self.entry[0], wall - self.entry[1]
        older = max(by_clock, by_calendar)
        quiet = self.refreshing() or self.paused(now)
        if older < RULES.ttl_s:
            self.note("requested while fresh", now, wall)
            due = (
                older >= RULES.refresh_ahead * RULES.ttl_s
                and self.requests_since_stored() > RULES.refresh_min_requests
            )
            return ("serve_and_refresh" if due and not quiet else "serve"), False
        if older < RULES.ttl_s + RULES.stale_while_revalidate_s:
            return ("serve" if quiet else "serve_and_refresh"), True
        if by_clock < RULES.ttl_s + RULES.stale_if_error_s:
            return ("serve" if self.paused(now) else "fetch_or_serve"), True
        return "fetch", False


class Lifetimes(RuleBasedStateMachine):
    """One entry that is stored, requested, refreshed and dropped while both clocks move."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimulatedClock(start=1_000.0)
        self.lifetime = CacheLifetime(b"key", RULES, self.clock.now, self.clock.wall)
        self.model = Model()

    def note(self, event: str) -> None:
        self.model.note(event, self.clock.now(), self.clock.wall())

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.floats(-2_000, 2_000))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.clock.set_wall(self.clock.wall() + seconds)

    @rule(times=st.integers(1, 5))
    def calls_request_the_entry(self, times: int) -> None:
        for _ in range(times):
            expected = self.model.decide(self.clock.now(), self.clock.wall())
            decision = self.lifetime.decide()
            assert (decision.action, decision.stale) == expected
            if decision.action == "serve_and_refresh":
                self.note("refresh started")

    @rule()
    def a_response_is_stored(self) -> None:
        assert self.lifetime.stored()
        self.note("stored")

    @rule(age=st.floats(-100, 1_000))
    def an_entry_is_loaded_from_disk(self, age: float) -> None:
        created = self.clock.wall() - age
        accepted = self.lifetime.stored(created)
        assert accepted == (
            -RULES.max_clock_skew_s <= age < RULES.max_age_s
            or created == self.clock.wall() + RULES.max_clock_skew_s
        )
        if accepted:
            # By the monotonic clock it was stored as long ago as it is old.
            self.model.note("stored", self.clock.now() - max(0.0, self.clock.wall() - created), created)

    @rule()
    def a_refresh_fails(self) -> None:
        self.lifetime.refresh_failed()
        self.note("failed")

    @rule()
    def a_refresh_is_refused(self) -> None:
        self.lifetime.refresh_refused()
        self.note("refused")

    @rule()
    def the_provider_answers_not_found(self) -> None:
        self.lifetime.not_found()
        self.note("not found")

    @rule()
    def the_entry_is_reset(self) -> None:
        self.lifetime.reset()
        self.note("reset")

    @precondition(lambda self: self.lifetime.refreshing)
    @rule()
    def the_refresh_is_abandoned(self) -> None:
        self.lifetime.abandoned()
        self.note("abandoned")

    @invariant()
    def model_and_lifetime_agree(self) -> None:
        assert self.lifetime.has_entry == (self.model.entry is not None)
        assert self.lifetime.refreshing == self.model.refreshing()


TestLifetimes: Any = Lifetimes.TestCase
TestLifetimes.settings = settings(max_examples=scaled(70, nightly=200), stateful_step_count=40, deadline=None)
