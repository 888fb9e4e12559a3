"""Cache freshness: how long a cached answer may be served and when it is refreshed (RFC 5861, RFC 9111).

No I/O and no randomness: both clocks are passed in, and nothing here awaits. All callers share the `CacheLifetime` of
an answer, also from several threads, without a lock: a count may be lost, and two threads may both be told to
refresh. The jitter is a checksum of key and creation time, so that all processes get the same. An answer ages through
these phases (`FreshnessRules` has their lengths)::

    fresh                    served as it is
    fresh, near its end      served; a key that is requested often is refreshed in the background
    stale-while-revalidate   served at once, marked stale, and refreshed in the background
    stale-if-error           fetched first; served, marked stale, only if fetching fails temporarily
    expired                  fetched

Age is measured by two clocks. Within this process the monotonic clock measures it, whatever happens to the
calendar; for an answer from a store only the calendar can. Where the two disagree, the higher age decides
whether an answer is fresh, and the lower one whether it may be served as a last resort.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal
from zlib import crc32

from attrs import define, field, frozen

_MAX_CRC: Final = 0xFFFFFFFF


@frozen(kw_only=True)
class FreshnessRules:
    """How long a cached answer stays usable. Times are in seconds.

    Attributes:
        ttl_s: time to live: how long an answer is fresh.
        stale_while_revalidate_s: after that, how long it is served while it is refreshed.
        stale_if_error_s: after the time to live, how long it is served if fetching fails.
        not_found_ttl_s: how long "not found" is believed.
        failure_pause_s: after a failed refresh, how long no further refresh starts while there is something
            to serve.
        refresh_ahead: fraction of the time to live after which an answer may be refreshed early.
        refresh_min_requests: it is refreshed early only if it was requested more often than this.
        jitter: the time to live varies by this fraction either way, so that entries stored together do not
            expire together.
        max_clock_skew_s: an answer dated further in the future than this is not used.
    """

    ttl_s: float = 3600.0
    stale_while_revalidate_s: float = 24 * 3600.0
    stale_if_error_s: float = 7 * 24 * 3600.0
    not_found_ttl_s: float = 60.0
    failure_pause_s: float = 30.0
    refresh_ahead: float = 0.8
    refresh_min_requests: int = 3
    jitter: float = 0.1
    max_clock_skew_s: float = 60.0

    @property
    def max_age_s(self) -> float:
        """The age at which an answer cannot be used for anything any more."""
        return self.ttl_s * (1 + self.jitter) + max(self.stale_while_revalidate_s, self.stale_if_error_s)


Action = Literal["serve", "serve_and_refresh", "fetch", "fetch_or_serve", "not_found"]
"""What to do for a caller: serve the cached answer, fetch first, or report that there is no such thing."""


@frozen(kw_only=True)
class Decision:
    """What to do for one caller.

    Attributes:
        action: what to do.
        stale: whether the cached answer is past its time to live.
        age: age of the cached answer, in seconds.
    """

    action: Action
    stale: bool = False
    age: float = 0.0


_FETCH: Final = Decision(action="fetch")


def jittered_ttl(ttl_s: float, jitter: float, key: bytes, created: float) -> float:
    """The time to live of one entry: varied by its key and creation time, the same in every process.

    Args:
        ttl_s: the time to live before jitter, in seconds.
        jitter: fraction by which it varies either way.
        key: key of the entry.
        created: when the entry was created, in seconds since 1970.
    """
    # Not random: every process must come to the same time to live for an entry that they share.
    fraction = crc32(created.hex().encode(), crc32(key)) / _MAX_CRC
    return ttl_s * (1 + jitter * (2 * fraction - 1))


def is_from_future(created: float, wall: float, max_clock_skew_s: float) -> bool:
    """Whether a creation time lies in the future, which means that one of the two clocks is wrong."""
    # Written with ``not``, so that NaN counts as the future, too.
    return not created <= wall + max_clock_skew_s


def is_fresh(created: float, ttl_s: float, key: bytes, wall: float, rules: FreshnessRules) -> bool:
    """Whether an entry without a stale phase, such as a vector, may still be served.

    Args:
        created: when it was created, in seconds since 1970.
        ttl_s: its time to live, in seconds.
        key: its key.
        wall: the current time, in seconds since 1970.
        rules: for jitter and clock skew.
    """
    if is_from_future(created, wall, rules.max_clock_skew_s):
        return False
    return wall - created < jittered_ttl(ttl_s, rules.jitter, key, created)


@define(eq=False)
class CacheLifetime:
    """The age of one cached answer and the state of its refreshes. The answer itself is stored elsewhere.

    Args:
        key: key of the answer, for the jitter.
        rules: how long it stays usable.
        now: a monotonic clock, in seconds.
        wall: the calendar, in seconds since 1970.

    Attributes:
        refreshing: whether a background refresh is in progress.
        has_entry: whether there is an answer at all.
    """

    _key: bytes
    _rules: FreshnessRules
    _now: Callable[[], float]
    _wall: Callable[[], float]
    refreshing: bool = field(default=False, init=False)
    has_entry: bool = field(default=False, init=False)
    _created: float = field(default=0.0, init=False)
    _stored_at: float = field(default=0.0, init=False)
    _age_when_stored: float = field(default=0.0, init=False)
    _ttl_s: float = field(default=0.0, init=False)
    _requests: int = field(default=0, init=False)
    _paused_until: float = field(default=-math.inf, init=False)
    _not_found_until: float = field(default=-math.inf, init=False)

    def stored(self, created: float | None = None) -> bool:
        """Record that there is an answer.

        Args:
            created: its creation time if it was read from a store; None if it was fetched just now.

        Returns:
            False, without effect, if the answer is from the future or too old to be used.
        """
        wall = self._wall()
        if created is not None:
            age = wall - created
            if is_from_future(created, wall, self._rules.max_clock_skew_s) or age >= self._rules.max_age_s:
                return False
        self._created = wall if created is None else created
        self._stored_at = self._now()
        # A small skew of the clocks must not make a negative age.
        self._age_when_stored = max(0.0, wall - self._created)
        self._ttl_s = jittered_ttl(self._rules.ttl_s, self._rules.jitter, self._key, self._created)
        self._requests = 0
        self.has_entry, self.refreshing = True, False
        self._paused_until = self._not_found_until = -math.inf
        return True

    def refresh_failed(self) -> None:
        """Record a temporary failure: the answer stays, and no refresh starts for a while."""
        self.refreshing = False
        self._not_found_until = -math.inf
        self._paused_until = self._now() + self._rules.failure_pause_s

    def refresh_refused(self) -> None:
        """Record a permanent refusal, such as a 401: the answer may not be served to this caller any more."""
        self.refreshing = self.has_entry = False

    def not_found(self) -> None:
        """Record that there is no such thing."""
        self.refresh_refused()
        self._not_found_until = self._now() + self._rules.not_found_ttl_s

    def abandoned(self) -> None:
        """Record that a refresh was cancelled: the next caller may start another."""
        self.refreshing = False

    def reset(self) -> None:
        """Forget the answer and all failures."""
        self.has_entry = self.refreshing = False
        self._paused_until = self._not_found_until = -math.inf

    def decide(self) -> Decision:
        """Decide for one caller. On "serve_and_refresh" the caller must refresh and record the outcome."""
        now = self._now()
        if now < self._not_found_until:
            return Decision(action="not_found")
        if not self.has_entry:
            return _FETCH
        lower, higher = self._ages(now)
        ttl = self._ttl_s
        if higher < ttl:
            return self._decide_fresh(now, higher)
        if higher < ttl + self._rules.stale_while_revalidate_s:
            return Decision(action=self._serve(now), stale=True, age=higher)
        if lower < ttl + self._rules.stale_if_error_s:
            paused = now < self._paused_until
            return Decision(action="serve" if paused else "fetch_or_serve", stale=True, age=lower)
        return _FETCH

    def peek(self) -> Decision:
        """Decide for a caller that never fetches (offline mode): whatever there is, however old."""
        if not self.has_entry:
            return _FETCH
        _, age = self._ages(self._now())
        return Decision(action="serve", stale=age >= self._ttl_s, age=age)

    def _ages(self, now: float) -> tuple[float, float]:
        """The age by the monotonic clock, and the higher one of both clocks."""
        age = self._age_when_stored + now - self._stored_at
        # The monotonic clock stands still while a laptop sleeps (on Linux); the calendar can be set back.
        return age, max(age, self._wall() - self._created)

    def _decide_fresh(self, now: float, age: float) -> Decision:
        self._requests += 1
        early = age >= self._rules.refresh_ahead * self._ttl_s
        refresh = early and self._requests > self._rules.refresh_min_requests
        return Decision(action=self._serve(now) if refresh else "serve", age=age)

    def _serve(self, now: float) -> Action:
        # One refresh for all callers, and none right after a failure.
        if self.refreshing or now < self._paused_until:
            return "serve"
        self.refreshing = True
        return "serve_and_refresh"
