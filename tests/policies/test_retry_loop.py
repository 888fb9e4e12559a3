"""The retry loop on stamina: what is retried, when, and what stamina's own switches do (C14, C16).

Time is simulated; stamina's global state is restored after each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import stamina
from stamina.instrumentation import RetryDetails, RetryHookFactory, get_on_retry_hooks, set_on_retry_hooks

from llmopt import errors as e
from llmopt.errors import Attempt
from llmopt.policies.clock import Deadline
from llmopt.policies.retry import RetryBudget, RetryFacts, RetryPolicy, inside_attempt, retry_guard
from llmopt.policies.retry_loop import Retry, with_retries
from llmopt.testing.clock import SimulatedClock, run_simulated


@pytest.fixture(autouse=True)
def _stamina_as_before() -> Iterator[None]:
    yield
    stamina.set_active(True)
    stamina.set_testing(False)
    set_on_retry_hooks(None)


class NoJitter(random.Random):
    """A random generator that always returns the lower bound."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Call:
    """One call: outcomes played one after the other, and a record of its retries."""

    def __init__(self, *outcomes: BaseException | str, left: float | None = None, **policy: Any) -> None:
        self.outcomes = list(outcomes)
        self.policy = RetryPolicy(**{"max_retries": 3, "rng": NoJitter(0), **policy})
        self.left = left
        self.at: list[float] = []
        self.attempts: list[int] = []
        self.retries: list[Retry] = []
        self.budget = RetryBudget()
        self.facts = RetryFacts()
        self.clock = SimulatedClock()
        self.during: Callable[[int], Awaitable[object]] | None = None

    async def attempt(self, number: int) -> str:
        self.at.append(self.clock.elapsed)
        self.attempts.append(number)
        if self.during is not None:
            await self.during(number)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def run(self) -> str:
        """Run as the engine does: the first attempt outside the loop, the retries inside it."""
        deadline = Deadline.after(self.left, self.clock.now)
        try:
            with retry_guard():
                return await self.attempt(1)
        except e.LLMOptError as error:
            return await with_retries(
                error,
                self.attempt,
                self.policy,
                deadline=deadline,
                budget=lambda _: self.budget,
                facts=lambda _: self.facts,
                on_retry=self.retries.append,
            )

    def play(self) -> str:
        return run_simulated(lambda _: self.run(), clock=self.clock)


def server_error() -> e.ServerError:
    return e.ServerError("down", status=500)


# --- attempts and waits -------------------------------------------------------------------------------------


def test_a_call_succeeds_after_retries() -> None:
    """Attempts are numbered, the waits come from the policy, and each retry was reported before."""
    call = Call(server_error(), e.RateLimited("slow", retry_after=5.0), server_error(), "done")

    assert call.play() == "done"
    assert call.attempts == [1, 2, 3, 4]
    assert call.at == pytest.approx([0.0, 1.0, 6.0, 8.0])
    assert [(r.attempt, r.delay, r.decision.reason) for r in call.retries] == [
        (2, 1.0, "server"),
        (3, 5.0, "rate_limited"),
        (4, 2.0, "server"),
    ]


def test_three_retries_are_four_attempts() -> None:
    """The last error is raised: the same object, without a note."""
    errors = [server_error() for _ in range(5)]
    call = Call(*errors)

    with pytest.raises(e.ServerError) as caught:
        call.play()

    assert caught.value is errors[3]
    assert call.attempts == [1, 2, 3, 4]
    assert not hasattr(caught.value, "__notes__")


def test_the_limits_of_stamina_do_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten attempts and 45 s; the policy's limits apply."""
    call = Call(*[server_error() for _ in range(20)], "done", max_retries=20)
    monkeypatch.setattr(time, "monotonic", call.clock.now)

    assert call.play() == "done"
    assert call.clock.elapsed > 200


def test_final_errors_are_raised_at_once() -> None:
    """One attempt, no wait, no event, and stamina's hooks are unchanged."""
    call = Call(e.QuotaExhausted("no money"))

    with pytest.raises(e.QuotaExhausted):
        call.play()

    assert call.at == [0.0]
    assert call.retries == []


def test_a_final_error_ends_the_loop() -> None:
    """Whatever failed before."""
    call = Call(server_error(), e.AuthError("no"), "never")

    with pytest.raises(e.AuthError):
        call.play()

    assert call.attempts == [1, 2]


def test_a_stale_connection_is_retried_without_a_wait() -> None:
    """All counted retries remain."""
    call = Call(e.ConnectionLost("closed", stale=True), *[server_error() for _ in range(3)], "done")

    assert call.play() == "done"
    assert call.at == pytest.approx([0.0, 0.0, 1.0, 3.0, 7.0])


