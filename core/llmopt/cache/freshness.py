"""How long a kept answer is good for, and who asks for the next one. Pure: both clocks are handed in.

An answer's life, from the moment it came (docs/development/resilience.md; the words are those of RFC 5861)::

    fresh              given as it is
    due                the last part of fresh: given as it is, and one who asks often has it asked for anew
    stale              given at once, marked, and asked for anew beside the caller
    a last resort      asked for anew first, and given, marked, only where that fails in a way that passes
    gone

Ages come from two clocks. In this process an answer ages by the monotonic clock, whatever somebody
does to the calendar; out of a store only the calendar can tell. Where they differ an answer is taken for
the older one when it is to be called fresh, and for the younger one when it is the last there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal
from zlib import crc32

from attrs import frozen

_MOST_FRACTION: Final = 0xFFFFFFFF


@frozen(kw_only=True)
class FreshnessRules:
    """The bounds of a life, in seconds.

    Attributes:
        ttl_s: time to live.
        stale_while_revalidate_s: after that, how long it is still given while a new one is asked for.
        stale_if_error_s: after the time to live, how long it is given where no new one can be had.
        not_found_ttl_s: how long "there is no such thing" is believed.
        failure_pause_s: after a failure nobody asks again for so long, while there is something to give.
        refresh_ahead: the share of its time to live after which it is due.
        refresh_min_requests: how many times it must have been asked for by then to be worth it.
        jitter: the time to live varies by this share either way, or all would run out at once.
        max_clock_skew_s: an answer from further in the future than this is from a clock that was wrong.
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
        """After so long an answer is of no use to anybody."""
        return self.ttl_s * (1 + self.jitter) + max(self.stale_while_revalidate_s, self.stale_if_error_s)


Action = Literal["serve", "serve_and_refresh", "fetch", "fetch_or_serve", "not_found"]
"""What to do for a caller: give what is kept, ask first, or say that there is no such thing."""


@frozen(kw_only=True)
class Decision:
    """What a caller gets.

    Attributes:
        action: what to do.
        stale: whether what is kept is to be marked as older than it should be.
        age: of what is kept, in seconds.
    """

    action: Action
    stale: bool = False
    age: float = 0.0


def jittered_ttl(ttl_s: float, jitter: float, key: bytes, created: float) -> float:
    """The seconds that one entry is fresh: the same in every process, and others for every entry.

    Args:
        ttl_s: the rule.
        jitter: the share that it varies by.
        key: of the entry.
        created: when the entry was, in seconds since 1970.
    """
    fraction = crc32(created.hex().encode(), crc32(key)) / _MOST_FRACTION
    return ttl_s * (1 + jitter * (2 * fraction - 1))


def is_from_future(created: float, wall: float, max_clock_skew_s: float) -> bool:
    """Whether an entry bears a date that its maker's clock must have had wrong, or ours has."""
    return not created <= wall + max_clock_skew_s


def is_fresh(created: float, ttl_s: float, key: bytes, wall: float, rules: FreshnessRules) -> bool:
    """Whether an answer that does not go stale, such as a vector, is still given.

    Args:
        created: when it stored.
        ttl_s: its time to live.
        key: what it is kept under.
        wall: now.
        rules: for jitter and wrong clocks.
    """
    if is_from_future(created, wall, rules.max_clock_skew_s):
        return False
    return wall - created < jittered_ttl(ttl_s, rules.jitter, key, created)


class CacheLifetime:
    """What is known of one answer's age and of the asking for it. It holds no answer itself.

    Args:
        key: of the answer, for the jitter.
        rules: the bounds.
        now: a clock that never goes back.
        wall: the calendar.

    Attributes:
        refreshing: whether somebody is asking anew beside the callers.
    """

    def __init__(
        self, key: bytes, rules: FreshnessRules, now: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._key: Final = key
        self._rules: Final = rules
        self._now: Final = now
        self._wall: Final = wall
        self._alive = False
        self._created = 0.0
        self._seen = 0.0
        self._age_when_seen = 0.0
        self._ttl_s = 0.0
        self._asked = 0
        self._paused_until = self._missing_until = float("-inf")
        self.refreshing = False

    @property
    def has_entry(self) -> bool:
        """Whether there is an answer at all."""
        return self._alive

    def stored(self, created: float | None = None) -> bool:
        """An answer came.

        Args:
            created: when it was made, out of a store; None for one that came just now.

        Returns:
            Whether it is of use; one from the future or too old is not.
        """
        wall = self._wall()
        if created is not None:
            age = wall - created
            if is_from_future(created, wall, self._rules.max_clock_skew_s) or age >= self._rules.max_age_s:
                return False
        self._created = wall if created is None else created
        self._seen = self._now()
        self._age_when_seen = max(0.0, wall - self._created)
        self._ttl_s = jittered_ttl(self._rules.ttl_s, self._rules.jitter, self._key, self._created)
        self._asked = 0
        self._alive, self.refreshing = True, False
        self._paused_until = self._missing_until = float("-inf")
        return True

    def refresh_failed(self) -> None:
        """Asking failed in a way that may pass: what is kept is kept, and nobody asks for a while."""
        self.refreshing = False
        self._missing_until = float("-inf")
        self._paused_until = self._now() + self._rules.failure_pause_s

    def refresh_refused(self) -> None:
        """Asking was refused, which will not pass by itself: what is kept is not ours to give any more."""
        self.refreshing = self._alive = False

    def not_found(self) -> None:
        """There is no such thing."""
        self.refresh_refused()
        self._missing_until = self._now() + self._rules.not_found_ttl_s

    def abandoned(self) -> None:
        """Whoever was asking anew was stopped."""
        self.refreshing = False

    def reset(self) -> None:
        """Drop the answer and all that was learned of asking."""
        self._alive = self.refreshing = False
        self._paused_until = self._missing_until = float("-inf")

    def decide(self) -> Decision:
        """Somebody asks. Whoever is told to refresh must do it, and say how it went."""
        now = self._now()
        if now < self._missing_until:
            return Decision(action="not_found")
        if not self._alive:
            return _FETCH
        least = self._age_when_seen + now - self._seen
        most = max(least, self._wall() - self._created)
        if most < self._ttl_s:
            return self._fresh(now, most)
        after = self._ttl_s
        if most < after + self._rules.stale_while_revalidate_s:
            return Decision(action=self._behind(now), stale=True, age=most)
        if least < after + self._rules.stale_if_error_s:
            paused = now < self._paused_until
            return Decision(action="serve" if paused else "fetch_or_serve", stale=True, age=least)
        return _FETCH

    def peek(self) -> Decision:
        """What is there for one who asks nobody."""
        if not self._alive:
            return _FETCH
        least = self._age_when_seen + self._now() - self._seen
        most = max(least, self._wall() - self._created)
        return Decision(action="serve", stale=most >= self._ttl_s, age=most)

    def _fresh(self, now: float, age: float) -> Decision:
        self._asked += 1
        due = (
            age >= self._rules.refresh_ahead * self._ttl_s and self._asked > self._rules.refresh_min_requests
        )
        return Decision(action=self._behind(now) if due else "serve", age=age)

    def _behind(self, now: float) -> Action:
        if self.refreshing or now < self._paused_until:
            return "serve"
        self.refreshing = True
        return "serve_and_refresh"


_FETCH: Final = Decision(action="fetch")
