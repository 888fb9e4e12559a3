"""How long to wait for an answer: twice what all but one in a hundred took lately.

Per endpoint and model one `AdaptiveTimeout`, in it one histogram per size of request (docs/development/resilience.md).
A quantile over logarithmic buckets costs a few additions, where sorting the samples would cost
more than many an answer. Time-outs enter as if the answer had come at the limit (their true length is
unknown, but no less), so that a limit that cuts too much off grows again; three in a row throw
everything away, because what was learned plainly holds no longer, and a limit learned from a fast
hour must not kill every request of a slow one.
"""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.clock import Now
from llmopt.values.profile import Timeouts

_LEAST_S: Final = 5.0
_FACTOR: Final = 2.0
_TAIL: Final = 0.01
_ENOUGH: Final = 50
_IN_A_ROW: Final = 3
_SLICES: Final = 5
_SLICE_S: Final = 60.0
_FIRST_S: Final = 0.001
_PER_DOUBLING: Final = 8  # a bucket is 9 % wide
_BUCKETS: Final = 20 * _PER_DOUBLING  # 1 ms to 1,049 s


def static_timeout(timeouts: Timeouts, fill: float) -> float:
    """The profile's time-out for a request that fills so much (0 to 1) of the largest one allowed."""
    return timeouts.read + (timeouts.read_large - timeouts.read) * min(1.0, max(0.0, fill))


class AdaptiveTimeout:
    """The time-outs of one endpoint and model, learned from what its answers took."""

    __slots__ = ("_by_size", "_now")

    def __init__(self, *, now: Now) -> None:
        self._now = now
        self._by_size: dict[int, _Histogram] = {}

    def limit(self, size: int, most: float) -> float:
        """The time-out in seconds for a request of this size: within [5 s, ``most``], ``most`` until enough is known.

        Args:
            size: what its time depends on, such as the tokens in it; sizes count alike up to a factor of two.
            most: the profile's or the user's, see `static_timeout`. It holds even below 5 s.
        """
        found = self._by_size.get(size.bit_length())
        if found is None:
            return most
        p99 = found.tail(self._now())
        return most if p99 is None else min(most, max(_LEAST_S, _FACTOR * p99))

    def record(self, size: int, seconds: float) -> None:
        """A complete answer came after so long."""
        self._of(size).add(self._now(), seconds, censored=False)

    def timed_out(self, size: int, limit: float) -> None:
        """No complete answer came within the limit."""
        self._of(size).add(self._now(), limit, censored=True)

    def _of(self, size: int) -> _Histogram:
        key = size.bit_length()
        found = self._by_size.get(key)
        if found is None:
            found = self._by_size[key] = _Histogram()
        return found


class _Histogram:
    """Durations of the last five minutes: a ring of one-minute slices and their sum."""

    __slots__ = ("_at", "_fresh", "_p99", "_row", "_slices", "_sum", "_total")

    def __init__(self) -> None:
        self._at = 0
        self._forget()

    def _forget(self) -> None:
        self._slices = [[0] * _BUCKETS for _ in range(_SLICES)]
        self._sum = [0] * _BUCKETS
        self._total = 0
        self._row = 0  # time-outs in a row
        self._fresh = 0  # samples since the quantile was last computed
        self._p99: float | None = None

    def add(self, now: float, seconds: float, *, censored: bool) -> None:
        self._turn(now)
        bucket = _bucket(seconds)
        self._slices[self._at % _SLICES][bucket] += 1
        self._sum[bucket] += 1
        self._total += 1
        self._fresh += 1
        self._row = self._row + 1 if censored else 0
        if censored:
            self._p99 = None  # news that cannot wait
        if self._row >= _IN_A_ROW:
            self._forget()

    def tail(self, now: float) -> float | None:
        """The duration that 99 % stayed below, None when too little is known."""
        self._turn(now)
        if self._total < _ENOUGH:
            return None
        # A few samples more do not move the quantile of many: computed anew after each 3 %.
        if self._p99 is None or self._fresh * 32 >= self._total:
            self._fresh = 0
            self._p99 = self._quantile()
        return self._p99

    def _quantile(self) -> float:
        above = int(self._total * _TAIL)
        for bucket in range(_BUCKETS - 1, -1, -1):
            above -= self._sum[bucket]
            if above < 0:
                return _upper_edge(bucket)
        raise AssertionError("a total without samples")  # pragma: no cover

    def _turn(self, now: float) -> None:
        at = int(now / _SLICE_S)
        if at == self._at:
            return
        for passed in range(max(self._at + 1, at - _SLICES + 1), at + 1):
            old = self._slices[passed % _SLICES]
            gone = sum(old)
            if gone:
                self._sum = [have - less for have, less in zip(self._sum, old, strict=True)]
                self._total -= gone
                self._slices[passed % _SLICES] = [0] * _BUCKETS
                self._p99 = None
        self._at = at


def _bucket(seconds: float) -> int:
    if seconds <= _FIRST_S:
        return 0
    return min(_BUCKETS - 1, int(math.log2(seconds / _FIRST_S) * _PER_DOUBLING))


def _upper_edge(bucket: int) -> float:
    return float(_FIRST_S * 2.0 ** ((bucket + 1) / _PER_DOUBLING))


# How long a stream may be silent: two clocks, one for bytes and one for what adds to the answer.
#
# Servers send comments and pings to keep a connection alive, also when the engine behind them hangs. So any
# byte sets the first clock back, and only what adds to the answer the second (docs/development/resilience.md). Time counts
# while somebody waits for the stream; a reader that takes its time is no fault of the server's.


class StreamTimeouts:
    """Both clocks of one stream.

    Args:
        idle: seconds without a byte.
        content: seconds without anything that adds to the answer.
        first: seconds that the first of it may take, where that is longer: a model that thinks before
            it speaks is silent after the event with which the stream begins.
    """

    __slots__ = ("_content", "_idle", "_quiet", "_usual")

    def __init__(self, *, idle: float, content: float, first: float) -> None:
        self._usual: Final = (idle, content)
        self._idle = max(idle, first)
        self._content = max(content, first)
        self._quiet = 0.0

    @property
    def read_timeout(self) -> float:
        """Seconds that the next wait for bytes may take."""
        return min(self._idle, self._content - self._quiet)

    def bytes_received(self, seconds: float) -> None:
        """A wait took so long and brought bytes."""
        self._quiet += seconds

    def content_received(self) -> None:
        """What came adds to the answer."""
        self._idle, self._content = self._usual
        self._quiet = 0.0

    def describe(self) -> str:
        """What did not come within `bound` seconds, in words."""
        if self._idle <= self._content - self._quiet:
            return f"nothing came for {self._idle:g} s"
        return f"only signs of life came for {self._content:g} s, and nothing of the answer"
