"""A rate learned from refusals alone, where no header tells a limit.

CUBIC (RFC 9438; the AWS SDKs' adaptive mode uses it for rates): after a refusal the rate dips, comes
back to that of the refusal, stays near it for long and only then probes further. Two things differ:

* The rate to come back to is *measured*. A server that keeps a bucket granted, between the moments when it was
  empty, exactly what its rate gives; and over any time at most that plus one burst. Both are lower bounds
  of its rate, the largest is taken. With the rate of the moment of the refusal, as CUBIC has it,
  the simulation lost 10 to 40 % or was refused twice as often.
* The curve is in parts of that rate, so that one serves 1 and 10,000 requests a second (AWS' scale of
  0.4 requests/s³ recovers within 2 s at 10 a second and within 20 at 10,000), and with the rate measured a dip of 0.1 is enough
  where AWS takes 0.3. A refusal soon after another still takes 0.3: then the measurement was wrong.

Requests and tokens go in step, because a refusal does not say which of the two was too many.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

CUT_EVERY_S: Final = 1.0
"""One overload shows in many refusals; they count once a second."""
CUT: Final = 0.7
FLOOR: Final = 0.5
"""The lowest rate, in requests per second."""
NOTE_EVERY_S: Final = 0.5
_DIP: Final = 0.1
_RECOVERY_S: Final = 6.0
"""Seconds from a refusal back to its rate."""
_RECOVERY_REQUESTS: Final = 60.0
_LONGEST_RECOVERY_S: Final = 60.0
_SOON_S: Final = 3.0
_AGAIN: Final = 0.85
_SHORTEST_CYCLE_S: Final = 4.0
_SHORTEST_SPAN_S: Final = 0.5
_IDLE_S: Final = 5.0
_FORGOTTEN: Final = 1_000.0
_NOTES: Final = 60
_TOKEN_SLACK: Final = 1.1
"""Sizes vary: with tokens held exactly in step both limits would bind in turn, and cost 3 %."""
_FEW: Final = 5

BURST_S: Final = (1.0, 5.0)
"""Seconds' worth of requests and of tokens that a bucket holds (RELIABILITY.md 2.4)."""


