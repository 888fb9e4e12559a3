"""Single-flight: callers that ask for the same thing at the same time share one run of the work.

As Go's ``golang.org/x/sync/singleflight``, with two differences. One run may be about several names (the texts of a
batch), and each of them can be joined. The work runs in a task of its own, so that a cancelled caller does not take
the answer away from the others; the task is cancelled when its last caller has left.

A call can no longer be joined from the moment its result is given out, so nothing is cached here: a caller that
comes later starts a new run, also after a failure.

It starts a task for each run on the running event loop, and awaits its result; what the task does is up to the
caller. The task runs with the context variables of the caller that started it. Each event loop has calls of its own,
which no other loop sees, so there is no lock; `SingleFlight.aclose` ends those of the running loop only. No clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final, Generic, TypeVar

from llmopt.errors import ClientClosed, LLMOptError
from llmopt.policies.tasks import PerLoop

R = TypeVar("R")
Work = Callable[[tuple[str, ...]], Coroutine[Any, Any, R]]
"""Makes the coroutine that does the work for some names."""


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
        call: SharedCall[R] = group.start(lambda _: make(), (name,)) if entry is None else entry[0]
        return await call.wait()

    async def aclose(self) -> None:
        """Cancel all calls of the current event loop; their callers get `ClientClosed`."""
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

    def start(self, work: Work[R], names: tuple[str, ...]) -> SharedCall[R]:
        """Start a call. Others can join it by those of its names that no other call of the group has."""
        own = names
        if not self.keys().isdisjoint(names):
            own = tuple(name for name in names if name not in self)
        call = SharedCall(work(names), self, own, self._running.calls)
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
        work: the coroutine.
        group: where others find it.
        names: the names by which they find it, until it is over or its last caller has left.
        calls: all calls on this event loop.

    Attributes:
        joined: whether other callers wait for the result, which they share. Set by the one that joins.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, R],
        group: Group,
        names: tuple[str, ...],
        calls: set[SharedCall[Any]],
    ) -> None:
        self._waiters: Final[dict[asyncio.Future[None], None]] = {}
        self._closing = False
        self.joined = False
        self._group: Final = group
        self._names: Final = names
        self._calls: Final = calls
        self._loop: Final = asyncio.get_running_loop()
        self._task: Final = self._loop.create_task(work)
        self._task.add_done_callback(self._finish)
        calls.add(self)

    async def wait(self) -> R:
        """The result; each caller gets an exception of its own.

        Raises:
            ClientClosed: the client was closed meanwhile.
            LLMOptError: the work failed.
        """
        # Not asyncio.shield, which needs two more callbacks for each waiter.
        waiter = self._loop.create_future()
        self._waiters[waiter] = None
        try:
            if not self._task.done():
                await waiter
            return self._task.result()
        except LLMOptError as error:
            # A copy, because a shared exception would collect the traceback of every caller.
            raise error.copy() from error.__cause__
        except asyncio.CancelledError:
            if self._closing and self._task.cancelled():
                raise ClientClosed("the client was closed during the call.") from None
            raise
        finally:
            del self._waiters[waiter]
            if not self._waiters and not self._task.done():
                # Before the task has stopped, so that nobody joins what is being cancelled.
                self._group.remove(self, self._names)
                self._task.cancel()

    def _finish(self, task: asyncio.Task[R]) -> None:
        self._calls.discard(self)
        self._group.remove(self, self._names)
        if not self._waiters and not task.cancelled():
            # Marks the exception as retrieved: asyncio logs it otherwise.
            task.exception()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def abort(self) -> None:
        """Cancel the work because the client closes, and wait until it has stopped."""
        self._closing = True
        self._task.cancel()
        await asyncio.wait([self._task])
