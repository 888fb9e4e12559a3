"""A token bucket for one quantity (requests, or tokens): a copy of the one that the server keeps.

Levels are floats. The level may be negative, a debt from a request that cost more than was estimated, but never by
more than a whole burst. What headers tell corrects the copy (RELIABILITY.md 2.4), with two additions.
The formula there takes everything sent after the answered request off its rest, and counts nothing
that flowed in meanwhile; with answers that take longer than the bucket lasts (a second, for requests) that
alone would hold the rate below ``burst / latency``. So the inflow since then is added. And while nobody else uses
the quota, the level is drawn up to what headers tell, too, by small steps, so that an error costs no throughput
for ever.
"""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.share import Share, Sight
from llmopt.values.limits import RateLimit

_EPSILON: Final = 1e-6
"""Far below one token, far above what rounding does to a level."""
_MARGIN: Final = 0.1
"""Part of a burst that is left to the server: requests overtake each other on the way."""
_MARGIN_IN_COMPANY: Final = 0.15
_DRAW_UP: Final = 0.02
_JUMP: Final = 10.0
"""A limit that falls to less than a tenth is believed when ``_REPEATS`` answers in a row say it."""
_REPEATS: Final = 3


class Bucket:
    """The bucket of one quantity.

    Attributes:
        level: what may be taken now; infinite without a limit.
        rate: inflow per second in force.
        ceiling: inflow per second that is known to be allowed; infinite when nothing is known.
        capacity: the most that is saved up.
        need: what the first in line waits for; saved up even above the capacity.
        spent: all that was ever taken, by estimates.
        refused: what of it the server refused.
        share: what others leave of the limit.
    """

    __slots__ = (
        "_at",
        "_burst_s",
        "_configured",
        "_corrected",
        "_learned",
        "_smallest",
        "_strange",
        "_whole_at",
        "capacity",
        "ceiling",
        "level",
        "need",
        "rate",
        "refused",
        "share",
        "spent",
    )

    def __init__(self, per_second: float | None, *, burst_s: float, smallest: float, now: float) -> None:
        """Start full.

        Args:
            per_second: the configured limit, None for none.
            burst_s: seconds' worth of inflow that can be saved up.
            smallest: the bucket is never smaller than this.
            now: seconds.
        """
        self._configured = math.inf if per_second is None else per_second
        self._burst_s = burst_s
        self._smallest = smallest
        self._learned = math.inf
        self._corrected = 0.0
        self._strange = 0
        self._whole_at = math.inf
        self._at = now
        self.share = Share()
        self.ceiling = self._configured
        self.rate = self.ceiling
        self.capacity = math.inf
        self.need = 0.0
        self.spent = 0.0
        self.refused = 0.0
        self.level = math.inf
        self._resize()

    def __repr__(self) -> str:
        return f"Bucket(level={self.level:.6g}, rate={self.rate:.6g}/s)"

    # Taking

    def wait(self, now: float, cost: float) -> float:
        """Seconds until ``cost`` can be taken; 0 when it can be now."""
        elapsed = now - self._at
        if elapsed > 0:
            self._flow_in(now, elapsed)
        short = cost - self.level
        if short <= _EPSILON:
            return 0.0
        return max(_EPSILON, min(short / self.rate, self._whole_at - now))

    def take(self, cost: float) -> None:
        """Take it, whether it is there or not."""
        self.level -= cost
        self.spent += cost

    def give_back(self, amount: float) -> None:
        """Return what was taken for a request that was not sent, or not counted by the server."""
        self.level = min(self.level + amount, max(self.capacity, self.need))

    def correct(self, extra: float) -> None:
        """A request cost ``extra`` more than was taken for it (less, if negative)."""
        self._corrected += extra
        self.give_back(-extra)
        self.level = max(self.level, -self.capacity)

    def _flow_in(self, now: float, elapsed: float) -> None:
        self._at = now
        self.level = min(self.level + elapsed * self.rate, max(self.capacity, self.need))
        if now >= self._whole_at:
            # By the server's own word it is whole again: whatever we believe, the next may try.
            self._whole_at = math.inf
            self.level = max(self.level, self.need)

    # The rate

    def learn(self, now: float, rate: float) -> None:
        """Go no faster than this, by what refusals taught; infinite to be free again."""
        self.wait(now, 0.0)
        self._learned = rate
        self._resize()

    def owe(self, part: float) -> None:
        """Fall short by this part of a burst at least, so that the server's bucket fills up a little."""
        self.level = min(self.level, -part * self.rate * self._burst_s)

    def freeze(self, until: float) -> None:
        """Let nothing flow in before then."""
        self._at = max(self._at, until)

    def refusal(self, now: float) -> None:
        """A refusal that the rest in the headers explains."""
        self.wait(now, 0.0)
        self.share.refused()
        self._resize()

    def _resize(self) -> None:
        self.rate = min(self.ceiling * self.share.factor, self._learned)
        self.capacity = max(self._smallest, self.rate * self._burst_s * (1 - _MARGIN))
        self.level = min(self.level, max(self.capacity, self.need))

    # Headers

    def observe(self, now: float, told: RateLimit, sent_at: float, mark: float) -> None:
        """Correct the bucket by the headers of an answer.

        Args:
            now: seconds.
            told: what they tell of this quantity.
            sent_at: when the answered request was sent.
            mark: ``spent`` when it was.
        """
        self.wait(now, 0.0)
        self._hear(told)
        if told.remaining is not None and self.ceiling < math.inf:
            self._see(now, told, told.remaining, sent_at, mark)
        self._resize()

    def _hear(self, told: RateLimit) -> None:
        if told.limit is None or told.limit <= 0 or told.window_s <= 0:
            return
        rate = told.limit / told.window_s
        if self.ceiling < math.inf and rate * _JUMP < self.ceiling:
            self._strange += 1
            if self._strange < _REPEATS:
                return
        self._strange = 0
        self.ceiling = min(self._configured, rate)
        self._resize()

    def _see(self, now: float, told: RateLimit, rest: float, sent_at: float, mark: float) -> None:
        burst = self.ceiling * self._burst_s
        expected = rest + self.rate * (now - sent_at) - max(0.0, self.spent - mark)
        own = mark - self.refused + self._corrected
        self.share.update(Sight(sent_at=sent_at, rest=rest, own=own, expected=expected), self.ceiling, burst)
        safe = expected - (_MARGIN if self.share.alone else _MARGIN_IN_COMPANY) * burst
        if self.share.alone and self.share.fits(burst):
            self.level += _DRAW_UP * max(0.0, min(safe, self.capacity) - self.level)
        self.level = max(min(self.level, safe), -self.capacity)
        self._whole_at = now + self._renewal(told)

    def _renewal(self, told: RateLimit) -> float:
        if told.reset_s is None or not self.share.alone:
            return max(told.window_s, self._burst_s)
        return max(told.reset_s, self._burst_s)
