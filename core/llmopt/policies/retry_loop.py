"""Retry loop: the one place that retries. It runs stamina's ``retry_context`` with a hook of llmopt's own.

It is a module of its own because it imports stamina, which ``import llmopt`` does not need: it is loaded with the
first transport, not by a failure, which may be that no descriptor is free. The loop is entered after a first failure,
and that error is raised as stamina's attempt 1. Every rule is `llmopt.policies.retry.RetryPolicy`'s, every wait
stamina's. stamina sleeps with ``asyncio.sleep`` and cannot be given a clock (26.1: ``_RetryContextIterator.__aiter__``
passes a function of its module), so simulated time comes from the event loop, as in `llmopt.testing.clock`.

What stamina's process-wide switches do: ``set_active(False)`` lets the first error through;
``set_testing(True, attempts=n)`` makes n attempts without waiting, the first one counted; on_retry hooks are
not called for llmopt's own retries, for which llmopt has events.

The only I/O is the attempt that the caller passes in; between attempts stamina sleeps on the event loop. Jitter is the
policy's, and the deadline brings the clock. There is no state beside that of one call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from attrs import define, field, frozen
from stamina import is_testing, retry_context

from llmopt.errors import DeadlineExceeded, LLMOptError
from llmopt.policies.clock import Deadline
from llmopt.policies.retry import (
    GiveUp,
    RetryBudget,
    RetryDecision,
    RetryFacts,
    RetryHistory,
    RetryPolicy,
    inside_attempt,
    retry_guard,
)

_T = TypeVar("_T")
_NO_FACTS: Final = RetryFacts()
_NOTES: Final = {
    "ambiguous": "Not retried: the server may have processed the request, and repeating it may not be safe.",
    "budget": "Not retried: the endpoint's retry budget is used up, because too many recent requests failed.",
    "retry_after": "Not retried: the server asks for a longer wait than llmopt waits.",
}


@frozen
class Retry:
    """A retry whose wait is about to begin.

    Attributes:
        attempt: number of the coming attempt, 2 for the first retry.
        delay: seconds until then.
        error: how the attempt before it failed.
        decision: the policy's decision.
    """

    attempt: int
    delay: float
    error: LLMOptError
    decision: RetryDecision


async def with_retries(
    first_error: LLMOptError,
    attempt_fn: Callable[[int], Awaitable[_T]],
    policy: RetryPolicy,
    *,
    deadline: Deadline,
    budget: Callable[[LLMOptError], RetryBudget | None] = lambda _: None,
    facts: Callable[[LLMOptError], RetryFacts] = lambda _: _NO_FACTS,
    on_retry: Callable[[Retry], None] = lambda _: None,
) -> _T:
    """Make further attempts after a failed first one, as long as the policy allows.

    Args:
        first_error: what the first attempt raised.
        attempt_fn: makes the attempt with the number that it is passed, 2 and up.
        policy: decides.
        deadline: of the call; no wait goes beyond it.
        budget: the budget that pays for a retry after this error (the failed endpoint's), or None.
        facts: what else the policy needs to know about this error.
        on_retry: called with each retry before its wait; must not raise.

    Raises:
        DeadlineExceeded: the next wait would end after the deadline; its cause is the last error.
        LLMOptError: the last error, if nothing more is tried for another reason.
    """
    if inside_attempt():
        raise first_error
    hook = _Hook(policy, deadline, budget, facts, on_retry)
    # No bounds of stamina's own: its timeout does not bound a delay that the hook returns.
    attempts = retry_context(on=hook, attempts=None, timeout=None)
    try:
        async for attempt in attempts:
            # stamina calls the on_retry hooks of the process from tenacity's `before_sleep`, and cannot leave them out of one
            # loop (25.1 to 26.1). Its default hook imports structlog, and prints every retry on stdout.
            with suppress(AttributeError):
                attempts._t_a_retrying.before_sleep = None  # noqa: SLF001
            hook.attempt_started()
            with attempt, retry_guard():
                if attempt.num == 1:
                    raise first_error
                result = await attempt_fn(attempt.num)
                hook.succeeded()
                return result
    except LLMOptError as error:
        hook.explain(error)
        raise
    finally:
        hook.close()
    raise AssertionError("stamina's loop ends in a result or an error")  # pragma: no cover


@define(eq=False)
class _Hook:
    """Decides on every exception of one loop: stamina calls it, and waits for as long as it returns."""

    _policy: RetryPolicy
    _deadline: Deadline
    _budget: Callable[[LLMOptError], RetryBudget | None]
    _facts: Callable[[LLMOptError], RetryFacts]
    _on_retry: Callable[[Retry], None]
    _history: RetryHistory = field(factory=RetryHistory)
    _attempt: int = 0
    _charges: list[tuple[RetryBudget | None, int]] = field(
        factory=list
    )  # of each retry: who paid, and how much
    _next: Retry | None = None  # decided on, but its attempt has not started
    _note: str | None = None
    _wait: float | None = None  # the wait that would end after the deadline

    def __call__(self, error: Exception) -> bool | float:
        # stamina asks about CancelledError and KeyboardInterrupt too; a hook that returns True swallows them.
        if not isinstance(error, LLMOptError):
            return False
        decision = self._policy.decide(error, self._history, self._deadline, self._facts(error))
        if isinstance(decision, GiveUp):
            return self._give_up(decision)
        return self._retry(error, decision)

    def _give_up(self, decision: GiveUp) -> bool:
        self._note = _NOTES.get(decision.reason)
        if decision.reason == "deadline":
            self._wait = decision.wait
        return False

    def _retry(self, error: LLMOptError, decision: RetryDecision) -> bool | float:
        budget = self._budget(error)
        if budget is not None and not budget.acquire(decision.cost):
            return self._give_up(GiveUp(reason="budget"))
        self._charges.append((budget, decision.cost))
        self._next = Retry(self._attempt + 1, decision.delay, error, decision)
        if not is_testing():
            self._on_retry(self._next)
        # The attempt itself waits for an open circuit, because it is notified when the circuit can be tried;
        # stamina's sleep could not be ended early.
        return 0.0 if decision.reason == "circuit_open" else decision.delay

    def attempt_started(self) -> None:
        """Record that the retry that was decided on is being made."""
        self._attempt += 1
        retry, self._next = self._next, None
        if retry is None:
            return
        self._history.add(retry.decision)
        if is_testing():  # only now it is known that stamina's test mode allows this attempt
            self._on_retry(Retry(retry.attempt, 0.0, retry.error, retry.decision))

    def succeeded(self) -> None:
        """The attempt succeeded: pay back what it and those before it took from the budgets."""
        for budget, cost in self._charges:
            if budget is not None:
                budget.succeeded(cost)

    def close(self) -> None:
        """Return the cost of a retry that was not made, because of a cancellation or stamina's test mode."""
        if self._next is not None and (budget := self._charges[-1][0]) is not None:
            budget.release(self._next.decision.cost)

    def explain(self, error: LLMOptError) -> None:
        """Add to an error why it was not tried again, where that is not plain from the error itself.

        Raises:
            DeadlineExceeded: the next wait would end after the deadline.
        """
        if self._wait is not None:
            raise _deadline_error(error, self._wait, self._deadline.remaining()) from error
        if self._note is not None:
            error.add_note(self._note)


def _deadline_error(error: LLMOptError, wait: float, remaining: float) -> DeadlineExceeded:
    what = "the next attempt would be in"
    if error.retry_after:
        # The number that the server sent, without the jitter.
        what, wait = "the server asks to wait", error.retry_after
    return DeadlineExceeded(
        f"{what} {wait:.3g} s, but {remaining:.3g} s are left of the deadline; "
        f"the last error was {type(error).__name__}: {error.message}",
        phase="retry",
        provider=error.provider,
        model=error.model,
        endpoint=error.endpoint,
        request_id=error.request_id,
        attempts=error.attempts,
        retry_after=error.retry_after,
        sent=error.sent,
    )
