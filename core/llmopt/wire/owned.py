"""Work that finishes although its caller no longer waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")


class Owned:
    """Tasks that a caller's cancellation does not reach.

    `asyncio.shield` alone would leave them to the garbage collector.
    """

    def __init__(self) -> None:
        self._tasks: Final[set[asyncio.Task[Any]]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the work in a task of its own; cancelled, stop waiting and let it go on."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin the work in a task of its own."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """Cancel what is still going on and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._tasks)
