"""How long a stream may be silent: two clocks, one for bytes and one for what adds to the answer.

Servers send comments and pings to keep a connection alive, also when the engine behind them hangs. So any
byte sets the first clock back, and only what adds to the answer the second (RELIABILITY 2.8). Time counts
while somebody waits for the stream; a reader that takes its time is no fault of the server's.
"""

from __future__ import annotations

from typing import Final


class IdleClocks:
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
    def bound(self) -> float:
        """Seconds that the next wait for bytes may take."""
        return min(self._idle, self._content - self._quiet)

    def waited(self, seconds: float) -> None:
        """A wait took so long and brought bytes."""
        self._quiet += seconds

    def spoke(self) -> None:
        """What came adds to the answer."""
        self._idle, self._content = self._usual
        self._quiet = 0.0

    def ran_out(self) -> str:
        """What did not come within `bound` seconds, in words."""
        if self._idle <= self._content - self._quiet:
            return f"nothing came for {self._idle:g} s"
        return f"only signs of life came for {self._content:g} s, and nothing of the answer"
