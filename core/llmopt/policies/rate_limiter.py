"""Rate limiter: requests and tokens per minute of one quota, interactive requests before bulk.

`llmopt.policies.quota.Quota` decides whether a request may be sent, and `llmopt.policies.wait_queue` which one is next;
here is the lock. All three are shared by all event loops and threads, under one mutex that is never held over an await.
Nothing polls.

A lease that is granted at the moment its waiter is cancelled or times out goes to the next waiter (a lost permit
of that kind: Netflix/concurrency-limits#179).

No I/O. Only `RateLimiter.acquire` awaits; the monotonic clock and the timers are those of the `Clock` that is passed
in.
"""

from __future__ import annotations

import math
import threading
from typing import Final

from llmopt.errors import ConfigError, CostNeverFits, DeadlineExceeded, LLMOptError, RateLimited
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.quota import INITIAL_WINDOW, LearnedLimits, Lease, Quota, Refusal
from llmopt.policies.wait_queue import Waiter, WaitQueue
from llmopt.values.calls import Priority, RateLimits

_HEADER_INTERVAL_S: Final = 0.02
"""Seconds between responses whose headers are read."""


class RateLimiter:
    """The limiter of one quota key: provider, credential, group of models."""

    def __init__(
        self,
        *,
        clock: Clock,
        rpm: float | None = None,
        tpm: float | None = None,
        firm: tuple[bool, bool] = (True, True),
        initial_window: int = INITIAL_WINDOW,
        learns: bool = True,
    ) -> None:
        """Limit by the configuration, by the headers of responses, and by what is learned from 429s.

        Args:
            clock: the time.
            rpm: requests per minute, None to use headers and 429s alone.
            tpm: tokens per minute, likewise.
            firm: of each of the two, whether it holds where the server states a higher limit, too.
            initial_window: requests in flight before the first response; 0 for no slow start.
            learns: whether headers and 429s count at all. Without that, the retry policy alone waits for what a 429 asks.

        Raises:
            ConfigError: a limit is not a number above 0.
        """
        for name, limit in (("rpm", rpm), ("tpm", tpm)):
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"{name} must be a number above 0, or None for no limit, not {limit}")
        self._clock = clock
        self._now = clock.now
        self._mutex = threading.Lock()
        self._quota = Quota(rpm, tpm, now=clock.now(), owner=self, firm=firm, initial_window=initial_window)
        self._queue = WaitQueue(clock, self._on_timer, self._cost)
        self._learns = learns
        self._headers_read_at = -math.inf if learns else math.inf

    def __repr__(self) -> str:
        return f"RateLimiter({self._quota}, waiting={self.waiting})"

    @property
    def waiting(self) -> int:
        """Number of waiters in the queue."""
        return len(self._queue)

    @property
    def rates(self) -> tuple[float, float]:
        """Requests and tokens per second in force; infinite without a limit."""
        return self._quota.rates

    @property
    def learned(self) -> LearnedLimits:
        """What was learned of the quota so far, for another process."""
        return self._quota.learned

    def restore(self, learned: LearnedLimits) -> None:
        """As `llmopt.policies.quota.Quota.restore`."""
        with self._mutex:
            self._quota.restore(self._now(), learned)
            self._grant_waiting(self._now())

    @property
    def pause_left(self) -> float:
        """Seconds left of the pause after a 429; 0 without one."""
        return self._quota.backoff.remaining(self._now())

    @property
    def wants_headers(self) -> bool:
        """Whether the headers of good responses should be read: at most once in 20 ms.

        At thousands of responses a second, reading the headers of each would cost a tenth of the CPU time, and a
        bucket that is corrected fifty times a second stays exact.
        """
        return self._now() >= self._headers_read_at + _HEADER_INTERVAL_S

    @property
    def has_capacity(self) -> bool:
        """Whether a small request would be granted at once."""
        with self._mutex:
            return not self._queue and self._quota.wait_time(self._now(), 0.0) <= 0

    # Getting a lease

    def try_acquire(self, tokens: float = 0, requests: float = 1.0) -> Lease | None:
        """A lease if the quota allows it now and nothing waits for one, else None. Never awaits."""
        with self._mutex:
            if self._queue:
                return None
            now = self._now()
            if self._quota.wait_time(now, tokens, requests) > 0:
                return None
            return self._quota.take(now, tokens, requests)

    async def acquire(
        self,
        tokens: float = 0,
        requests: float = 1.0,
        *,
        deadline: Deadline | None = None,
        max_pause: float = math.inf,
        priority: Priority = "interactive",
    ) -> Lease:
        """A lease, in the order of `llmopt.policies.wait_queue.PriorityQueue`.

        Args:
            tokens: estimated tokens of the request.
            requests: what it counts under a limit of requests.
            deadline: until when to wait.
            max_pause: the longest pause after a 429, in seconds, that this caller waits for.
            priority: "interactive" or "bulk".

        Raises:
            CostNeverFits: more tokens or requests than the configured limit allows in a minute.
            RateLimited: the server asks for a pause longer than ``max_pause``, now or while waiting.
            DeadlineExceeded: the deadline passes first; raised at once if the server asks for a pause beyond it.
        """
        lease = self.try_acquire(tokens, requests)
        if lease is not None:
            return lease
        waiter = self._enqueue(Waiter(tokens, self._now(), deadline, max_pause, priority, requests))
        try:
            return await waiter.future
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            if waiter.deadline_timer is not None:
                waiter.deadline_timer.cancel()

    def _enqueue(self, waiter: Waiter) -> Waiter:
        deadline = waiter.deadline
        with self._mutex:
            now = self._now()
            self._check(now, waiter)
            if deadline is not None and deadline.bounded:
                waiter.deadline_timer = self._clock.call_later(deadline.remaining(), self._expire, waiter)
            self._queue.put(waiter)
            self._grant_waiting(now)
            waiter.cause = self._quota.cause
        return waiter

    def _check(self, now: float, waiter: Waiter) -> None:
        tokens = waiter.tokens
        if not 0 <= tokens < math.inf:
            raise ValueError(f"tokens must be a finite number, 0 or more, not {tokens}")
        if (key := self._quota.never_fits(tokens, waiter.requests)) is not None:
            size = (
                f"has about {tokens:.0f} tokens"
                if key == "tpm"
                else f"counts as {waiter.requests:g} requests"
            )
            raise CostNeverFits(
                f"the request {size}, more than the configured limit allows in a minute;"
                f" raise {key}, or send less at once"
            )
        pause = self._quota.backoff.remaining(now)
        error = _wait_error(waiter, now, pause) or self._too_slow_error(now, waiter)
        if error is not None:
            raise error

    def _too_slow_error(self, now: float, waiter: Waiter) -> LLMOptError | None:
        """The error for a caller at the front whose deadline is before the next free request, or None.

        Only requests are checked. Tokens may become free earlier, when another request costs less than estimated.
        """
        if waiter.deadline is None or not waiter.deadline.bounded or self._queue:
            return None
        wait = self._quota.wait_time(now, waiter.tokens, waiter.requests)
        if self._quota.cause != "requests" or now + wait <= waiter.deadline.at:
            return None
        rate = self._quota.rates[0] * 60
        return DeadlineExceeded(
            f"the rate limit in force, {rate:.3g} requests a minute, has room in {wait:.1f} s, later than the deadline",
            phase="limiter",
            retry_after=wait,
        )

    def _abandon(self, waiter: Waiter) -> None:
        """Remove a waiter that goes without a lease; one that was granted to it just now is refunded."""
        with self._mutex:
            if self._queue.remove(waiter):
                self._grant_waiting(self._now())
            lease = waiter.lease
        if lease is not None:
            self.refund(lease)

    def _expire(self, waiter: Waiter) -> None:
        with self._mutex:
            self._queue.reject(waiter, _deadline_error())
            self._grant_waiting(self._now())

    # Granting

    def _on_timer(self) -> None:
        with self._mutex:
            self._grant_waiting(self._now())

    def _grant_waiting(self, now: float) -> None:
        """Grant leases from the front as far as the quota allows, then set the timer for the next one."""
        while (waiter := self._queue.first()) is not None:
            if waiter.deadline is not None and waiter.deadline.expired():
                self._queue.reject(waiter, _deadline_error())
                continue
            # For both priorities: what is saved up for a large bulk request stays when a small interactive one goes first.
            self._quota.reserve(*self._queue.head_costs)
            wait = self._quota.wait_time(now, waiter.tokens, waiter.requests)
            if wait > 0:
                self._queue.wake_at(now + wait)
                return
            self._grant(waiter, now)
        self._quota.reserve(0.0, 0.0)

    def _cost(self, waiter: Waiter) -> float:
        """The seconds of the quota that a request takes, of the dimension that it takes more of.

        The dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): counted in requests alone, bulk would
        get more than its part where tokens are short, because its requests are larger, and the reverse.
        """
        requests, tokens = self.rates
        return max(waiter.requests / requests, waiter.tokens / tokens) or 1.0

    def _reject_waiters(self, now: float, pause: float) -> None:
        for waiter in self._queue.all():
            if (error := _wait_error(waiter, now, pause)) is not None:
                self._queue.reject(waiter, error)

    def _grant(self, waiter: Waiter, now: float) -> None:
        lease = self._quota.take(now, waiter.tokens, waiter.requests)
        lease.waited = now - waiter.enqueued_at
        lease.cause = waiter.cause
        if not self._queue.grant(waiter, lease):
            lease.open = False
            self._quota.refund(lease, now)

    # The end of a lease

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """As `Lease.settle`."""
        with self._mutex:
            if lease.open:
                lease.open = False
                self._quota.settle(lease, tokens)
                if self._queue:
                    self._grant_waiting(self._now())

    def accept(self, lease: Lease) -> None:
        """As `Lease.accept`."""
        with self._mutex:
            if lease.open:
                self._quota.accept(lease)
                if self._queue:
                    self._grant_waiting(self._now())

    def refund(self, lease: Lease) -> None:
        """As `Lease.refund`."""
        with self._mutex:
            if lease.open:
                lease.open = False
                now = self._now()
                self._quota.refund(lease, now)
                self._grant_waiting(now)

    def observe(self, limits: RateLimits, lease: Lease) -> bool:
        """As `Lease.observe`.

        Args:
            limits: rate limits in the headers.
            lease: that of the request. A response older than the newest observed one is ignored.

        Returns:
            Whether a limit was learned or has changed.
        """
        if not self._learns:
            return False
        with self._mutex:
            now = self._now()
            self._headers_read_at = now
            changed = self._quota.observe(now, limits, lease)
            if self._queue:
                self._grant_waiting(now)
            return changed

    def throttled(self, lease: Lease, refusal: Refusal) -> bool:
        """As `Lease.throttled`."""
        with self._mutex:
            if not lease.open:
                return False
            lease.open = False
            if not self._learns:
                return False
            now = self._now()
            changed = self._quota.throttled(now, lease, refusal)
            pause = self._quota.backoff.remaining(now)
            self._reject_waiters(now, pause)
            self._grant_waiting(now)
            return changed


def _wait_error(waiter: Waiter, now: float, pause: float) -> LLMOptError | None:
    """The error for a caller that must not wait through a pause, or None."""
    if pause > waiter.max_pause:
        return RateLimited(
            f"the server asked for a pause that lasts {pause:.0f} s more, longer than llmopt waits; nothing was sent",
            retry_after=pause,
            sent="no",
        )
    if pause and waiter.deadline is not None and now + pause > waiter.deadline.at:
        return DeadlineExceeded(
            f"the server asked for a pause that lasts {pause:.1f} s more, longer than the deadline allows",
            phase="limiter",
            retry_after=pause,
        )
    return None


def _deadline_error() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while waiting for the rate limit", phase="limiter")
