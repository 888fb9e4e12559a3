"""The fault server in a thread, for tests without an event loop, or with another loop than asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from attrs import frozen

from tests.support.faults.server import FaultServer

T = TypeVar("T")
CALL_TIMEOUT = 30.0  # seconds; only a broken test waits so long


@frozen
class ServerThread:
    """A running server, and the way into its event loop.

    `play`, `default`, `on_accept` and the counts may be used from any thread; what closes, waits or sets an event
    has to go through `run` or `call`.
    """

    server: FaultServer
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop and wait for it: `thread.run(thread.server.stop())`."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(CALL_TIMEOUT)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the server's loop: `thread.call(thread.server.drop_idle)`."""

        async def called() -> T:
            return function()

        return self.run(called())


@contextlib.contextmanager
def serving(server: FaultServer | None = None) -> Iterator[ServerThread]:
    """Run a server, a new one by default, in a thread until the block ends."""
    loop = asyncio.SelectorEventLoop()  # whatever loop the test itself runs on
    runner = threading.Thread(target=loop.run_forever, name="fault server", daemon=True)
    runner.start()
    thread = ServerThread(server or FaultServer(), loop)
    try:
        with _entered(thread):
            yield thread
    finally:
        loop.call_soon_threadsafe(loop.stop)
        runner.join()
        loop.close()


@contextlib.contextmanager
def _entered(thread: ServerThread) -> Iterator[None]:
    thread.run(thread.server.__aenter__())
    try:
        yield
    except BaseException as problem:
        thread.run(thread.server.__aexit__(type(problem), problem, problem.__traceback__))
        raise
    thread.run(thread.server.__aexit__(None, None, None))
