"""asyncio helpers: background tasks, a gather and a concurrent map, work in a thread, waiting in one, one value per loop.

It starts tasks on the running event loop, and `run_in_thread` starts a new thread for each call, with a copy of the
caller's context variables; the work is the caller's, and there is no other I/O. `wait_for_future` alone blocks its
thread, and wakes it twice a second. No other clock. Event loops in several threads may share a `PerLoop` or a
`TaskSet`, without a lock: each loop sets its own value only, and `TaskSet.aclose` cancels the tasks of the running loop
only. Iterating over a `PerLoop` gives the values that were there when it began.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar, TypeVarTuple, Unpack
from weakref import WeakKeyDictionary, ref

from llmopt.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")
_Args = TypeVarTuple("_Args")


class TaskSet:
    """Background tasks. They go on when the caller that started them is cancelled.

    The event loop keeps only weak references to its tasks; the set keeps strong ones until they are done.
    """

    def __init__(self) -> None:
        self._tasks: Final[PerLoop[set[asyncio.Task[Any]]]] = PerLoop(set)

    def __len__(self) -> int:
        return sum(map(len, self._tasks))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in a task of this set, without waiting for it."""
        tasks = self._tasks.current()
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in a task of this set, and wait for its result. A cancellation ends the waiting only."""
        return await asyncio.shield(self.start(work))

    async def aclose(self) -> None:
        """Cancel the tasks on the running event loop, and wait until they have ended."""
        await _cancel_all(list(self._tasks.current()))


async def gather_first_error(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all coroutines concurrently; their results in order.

    The first exception cancels the other coroutines, waits for them to end, and is raised as it is, not in an
    `ExceptionGroup`.
    """
    if len(coroutines) == 1:
        return [await coroutines[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def concurrent_map(
    source: AsyncIterator[T],
    function: Callable[[T], Coroutine[Any, Any, R]],
    *,
    concurrency: int,
    lookahead: int,
    in_order: bool = True,
) -> AsyncGenerator[R, None]:
    """Apply a coroutine function to all items, some at once; yields the results in the order of the items.

    An exception of the source or of an item is raised after all results before it; what runs by then is
    finished. Closing the generator cancels what runs and closes the source. Use it in `contextlib.aclosing`: a
    generator that is only dropped is closed some turns of the event loop later.

    Args:
        source: the items.
        function: makes the result of one item.
        concurrency: most calls of the function that run at once.
        lookahead: most items that are taken from the source and whose results are not yielded yet, which bounds
            the memory; at least as many as run at once.
        in_order: False yields each result, and raises an item's exception, when it is there; an exception of the source
            comes last.
    """
    tasks = _Tasks[R](concurrency, max(concurrency, lookahead), in_order=in_order)
    feeder = asyncio.create_task(tasks.feed(source, function))
    feeder.add_done_callback(lambda _: tasks.queue.put_nowait(None))
    try:
        while (task := await tasks.queue.get()) is not None:
            result = await task
            tasks.not_yielded.discard(task)
            # Before the yield: the consumer may take long, and holds the result by then.
            tasks.held.release()
            yield result
        if (error := await feeder) is not None:
            raise error
    finally:
        # The feeder first: it could start another task in the meantime.
        await _cancel_all([feeder])
        await _cancel_all(tasks.not_yielded)
        # An asynchronous generator has `aclose`; other iterators need not have it.
        if (close := getattr(source, "aclose", None)) is not None:
            await close()


class _Tasks(Generic[R]):
    """The tasks of a `concurrent_map`, in the order of their results; None is put behind the last one."""

    def __init__(self, concurrency: int, lookahead: int, *, in_order: bool) -> None:
        self.queue: Final[asyncio.Queue[asyncio.Task[R] | None]] = asyncio.Queue()
        self.not_yielded: Final[set[asyncio.Task[R]]] = set()
        self.held: Final = asyncio.Semaphore(lookahead)
        self._running: Final = asyncio.Semaphore(concurrency)
        self._in_order: Final = in_order

    async def feed(
        self, source: AsyncIterator[T], function: Callable[[T], Coroutine[Any, Any, R]]
    ) -> BaseException | None:
        """Start a task for each item; the exception of the source, when all tasks have ended."""
        error: BaseException | None = None
        try:
            while True:
                await self.held.acquire()
                await self._running.acquire()
                task = asyncio.create_task(function(await anext(source)))
                task.add_done_callback(lambda _: self._running.release())
                self.not_yielded.add(task)
                if self._in_order:
                    self.queue.put_nowait(task)
                else:
                    task.add_done_callback(self.queue.put_nowait)
        except StopAsyncIteration:
            pass
        except (Exception, KeyboardInterrupt, SystemExit) as caught:  # noqa: BLE001 - raised to the consumer
            # Returned, not raised: a KeyboardInterrupt of a task ends the whole event loop.
            error = caught
        if self.not_yielded:
            await asyncio.wait(self.not_yielded)
        return error


async def _cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    # Exceptions are collected, so that asyncio does not report them as never retrieved.
    await asyncio.gather(*tasks, return_exceptions=True)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, None if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def run_on(loop: asyncio.AbstractEventLoop, act: Callable[[Unpack[_Args]], None], *args: *_Args) -> bool:
    """Call a function on an event loop, at once if it is the running one; False if the loop is closed."""
    if running_loop() is loop:
        act(*args)
        return True
    try:
        loop.call_soon_threadsafe(act, *args)
    except RuntimeError:
        return False
    return True


def settle(future: asyncio.Future[T], outcome: T | Exception) -> None:
    """Give a future its result or its exception, unless it is done: its waiter may have been cancelled. On its loop only."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def require_asyncio() -> None:
    """Check that asyncio runs the caller.

    Raises:
        ConfigError: another library does, such as trio, or nothing.
    """
    if running_loop() is None:
        raise ConfigError(
            "llmopt.AsyncClient runs on asyncio, and no event loop of asyncio is running here. With trio, call "
            "llmopt.Client in a thread: await trio.to_thread.run_sync(client.embed, model, texts)."
        )


class PerLoop(Generic[T]):
    """One value for each event loop, made when first needed there and kept as long as the loop.

    A client may be used on several loops, one after the other or at the same time in several threads.

    Iterating gives the values of all loops.

    Args:
        make: makes a value; it is called on the loop that the value is for.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Final = make
        self._values: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, T]] = WeakKeyDictionary()
        # Every request asks several times, and nearly always from the same loop as before.
        self._last: tuple[ref[asyncio.AbstractEventLoop], T] | None = None

    def current(self) -> T:
        """The value of the running loop."""
        loop, last = asyncio.get_running_loop(), self._last
        if last is not None and last[0]() is loop:
            return last[1]
        value = self._values.get(loop)
        if value is None:
            value = self._values[loop] = self._make()
        self._last = (ref(loop), value)
        return value

    def __iter__(self) -> Iterator[T]:
        # `keyrefs` copies all keys in one step: a loop in another thread may add its value meanwhile.
        loops = [reference() for reference in self._values.keyrefs()]
        values = [self._values.get(loop) for loop in loops if loop is not None]
        return iter([value for value in values if value is not None])


async def run_in_thread(function: Callable[[Unpack[_Args]], T], *args: *_Args) -> T:
    """Run a function in a new thread and return its result, while the event loop goes on.

    `asyncio.to_thread` uses the loop's default executor. That one belongs to the application, which may have
    filled it for minutes. A new thread costs 0.1 ms, little beside the work that is worth a thread. A caller
    that is cancelled does not wait for the function.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="llmopt")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, copy_context().run, function, *args)
    finally:
        executor.shutdown(wait=False)


_INTERRUPT_S: Final = 0.5


def wait_for_future(future: Future[T]) -> None:
    """Wait in a thread without an event loop until a future is done. Ctrl-C ends the wait.

    `Future.result` waits on a condition: an interrupt at the wrong moment becomes "cannot release un-acquired lock"
    there, and one just before the wait does not end it (3 of 90 times, right after a line was printed). So this waits
    for a lock, with a timeout.
    """
    done = threading.Lock()
    done.acquire()
    future.add_done_callback(lambda _: done.release())
    while not done.acquire(timeout=_INTERRUPT_S):
        pass