def test_facts_are_collected_for_each_error() -> None:
    """A veto of the server ends the call."""
    call = Call(server_error(), "never")
    call.facts = RetryFacts(should_retry=False)

    with pytest.raises(e.ServerError):
        call.play()

    assert call.attempts == [1]


def test_facts_budget_and_events_get_the_current_error() -> None:
    first, second = server_error(), e.RateLimited("slow")
    calls: list[tuple[str, e.LLMOptError]] = []
    retries: list[Retry] = []

    def budget(error: e.LLMOptError) -> RetryBudget:
        calls.append(("budget", error))
        return RetryBudget()

    def facts(error: e.LLMOptError) -> RetryFacts:
        calls.append(("facts", error))
        return RetryFacts()

    async def main(clock: SimulatedClock) -> None:
        async def attempt(number: int) -> int:
            if number == 2:
                raise second
            return number

        for_ever = Deadline.after(None, clock.now)
        await with_retries(
            first,
            attempt,
            RetryPolicy(),
            deadline=for_ever,
            budget=budget,
            facts=facts,
            on_retry=retries.append,
        )

    run_simulated(main)

    assert calls == [("facts", first), ("budget", first), ("facts", second), ("budget", second)]
    assert [retry.error for retry in retries] == [first, second]


def test_the_budget_of_the_failed_endpoint_pays() -> None:
    """Each gets its price back when the call succeeds, and not before."""
    budgets = {"a": RetryBudget(), "b": RetryBudget()}
    paid = []

    async def main(clock: SimulatedClock) -> None:
        async def attempt(number: int) -> int:
            paid.append((budgets["a"].available, budgets["b"].available))
            if number == 2:
                raise e.RateLimited("slow", endpoint="b")
            return number

        await with_retries(
            e.ServerError("down", endpoint="a"),
            attempt,
            RetryPolicy(),
            deadline=Deadline.after(None, clock.now),
            budget=lambda error: budgets[error.endpoint or ""],
        )

    run_simulated(main)

    assert paid == [(486, 500), (486, 495)]
    assert (budgets["a"].available, budgets["b"].available) == (500, 500)


def test_budget_facts_and_events_are_optional() -> None:
    async def main(clock: SimulatedClock) -> int:
        async def attempt(number: int) -> int:
            return number

        return await with_retries(
            server_error(), attempt, RetryPolicy(), deadline=Deadline.after(None, clock.now)
        )

    assert run_simulated(main) == 2


# --- deadline, Retry-After, budget --------------------------------------------------------------------------


def test_no_wait_exceeds_the_deadline() -> None:
    """The wait is not started; the error says how long it would have been."""
    tried = (Attempt(endpoint="https://e", outcome="ok"),)
    last = e.RateLimited(
        "slow down",
        retry_after=90.0,
        provider="p",
        model="m",
        request_id="r",
        sent="yes",
        endpoint="https://e",
        attempts=tried,
    )
    call = Call(server_error(), last, left=30)

    with pytest.raises(e.DeadlineExceeded) as caught:
        call.play()

    assert call.clock.elapsed == 1.0
    assert caught.value.__cause__ is last
    assert caught.value.message == (
        "the server asks to wait 90 s, but 29 s are left of the deadline; the last error was RateLimited: slow down"
    )
    assert (caught.value.phase, caught.value.retry_after, caught.value.sent) == ("retry", 90.0, "yes")
    assert (caught.value.provider, caught.value.model, caught.value.request_id) == ("p", "m", "r")
    assert (caught.value.endpoint, caught.value.attempts) == ("https://e", tried)


def test_a_computed_wait_beyond_the_deadline_fails() -> None:
    call = Call(server_error(), left=1.5)

    with pytest.raises(e.DeadlineExceeded, match=r"^the next attempt would be in 1 s, but 1\.5 s are left"):
        call.play()


def test_a_retry_after_above_the_maximum_fails_at_once() -> None:
    """With the value in the error, and a note with the reason."""
    call = Call(e.RateLimited("slow", retry_after=3600.0))

    with pytest.raises(e.RateLimited) as caught:
        call.play()

    assert caught.value.retry_after == 3600.0
    assert caught.value.__notes__ == ["Not retried: the server asks for a longer wait than llmopt waits."]


def test_an_empty_budget_ends_the_call() -> None:
    """Without a wait, and with a note."""
    call = Call(server_error(), server_error())
    call.budget = RetryBudget(20)

    with pytest.raises(e.ServerError) as caught:
        call.play()

    assert call.attempts == [1, 2]
    assert call.budget.available == 6
    assert caught.value.__notes__[0].startswith("Not retried: the endpoint's retry budget is used up")


