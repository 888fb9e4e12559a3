"""Timeouts: how long to wait for a complete response, and how long a stream may be silent.

The timeout of a response is twice the latency that 99 % stayed below lately, learned for each endpoint, model and
size of request. A quantile over logarithmic buckets costs a few additions, where sorting samples would cost
more than many responses do. A timeout is recorded as a response at that time, because its true latency is
unknown but not shorter; so a limit that cuts off too much grows again. Three timeouts in a row discard all
samples: what was learned in a fast hour must not fail every request of a slow one.

No I/O and no awaiting: the monotonic clock is passed in as ``now``, and durations are arguments. All calls with a
model at an endpoint share an `AdaptiveTimeout`, without a lock: at worst a sample is lost. A `StreamTimeouts` belongs
to one stream. Each event loop has a `LoopLag` for each endpoint, which sets timers of the clock and has no lock either;
only its ``active`` is called, and may look at what other loops share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from llmopt.policies.clock import Clock, Now
from llmopt.values.profile import Timeouts

_MIN_TIMEOUT_S: Final = 5.0
_FACTOR: Final = 2.0
_TAIL: Final = 0.01
_MIN_SAMPLES: Final = 50
_CONSECUTIVE_TIMEOUTS: Final = 3
_SLICES: Final = 5
_SLICE_S: Final = 60.0
_MIN_LATENCY_S: Final = 0.001
_BUCKETS_PER_DOUBLING: Final = 8  # a bucket is 9 % wide
_BUCKETS: Final = 20 * _BUCKETS_PER_DOUBLING  # 1 ms to 1,049 s


def static_timeout(timeouts: Timeouts, fill: float) -> float:
    """The configured timeout in seconds of a request.

    Args:
        timeouts: of the provider entry.
        fill: size of the request as a part of the largest one allowed, 0 to 1.
    """
    return timeouts.read + (timeouts.read_large - timeouts.read) * min(1.0, max(0.0, fill))


def first_timeout(timeouts: Timeouts, seconds: float, *keys: str) -> float:
    """The timeout in seconds of an attempt at an endpoint that has never answered: it may have to load its model.

    A timeout that the user has set bounds the first attempt too, unless the user has set ``first`` as well.

    Args:
        timeouts: of the provider entry.
        seconds: the timeout of later attempts.
        keys: names of the timeouts that ``seconds`` was made of.
    """
    if timeouts.first is None or (
        "first" not in timeouts.configured and not timeouts.configured.isdisjoint(keys)
    ):
        return seconds
    return max(seconds, timeouts.first)


class AdaptiveTimeout:
    """The timeouts of one endpoint and model, learned from the latencies of responses."""

    def __init__(self, *, now: Now) -> None:
        self._now = now
        self._by_size: dict[int, _Histogram] = {}

    def limit(self, size: int, maximum: float) -> float:
        """The timeout in seconds of a request: from 5 s to ``maximum``, and ``maximum`` until enough is known.

        Args:
            size: what the latency depends on, such as the tokens in the request. Sizes within a factor of two share
                their samples.
            maximum: the configured timeout, see `static_timeout`. It holds below 5 s too.
        """
        histogram = self._by_size.get(size.bit_length())
        if histogram is None:
            return maximum
        p99 = histogram.p99(self._now())
        return maximum if p99 is None else min(maximum, max(_MIN_TIMEOUT_S, _FACTOR * p99))

    def record(self, size: int, seconds: float, *, timed_out: bool = False) -> None:
        """Record the latency of a complete response, or that none came within ``seconds``."""
        # One histogram for each power of two: few, and sizes within it take about the same time.
        key = size.bit_length()
        histogram = self._by_size.get(key) or self._by_size.setdefault(key, _Histogram())
        histogram.add(self._now(), seconds, timed_out=timed_out)


class _Histogram:
    """Latencies of the last five minutes: a ring of one-minute slices and their sum."""

    def __init__(self) -> None:
        self._position = 0
        self._clear()

    def _clear(self) -> None:
        self._slices = [[0] * _BUCKETS for _ in range(_SLICES)]
        self._sum = [0] * _BUCKETS
        self._total = 0
        self._consecutive_timeouts = 0
        self._since_p99 = 0  # samples since the quantile was last computed
        self._p99: float | None = None

    def add(self, now: float, seconds: float, *, timed_out: bool) -> None:
        self._move(now)
        bucket = _bucket(seconds)
        self._slices[self._position % _SLICES][bucket] += 1
        self._sum[bucket] += 1
        self._total += 1
        self._since_p99 += 1
        self._consecutive_timeouts = self._consecutive_timeouts + 1 if timed_out else 0
        if timed_out:
            self._p99 = None  # the next request needs the longer timeout at once
        if self._consecutive_timeouts >= _CONSECUTIVE_TIMEOUTS:
            self._clear()

    def p99(self, now: float) -> float | None:
        """The latency that 99 % stayed below, None while there are too few samples."""
        self._move(now)
        if self._total < _MIN_SAMPLES:
            return None
        # A few samples more do not move the quantile of many, so it is computed anew after every 3 %.
        if self._p99 is None or self._since_p99 * 32 >= self._total:
            self._since_p99 = 0
            self._p99 = self._quantile()
        return self._p99

    def _quantile(self) -> float:
        above = int(self._total * _TAIL)
        for bucket in range(_BUCKETS - 1, -1, -1):
            above -= self._sum[bucket]
            if above < 0:
                upper_edge: float = _MIN_LATENCY_S * 2.0 ** ((bucket + 1) / _BUCKETS_PER_DOUBLING)
                return upper_edge
        raise AssertionError("a total without samples")  # pragma: no cover

    def _move(self, now: float) -> None:
        """Drop the slices that are more than five minutes old."""
        position = int(now / _SLICE_S)
        if position == self._position:
            return
        for passed in range(max(self._position + 1, position - _SLICES + 1), position + 1):
            if any(self._slices[passed % _SLICES]):
                self._slices[passed % _SLICES] = [0] * _BUCKETS
                self._p99 = None
        self._position = position
        # Counted anew, not reduced: two threads that do this at once must come to the same numbers.
        self._sum = [sum(counts) for counts in zip(*self._slices, strict=True)]
        self._total = sum(self._sum)


def _bucket(seconds: float) -> int:
    if seconds <= _MIN_LATENCY_S:
        return 0
    # Compared before it is rounded: an engine inside this process has an infinite timeout.
    return int(min(_BUCKETS - 1, math.log2(seconds / _MIN_LATENCY_S) * _BUCKETS_PER_DOUBLING))


class StreamTimeouts:
    """How long a stream may be silent: one timeout for any bytes, one for content.

    Servers send comments and pings to keep a connection alive, even when the engine behind them hangs. So any
    bytes restart the first timeout, but only content restarts the second. Both run only while a reader
    waits for the stream; a slow reader is not the server's fault.

    Args:
        idle: seconds without a byte.
        content: seconds without content.
        first: seconds until the first content, where that is longer: a model that thinks before it answers sends
            nothing after the event that starts the stream.
    """

    def __init__(self, *, idle: float, content: float, first: float) -> None:
        self._usual: Final = (idle, content)
        self._idle = max(idle, first)
        self._content = max(content, first)
        self._without_content = 0.0

    @property
    def read_timeout(self) -> float:
        """Seconds that the next wait for bytes may last."""
        return min(self._idle, self._content - self._without_content)

    def bytes_received(self, seconds: float) -> None:
        """A wait of ``seconds`` has ended with bytes."""
        self._without_content += seconds

    def content_received(self) -> None:
        """The bytes had content."""
        self._idle, self._content = self._usual
        self._without_content = 0.0

    def describe(self) -> str:
        """What did not come within `read_timeout`, for an error message."""
        if self._idle <= self._content - self._without_content:
            return f"nothing came for {self._idle:g} s"
        return f"only keep-alives came for {self._content:g} s, and no content"


# How late an event loop runs its timers: how much of a timeout this process itself has used up.
#
# A loop that a callback blocks, or whose machine has too little CPU time, notices an answer late, and its timeouts end
# requests that the server has answered. Such a timeout says nothing about the server. The measure is the usual one: a
# timer each second, and how late it fires. It runs while requests are in flight only.

_INTERVAL_S: Final = 1.0
_MIN_LATE_S: Final = 0.02
"""Shorter delays are usual, and add up to nothing that a timeout of seconds would notice."""
_MAX_SAMPLES: Final = 600
_LATE_S: Final = 0.5
_LATE_SHARE: Final = 0.1


@define(eq=False)
class LoopLag:
    """The lag of one event loop. For use on that loop.

    Args:
        clock: the time, and the timers.
        active: whether requests are in flight, so that the measuring goes on.
    """

    _clock: Clock
    _active: Callable[[], bool]
    _due: float | None = None
    _samples: deque[tuple[float, float]] = field(factory=lambda: deque(maxlen=_MAX_SAMPLES))

    def watch(self) -> None:
        """Measure from now on, for as long as requests are in flight."""
        if self._due is None:
            self._set_timer()

    def seconds(self, within: float) -> float:
        """Seconds by which the loop was late, in the last ``within`` seconds."""
        now = self._clock.now()
        since = now - within
        late = sum(min(late, at - since) for at, late in self._samples if at > since)
        if self._due is not None and self._due < now:
            late += min(now - self._due, within)
        return late

    def _set_timer(self) -> None:
        self._due = self._clock.now() + _INTERVAL_S
        self._clock.call_later(_INTERVAL_S, self._fired, self._due)

    def _fired(self, due: float) -> None:
        now = self._clock.now()
        if now - due > _MIN_LATE_S:
            self._samples.append((now, now - due))
        if self._active():
            self._set_timer()
        else:
            self._due = None


def explains_timeout(late: float, limit: float) -> bool:
    """Whether a loop that was late for ``late`` seconds may have caused a timeout of ``limit`` seconds."""
    return late > max(_LATE_S, _LATE_SHARE * limit)
