"""Many pieces of work at once, bounded, with the results in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
R = TypeVar("R")


class OrderedFlow(Generic[T, R]):
    """Runs ``work`` over a source with at most ``width`` pieces under way, and yields in order.

    Memory is bounded: at most ``ahead`` pieces are taken from the source and not yet yielded. An
    error of the source, or of a piece, comes after all results before it; the pieces under way by
    then are finished, never thrown away, unless the consumer leaves.

    Args:
        source: the pieces of work.
        work: one piece to its result.
        width: pieces under way at once, 1 or more.
        ahead: pieces taken and not yet yielded, ``width`` or more.
    """

    def __init__(
        self, source: AsyncIterator[T], work: Callable[[T], Awaitable[R]], *, width: int, ahead: int
    ) -> None:
        self._source: Final = source
        self._work: Final = work
        self._room: Final = asyncio.Semaphore(max(width, ahead))
        self._turn: Final = asyncio.Lock()
        self._slots: Final[dict[int, asyncio.Future[R]]] = {}
        self._width: Final = width
        self._taken = 0
        self._exhausted = False
        self._source_error: BaseException | None = None
        self._changed: Final = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    async def __aiter__(self) -> AsyncGenerator[R, None]:
        """The results, in the order of the source."""
        self._hire()
        try:
            given = 0
            while (slot := await self._slot(given)) is not None:
                result = await slot
                del self._slots[given]
                self._room.release()
                given += 1
                yield result
            if self._source_error is not None:
                raise self._source_error
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop all work under way and wait until it has stopped."""
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            with suppress(asyncio.CancelledError):
                await worker
        self._workers = []
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    async def _slot(self, number: int) -> asyncio.Future[R] | None:
        """The future of a piece, as soon as that piece has been taken; None when there is no such piece."""
        while number not in self._slots:
            if self._exhausted and number >= self._taken:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._slots[number]

    def _hire(self) -> None:
        # One at a time, when the last one has found work: most calls have work for one.
        self._workers.append(asyncio.create_task(self._worker()))

    async def _worker(self) -> None:
        while True:
            await self._room.acquire()
            async with self._turn:
                taken = await self._take()
            if taken is None:
                return
            if len(self._workers) < self._width:
                self._hire()
            slot, piece = taken
            try:
                result = await self._work(piece)
            except asyncio.CancelledError:
                slot.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - handed to the consumer, in its place in the order
                _fail(slot, error)
            else:
                # A consumer that was cancelled while it waited for this piece has cancelled its slot.
                if not slot.done():
                    slot.set_result(result)

    async def _take(self) -> tuple[asyncio.Future[R], T] | None:
        if self._exhausted:
            return None
        try:
            piece = await anext(self._source)
        except asyncio.CancelledError:
            raise
        except StopAsyncIteration:
            self._end()
            return None
        except BaseException as error:  # noqa: BLE001 - handed to the consumer after what came before it
            self._source_error = error
            self._end()
            return None
        slot: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._slots[self._taken] = slot
        self._taken += 1
        self._changed.set()
        return slot, piece

    def _end(self) -> None:
        self._exhausted = True
        self._changed.set()


def _fail(slot: asyncio.Future[R], error: Exception) -> None:
    if not slot.done():
        slot.set_exception(error)
        # A consumer that left does not look at it.
        slot.exception()


# Several coroutines at once, with plain exceptions.


async def gather_first_error(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all, and give their results in order.

    The first exception cancels the others, is waited out, and comes as itself, not in a group.
    """
    if len(works) == 1:
        return [await works[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


# Work that goes on beside the calls of a client, in tasks of its own.


class TaskSet:
    """Tasks that nobody waits for, by event loop.

    Args:
        at_once: how many work at the same time; the others wait for their turn.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once: Final = at_once
        self._loops: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Room]] = WeakKeyDictionary()

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]], over: Callable[[], None]) -> None:
        """Start some work. It must deal with its own errors.

        Args:
            work: makes the coroutine, when its turn has come.
            over: called when it has ended, was stopped, or never had its turn.
        """
        loop = asyncio.get_running_loop()
        room = self._loops.get(loop)
        if room is None:
            room = self._loops[loop] = _Room(self._at_once)
        # Held until it is done: the loop itself does not.
        task = loop.create_task(room.run(work))
        room.tasks.add(task)
        task.add_done_callback(room.tasks.discard)
        task.add_done_callback(lambda _: over())

    async def aclose(self) -> None:
        """Cancel what is under way on this loop, and wait until it has stopped."""
        room = self._loops.get(asyncio.get_running_loop())
        tasks = [] if room is None else list(room.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Room:
    """The tasks on one event loop."""

    def __init__(self, at_once: int) -> None:
        self._room: Final = asyncio.Semaphore(at_once)
        self.tasks: Final[set[asyncio.Task[None]]] = set()

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._room:
            await work()
