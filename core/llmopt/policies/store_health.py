"""When a store that failed is tried again. Pure: the clock is handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_REST_S: Final = 60.0


class StoreHealth:
    """What a store on disk may do now.

    Args:
        now: a clock that never goes back.
        rest_s: how long is not tried what failed.
    """

    def __init__(self, now: Callable[[], float], rest_s: float = _REST_S) -> None:
        self._now: Final = now
        self._rest_s: Final = rest_s
        self._no_writes_until = self._nothing_until = float("-inf")

    @property
    def may_read(self) -> bool:
        """Whether it may be opened and read."""
        return self._now() >= self._nothing_until

    @property
    def may_write(self) -> bool:
        """Whether it may be written to."""
        return self.may_read and self._now() >= self._no_writes_until

    def cannot_write(self) -> None:
        """A write failed for a cause that lasts, such as a full disk."""
        self._no_writes_until = self._now() + self._rest_s

    def cannot_open(self) -> None:
        """It could not be opened, or not be read."""
        self._nothing_until = self._now() + self._rest_s
