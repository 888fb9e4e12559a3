"""A private event loop in a thread of its own, for a synchronous caller.

The thread is a daemon, so that a client nobody closed keeps no program from ending; what is open at
that point is closed by an exit handler, briefly. A forked child finds a thread that is not there
and makes its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from llmopt.errors import ClientClosed

T = TypeVar("T")

_FAREWELL_S: Final = 0.5
_STOP_S: Final = 2.0


class Work(Generic[T]):
    """A coroutine that runs for another thread: its future, and whether its task has ended."""

    def __init__(self) -> None:
        self.future: Final[Future[T]] = Future()
        self.stopped: Final = threading.Event()

    def follow(self, task: asyncio.Task[T]) -> None:
        """Tie the future to its task, both ways."""
        # What run_coroutine_threadsafe does; that function takes no context.
        asyncio.futures._chain_future(task, self.future)  # type: ignore[attr-defined]  # noqa: SLF001 - see above

    def abandon(self) -> None:
        """Cancel the task, unless it has ended, and wait a moment for it to stop."""
        if not self.future.done():
            self.future.cancel()
            self.stopped.wait(_STOP_S)


class LoopThread:
    """Runs coroutines for callers in other threads."""

    def __init__(self) -> None:
        self.pid: Final = os.getpid()
        self.loop: Final = asyncio.new_event_loop()
        self._thread: Final = threading.Thread(target=self._serve, name="llmopt", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and give its result.

        An exception in the waiting caller, Ctrl-C above all, cancels the coroutine and waits for it
        to stop before it goes on.
        """
        work = self.submit(coroutine)
        try:
            return work.future.result()
        except CancelledError:
            # The loop was stopped under the call: by `close` in another thread.
            raise ClientClosed("the client was closed during the call.") from None
        except BaseException:
            work.abandon()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Work[T]:
        """Start a coroutine, with the caller's context variables."""
        work: Work[T] = Work()
        context = contextvars.copy_context()

        def start() -> None:
            task = self.loop.create_task(coroutine, context=context)
            task.add_done_callback(lambda _: work.stopped.set())
            work.follow(task)

        try:
            self.loop.call_soon_threadsafe(start)
        except RuntimeError:
            coroutine.close()
            work.future.cancel()
            work.stopped.set()
        return work

    def stop(self, farewell: Callable[[], Coroutine[Any, Any, None]], timeout: float | None = None) -> None:
        """Run a last coroutine, cancel what still runs, stop the loop and wait for the thread."""
        if self.loop.is_closed() or not self._thread.is_alive():
            return
        work = self.submit(_last(farewell))
        with suppress(FutureTimeout, CancelledError):
            work.future.result(timeout)
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S if timeout is None else timeout)


async def _last(farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await farewell()
    finally:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def at_exit(stop: Callable[[float], None]) -> Callable[[], None]:
    """Have a bound method called when the interpreter ends, if its object still lives.

    Returns:
        A function that takes the wish back.
    """
    reference = weakref.WeakMethod(stop)

    def leave() -> None:
        method = reference()
        if method is not None:
            method(_FAREWELL_S)

    atexit.register(leave)
    return lambda: atexit.unregister(leave)
