"""Single-flight: callers that ask for the same thing at the same time share one run of the work.

As Go's ``golang.org/x/sync/singleflight``, with two differences. One run may be about several names (the texts of a
batch), and each of them can be joined. The work belongs to no caller, so that a cancelled caller does not take
the answer away from the others; it is given up when its last caller has left.

A call can no longer be joined from the moment its result is given out, so nothing is cached here: a caller that
comes later starts a new run, also after a failure.

The work is a first attempt (`llmopt.engine.pipeline`), which needs no task, and a coroutine in a task of the running event loop
for what is left to do after it. The callers await a future each. All of it runs with the context variables of the
caller that started it. Each event loop has calls of its own, which no other loop sees, so there is no lock;
`SingleFlight.aclose` ends those of the running loop only. No clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Final, Generic, NoReturn, Self, TypeVar, Union

from llmopt.engine.pipeline import LaneAttempt
from llmopt.engine.telemetry import CANCELLED
from llmopt.errors import ClientClosed, LLMOptError
from llmopt.policies.tasks import PerLoop

R = TypeVar("R")
Finish = Union[R, Coroutine[Any, Any, R]]  # noqa: UP007 - an alias with a type variable
"""The result of a first attempt, or the coroutine that goes on after it."""


class SingleFlight:
    """All shared calls of one client, by event loop."""

    def __init__(self) -> None:
        self._running: Final[PerLoop[_Running]] = PerLoop(_Running)

    def group(self, key: Hashable) -> Group:
        """The calls of one kind of work that run on the current event loop.

        Args:
            key: everything but the names that makes two pieces of work the same.
        """
        running = self._running.current()
        group = running.groups.get(key)
        if group is None:
            group = running.groups[key] = Group(key, running)
        return group

    async def share(self, name: str, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of the work of this name: of the run under way, else of a new one."""
        group = self.group(None)
        entry = group.get(name)
        call: SharedCall[R] = group.start((name,)).run(make()) if entry is None else entry[0]
        return await call.wait()

    async def aclose(self) -> None:
        """End all calls of the current event loop; their callers get `ClientClosed`."""
        for call in list(self._running.current().calls):
            await call.abort()


class _Running:
    """What runs on one event loop. A call stays in ``calls`` when none of its names can be joined any more."""

    def __init__(self) -> None:
        self.groups: Final[dict[Hashable, Group]] = {}
        self.calls: Final[set[SharedCall[Any]]] = set()


class Group(dict[str, tuple["SharedCall[Any]", tuple[str, ...]]]):
    """Calls of one kind of work that can be joined: by name, the call and all names that it is about."""

    __slots__ = ("_key", "_running")

    def __init__(self, key: Hashable, running: _Running) -> None:
        super().__init__()
        self._key: Final = key
        self._running: Final = running

    def start(self, names: tuple[str, ...]) -> SharedCall[Any]:
        """Start a call, whose work begins by `SharedCall.attend` or `SharedCall.run`.

        Others can join it by those of its names that no other call of the group has.
        """
        own = names
        if not self.keys().isdisjoint(names):
            own = tuple(name for name in names if name not in self)
        call: SharedCall[Any] = SharedCall(self, own, self._running.calls)
        entry = (call, names)
        for name in own:
            self[name] = entry
        return call

    def remove(self, call: SharedCall[Any], names: tuple[str, ...]) -> None:
        """Remove a call, so that no caller can join it."""
        for name in names:
            if (entry := self.get(name)) is not None and entry[0] is call:
                del self[name]
        # A program may have a kind of work for each of its users, so that an empty group is not kept.
        if not self and self._running.groups.get(self._key) is self:
            del self._running.groups[self._key]

    def __repr__(self) -> str:
        # The names are texts of the user's.
        return f"<{type(self).__name__} of {len(self)} names>"


class SharedCall(Generic[R]):
    """One run of some work, and the callers that wait for it.

    Args:
        group: where others find it.
        names: the names by which they find it, until it is over or its last caller has left.
        calls: all calls on this event loop.

    Attributes:
        joined: whether other callers wait for the result, which they share. Set by the one that joins.
    """

    def __init__(self, group: Group, names: tuple[str, ...], calls: set[SharedCall[Any]]) -> None:
        self._waiters: Final[dict[asyncio.Future[None], None]] = {}
        self._closing = False
        self.joined = False
        self._group: Final = group
        self._names: Final = names
        self._calls: Final = calls
        self._first: LaneAttempt[Any] | None = None
        self._task: asyncio.Task[R] | None = None
        self._result: Callable[[], R] | None = None
        calls.add(self)

    def attend(self, first: LaneAttempt[Any] | None, finish: Callable[[], Finish[R]]) -> None:
        """Take over a first attempt; ``finish`` goes on when it is no longer on its connection, now if it never was."""
        self._first = first
        if first is None or first.sending is None:
            self._go_on(finish)
        else:
            first.on_done = partial(self._go_on, finish)

    def _go_on(self, finish: Callable[[], Finish[R]]) -> None:
        try:
            outcome = finish()
        except Exception as error:  # noqa: BLE001 - the callers raise it
            self._end(partial(_raise, error))
            return
        if isinstance(outcome, Coroutine):
            self.run(outcome)
        else:
            self._end(lambda: outcome)

    def run(self, work: Coroutine[Any, Any, R]) -> Self:
        """Do the work, or the rest of it, in a task."""
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._task_done)
        return self

    def _task_done(self, task: asyncio.Task[R]) -> None:
        if not task.cancelled():
            # Marks the exception as retrieved: asyncio logs it otherwise.
            task.exception()
        self._end(task.result)

    def _end(self, result: Callable[[], R]) -> None:
        """Wake those who wait; they call ``result``."""
        self._result = result
        self._calls.discard(self)
        self._group.remove(self, self._names)
        if self._first is not None and not self._first.over:
            # A task that was cancelled before its first step has not begun to clean up.
            self._first.end(CANCELLED)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> R:
        """The result; each caller gets an exception of its own.

        Raises:
            ClientClosed: the client was closed meanwhile.
            LLMOptError: the work failed.
        """
        # Not asyncio.shield, which needs two more callbacks for each waiter.
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            if self._result is None:
                await waiter
            return self._result()  # type: ignore[misc] # set before the waiter is woken
        except LLMOptError as error:
            # A copy, because a shared exception would collect the traceback of every caller.
            raise error.copy() from error.__cause__
        except asyncio.CancelledError:
            if self._closing and self._result is not None:
                raise ClientClosed("the client was closed during the call.") from None
            raise
        finally:
            del self._waiters[waiter]
            if not self._waiters and self._result is None:
                self._stop()

    def _stop(self) -> None:
        # Before the work has stopped, so that nobody joins what is being given up.
        self._group.remove(self, self._names)
        if self._task is not None:
            self._task.cancel()
        else:
            self._end(partial(_raise, asyncio.CancelledError()))

    async def abort(self) -> None:
        """Give the work up because the client closes, and wait until it has stopped."""
        self._closing = True
        self._stop()
        if self._task is not None:
            await asyncio.wait([self._task])


def _raise(error: BaseException) -> NoReturn:
    raise error
