"""The rate limiter of a quota that processes share: it spends blocks, besides all that a `RateLimiter` does.

What this process alone knows goes on to apply: the queue, slow start, pauses and learned rates. Its buckets have the
whole limit, and the blocks are this process's part of it. The headers of responses may lower a bucket, but never fill
one: each process would take for itself what remains for all.

As for `llmopt.policies.rate_limiter`: no I/O, one mutex that is never held over an await, and the clock is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeVar

from llmopt.policies.clock import Clock
from llmopt.policies.quota import LearnedLimits, Lease, Quota, Refusal
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.wait_queue import Waiter, WaitQueue
from llmopt.shared.blocks import SharedBlocks
from llmopt.values.calls import RateLimits

_T = TypeVar("_T")
_MIN_PAUSE_S: Final = 1.0


class SharedQuota(Quota):
    """A quota that is spent in blocks.

    Args:
        rpm: configured requests per minute, None when nothing is configured.
        tpm: configured tokens per minute, likewise.
        now: monotonic seconds.
        owner: what the leases report to.
        firm: see `RateLimiter`.
        blocks: what this process may spend.
    """

    __slots__ = ("_blocks",)

    def __init__(
        self,
        rpm: float | None,
        tpm: float | None,
        *,
        now: float,
        owner: RateLimiter,
        firm: tuple[bool, bool],
        blocks: SharedBlocks,
    ) -> None:
        super().__init__(rpm, tpm, now=now, owner=owner, firm=firm)
        self._blocks = blocks
        self.requests.shared = self.tokens.shared = True
        self._limits_changed()

    def _limits_changed(self) -> None:
        self._blocks.set_limits(self.requests.max_rate, self.tokens.max_rate)

    def restore(self, now: float, learned: LearnedLimits) -> None:
        """As for any quota."""
        super().restore(now, learned)
        self._limits_changed()

    def wait_time(self, now: float, tokens: float, requests: float = 1.0) -> float:
        """As for any quota, and until there is a block."""
        wait = super().wait_time(now, tokens, requests)
        if self.backoff.server_stated:
            return wait
        for_block = self._blocks.wait_time(now, (requests, tokens))
        if for_block > wait:
            self.cause = "shared"
        return max(wait, for_block)

    def take(self, now: float, tokens: float, requests: float = 1.0) -> Lease:
        """As for any quota."""
        self._blocks.take(now, (requests, tokens))
        return super().take(now, tokens, requests)

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """As for any quota. A refused request gets nothing back: the shared bucket was fuller than the provider's."""
        if tokens is not None and 0 <= tokens < math.inf:
            self._blocks.give_back(0.0, lease.tokens - tokens)
        super().settle(lease, tokens)

    def refund(self, lease: Lease, now: float) -> None:
        """As for any quota."""
        self._blocks.give_back(lease.requests, lease.tokens)
        super().refund(lease, now)

    def observe(self, now: float, limits: RateLimits, lease: Lease) -> bool:
        """As for any quota."""
        changed = super().observe(now, limits, lease)
        self._limits_changed()
        return changed


class SharedRateLimiter(RateLimiter):
    """The limiter of a quota that processes share.

    Args:
        clock: the time.
        rpm: requests per minute, None to use headers and 429s alone.
        tpm: tokens per minute, likewise.
        firm: see `RateLimiter`.
        blocks: what this process may spend.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        rpm: float | None,
        tpm: float | None,
        firm: tuple[bool, bool],
        blocks: SharedBlocks,
    ) -> None:
        super().__init__(clock=clock, rpm=rpm, tpm=tpm, firm=firm)
        self._blocks = blocks
        self._quota = SharedQuota(rpm, tpm, now=clock.now(), owner=self, firm=firm, blocks=blocks)

    def _check(self, now: float, waiter: Waiter) -> None:
        if self._blocks.error is not None:
            raise self._blocks.error.copy()
        super()._check(now, waiter)

    def throttled(self, lease: Lease, refusal: Refusal) -> bool:
        """As for any limiter; a pause that the provider asks for is a pause for all.

        A pause below a second is the time until one more request fits, and concerns the refused one alone.
        """
        changed = super().throttled(lease, refusal)
        if (refusal.retry_after or 0.0) >= _MIN_PAUSE_S and self.pause_left:
            with self._mutex:
                self._blocks.report_pause(self.pause_left)
        return changed

    def exchange(self, act: Callable[[float, WaitQueue], _T]) -> _T:
        """Call ``act(now, queue)`` under the lock; it may change the blocks. Then grant what they allow."""
        with self._mutex:
            now = self._now()
            result = act(now, self._queue)
            if self._blocks.error is not None:
                for waiter in self._queue.all():
                    self._queue.reject(waiter, self._blocks.error.copy())
            self._grant_waiting(now)
            return result

    def pause(self, seconds: float) -> None:
        """Send nothing for ``seconds``: the provider asked another process to pause."""
        with self._mutex:
            now = self._now()
            self._quota.backoff.until = max(self._quota.backoff.until, now + seconds)
            self._reject_waiters(now, self._quota.backoff.remaining(now))
