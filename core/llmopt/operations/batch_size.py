"""Batch size: how many texts to put into one request.

The size starts at the declared limit. A request that the server calls too large, or repeated timeouts, lower
it; ten full batches in a row without an error raise it by a tenth; a size that was too large is not tried
again for a day. After a request that was too large the size goes back to the largest one that is known to
work, if that is more than half, so that probing for the limit from below costs one request and not the
throughput of half a batch. A limit that the server states replaces all guesses.

`AdaptiveBatchSize.state` is a plain dict, to be stored for each provider, endpoint and model. Its times are those of
the wall clock, which is passed in, because monotonic time means nothing to the next process.

No I/O, no awaiting and no lock. All calls with a model share an `AdaptiveBatchSize`; of two threads at once one may
overwrite what the other learned, which costs accuracy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard

_SUCCESSES_TO_GROW: Final = 10
_GROWTH: Final = 1.1
_TIMEOUTS_TO_SHRINK: Final = 2
_EXPIRY_S: Final = 86_400.0
_VERSION: Final = 1


class AdaptiveBatchSize:
    """The size of batches for one endpoint and model, in one unit: items, tokens or bytes.

    Attributes:
        changes: counts the changes of what is worth storing, see `state`.
    """

    def __init__(
        self,
        maximum: int,
        *,
        wall: Callable[[], float],
        state: Mapping[str, Any] | None = None,
        expiry_s: float = _EXPIRY_S,
    ) -> None:
        """Start at ``maximum``, or where ``state`` left off.

        Args:
            maximum: the limit that the plugin or the user declares; the size is never above it.
            wall: the wall clock.
            state: an earlier result of `state`; anything else is ignored.
            expiry_s: seconds that a size that was too large is remembered.
        """
        self._maximum = maximum
        self._wall = wall
        self._expiry_s = expiry_s
        self._size = maximum
        self._largest_good = 0
        self._too_large: int | None = None
        self._too_large_until = 0.0
        self._successes = 0  # full batches in a row
        self._timeouts = 0  # timeouts in a row
        self.changes = 0
        if state is not None:
            self._restore(state)

    def __repr__(self) -> str:
        return (
            f"AdaptiveBatchSize({self._size}, maximum={self._maximum}, "
            f"largest_good={self._largest_good}, too_large={self._too_large})"
        )

    @property
    def size(self) -> int:
        """The largest next batch, at least 1."""
        return self._size

    def succeeded(self, count: int) -> None:
        """Record a batch of ``count`` that the server answered."""
        self._timeouts = 0
        self._largest_good = max(self._largest_good, count)
        if self._too_large is not None and count >= self._too_large:
            self._too_large = None  # the server refused that batch for something other than its size
            self.changes += 1
        if count < self._size:
            return  # a batch that was not full says nothing about a larger one
        self._successes += 1
        if self._successes >= _SUCCESSES_TO_GROW:
            self._successes = 0
            self._grow()

    def too_large(self, count: int, *, stated: int | None = None) -> bool:
        """Record a batch of ``count`` that the server called too large.

        Args:
            count: what it held. Nothing is learned from a batch of one, which cannot be split.
            stated: the limit that the response states, None if it states none. A limit that the batch kept to does
                not explain the error and is ignored.

        Returns:
            Whether anything was learned.
        """
        self._successes = self._timeouts = 0
        before = (self._size, self._too_large)
        if stated is not None and 1 <= stated < count:
            self._largest_good = stated
            self._remember(stated + 1)
            self._size = min(self._maximum, stated)
        elif count > 1:
            if self._largest_good >= count:
                self._largest_good = 0  # the server takes less than it did
            self._remember(min(count, self._smallest_too_large()))
            self._size = max(1, min(self._size, max(count // 2, self._largest_good)))
        if (self._size, self._too_large) == before:
            return False
        self.changes += 1
        return True

    def timed_out(self, count: int) -> bool:
        """Record a batch of ``count`` that timed out.

        A batch of at most half the size is ignored: it did not time out because of its size.

        Returns:
            Whether the size was lowered.
        """
        if count * 2 <= self._size or count <= 1:
            return False
        self._successes = 0
        self._timeouts += 1
        if self._timeouts < _TIMEOUTS_TO_SHRINK:
            return False
        self._timeouts = 0
        return self._set(min(self._size, count // 2))

    def state(self) -> dict[str, Any]:
        """What was learned, as plain values for any file format."""
        # The names are those of files that exist.
        return {
            "version": _VERSION,
            "size": self._size,
            "maximum": self._maximum,
            "good": self._largest_good,
            "refused": self._too_large,
            "refused_until": self._too_large_until,
        }

    def _grow(self) -> None:
        # At least by one: a tenth of a size below ten rounds to nothing.
        larger = max(self._size + 1, int(self._size * _GROWTH))
        self._set(max(self._size, min(larger, self._maximum, self._smallest_too_large() - 1)))

    def _set(self, size: int) -> bool:
        if size == self._size:
            return False
        self._size = size
        self.changes += 1
        return True

    def _remember(self, too_large: int) -> None:
        self._too_large = too_large
        self._too_large_until = self._wall() + self._expiry_s

    def _smallest_too_large(self) -> int:
        """The smallest size that is known to be too large; without one, a size above the maximum."""
        if self._too_large is None:
            return self._maximum + 1
        left = self._too_large_until - self._wall()
        # More than the whole time left means that the wall clock was set back, and the age is unknown.
        if 0 < left <= self._expiry_s:
            return self._too_large
        self._too_large = None
        return self._maximum + 1

    def _restore(self, state: Mapping[str, Any]) -> None:
        size, good, too_large = state.get("size"), state.get("good"), state.get("refused")
        until = state.get("refused_until")
        # The state comes from a file: anything that is not as written counts as nothing learned.
        if state.get("version") != _VERSION or not _is_count(size, 1) or not _is_count(good, 0):
            return
        # A size that was not lowered says nothing about a maximum that was raised since.
        self._size = self._maximum if size == state.get("maximum") else min(size, self._maximum)
        self._largest_good = min(good, self._maximum)
        if _is_count(too_large, 1) and isinstance(until, (int, float)):
            self._too_large, self._too_large_until = too_large, float(until)
            self._size = max(1, min(self._size, self._smallest_too_large() - 1))


def _is_count(value: object, minimum: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
