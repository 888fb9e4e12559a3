"""The one place where llmopt retries: stamina's ``retry_context`` behind one audited hook.

It is entered after a first failure only, whose error is raised as stamina's attempt 1, so that a call
that succeeds at once pays nothing for it (stamina is not even imported). Every rule is ours
(`RetryPolicy`), every wait stamina's: it sleeps through ``asyncio.sleep``, and takes no sleep or
clock of anybody's (26.1: ``_RetryContextIterator.__aiter__`` passes a module function), so that
simulated time comes from the event loop (`llmopt.testing.clock`).

What stamina's process-wide switches do here: ``set_active(False)`` lets the first error through;
``set_testing(True, attempts=n)`` makes n attempts, the first one counted, without waiting;
``set_on_retry_hooks``: hooks never hear of llmopt's own retries (see `_HookFilter`), for which
llmopt has its events, and hear of everybody else's as ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token
from threading import Lock
from typing import TYPE_CHECKING, Final, Self, TypeVar

from attrs import frozen

from llmopt.errors import DeadlineExceeded, LLMOptError
from llmopt.policies.budget import RetryBudget
from llmopt.policies.deadline import Deadline
from llmopt.policies.retry import Facts, GiveUp, RetryDecision, RetryHistory, RetryPolicy

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stamina.instrumentation import RetryDetails, RetryHook

_T = TypeVar("_T")

_NO_FACTS: Final = Facts()


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


class SingleRetrier:
    """While it is entered, llmopt calls made inside do not retry: attempts would multiply.

    The engine enters it around every attempt; a credential provider or a hook that itself calls
    llmopt then gets one attempt, and the outer call decides.
    """

    __slots__ = ("_token",)
    _token: Token[bool]

    def __enter__(self) -> Self:
        self._token = _inside.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        _inside.reset(self._token)


_inside: Final[ContextVar[bool]] = ContextVar("llmopt_inside_attempt", default=False)


async def with_retries(
    first_error: LLMOptError,
    attempt_fn: Callable[[int], Awaitable[_T]],
    policy: RetryPolicy,
    *,
    deadline: Deadline,
    budget: Callable[[LLMOptError], RetryBudget | None] = lambda _: None,
    facts: Callable[[LLMOptError], Facts] = lambda _: _NO_FACTS,
    on_retry: Callable[[Retry], None] | None = None,
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
    if _inside.get():
        raise first_error
    from stamina import retry_context

    judge = _Judge(policy, deadline, budget, facts, on_retry)
    try:
        # No bounds of stamina's own: its time-out lets a custom back-off through (RELIABILITY 1.1).
        async for attempt in retry_context(on=judge, attempts=None, timeout=None):
            judge.begin()
            with attempt:
                if attempt.num == 1:
                    raise first_error
                with SingleRetrier():
                    result = await attempt_fn(attempt.num)
                judge.succeeded()
                return result
    except LLMOptError as error:
        judge.explain(error)
        raise
    finally:
        judge.end()
    raise AssertionError("stamina either returns from an attempt or raises its error")  # pragma: no cover


class _Judge:
    """The hook: decides on every exception of the loop, and keeps the books of one call."""

    def __init__(
        self,
        policy: RetryPolicy,
        deadline: Deadline,
        budget: Callable[[LLMOptError], RetryBudget | None],
        facts: Callable[[LLMOptError], Facts],
        on_retry: Callable[[Retry], None] | None,
    ) -> None:
        self._policy = policy
        self._deadline = deadline
        self._budget = budget
        self._facts = facts
        self._on_retry = on_retry
        self._history = RetryHistory()
        self._attempt = 0
        self._payer: RetryBudget | None = None
        self._waiting: Retry | None = None
        self._gave_up: tuple[LLMOptError, GiveUp] | None = None
        _hooks.enter()

    def __call__(self, error: Exception) -> bool | float:
        # stamina asks about CancelledError and KeyboardInterrupt too; a hook that says yes swallows them.
        if not isinstance(error, LLMOptError):
            return False
        verdict = self._policy.decide(error, self._history, self._deadline, self._facts(error))
        if isinstance(verdict, RetryDecision):
            return self._go_on(error, verdict)
        self._gave_up = (error, verdict)
        return False

    def _go_on(self, error: LLMOptError, decision: RetryDecision) -> bool | float:
        payer = self._budget(error)
        if payer is not None and not payer.take(decision.cost):
            self._gave_up = (error, GiveUp(reason="budget", wait=decision.delay))
            return False
        self._payer = payer
        self._waiting = Retry(self._attempt + 1, decision.delay, error, decision)
        _retried.set(error)
        _hooks.filter_present()
        from stamina import is_testing

        if not is_testing():  # its limit of attempts is known to nobody before `begin`
            self._tell(self._waiting)
        return decision.delay

    def _tell(self, retry: Retry) -> None:
        if self._on_retry is not None:
            self._on_retry(retry)

    def begin(self) -> None:
        """An attempt begins: the retry that was decided on is made."""
        self._attempt += 1
        _retried.set(None)
        made, self._waiting = self._waiting, None
        if made is None:
            return
        self._history.note(made.decision)
        from stamina import is_testing

        if is_testing():
            self._tell(Retry(made.attempt, 0.0, made.error, made.decision))

    def succeeded(self) -> None:
        """The attempt came through: its price goes back."""
        if self._payer is not None:
            self._payer.succeeded(self._history.last_cost)

    def end(self) -> None:
        """The loop is left, on whatever way."""
        _retried.set(None)
        _hooks.leave()
        if self._waiting is not None and self._payer is not None:  # cancelled, or stopped by a test mode
            self._payer.put_back(self._waiting.decision.cost)

    def explain(self, error: LLMOptError) -> None:
        """Say why it was not tried again, where that is not plain from the error itself.

        Raises:
            DeadlineExceeded: the next wait does not fit into the call's time.
        """
        if self._gave_up is None or self._gave_up[0] is not error:
            return
        why = self._gave_up[1]
        if why.reason == "deadline":
            raise self._too_late(error, why) from error
        if why.reason in _NOTES:
            error.add_note(_NOTES[why.reason])

    def _too_late(self, error: LLMOptError, why: GiveUp) -> DeadlineExceeded:
        asked = "the server asks to wait" if error.retry_after else "the next attempt would be in"
        return DeadlineExceeded(
            f"{asked} {why.wait or 0:.3g} s, but {self._deadline.remaining():.3g} s are left of the deadline; "
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


_NOTES: Final = {
    "ambiguous": "Not tried again: the request may have been carried out, and doing it twice may do harm.",
    "budget": "Not tried again: the endpoint's retry budget is empty, too many requests failed lately.",
    "retry_after": "Not tried again: the server asks for a longer wait than llmopt waits.",
}


_retried: Final[ContextVar[BaseException | None]] = ContextVar("llmopt_retried_error", default=None)
"""The error whose retry is being scheduled by llmopt in this very context."""


class _HookFilter:
    """One of stamina's hooks, kept from llmopt's own retries.

    Known by the identity of the error while the retry is scheduled, not by its type: a user's own
    stamina loop around an llmopt call is told of the `LLMOptError` that it retries.
    """

    __slots__ = ("hook",)

    def __init__(self, hook: RetryHook) -> None:
        self.hook = hook

    def __repr__(self) -> str:
        return f"_HookFilter({self.hook!r})"

    def __call__(self, details: RetryDetails) -> AbstractContextManager[None] | None:
        if _retried.get() is details.caused_by:
            return None
        return self.hook(details)


class _Hooks:
    """stamina's process-wide hooks: filtered while llmopt retries, as they were found afterwards.

    With structlog installed stamina's default hook prints each retry on stdout. Hooks cannot be
    left out per loop, so the present ones are wrapped, in their order, and unwrapped when the last
    loop ends; hooks that the user sets meanwhile are wrapped only if a further retry comes.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._loops = 0

    def enter(self) -> None:
        with self._lock:
            self._loops += 1

    def filter_present(self) -> None:
        from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

        with self._lock:
            present = get_on_retry_hooks()
            if not all(isinstance(hook, _HookFilter) for hook in present):
                set_on_retry_hooks(
                    [hook if isinstance(hook, _HookFilter) else _HookFilter(hook) for hook in present]
                )

    def leave(self) -> None:
        from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

        with self._lock:
            self._loops -= 1
            if self._loops:
                return
            present = get_on_retry_hooks()
            if any(isinstance(hook, _HookFilter) for hook in present):
                set_on_retry_hooks([hook.hook if isinstance(hook, _HookFilter) else hook for hook in present])


_hooks: Final = _Hooks()
