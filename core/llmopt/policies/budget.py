"""The retry budget of one endpoint: how many retries an outage may cost.

The token bucket of the AWS SDKs' standard mode (botocore's retry quota; RELIABILITY 1.7): full at 500,
a retry after a transient failure takes 14, after throttling 5; a call that succeeds pays back what its
last retry took, or 1 when it needed none. An endpoint that is down for everybody so gets about 35
retries in all, whatever the number of callers, while one that fails now and then is never refused.
"""

from __future__ import annotations

from typing import Final

CAPACITY: Final = 500
TRANSIENT: Final = 14
"""The price of a retry after a failure that says nothing of load."""
THROTTLED: Final = 5
"""The price of a retry that the server asked to come later: it costs the server little."""
FREE: Final = 0
"""A retry that is no extra load: the request was never seen, or nothing was sent."""


class RetryBudget:
    """Tokens that retries take and successes bring back. One per endpoint; not tied to a loop."""

    __slots__ = ("_capacity", "_left")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._left = capacity

    def __repr__(self) -> str:
        return f"RetryBudget({self._left}/{self._capacity})"

    @property
    def left(self) -> int:
        """Tokens in the bucket."""
        return self._left

    def take(self, cost: int) -> bool:
        """Take the price of a retry; False, and nothing taken, when it is not there.

        It never queues: a retry that the budget refuses is not made (gRPC A6 does the same).
        """
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def put_back(self, cost: int) -> None:
        """Return what was taken for a retry that was not made after all."""
        self._left = min(self._capacity, self._left + cost)

    def succeeded(self, last_cost: int | None = None) -> None:
        """A call came through. ``last_cost`` is what its last retry took; None or 0 when it took nothing."""
        if self._left != self._capacity:
            self.put_back(last_cost or 1)
