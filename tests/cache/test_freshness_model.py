"""Freshness of cache entries against a model with the whole history (Hypothesis, two clocks)."""

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
    """docs/development/resilience.md, as plainly as it can be written: a list of what happened, and questions to it."""

    def __init__(self) -> None:
        self.history: list[
            tuple[str, float, float]
        ] = []  # what, when by the one clock, made when by the other

    def last(self, *kinds: str) -> int:
        return max((at for at, (what, _, _) in enumerate(self.history) if what in kinds), default=-1)

    def note(self, what: str, now: float, wall: float) -> None:
        self.history.append((what, now, wall))

    @property
    def answer(self) -> tuple[float, float] | None:
        came = self.last("came")
        if came < 0 or self.last("refused", "missing", "forgotten") > came:
            return None
        return self.history[came][1], self.history[came][2]

    def paused(self, now: float) -> bool:
        failed = self.last("failed")
        return (
            failed > self.last("came", "forgotten") and now < self.history[failed][1] + RULES.failure_pause_s
        )

    def missing(self, now: float) -> bool:
        found = self.last("missing")
        return (
            found > self.last("came", "failed", "forgotten")
            and now < self.history[found][1] + RULES.not_found_ttl_s
        )

    def refreshing(self) -> bool:
        begun = self.last("begun")
        return begun > self.last("came", "failed", "refused", "missing", "forgotten", "given up")

    def asked_since(self) -> int:
        came = self.last("came")
        return sum(what == "asked while fresh" for what, _, _ in self.history[came + 1 :])

    def ask(self, now: float, wall: float) -> tuple[str, bool]:
        if self.missing(now):
            return "not_found", False
        if self.answer is None:
            return "fetch", False
        by_clock, by_calendar = now - self.answer[0], wall - self.answer[1]
        older = max(by_clock, by_calendar)
        quiet = self.refreshing() or self.paused(now)
        if older < RULES.ttl_s:
            self.note("asked while fresh", now, wall)
            due = (
                older >= RULES.refresh_ahead * RULES.ttl_s and self.asked_since() > RULES.refresh_min_requests
            )
            return ("serve_and_refresh" if due and not quiet else "serve"), False
        if older < RULES.ttl_s + RULES.stale_while_revalidate_s:
            return ("serve" if quiet else "serve_and_refresh"), True
        if by_clock < RULES.ttl_s + RULES.stale_if_error_s:
            return ("serve" if self.paused(now) else "fetch_or_serve"), True
        return "fetch", False


class Lives(RuleBasedStateMachine):
    """One answer that comes, fails, is refused and asked for while both clocks move."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimulatedClock(start=1_000.0)
        self.life = CacheLifetime(b"key", RULES, self.clock.now, self.clock.wall)
        self.model = Model()

    def note(self, what: str) -> None:
        self.model.note(what, self.clock.now(), self.clock.wall())

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.floats(-2_000, 2_000))
    def calendar_jumps(self, seconds: float) -> None:
        self.clock.set_wall(self.clock.wall() + seconds)

    @rule(times=st.integers(1, 5))
    def somebody_asks(self, times: int) -> None:
        for _ in range(times):
            expected = self.model.ask(self.clock.now(), self.clock.wall())
            decision = self.life.decide()
            assert (decision.action, decision.stale) == expected
            if decision.action == "serve_and_refresh":
                self.note("begun")

    @rule()
    def an_answer_comes(self) -> None:
        assert self.life.stored()
        self.note("came")

    @rule(age=st.floats(-100, 1_000))
    def one_comes_out_of_a_store(self, age: float) -> None:
        made = self.clock.wall() - age
        taken = self.life.stored(made)
        assert taken == (
            -RULES.max_clock_skew_s <= age < RULES.max_age_s
            or made == self.clock.wall() + RULES.max_clock_skew_s
        )
        if taken:
            # It has been here for as long as it is old.
            self.model.note("came", self.clock.now() - max(0.0, self.clock.wall() - made), made)

    @rule()
    def asking_fails(self) -> None:
        self.life.refresh_failed()
        self.note("failed")

    @rule()
    def asking_is_refused(self) -> None:
        self.life.refresh_refused()
        self.note("refused")

    @rule()
    def it_is_not_there(self) -> None:
        self.life.not_found()
        self.note("missing")

    @rule()
    def it_is_forgotten(self) -> None:
        self.life.reset()
        self.note("forgotten")

    @precondition(lambda self: self.life.refreshing)
    @rule()
    def refreshing_is_given_up(self) -> None:
        self.life.abandoned()
        self.note("given up")

    @invariant()
    def both_know_the_same(self) -> None:
        assert self.life.has_entry == (self.model.answer is not None)
        assert self.life.refreshing == self.model.refreshing()


TestLives: Any = Lives.TestCase
TestLives.settings = settings(max_examples=scaled(70, nightly=200), stateful_step_count=40, deadline=None)
