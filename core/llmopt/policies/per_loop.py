"""One of something for each event loop: a client may be used in several, one after the other or at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Made when a loop first asks, and kept as long as that loop.

    Args:
        make: makes one, on its loop.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Final = make
        self._all: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, T]] = WeakKeyDictionary()
        # Asked several times for each request, and nearly always by the same loop as before.
        self._last: tuple[ref[asyncio.AbstractEventLoop], T] | None = None

    def here(self) -> T:
        """That of the running loop."""
        loop, last = asyncio.get_running_loop(), self._last
        if last is not None and last[0]() is loop:
            return last[1]
        found = self._all.get(loop)
        if found is None:
            found = self._all[loop] = self._make()
        self._last = (ref(loop), found)
        return found

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._all.values()))
