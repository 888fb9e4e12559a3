"""The pause after a refusal, and the canary that tries whether it was long enough.

A pause lasts as long as the server asks (an hour at most), or 0.5 s doubled with each refusal
in a row. Requests that were under way when it began tell nothing new: their refusals may prolong it, but count
for nothing else. After a long pause, or the third refusal in a row, one request goes first and the
others wait for what becomes of it, at most for another such pause.
"""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.lease import Lease

_LONGEST_S: Final = 3_600.0
_ABSURD_S: Final = 86_400.0
_INSTEAD_S: Final = 60.0
"""After a hint of more than a day, which its caller is told of, the next caller asks again so soon."""
_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_MOST_DOUBLINGS: Final = 16
"""Past the longest back-off already; some thousand in a row would leave the floats."""
_WORD_FROM_S: Final = 1.0
"""Shorter hints are the time until the next request of anybody fits; many are told the same."""
_CANARY_FROM_S: Final = 2.0
_CANARY_STRIKES: Final = 3
_PATIENCE_S: Final = 1.0


class Pause:
    """The pause of one quota.

    Attributes:
        until: nothing goes out before.
        canary: the request that is trying, if one is.
        wants_canary: whether the next request is to be one.
        keeps_its_word: whether the server said how long, and nothing went out since.
    """

    __slots__ = ("_began_at", "_length_s", "_strikes", "canary", "keeps_its_word", "until", "wants_canary")

    def __init__(self) -> None:
        self.until = -math.inf
        self.canary: Lease | None = None
        self._length_s = 0.0
        self.wants_canary = False
        self.keeps_its_word = False
        self._strikes = 0
        self._began_at = -math.inf

    def __repr__(self) -> str:
        return f"Pause(until={self.until:.3f}, strikes={self._strikes}, canary={self.canary})"

    def left(self, now: float) -> float:
        """Seconds that the server wants nothing; 0 while a canary is trying."""
        return max(0.0, self.until - now) if self.canary is None else 0.0

    def sent(self, now: float, lease: Lease) -> None:
        """A canary goes out."""
        self.canary = lease
        self.until = now + max(_PATIENCE_S, self._length_s)

    def answered(self, lease: Lease) -> None:
        """A request came through."""
        if lease.granted_at >= self._began_at:
            self._strikes = 0
        if lease is self.canary:
            self.canary = None
            self.wants_canary = False
            self.until = -math.inf

    def returned(self, now: float, lease: Lease) -> None:
        """A request was not sent after all; if it was the canary, the next one is."""
        if lease is self.canary:
            self.canary = None
            self.until = now

    def refused(self, now: float, sent_at: float, retry_after: float | None, lease: Lease | None) -> None:
        """The server refused a request that was sent at ``sent_at``."""
        if lease is not None and lease is self.canary:
            self.canary = None
        news = sent_at >= self._began_at
        if news:
            self._strikes += 1
            self._began_at = now
        length = self._length(retry_after, news=news)
        if now + length > self.until:
            self.until = now + length
            self._length_s = length
            self.keeps_its_word = retry_after is not None and retry_after >= _WORD_FROM_S
        if length >= _CANARY_FROM_S or self._strikes >= _CANARY_STRIKES:
            self.wants_canary = True

    def _length(self, retry_after: float | None, *, news: bool) -> float:
        if retry_after is not None and retry_after > 0:
            return min(retry_after, _LONGEST_S) if retry_after <= _ABSURD_S else _INSTEAD_S
        doublings = min(self._strikes - 1, _MOST_DOUBLINGS)
        return min(_BACKOFF_S * 2.0**doublings, _LONGEST_BACKOFF_S) if news else 0.0
