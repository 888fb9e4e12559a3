"""Adaptive rate: a request rate learned from 429s alone, for servers whose headers state no limit.

It is CUBIC (RFC 9438), which the AWS SDKs' adaptive mode uses for rates too: after a 429 the rate dips, returns to
that of the 429, stays near it for long, and only then probes higher. Two things differ, each because of the simulation
in tests/policies/test_rate_limiter_simulation.py (no headers, unknown limit):

* The rate to return to is measured. Between two moments at which the server's bucket was empty, it granted
  exactly its inflow; over any other time at most the inflow and one burst. Both are lower bounds of its rate, and
  the larger one is used. With the rate at the moment of the 429, as in CUBIC, 33 % of all requests were refused; with
  the measured one 1 %.
* The curve is relative to that rate, so that the same curve serves 1 and 10,000 requests a second. The AWS SDKs' 0.4
  requests/s³ returns within 2 s at 10 a second, and within 20 s at 10,000. With the rate measured, a dip of a tenth is
  enough: 97 % of the possible throughput, 96 % with the AWS SDKs' 0.3. A 429 soon after another one takes 0.3, because
  then the measurement was wrong.

Requests and tokens are slowed down together, unless the 429 says which of them was too many.

No I/O, no clock and no lock: the time is an argument. All requests of one quota share a `CubicRate`, from any loop and
thread; the rate limiter calls it under its own lock.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from llmopt.values.calls import Dimension

CUT_INTERVAL_S: Final = 1.0
"""One overload shows in many 429s; they count once a second."""
MIN_RATE: Final = 0.5
"""The lowest rate, in requests per second."""
BURST_S: Final = (1.0, 5.0)
"""Capacity of the buckets of requests and of tokens, in seconds of inflow (docs/development/resilience.md)."""
_CUT: Final = 0.7
_AGAIN: Final = 0.85
_DIP: Final = 0.1
_RECOVERY_S: Final = 6.0
"""Seconds from a 429 back to its rate, or the time of ``_RECOVERY_REQUESTS`` if longer, up to a minute."""
_RECOVERY_REQUESTS: Final = 30.0
_MAX_RECOVERY_S: Final = 60.0
_TOKEN_SLACK: Final = 1.1
"""Sizes of requests vary. Without this margin both limits bind in turn, and 3 % of the throughput is lost."""
_SOON_S: Final = 3.0
_MIN_CYCLE_S: Final = 4.0
_MIN_SPAN_S: Final = 0.5
_FEW: Final = 5
"""Nothing is measured with fewer requests."""
_MIX_S: Final = 60.0
_IDLE_S: Final = 5.0
_FORGOTTEN: Final = 1_000.0
_SAMPLE_INTERVAL_S: Final = 0.5
_MAX_SAMPLES: Final = 60


class CubicRate:
    """The learned rate of one quota.

    In all methods ``granted`` is what was granted and not refused so far, as (requests, tokens).

    Attributes:
        active: whether a rate has been learned and is still in force.
        repeated: whether the last cut came soon after the one before, or after the start.
        next_sample_at: when `add_sample` should be called again.
    """

    __slots__ = (
        "_anchored",
        "_counted",
        "_cut_at",
        "_dimension",
        "_measured_long_enough",
        "_mix",
        "_mixed",
        "_plateau_rate",
        "_recovery_s",
        "_samples",
        "_tokens_each",
        "active",
        "next_sample_at",
        "repeated",
    )

    def __init__(self) -> None:
        self.active = False
        self.repeated = False
        self.next_sample_at = -math.inf
        self._plateau_rate = math.inf  # requests per second at the plateau
        self._tokens_each = 0.0  # 0 when unknown
        self._dimension: Dimension | None = None  # what was too many; None for one of both
        self._recovery_s = _RECOVERY_S
        self._cut_at = -math.inf
        self._counted = 0.0  # requests that the last measurement rests on
        self._measured_long_enough = False  # whether that took long enough to be trusted
        # Moments and what was granted by then. The first is the anchor: there the server's bucket was empty, or
        # else, when not anchored, perhaps full.
        self._samples: deque[tuple[float, float, float]] = deque()
        self._anchored = False
        self._mixed = (0.0, 0.0, 0.0)
        self._mix = (0.0, 0.0)  # requests and tokens of the last minute, mostly

    def __repr__(self) -> str:
        return f"CubicRate({self._plateau_rate:.3g}/s)" if self.active else "CubicRate(nothing)"

    def add_sample(self, now: float, granted: tuple[float, float]) -> None:
        """Remember how much was granted by now."""
        if now - self.next_sample_at > _IDLE_S:
            self._samples.clear()
            self._anchored = False
        self._update_mix(now, granted)
        self._append(now, granted)

    def rates(self, now: float) -> tuple[float, float]:
        """Requests and tokens per second on the curve now. It may set `active` to False."""
        x = (now - self._cut_at) / self._recovery_s - 1
        factor = 1 + _DIP * x * x * x
        if factor > _FORGOTTEN:
            self.forget()
        tokens = self._plateau_rate * self._tokens_each * _TOKEN_SLACK if self._tokens_each else math.inf
        if self._dimension == "requests":
            tokens = math.inf
        requests = math.inf if self._dimension == "tokens" and tokens < math.inf else self._plateau_rate
        return requests * factor, tokens * factor

    @property
    def plateau(self) -> tuple[float, float]:
        """Requests and tokens per second that were learned; infinite where nothing was."""
        return self.rates(self._cut_at + self._recovery_s) if self.active else (math.inf, math.inf)

    def resume(self, now: float, plateau: tuple[float, float]) -> None:
        """Begin at what `plateau` was in an earlier process, and grow from there, faster than after a 429.

        So a rate that is ten times too low by now is in the way for 10 s (60 s at a third of this speed).
        """
        requests, tokens = plateau
        if tokens < math.inf:
            self._plateau_rate = requests if requests < math.inf else tokens / _TOKEN_SLACK
            self._tokens_each = tokens / _TOKEN_SLACK / self._plateau_rate
            self._dimension = None if requests < math.inf else "tokens"
        else:
            self._plateau_rate = requests
        self._recovery_s = _RECOVERY_S / 3
        self._cut_at = now - self._recovery_s
        self.active = self._plateau_rate < math.inf

    def forget(self) -> None:
        """Stop limiting, because the curve is above all known limits."""
        self.active = False
        self._plateau_rate = math.inf

    def cut(
        self,
        now: float,
        sent_at: float,
        cost: float,
        granted: tuple[float, float],
        rates: tuple[float, float],
        dimension: Dimension | None = None,
        requests: float = 1.0,
    ) -> bool:
        """Slow down after a 429.

        Args:
            now: monotonic seconds.
            sent_at: when the refused request was sent.
            cost: its tokens.
            granted: what was granted by now, without this request.
            rates: requests and tokens per second in force.
            dimension: which limit the server names as exceeded, None if it does not say.
            requests: what the refused request counts under a limit of requests.

        Returns:
            Whether the rate was cut. A 429 of the same overload does not cut it again.
        """
        self._subtract_refused(sent_at, cost, requests)
        if sent_at < self._cut_at or now - self._cut_at < CUT_INTERVAL_S:
            return False
        self._update_mix(now, granted)
        each = self._mix[1] / self._mix[0] if self._mix[0] >= _FEW else 0.0
        began = self._samples[0][0] if self._samples and not self._anchored else self._cut_at
        self.repeated = now - began < _SOON_S
        current = min(rates[0], rates[1] / each if each else math.inf)
        plateau = self._plateau(now, granted, each, current)
        if plateau == math.inf:
            # Too little was sent to derive a rate; the pause alone must do.
            self._start_measuring(now, granted)
            return False
        self._plateau_rate = max(MIN_RATE, plateau)
        self._tokens_each = each
        self._dimension = dimension
        self._recovery_s = max(_RECOVERY_S, min(_MAX_RECOVERY_S, _RECOVERY_REQUESTS / self._plateau_rate))
        self.active = True
        self._start_measuring(now, granted)
        return True

    def _plateau(self, now: float, granted: tuple[float, float], each: float, current: float) -> float:
        then, requests, _ = self._samples[0] if self._samples else (now, granted[0], 0.0)
        self._counted = granted[0] - requests
        long = self._anchored and now - then >= _MIN_CYCLE_S
        if self.repeated and self._measured_long_enough and not long:
            # A 429 leaves up to the cost of one request in the bucket. Over so short a time that error is larger than
            # what a measurement would show.
            return self._plateau_rate * _AGAIN
        self._measured_long_enough = long
        if self._counted < _FEW:
            return current * _CUT
        return min(current * (_CUT if self.repeated else 1.0), self._measure(now, granted, each))

    def _measure(self, now: float, granted: tuple[float, float], each: float) -> float:
        best = MIN_RATE
        for index, (then, requests, tokens) in enumerate(self._samples):
            span = now - then
            in_requests = granted[0] - requests
            in_tokens = (granted[1] - tokens) / each if each else 0.0
            if index == 0 and self._anchored and span > _MIN_SPAN_S:
                best = max(best, in_requests / span, in_tokens / span)
            if index == 0 or span > BURST_S[0]:
                best = max(best, in_requests / (span + BURST_S[0]), in_tokens / (span + BURST_S[1]))
        return best

    def _subtract_refused(self, sent_at: float, cost: float, counted: float = 1.0) -> None:
        """Subtract a refused request from the samples since it was sent."""
        if self._samples and self._samples[-1][0] >= sent_at:
            self._samples = deque(
                (then, requests - counted, tokens - cost) if then >= sent_at else (then, requests, tokens)
                for then, requests, tokens in self._samples
            )
        if sent_at < self._cut_at and self._counted > 1:
            # The measurement of the last cut had counted it, too.
            self._plateau_rate = max(MIN_RATE, self._plateau_rate * (1 - 1 / self._counted))
            self._counted -= 1

    def _update_mix(self, now: float, granted: tuple[float, float]) -> None:
        then, requests, tokens = self._mixed
        weight = math.exp((then - now) / _MIX_S)
        self._mixed = (now, *granted)
        self._mix = (
            self._mix[0] * weight + max(0.0, granted[0] - requests),
            self._mix[1] * weight + max(0.0, granted[1] - tokens),
        )

    def _start_measuring(self, now: float, granted: tuple[float, float]) -> None:
        self._cut_at = now
        if not self._anchored or now - self._samples[0][0] >= _MIN_CYCLE_S:
            self._samples.clear()
            self._anchored = True
        self._append(now, granted)

    def _append(self, now: float, granted: tuple[float, float]) -> None:
        self._samples.append((now, *granted))
        self.next_sample_at = now + _SAMPLE_INTERVAL_S * self._recovery_s / _RECOVERY_S
        if len(self._samples) > _MAX_SAMPLES:
            self._samples.popleft()
            self._anchored = False
