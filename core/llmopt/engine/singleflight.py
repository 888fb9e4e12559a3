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
from llmopt.policies.clock import PerLoop

R = TypeVar("R")
Work = Callable[[tuple[str, ...]], Coroutine[Any, Any, R]]
"""Begins what is to be done about some names, and gives what came of it."""


class Flight(Generic[R]):
    """One piece of work under way.

    Args:
        work: begins what is to be done, given all names.
        board: of all flights on this loop.
        table: where others find it.
        names: what it is about.
        free: those of the names under which others find it. They are taken out when the work is over, before any
            waiter goes on, and when everybody has left it, so that nobody joins what is being stopped.
    """

    def __init__(
        self,
        work: Work[R],
        board: Board,
        table: Table,
        names: tuple[str, ...],
        free: tuple[str, ...],
    ) -> None:
        self._waiters: Final[dict[asyncio.Future[None], None]] = {}
        self._closing = False
        self._board: Final = board
        self._table: Final = table
        self._free: Final = free
        self._loop: Final = asyncio.get_running_loop()
        self._task: Final = self._loop.create_task(self._run(work, names))
        self._task.add_done_callback(self._over)
        board.flights.add(self)

    async def _run(self, work: Work[R], names: tuple[str, ...]) -> R:
        try:
            return await work(names)
        finally:
            self._land()

    def _land(self) -> None:
        for name in self._free:
            if (entry := self._table.get(name)) is not None and entry[0] is self:
                del self._table[name]
        if not self._table:
            self._board.drop(self._table)

    def _over(self, task: asyncio.Task[R]) -> None:
        self._board.flights.discard(self)
        if task.cancelled():
            # One that is cancelled before its first step never comes to its `finally`.
            self._land()
        elif not self._waiters:
            # Nobody looks at it any more.
            task.exception()
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

    async def abort(self) -> None:
        """Cancel the work because the client closes, and wait until it has stopped."""
        self._closing = True
        self._task.cancel()
        await asyncio.wait([self._task])


class Table(dict[str, tuple[Flight[Any], tuple[str, ...]]]):
    """The parts of one kind of work that are in flight: by name, their flight and all names in it.

    Attributes:
        kind: of work.
    """

    __slots__ = ("kind",)

    def __init__(self, kind: Hashable) -> None:
        super().__init__()
        self.kind: Final = kind

    def __repr__(self) -> str:
        # Names are texts of the user's.
        return f"<Table of {len(self)} in flight>"


class Board:
    """What is in flight on one event loop."""

    def __init__(self) -> None:
        self._tables: Final[dict[Hashable, Table]] = {}
        self.flights: Final[set[Flight[Any]]] = set()

    def table(self, key: Hashable) -> Table:
        """What is in flight of one kind of work."""
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = Table(key)
        return table

    def drop(self, table: Table) -> None:
        """Forget a table that is empty: there may be a kind of work for each user of a program."""
        if self._tables.get(table.kind) is table:
            del self._tables[table.kind]

    def launch(self, work: Work[R], table: Table, names: tuple[str, ...]) -> Flight[R]:
        """Start some work, to be joined by those of its names that are not in the table yet."""
        free = names
        if not table.keys().isdisjoint(names):
            free = tuple(name for name in names if name not in table)
        flight = Flight(work, self, table, names, free)
        entry = (flight, names)
        for name in free:
            table[name] = entry
        return flight


class Flights:
    """Everything in flight of one client, by event loop."""

    def __init__(self) -> None:
        self._boards: Final[PerLoop[Board]] = PerLoop(Board)

    def here(self) -> Board:
        """What is in flight on the running loop."""
        return self._boards.here()

    async def share(self, key: str, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of work that is known by a name: joined where it is under way, else started."""
        board = self.here()
        table = board.table(None)
        found = table.get(key)
        flight: Flight[R] = board.launch(lambda _: make(), table, (key,)) if found is None else found[0]
        return await flight.wait()

    async def aclose(self) -> None:
        """Cancel what is under way on this loop; its waiters get `ClientClosed`."""
        for flight in list(self.here().flights):
            await flight.abort()
