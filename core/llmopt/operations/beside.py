"""Work that goes on beside the calls of a client, in tasks of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final
from weakref import WeakKeyDictionary


class Beside:
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
