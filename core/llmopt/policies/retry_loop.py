"""The one place where llmopt retries: stamina's ``retry_context`` behind one audited hook.

It is entered after a first failure only, whose error is raised as stamina's attempt 1, so that a call
that succeeds at once pays nothing for it; import this module when that happens, it imports stamina.
Every rule is ours (`RetryPolicy`), every wait stamina's: it sleeps through ``asyncio.sleep`` and
takes nobody's clock or sleep (26.1: ``_RetryContextIterator.__aiter__`` passes a function of its
module), so simulated time comes from the event loop, as in `llmopt.testing.clock`.

What stamina's process-wide switches do here: ``set_active(False)`` lets the first error through;
``set_testing(True, attempts=n)`` makes n attempts, the first one counted, without waiting; hooks never
hear of llmopt's own retries (`llmopt.policies.retry_loop`), for which llmopt has its events.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from threading import Lock
from typing import Final, Self, TypeVar

from attrs import frozen
from stamina import is_testing, retry_context
from stamina.instrumentation import RetryDetails, RetryHook, get_on_retry_hooks, set_on_retry_hooks

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

# stamina's process-wide retry hooks, kept from hearing of llmopt's own retries.
#
# With structlog installed stamina's default hook prints every retry on stdout. Hooks cannot be left out for
# one loop, so the present ones are wrapped by a filter, in their order, while llmopt retries, and unwrapped
# when its last loop ends: the user finds the very hooks that were there. It is the one thing that
# llmopt changes for the whole process. Hooks that the user sets meanwhile are wrapped only if a further
# retry comes, and stay in place.

_scheduled: Final[ContextVar[BaseException | None]] = ContextVar("llmopt_scheduled_retry", default=None)
"""The error whose retry llmopt is scheduling in this very context."""


class HookFilter:
    """One of stamina's hooks, kept from llmopt's own retries.

    They are known by the identity of the error while the retry is scheduled, not by its type: a user's
    own stamina loop around an llmopt call is told of the `LLMOptError` that it retries.
    """

    __slots__ = ("hook",)

    def __init__(self, hook: RetryHook) -> None:
        self.hook = hook

    def __repr__(self) -> str:
        return f"HookFilter({self.hook!r})"

    def __call__(self, details: RetryDetails) -> AbstractContextManager[None] | None:
        """Pass on what is not llmopt's; a context manager that the hook returns goes back to stamina."""
        if _scheduled.get() is details.caused_by:
            return None
        return self.hook(details)


class QuietHooks:
    """Entered by each retry loop; the first retry wraps the hooks, the last loop's end unwraps them."""

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

    def scheduled(self, error: BaseException) -> None:
        """A retry after this error is being scheduled: no hook shall hear of it.

        Raises:
            Exception: whatever a hook's factory of the user's raises.
        """
        _scheduled.set(error)
        with self._lock:
            present = get_on_retry_hooks()
            if any(not isinstance(hook, HookFilter) for hook in present):
                self._wrapped = True
                set_on_retry_hooks(
                    [hook if isinstance(hook, HookFilter) else HookFilter(hook) for hook in present]
                )

    def forked(self) -> None:
        """In a forked child: the parent's loops do not run here, and nobody is left to open its lock."""
        self._lock = Lock()
        self._loops = 0

    def started(self) -> None:
        """The attempt has begun: what is retried from here on, inside it, is somebody else's."""
        _scheduled.set(None)


QUIET_HOOKS: Final = QuietHooks()
"""As process-wide as what it filters."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=QUIET_HOOKS.forked)
_T = TypeVar("_T")
_NO_FACTS: Final = RetryFacts()
_NOTES: Final = {
    "ambiguous": "Not tried again: the request may have been carried out, and doing it twice may do harm.",
    "budget": "Not tried again: the endpoint's retry budget is empty, too many requests failed lately.",
    "retry_after": "Not tried again: the server asks for a longer wait than llmopt waits.",
    "hooks": "Not tried again: a stamina on_retry hook could not be made.",
}


@frozen
class Retry:
    """A retry that is about to be waited for: what an event tells.

    Attributes:
        attempt: number of the attempt that comes, 2 for the first retry.
        delay: seconds until then.
        error: what the attempt before it ended in.
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
    """Go on after a failed first attempt, as long as the policy says so.

    Args:
        first_error: what the first attempt raised.
        attempt_fn: makes the attempt with the number it is given, 2 and up.
        policy: decides.
        deadline: the call's; no wait goes past it.
        budget: the budget that pays for a retry after this error (the failed endpoint's), or None.
        facts: what else the policy should know of this error.
        on_retry: told of each retry before it is waited for; must not raise.

    Raises:
        DeadlineExceeded: the next wait does not fit; its cause is the last error.
        LLMOptError: the last error, when no further attempt is made for any other reason.
    """
    if inside_attempt():
        raise first_error
    judge = _Judge(policy, deadline, budget, facts, on_retry)
    with QUIET_HOOKS:
        try:
            # No bounds of stamina's own: its time-out lets a custom back-off through (docs/development/resilience.md).
            async for attempt in retry_context(on=judge, attempts=None, timeout=None):
                judge.begin()
                with attempt:
                    if attempt.num == 1:
                        raise first_error
                    with retry_guard():
                        result = await attempt_fn(attempt.num)
                    judge.succeeded()
                    return result
        except LLMOptError as error:
            judge.explain(error)
            raise
        finally:
            judge.end()
    raise AssertionError("stamina's loop ends in a result or an error")  # pragma: no cover


