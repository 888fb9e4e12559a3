"""Retry loop: the one place that retries. It runs stamina's ``retry_context`` with a hook of llmopt's own.

It is a module of its own because it imports stamina, which ``import llmopt`` does not need: it is loaded with the
first transport, not by a failure, which may be that no descriptor is free. The loop is entered after a first failure,
and that error is raised as stamina's attempt 1. Every rule is `llmopt.policies.retry.RetryPolicy`'s, every wait
stamina's. stamina sleeps with ``asyncio.sleep`` and cannot be given a clock (26.1: ``_RetryContextIterator.__aiter__``
passes a function of its module), so simulated time comes from the event loop, as in `llmopt.testing.clock`.

What stamina's process-wide switches do: ``set_active(False)`` lets the first error through;
``set_testing(True, attempts=n)`` makes n attempts without waiting, the first one counted; on_retry hooks are
not called for llmopt's own retries, for which llmopt has events.

The only I/O is the attempt that the caller passes in, and what stamina imports to make its hooks at the first retry;
between attempts stamina sleeps on the event loop. `FILTERED_HOOKS` is shared by the whole process, under a lock: while
loops run it replaces stamina's on_retry hooks by filters, which call the user's hooks for foreign retries only. The
user's factories of hooks run under that lock, on the event loop. A ContextVar holds the error whose retry is being
scheduled. A forked child gets a new lock. Jitter is the policy's, and the deadline brings the clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from threading import Lock
from typing import Final, Self, TypeVar

from attrs import define, field, frozen
from stamina import is_testing, retry_context
from stamina.instrumentation import RetryDetails, RetryHook, get_on_retry_hooks, set_on_retry_hooks

from llmopt._platform import register_at_fork
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
from llmopt.values.resources import out_of_resources

_T = TypeVar("_T")
_NO_FACTS: Final = RetryFacts()
_NOTES: Final = {
    "ambiguous": "Not retried: the server may have processed the request, and repeating it may not be safe.",
    "budget": "Not retried: the endpoint's retry budget is used up, because too many recent requests failed.",
    "retry_after": "Not retried: the server asks for a longer wait than llmopt waits.",
    "resources": "Not retried: this process is out of resources, so that stamina could not load its hooks.",
    "hooks": "Not retried: one of stamina's on_retry hooks raised an exception when it was made.",
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
    with FILTERED_HOOKS:
        try:
            # No bounds of stamina's own: its timeout does not bound a delay that the hook returns.
            async for attempt in retry_context(on=hook, attempts=None, timeout=None):
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
        try:
            FILTERED_HOOKS.retry_scheduled(error)
        except Exception as failure:  # noqa: BLE001 - the user's hook factory; stamina would raise it in place of the error
            # stamina's own hooks import structlog, which needs a descriptor.
            self._note = _NOTES["hooks" if out_of_resources(failure) is None else "resources"]
            return False
        if not is_testing():
            self._on_retry(self._next)
        # The attempt itself waits for an open circuit, because it is notified when the circuit can be tried;
        # stamina's sleep could not be ended early.
        return 0.0 if decision.reason == "circuit_open" else decision.delay

    def attempt_started(self) -> None:
        """Record that the retry that was decided on is being made."""
        # Retries inside the attempt, by foreign code, are passed on to the hooks.
        _scheduled.set(None)
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


_scheduled: Final[ContextVar[BaseException | None]] = ContextVar("llmopt_scheduled_retry", default=None)
"""The error whose retry llmopt is scheduling in this context."""


class FilteredHooks:
    """Keeps stamina's on_retry hooks from being called for llmopt's own retries.

    With structlog installed, stamina's default hook prints every retry on stdout. stamina has no way to leave
    hooks out of one loop. So, while llmopt retries, each present hook is wrapped in a `HookFilter`, in the same
    order; the end of the last loop unwraps them, and the user finds the hooks that were set before. This is the
    only state of the process that llmopt changes. Hooks that the user sets in between are wrapped at the next
    retry, and stay set.

    Each retry loop enters it as a context manager.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._loops = 0
        self._wrapped = False

    def __enter__(self) -> Self:
        with self._lock:
            self._loops += 1
        return self

    def __exit__(self, *_: object) -> None:
        _scheduled.set(None)
        with self._lock:
            self._loops -= 1
            if self._loops == 0 and self._wrapped:
                self._wrapped = False
                set_on_retry_hooks(
                    [hook.hook if isinstance(hook, HookFilter) else hook for hook in get_on_retry_hooks()]
                )

    def retry_scheduled(self, error: BaseException) -> None:
        """A retry after ``error`` is about to be scheduled: no hook must be called for it.

        Raises:
            Exception: what a factory of the user's hooks raises.
        """
        _scheduled.set(error)
        with self._lock:
            present = get_on_retry_hooks()
            if any(not isinstance(hook, HookFilter) for hook in present):
                self._wrapped = True
                set_on_retry_hooks(
                    [hook if isinstance(hook, HookFilter) else HookFilter(hook) for hook in present]
                )

    def after_fork(self) -> None:
        """In a forked child: the parent's loops do not run here, and no thread is left to release its lock."""
        self._lock = Lock()
        self._loops = 0


class HookFilter:
    """One of stamina's hooks, called for all retries but llmopt's own.

    These are recognised by the identity of the error while its retry is scheduled, not by its type: a user's own
    stamina loop around a call of llmopt must have its hooks called for the `LLMOptError` that it retries.
    """

    __slots__ = ("hook",)

    def __init__(self, hook: RetryHook) -> None:
        self.hook = hook

    def __repr__(self) -> str:
        return f"HookFilter({self.hook!r})"

    def __call__(self, details: RetryDetails) -> AbstractContextManager[None] | None:
        """Call the hook, except for llmopt's retries. A context manager that it returns goes back to stamina."""
        if _scheduled.get() is details.caused_by:
            return None
        return self.hook(details)


FILTERED_HOOKS: Final = FilteredHooks()
"""One for the process, like the hooks that it filters."""


register_at_fork(FILTERED_HOOKS.after_fork)
