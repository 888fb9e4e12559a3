"""learn rate from refusals"""
from __future__ import annotations

import math
from collections import deque
from typing import Final

CUT_EVERY_S: Final = 1.0
DIP = 0.1
RECOVERY_S = 6.0
KEEP_S = 4.0
QUICK_S = 3.0
SLACK = 1.1
NOTE_S = 0.5
BURSTS = (1.0, 5.0)


class Learner:
    def __init__(self) -> None:
        self.peaks = (math.inf, math.inf)
        self.active = False
        self._cut_at = -math.inf
        self._notes: deque[tuple[float, float, float]] = deque(maxlen=60)
        self._anchored = False
        self.next_note = -math.inf

    def note(self, now: float, requests: float, tokens: float) -> None:
        if now - self.next_note > 5.0:
            self._notes.clear()
            self._anchored = False
        self._notes.append((now, requests, tokens))
        self.next_note = now + NOTE_S

    def cut(self, now: float, sent_at: float, cost, requests: float, tokens: float, current: tuple[float,float], mean) -> bool:
        if self._notes and self._notes[-1][0] >= sent_at:
            self._notes = deque(((t, q - 1, k - cost) if t >= sent_at else (t, q, k) for t,q,k in self._notes), maxlen=60)
        if sent_at < self._cut_at and self._n > 1:
            f = (self._n - 1) / self._n
            self._n -= 1
            self.peaks = (self.peaks[0] * f, self.peaks[1] * f)
        if sent_at < self._cut_at or now - self._cut_at < CUT_EVERY_S:
            return False
        measured = self._measure(now, requests, tokens, mean)
        now_rate = min(current[0], current[1] / mean)
        if measured <= 0:
            measured = now_rate * .7
        self._n = requests - self._notes[0][1] if self._notes else 0
        self.quick = now - self._cut_at < QUICK_S or not self._anchored
        if self.quick:
            now_rate *= 0.7
        speed = max(0.5, min(now_rate, measured))
        self.peaks = (speed, speed * mean * SLACK)
        self.active = True
        self._cut_at = now
        if not self._anchored or now - self._notes[0][0] >= KEEP_S:
            self._notes.clear()
            self._anchored = True
        self._notes.append((now, requests, tokens))
        self.next_note = now + NOTE_S
        return True

    def _measure(self, now: float, requests: float, tokens: float, mean: float) -> float:
        best = 0.0
        for i, (t, q, k) in enumerate(self._notes):
            span = now - t
            if i == 0 and self._anchored and span > .5:
                best = max(best, (requests - q) / span)
            if i == 0 or span > 1:
                best = max(best, (requests - q) / (span + BURSTS[0]), (tokens - k) / mean / (span + BURSTS[1]))
        return best

    def factor(self, now: float) -> float:
        x = (now - self._cut_at) / RECOVERY_S - 1
        return 1 + DIP * x * x * x
