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

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: Final[Future[T]] = Future()
        self.stopped: Final = threading.Event()
        self._coroutine: Final = coroutine
        self._context: Final = contextvars.copy_context()
        self._started = False

    def start(self) -> None:
        """Make a task of it, on the running loop, and tie the future to that, both ways."""
        self._started = True
        task = asyncio.get_running_loop().create_task(self._coroutine, context=self._context)
        task.add_done_callback(lambda _: self.stopped.set())
        # What run_coroutine_threadsafe does; that function takes no context.
        asyncio.futures._chain_future(task, self.future)  # type: ignore[attr-defined]  # noqa: SLF001 - see above

    def result(self) -> T:
        """Wait for what comes of it.

        Raises:
            ClientClosed: the loop was stopped under it: by `close` in another thread.
        """
        try:
            return self.future.result()
        except CancelledError:
            raise ClientClosed("the client was closed during the call.") from None

    def drop(self) -> None:
        """The loop is over, and it will never run, or never run on."""
        if not self._started:
            self._coroutine.close()
        self.future.cancel()
        self.stopped.set()

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
        self._lock: Final = threading.Lock()
        self._works: Final[set[Work[Any]]] = set()
        self._over = False
        self._thread: Final = threading.Thread(target=self._serve, name="llmopt", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            # What came in after the loop's last turn would wait for ever: nothing more comes in from here on.
            with self._lock:
                self._over = True
            self.loop.run_until_complete(_end_tasks())
            self.loop.close()
            for work in tuple(self._works):
                work.drop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and give its result.

        An exception in the waiting caller, Ctrl-C above all, cancels the coroutine and waits for it
        to stop before it goes on.
        """
        work = self.submit(coroutine)
        try:
            return work.result()
        except BaseException:
            work.abandon()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Work[T]:
        """Start a coroutine, with the caller's context variables."""
        work = Work(coroutine)
        with self._lock:
            if not self._over:
                self._works.add(work)
                self.loop.call_soon_threadsafe(work.start)
                work.future.add_done_callback(lambda _: self._works.discard(work))
                return work
        work.drop()
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
        await _end_tasks()


async def _end_tasks() -> None:
    """Cancel all other tasks of the loop and wait until they have ended."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def register_exit_handler(stop: Callable[[float], None]) -> Callable[[], None]:
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