class LearnedRate:
    """The curve of one quota.

    Attributes:
        active: whether there was a refusal to remember.
        soon: whether the last cut came soon after the one before, or was the first.
        next_note: when `note` is wanted again.
    """

    __slots__ = (
        "_anchored",
        "_counted",
        "_cut_at",
        "_notes",
        "_recovery_s",
        "_speed",
        "_sure",
        "_tokens_each",
        "active",
        "next_note",
        "soon",
    )

    def __init__(self) -> None:
        self.active = False
        self.soon = False
        self.next_note = -math.inf
        self._speed = math.inf  # requests per second at the plateau
        self._tokens_each = 0.0
        self._cut_at = -math.inf
        self._counted = 0.0
        # Moments with what had been granted and not refused by then; the first is the anchor, where the
        # server's bucket was empty, or else, it may be, full.
        self._notes: deque[tuple[float, float, float]] = deque()
        self._anchored = False
        self._sure = False
        self._recovery_s = _RECOVERY_S

    def __repr__(self) -> str:
        return f"LearnedRate({self._speed:.3g}/s)" if self.active else "LearnedRate(nothing)"

    def note(self, now: float, requests: float, tokens: float) -> None:
        """Remember what was granted, and not refused, up to now."""
        if now - self.next_note > _IDLE_S:
            self._notes.clear()
            self._anchored = False
        self._append(now, requests, tokens)

    def rates(self, now: float) -> tuple[float, float]:
        """Requests and tokens per second at a later time, along the curve."""
        x = (now - self._cut_at) / self._recovery_s - 1
        factor = 1 + _DIP * x * x * x
        if factor > _FORGOTTEN:
            self.forget()
        tokens = self._speed * self._tokens_each * _TOKEN_SLACK if self._tokens_each else math.inf
        return self._speed * factor, tokens * factor

    def forget(self) -> None:
        """The rate is as high as it may be; there is nothing left to learn."""
        self.active = False
        self._speed = math.inf

    def cut(
        self,
        now: float,
        sent_at: float,
        cost: float,
        granted: tuple[float, float],
        rates: tuple[float, float],
    ) -> bool:
        """Slow down after a refusal; True when it counted.

        Args:
            now: seconds.
            sent_at: when the refused request was sent.
            cost: its tokens.
            granted: requests and tokens ever granted and not refused, without this request.
            rates: requests and tokens per second in force.
        """
        self._uncount(sent_at, cost)
        if sent_at < self._cut_at or now - self._cut_at < CUT_EVERY_S:
            return False
        each = self._mean(granted)
        current = min(rates[0], rates[1] / each if each else math.inf)
        self.soon = not self._anchored or now - self._cut_at < _SOON_S
        self._speed = max(FLOOR, self._plateau(now, granted, each, current))
        self._tokens_each = each
        self._recovery_s = max(_RECOVERY_S, min(_LONGEST_RECOVERY_S, _RECOVERY_REQUESTS / self._speed))
        self._counted = granted[0] - self._notes[0][1] if self._notes else 0.0
        self.active = True
        self._drop_anchor(now, granted)
        return True

    def _plateau(self, now: float, granted: tuple[float, float], each: float, current: float) -> float:
        long = self._anchored and now - self._notes[0][0] >= _SHORTEST_CYCLE_S
        if self.soon and self._sure and not long:
            # A refusal leaves up to one request's cost in the bucket. Over so short a time that matters
            # more than what a measurement would tell.
            return self._speed * _AGAIN
        self._sure = long
        measured = self._measure(now, granted, each)
        if self.soon:
            current *= CUT
        if measured <= 0:
            measured = current * CUT
        return min(current, measured) if current < math.inf else measured if measured < math.inf else 0.0

    def _drop_anchor(self, now: float, granted: tuple[float, float]) -> None:
        self._cut_at = now
        if not self._anchored or now - self._notes[0][0] >= _SHORTEST_CYCLE_S:
            self._notes.clear()
            self._anchored = True
        self._append(now, *granted)

    def _append(self, now: float, requests: float, tokens: float) -> None:
        self._notes.append((now, requests, tokens))
        self.next_note = now + NOTE_EVERY_S * self._recovery_s / _RECOVERY_S
        if len(self._notes) > _NOTES:
            self._notes.popleft()
            self._anchored = False

    def _uncount(self, sent_at: float, cost: float) -> None:
        """Take a refused request out of what was noted as granted since it was sent."""
        if self._notes and self._notes[-1][0] >= sent_at:
            self._notes = deque(
                (t, q - 1, k - cost) if t >= sent_at else (t, q, k) for t, q, k in self._notes
            )
        if sent_at < self._cut_at and self._counted > 1:
            # It had been counted in the measurement that the last cut rests on, too.
            self._speed = max(FLOOR, self._speed * (1 - 1 / self._counted))
            self._counted -= 1

    def _mean(self, granted: tuple[float, float]) -> float:
        requests, tokens = granted
        if self._notes and requests - self._notes[0][1] >= _FEW:
            requests, tokens = requests - self._notes[0][1], tokens - self._notes[0][2]
        return max(0.0, tokens / requests) if requests > 0 else 0.0

    def _measure(self, now: float, granted: tuple[float, float], each: float) -> float:
        best = 0.0
        for index, (then, requests, tokens) in enumerate(self._notes):
            span, gained = now - then, granted[0] - requests
            if index == 0 and self._anchored and span > _SHORTEST_SPAN_S:
                best = max(best, gained / span)
            if index == 0 or span > BURST_S[0]:
                best = max(best, gained / (span + BURST_S[0]))
                if each:
                    best = max(best, (granted[1] - tokens) / each / (span + BURST_S[1]))
        return best
