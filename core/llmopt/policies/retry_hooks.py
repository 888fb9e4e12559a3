"""stamina's process-wide retry hooks, kept from hearing of llmopt's own retries.

With structlog installed stamina's default hook prints every retry on stdout. Hooks cannot be left out for
one loop, so the present ones are wrapped by a filter, in their order, while llmopt retries, and unwrapped
when its last loop ends: the user finds the very hooks that were there. It is the one thing that
llmopt changes for the whole process. Hooks that the user sets meanwhile are wrapped only if a further
retry comes, and stay in place.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from contextvars import ContextVar
from threading import Lock
from typing import Final, Self

from stamina.instrumentation import RetryDetails, RetryHook, get_on_retry_hooks, set_on_retry_hooks

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
