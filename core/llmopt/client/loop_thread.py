"""An event loop in a thread of its own, which runs coroutines for synchronous callers.

The thread is a daemon, so a client that is never closed does not keep the interpreter from exiting; an exit handler
closes its connections, within half a second. After a fork the thread does not exist in the child; by `pid` the client
notices it, and makes a new one.

It does no I/O of its own: the coroutines do theirs on that thread. A lock guards the end of the loop, so that no task
is handed over too late. Coroutines run in a copy of the caller's context variables, which `call_soon_threadsafe` makes. A
private function of asyncio links the futures, as in `run_coroutine_threadsafe`, which gives no access to the task.
Waits use the system's clock.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from llmopt.errors import ClientClosed, ConfigError
from llmopt.policies.tasks import wait_for_future
from llmopt.values.resources import local_errors

T = TypeVar("T")

_EXIT_TIMEOUT_S: Final = 0.5
"""For closing connections while the interpreter exits."""
_STOP_TIMEOUT_S: Final = 2.0
"""For a cancelled task, and for the thread, to end."""


class LoopThread:
    """Runs coroutines on its event loop, for callers in other threads.

    Raises:
        OutOfResources: no event loop or no thread could be made.
        ConfigError: gevent or eventlet has replaced sockets, but not threads.

    Attributes:
        pid: the process that started the thread.
        loop: the event loop.
    """

    def __init__(self) -> None:
        _check_threads_are_usable()
        self.pid: Final = os.getpid()
        self._lock: Final = threading.Lock()
        self._tasks: Final[set[LoopTask[Any]]] = set()
        self._ended = False
        self._thread: Final = threading.Thread(target=self._serve, name="llmopt", daemon=True)
        with local_errors("the thread of the client could not be started"):
            self.loop: Final = asyncio.new_event_loop()
            try:
                self._thread.start()
            except BaseException:
                self.loop.close()
                raise

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result.

        An exception in the waiting caller, most often KeyboardInterrupt, cancels the coroutine, waits until it has
        stopped, and is raised again.

        Raises:
            ClientClosed: the loop was stopped before the coroutine ended: `Client.close` was called in another thread.
        """
        task = self.submit(coroutine)
        try:
            return task.result()
        except BaseException:
            task.cancel()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> LoopTask[T]:
        """Start a coroutine, with the context variables of the caller."""
        task = LoopTask(coroutine)
        with self._lock:
            if not self._ended:
                self._tasks.add(task)
                # Under the lock, so that the loop cannot end between the check and this call.
                self.loop.call_soon_threadsafe(task.start)
                task.future.add_done_callback(lambda _: self._tasks.discard(task))
                return task
        task.discard()
        return task

    def stop(self, close: Callable[[], Coroutine[Any, Any, None]], timeout: float | None = None) -> None:
        """Run a last coroutine, cancel all other tasks, stop the loop and wait for the thread.

        Args:
            close: makes the last coroutine, which closes what the loop uses.
            timeout: seconds for the last coroutine, None for unlimited.
        """
        if self.loop.is_closed() or not self._thread.is_alive():
            return
        task = self.submit(_close_and_cancel_tasks(close))
        with suppress(FutureTimeout, CancelledError):
            task.future.result(timeout)
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        # A callback such as ``on_event`` may close the client on the loop's own thread, which cannot join
        # itself.
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_TIMEOUT_S if timeout is None else timeout)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            # A task that is submitted after the loop's last iteration would wait forever, so none is accepted now.
            with self._lock:
                self._ended = True
            self.loop.run_until_complete(_cancel_other_tasks())
            self.loop.close()
            for task in tuple(self._tasks):
                task.discard()


_PATCHERS: Final = (
    ("gevent.monkey", "is_module_patched", ("socket", "_thread")),
    ("eventlet.patcher", "is_monkey_patched", ("socket", "thread")),
)


def _check_threads_are_usable() -> None:
    """Refuse a process in which sockets wait in greenlets but threads are the system's: a wait in ours never ends."""
    for name, function, (sockets, threads) in _PATCHERS:
        is_patched = getattr(sys.modules.get(name), function, None)
        if is_patched is not None and is_patched(sockets) and not is_patched(threads):
            raise ConfigError(
                f"{name.partition('.')[0]} has replaced sockets, but not threads (thread=False), and llmopt.Client needs a "
                "thread: let it replace everything, or nothing."
            )


class LoopTask(Generic[T]):
    """A coroutine that runs on the loop, and the future that another thread waits for.

    Args:
        coroutine: not started yet.

    Attributes:
        future: gets the result.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: Final[Future[T]] = Future()
        self._coroutine: Final = coroutine
        self._ended: Final = threading.Event()
        self._started = False

    def start(self) -> None:
        """Create the task, on the running loop, and connect it with the future in both directions."""
        self._started = True
        task = asyncio.get_running_loop().create_task(self._coroutine)
        task.add_done_callback(lambda _: self._ended.set())
        # This is what asyncio.run_coroutine_threadsafe does; but that gives no access to the task.
        asyncio.futures._chain_future(task, self.future)  # type: ignore[attr-defined]  # noqa: SLF001 - see above

    def result(self) -> T:
        """Wait for the result.

        Raises:
            ClientClosed: the loop was stopped before: `Client.close` was called in another thread.
        """
        wait_for_future(self.future)
        if self.future.cancelled():
            raise ClientClosed("the client was closed during the call.")
        return self.future.result()

    def cancel(self) -> None:
        """Cancel the task, unless it has ended, and wait up to two seconds until it has stopped."""
        if not self.future.done():
            self.future.cancel()
            # Cancelling the future only requests it: without the wait the request could still run after this
            # call returned.
            self._ended.wait(_STOP_TIMEOUT_S)

    def discard(self) -> None:
        """Cancel the future, because the loop has ended and will not run the coroutine."""
        # A coroutine that was never awaited would cause a RuntimeWarning.
        if not self._started:
            self._coroutine.close()
        self.future.cancel()
        self._ended.set()


async def _close_and_cancel_tasks(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await close()
    finally:
        await _cancel_other_tasks()


async def _cancel_other_tasks() -> None:
    """Cancel all other tasks of the loop and wait until they have ended."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    # The exceptions are returned: one task's failure must not leave the others running.
    await asyncio.gather(*others, return_exceptions=True)


def register_exit_handler(stop: Callable[[float], None]) -> Callable[[], None]:
    """Call a bound method when the interpreter exits, if its object still exists then.

    Args:
        stop: the method; its argument is a timeout in seconds. Only a weak reference is kept.

    Returns:
        A function that unregisters the handler.
    """
    # atexit holds its functions until the end, and with a strong reference every client as well.
    reference = weakref.WeakMethod(stop)

    def on_exit() -> None:
        method = reference()
        if method is not None:
            method(_EXIT_TIMEOUT_S)

    atexit.register(on_exit)
    return lambda: atexit.unregister(on_exit)
