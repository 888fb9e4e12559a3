"""Somebody who wants to know what a pool does."""

from __future__ import annotations

from typing import Protocol


class PoolWatch(Protocol):
    """Told of connections, on their event loop. A pool that nobody watches looks at no clock for it."""

    def taken(self, seconds: float, served: int) -> None:
        """A request got a connection after so long, which has carried so many requests before."""

    def sized(self, open_now: int, in_use: int, waiting: int) -> None:
        """There are so many connections now, other than the last time."""
