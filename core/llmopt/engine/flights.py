"""Work that several callers wait for at once: identical questions are asked once.

The work runs in a task of the client's own, so that no caller's cancellation takes it away from the
others; it is cancelled when nobody waits any more. What is in flight is forgotten before its result is
given out, and a failure is remembered for nobody: whoever asks later asks afresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final, Generic, TypeVar

from llmopt.errors import ClientClosed, LLMOptError
from llmopt.policies.per_loop import PerLoop

R = TypeVar("R")


class Flight(Generic[R]):
    """One piece of work under way.

    Args:
        work: begins what is to be done.
        landed: called when it is over, before any waiter goes on, and when everybody has left it, so that
            nobody joins what is being stopped; it may be called twice.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, R]], landed: Callable[[], None]) -> None:
        self._waiters: Final[dict[asyncio.Future[None], None]] = {}
        self._acts: Final[list[Callable[[], None]]] = []
        self._closing = False
        self._landed: Callable[[], None] | None = landed
        self._loop: Final = asyncio.get_running_loop()
        self._task: Final = self._loop.create_task(self._run(work))
        self._task.add_done_callback(self._over)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        try:
            return await work()
        finally:
            self._land()

    def _land(self) -> None:
        if self._landed is not None:
            self._landed()

    def _over(self, task: asyncio.Task[R]) -> None:
        if task.cancelled():
            # One that is cancelled before its first step never comes to its `finally`.
            self._land()
        elif not self._waiters:
            # Nobody looks at it any more.
            task.exception()
        for act in self._acts:
            act()
        # What they refer to refers to this flight, and so to its result: without them it goes when it is given out.
        self._acts.clear()
        self._landed = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> R:
        """The result; each waiter gets an exception of its own.

        Raises:
            ClientClosed: the client was closed meanwhile.
            LLMOptError: the work failed.
        """
        # Not asyncio.shield, which needs two callbacks more for each waiter.
        waiter = self._loop.create_future()
        self._waiters[waiter] = None
        try:
            if not self._task.done():
                await waiter
            return self._task.result()
        except LLMOptError as error:
            raise error.copy() from error.__cause__
        except asyncio.CancelledError:
            if self._closing and self._task.cancelled():
                raise ClientClosed("the client was closed during the call.") from None
            raise
        finally:
            del self._waiters[waiter]
            if not self._waiters and not self._task.done():
                self._land()
                self._task.cancel()

    def when_over(self, act: Callable[[], None]) -> None:
        """Have something done when the work has ended or has been stopped."""
        self._acts.append(act)

    async def abort(self) -> None:
        """Cancel the work because the client closes, and wait until it has stopped."""
        self._closing = True
        self._task.cancel()
        await asyncio.wait([self._task])


Table = dict[str, tuple[Flight[Any], tuple[str, ...]]]


class Flights:
    """Everything in flight of one client, by event loop."""

    def __init__(self) -> None:
        self._boards: Final[PerLoop[_Board]] = PerLoop(_Board)

    def table(self, key: Hashable) -> Table:
        """For one kind of work, the parts that are in flight: by name, their flight and all names in it."""
        return self._boards.here().tables.setdefault(key, {})

    def launch(self, work: Callable[[], Coroutine[Any, Any, R]], landed: Callable[[], None]) -> Flight[R]:
        """Start some work; ``landed`` may be called more than once."""
        board = self._boards.here()
        flight = Flight(work, landed)
        board.flights.add(flight)
        flight.when_over(lambda: board.flights.discard(flight))
        return flight

    async def share(self, key: str, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of work that is known by a name: joined where it is under way, else started."""
        table = self.table(None)
        found = table.get(key)
        if found is None:

            def landed() -> None:
                if key in table and table[key][0] is flight:
                    del table[key]

            flight: Flight[R] = self.launch(make, landed)
            table[key] = (flight, (key,))
        else:
            flight = found[0]
        return await flight.wait()

    async def aclose(self) -> None:
        """Cancel what is under way on this loop; its waiters get `ClientClosed`."""
        for flight in list(self._boards.here().flights):
            await flight.abort()


class _Board:
    """What is in flight on one event loop."""

    def __init__(self) -> None:
        self.tables: Final[dict[Hashable, Table]] = {}
        self.flights: Final[set[Flight[Any]]] = set()
