"""Calls under way, which end with the client: none of them sleeps on until its retry or its turn.

As `asyncio.timeout` does it: the task is cancelled, and on its way out the cancellation becomes
`ClientClosed`, unless somebody else wants the task cancelled too.
"""

from __future__ import annotations

import asyncio
from typing import Final, Self

from llmopt.errors import ClientClosed


class Presence:
    """All calls of one client that are under way, on whatever event loop."""

    def __init__(self) -> None:
        self._calls: Final[set[_Call]] = set()

    def call(self) -> _Call:
        """One call, for as long as a ``with`` block lasts."""
        return _Call(self._calls)

    def end(self) -> None:
        """End all of them; each raises `ClientClosed`."""
        for call in tuple(self._calls):
            call.end()


class _Call:
    __slots__ = ("_calls", "_ended", "_task", "_wishes")

    def __init__(self, calls: set[_Call]) -> None:
        self._calls = calls
        self._ended = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("llmopt must be called from a task of asyncio")
        self._task: asyncio.Task[object] = task
        self._wishes = task.cancelling()
        self._calls.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._calls.discard(self)
        if not self._ended:
            return
        nobody_else = self._task.uncancel() <= self._wishes
        if nobody_else and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientClosed("the client was closed during the call.") from None

    def end(self) -> None:
        loop = self._task.get_loop()
        if not loop.is_closed():
            # Also from another loop's thread; on one's own it is a turn later.
            loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self in self._calls:
            self._ended = True
            self._task.cancel()
