"""How late an event loop runs its timers: how much of a timeout this process itself has used up.

A loop that a callback blocks, or whose machine has too little CPU time, notices an answer late, and its timeouts end
requests that the server has answered. Such a timeout says nothing about the server. The measure is the usual one: a
timer each second, and how late it fires. It runs while requests are in flight only.

No I/O, and nothing awaits. The time is read from a `Clock`, which also sets the timers. Each event loop has a `LoopLag`
for each endpoint, with the delays of its last timers and no lock; only ``active`` is called, and it may look at what
other loops share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from llmopt.policies.clock import Clock

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