def test_success_refunds_all_retries() -> None:
    """A call that fails in the end refunds none."""
    call = Call(server_error(), e.RateLimited("slow"), "done")
    call.play()
    assert call.budget.available == 500

    with pytest.raises(e.ServerError):
        (failing := Call(*[server_error() for _ in range(4)])).play()
    assert failing.budget.available == 500 - 3 * 14


def test_a_server_that_fails_at_random_does_not_empty_the_budget() -> None:
    """A third of 1,500 requests fails; with the last retry's cost alone refunded, the budget is empty after 200 to 400."""
    chance, budget = random.Random(1), RetryBudget()
    outcomes: Counter[str] = Counter()

    async def main(clock: SimulatedClock) -> None:
        async def attempt(_: int) -> str:
            if chance.random() < 1 / 3:
                raise server_error()
            return "answered"

        for _ in range(1_500):
            try:
                outcome = await attempt(1)
                budget.succeeded()
            except e.ServerError as error:
                deadline = Deadline.after(None, clock.now)
                try:
                    outcome = await with_retries(
                        error, attempt, RetryPolicy(max_retries=3), deadline=deadline, budget=lambda _: budget
                    )
                except e.ServerError as last:
                    outcome = "budget" if hasattr(last, "__notes__") else "failed"
            outcomes[outcome] += 1

    run_simulated(main)
    # A third of a third of a third of a third.
    assert outcomes["answered"] >= 1_500 * (1 - 1.5 / 81), outcomes
    assert outcomes["budget"] == 0


def test_an_ambiguous_chat_stops_after_one_repeat() -> None:
    """The error says so."""
    call = Call(*[e.AttemptTimeout("slow", sent="maybe") for _ in range(3)])
    call.facts = RetryFacts(idempotent=False)

    with pytest.raises(e.AttemptTimeout) as caught:
        call.play()

    assert call.attempts == [1, 2]
    assert caught.value.__notes__[0].startswith("Not retried: the server may have processed the request")


# --- exceptions of others -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exception", [ValueError("bug"), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3)]
)
def test_other_exceptions_pass_through(exception: BaseException) -> None:
    """Never retried, never wrapped, never swallowed."""
    call = Call(server_error(), exception, "never")

    async def main(clock: SimulatedClock) -> None:
        # A KeyboardInterrupt inside a task would end the loop itself.
        with pytest.raises(type(exception)) as caught:
            await call.run()
        assert caught.value is exception

    run_simulated(main, clock=call.clock)
    assert call.attempts == [1, 2]


def test_a_cancellation_during_the_wait_refunds_the_retry() -> None:
    """The cancellation arrives once."""
    call = Call(server_error(), "never")

    async def main(clock: SimulatedClock) -> None:
        task = asyncio.ensure_future(call.run())
        await asyncio.sleep(0.5)
        assert call.budget.available == 486
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert clock.elapsed == 0.5

    run_simulated(main, clock=call.clock)
    assert call.attempts == [1]
    assert call.budget.available == 500


def test_a_cancellation_during_an_attempt_keeps_the_price() -> None:
    """The retry was made."""
    call = Call(server_error(), "never")

    async def hang(number: int) -> None:
        if number == 2:
            await asyncio.sleep(1000)

    call.during = hang

    async def main(clock: SimulatedClock) -> None:
        task = asyncio.ensure_future(call.run())
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_simulated(main, clock=call.clock)
    assert call.budget.available == 486


@pytest.mark.parametrize("seconds", [0.25, 1.5])
def test_asyncio_timeout_around_the_loop_works(seconds: float) -> None:
    """It sees its own cancellation, during a wait and during an attempt."""
    call = Call(server_error(), "never")

    async def hang(number: int) -> None:
        if number == 2:
            await asyncio.sleep(1000)

    call.during = hang

    async def main(clock: SimulatedClock) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await call.run()
        return clock.elapsed

    assert run_simulated(main, clock=call.clock) == seconds


# --- nesting (C14) ------------------------------------------------------------------------------------------


@pytest.mark.row("C14")
def test_nested_calls_do_not_retry() -> None:
    """Neither in the first attempt nor in the retries: attempts add up, they do not multiply."""
    inner_calls: list[Call] = []

    async def nested(_: int) -> None:
        inner = Call(server_error(), server_error(), "never")
        inner.clock = call.clock
        inner_calls.append(inner)
        await inner.run()

    call = Call()
    call.during = nested

    with pytest.raises(e.ServerError):
        call.play()

    assert call.attempts == [1, 2, 3, 4]
    assert [inner.attempts for inner in inner_calls] == [[1]] * 4