class _Judge:
    """The hook: decides on every exception of the loop, and keeps the books of one call."""

    def __init__(
        self,
        policy: RetryPolicy,
        deadline: Deadline,
        budget: Callable[[LLMOptError], RetryBudget | None],
        facts: Callable[[LLMOptError], RetryFacts],
        on_retry: Callable[[Retry], None],
    ) -> None:
        self._policy = policy
        self._deadline = deadline
        self._budget = budget
        self._facts = facts
        self._on_retry = on_retry
        self._history = RetryHistory()
        self._attempt = 0
        self._payer: RetryBudget | None = None
        self._coming: Retry | None = None
        self._note: str | None = None
        self._wait: float | None = None  # the one that did not fit into the deadline

    def __call__(self, error: Exception) -> bool | float:
        # stamina asks about CancelledError and KeyboardInterrupt too; a hook that says yes swallows them.
        if not isinstance(error, LLMOptError):
            return False
        verdict = self._policy.decide(error, self._history, self._deadline, self._facts(error))
        if isinstance(verdict, GiveUp):
            return self._give_up(verdict)
        return self._go_on(error, verdict)

    def _give_up(self, verdict: GiveUp) -> bool:
        self._note = _NOTES.get(verdict.reason)
        if verdict.reason == "deadline":
            self._wait = verdict.wait
        return False

    def _go_on(self, error: LLMOptError, decision: RetryDecision) -> bool | float:
        payer = self._budget(error)
        if payer is not None and not payer.take(decision.cost):
            return self._give_up(GiveUp(reason="budget"))
        self._payer = payer
        self._coming = Retry(self._attempt + 1, decision.delay, error, decision)
        try:
            QUIET_HOOKS.scheduled(error)
        except Exception:  # noqa: BLE001 - the user's hook factory; stamina would raise it in place of the error
            self._note = _NOTES["hooks"]
            return False
        if not is_testing():
            self._on_retry(self._coming)
        # Who waits for a circuit is woken by it; the attempt itself does so, which stamina's sleep cannot.
        return 0.0 if decision.reason == "circuit_open" else decision.delay

    def begin(self) -> None:
        """An attempt begins: the retry that was decided on is made."""
        QUIET_HOOKS.started()
        self._attempt += 1
        made, self._coming = self._coming, None
        if made is None:
            return
        self._history.note(made.decision)
        if is_testing():  # only now is it known that the test mode's limit of attempts allows it
            self._on_retry(Retry(made.attempt, 0.0, made.error, made.decision))

    def succeeded(self) -> None:
        """The attempt came through: what it took goes back."""
        if self._payer is not None:
            self._payer.succeeded(self._history.last_cost)

    def end(self) -> None:
        """The loop is left. A retry that was not made (cancelled, or stopped by a test mode) is not paid."""
        if self._coming is not None and self._payer is not None:
            self._payer.release(self._coming.decision.cost)

    def explain(self, error: LLMOptError) -> None:
        """Say why it was not tried again, where that is not plain from the error itself.

        Raises:
            DeadlineExceeded: the next wait does not fit into the call's time.
        """
        if self._wait is not None:
            raise _too_late(error, self._wait, self._deadline.remaining()) from error
        if self._note is not None:
            error.add_note(self._note)


def _too_late(error: LLMOptError, wait: float, remaining: float) -> DeadlineExceeded:
    # What the server asked for, not what jitter made of it.
    asked = "the next attempt would be in"
    if error.retry_after:
        asked, wait = "the server asks to wait", error.retry_after
    return DeadlineExceeded(
        f"{asked} {wait:.3g} s, but {remaining:.3g} s are left of the deadline; "
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