def test_calls_after_an_attempt_retry_again() -> None:
    """The mark of the attempt is removed after a failure, too."""
    with retry_guard():
        assert inside_attempt()
        with retry_guard():
            assert inside_attempt()
        assert inside_attempt()
    assert not inside_attempt()
    with contextlib.suppress(ValueError), retry_guard():
        raise ValueError
    assert not inside_attempt()


# --- stamina's switches (C16) -------------------------------------------------------------------------------


@pytest.mark.row("C16")
def test_inactive_stamina_retries_nothing() -> None:
    """The first error is raised unchanged."""
    stamina.set_active(False)
    first = server_error()
    call = Call(first, "never")

    with pytest.raises(e.ServerError) as caught:
        call.play()

    assert caught.value is first
    assert call.attempts == [1]
    assert call.budget.available == 500


@pytest.mark.row("C16")
def test_test_mode_makes_one_attempt() -> None:
    """By default; no event is made and no price is paid."""
    stamina.set_testing(True)
    call = Call(server_error(), "never")

    with pytest.raises(e.ServerError):
        call.play()

    assert call.attempts == [1]
    assert call.retries == []
    assert call.budget.available == 500


@pytest.mark.row("C16")
def test_test_mode_does_not_wait() -> None:
    """Its attempts include the first one, and the event has a wait of zero."""
    call = Call(e.RateLimited("slow", retry_after=60.0), server_error(), server_error())
    with stamina.set_testing(True, attempts=2), pytest.raises(e.ServerError):
        call.play()

    assert call.at == [0.0, 0.0]
    assert [(r.attempt, r.delay) for r in call.retries] == [(2, 0.0)]
    assert isinstance(call.retries[0].error, e.RateLimited)
    assert call.retries[0].decision.delay == 60.0
    assert call.budget.available == 495


@pytest.mark.row("C16")
def test_test_mode_never_adds_attempts() -> None:
    call = Call(*[server_error() for _ in range(9)])
    with stamina.set_testing(True, attempts=50), pytest.raises(e.ServerError):
        call.play()

    assert call.attempts == [1, 2, 3, 4]


# --- stamina's hooks ----------------------------------------------------------------------------------------


class Hook:
    """A user's hook that records the retries it receives."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def __call__(self, details: RetryDetails) -> None:
        self.log.append(f"{self.name}:{type(details.caused_by).__name__}")


async def users_own_retry() -> None:
    """One stamina retry by the user: one failure and one success."""
    async for attempt in stamina.retry_context(on=(OSError, e.LLMOptError), wait_initial=0.01, wait_jitter=0):
        with attempt:
            if attempt.num == 1:
                raise OSError


def test_hooks_receive_only_the_users_retries() -> None:
    """Before, while and after llmopt retries; the hooks stay the same objects."""
    log: list[str] = []
    first, second = Hook("1", log), Hook("2", log)
    set_on_retry_hooks([first, second])
    call = Call(server_error(), server_error(), "done")
    seen_while: list[tuple[Any, ...]] = []

    async def main(clock: SimulatedClock) -> None:
        task = asyncio.ensure_future(call.run())
        await asyncio.sleep(0.5)
        seen_while.append(get_on_retry_hooks())
        await users_own_retry()
        await task
        await users_own_retry()

    run_simulated(main, clock=call.clock)

    assert call.attempts == [1, 2, 3]
    assert log == ["1:OSError", "2:OSError"] * 2
    assert seen_while == [(first, second)]
    assert get_on_retry_hooks() == (first, second)


def test_a_users_loop_around_an_llmopt_call_is_reported() -> None:
    """Its retries are the user's, though the error is ours."""
    log: list[str] = []
    set_on_retry_hooks([Hook("1", log)])
    call = Call(*[server_error() for _ in range(4)], "done")

    async def main(clock: SimulatedClock) -> str:
        async for attempt in stamina.retry_context(on=e.LLMOptError, wait_jitter=0):
            with attempt:
                return await call.run()
        raise AssertionError

    assert run_simulated(main, clock=call.clock) == "done"
    assert call.attempts == [1, 2, 3, 4, 1]
    assert log == ["1:ServerError"]


def test_a_users_loop_around_a_call_stopped_by_test_mode_is_reported() -> None:
    """Also when our own loop would have retried that very error."""
    log: list[str] = []
    set_on_retry_hooks([Hook("1", log)])
    call = Call(server_error(), "done")

    async def main(clock: SimulatedClock) -> str:
        async for attempt in stamina.retry_context(on=e.LLMOptError):
            with attempt, stamina.set_testing(True):
                return await call.run()
        raise AssertionError

    assert run_simulated(main, clock=call.clock) == "done"
    assert log == ["1:ServerError"]


def test_a_users_loop_inside_an_attempt_is_reported() -> None:
    """In a credential's provider, for example."""
    log: list[str] = []
    set_on_retry_hooks([Hook("1", log)])
    call = Call(server_error(), "done")

    async def provider(_: int) -> None:
        await users_own_retry()

    call.during = provider
    call.play()

    assert log == ["1:OSError"] * 2


def test_hooks_set_during_a_retry_stay() -> None:
    """They receive the user's own retries and not ours, and are set afterwards, in their order."""
    log: list[str] = []
    late = [Hook("3", log), Hook("4", log)]
    set_on_retry_hooks([Hook("1", log)])
    call = Call(server_error(), server_error(), "done")

    async def main(clock: SimulatedClock) -> None:
        task = asyncio.ensure_future(call.run())
        await asyncio.sleep(0.5)
        set_on_retry_hooks(late)
        assert list(get_on_retry_hooks()) == late
        await asyncio.sleep(1)
        await users_own_retry()
        await task

    run_simulated(main, clock=call.clock)

    assert log == ["3:OSError", "4:OSError"]
    assert list(get_on_retry_hooks()) == late


def test_disabled_instrumentation_stays_disabled() -> None:
    set_on_retry_hooks([])
    assert Call(server_error(), "done").play() == "done"
    assert get_on_retry_hooks() == ()


def test_a_hook_may_return_a_context_manager() -> None:
    """Stamina enters and leaves the context."""
    steps: list[str] = []

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        steps.append("enter")
        yield
        steps.append("leave")

    set_on_retry_hooks([lambda _: waiting()])
    call = Call(server_error(), server_error(), "done")

    async def main(clock: SimulatedClock) -> None:
        task = asyncio.ensure_future(call.run())
        await asyncio.sleep(0.5)
        await users_own_retry()
        await task

    run_simulated(main, clock=call.clock)

    assert steps == ["enter", "leave"]


@pytest.mark.row("C16")
def test_hooks_that_raise_do_not_break_our_retries() -> None:
    """The user's own loop still gets the error."""

    def broken(details: RetryDetails) -> None:
        raise RuntimeError("hook")

    set_on_retry_hooks([broken])
    call = Call(server_error(), "done")

    assert call.play() == "done"
    with pytest.raises(RuntimeError, match="hook"):
        asyncio.run(users_own_retry())


@pytest.mark.row("C16")
def test_hook_factories_are_not_called_for_our_retries() -> None:
    """One may fail, or import what needs a descriptor: stamina's own imports structlog."""

    def broken() -> Any:
        raise RuntimeError("factory")

    set_on_retry_hooks([RetryHookFactory(broken)])

    assert Call(server_error(), "done").play() == "done"
    with pytest.raises(RuntimeError, match="factory"):
        get_on_retry_hooks()


def test_the_structlog_hook_prints_only_the_users_retries() -> None:
    """With stamina's default hooks, before and after ours."""
    program = """
        import asyncio, stamina, structlog
        from llmopt import errors as e
        from llmopt.policies.clock import Deadline
        from llmopt.policies.retry import RetryPolicy
        from llmopt.policies.retry_loop import with_retries
        from llmopt.testing.clock import run_simulated

        async def users(text):
            async for attempt in stamina.retry_context(on=OSError, wait_initial=0.01, wait_jitter=0):
                with attempt:
                    if attempt.num == 1:
                        raise OSError(text)

        async def main(clock):
            async def attempt(number):
                if number < 4:
                    raise e.ServerError("SECRET")
                return "ok"

            await users("before")
            assert await with_retries(
                e.ServerError("SECRET"), attempt, RetryPolicy(max_retries=3), deadline=Deadline.after(None, clock.now)
            ) == "ok"
            await users("after")

        run_simulated(main)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert ["before" in lines[0], "after" in lines[1], len(lines)] == [True, True, 2]
    assert "SECRET" not in done.stdout


def test_the_other_policies_do_not_import_the_loop() -> None:
    """A process without failures never imports stamina."""
    program = """
        import sys
        import llmopt.policies.circuit_breaker, llmopt.policies.retry
        import llmopt.policies.concurrency_limit, llmopt.policies.load_balancer, llmopt.policies.timeouts
        assert "stamina" not in sys.modules and "tenacity" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
