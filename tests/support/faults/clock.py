"""Time that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools

SLEEPER_TIMEOUT = 10.0  # seconds of real time; only a broken test ever waits so long


class ManualClock:
    """A clock to call and a `sleep` to await, both moved by `advance` alone. For use within one event loop."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._arrived: asyncio.Future[None] | None = None

    def __call__(self) -> float:
        return self.now

    def __repr__(self) -> str:
        return f"ManualClock(now={self.now}, sleeping={self.sleeping})"

    @property
    def sleeping(self) -> int:
        """The number of tasks that wait for a later time."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), future))
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        await future

    def advance(self, seconds: float) -> None:
        """Move the clock and wake, in order, every sleeper whose time is reached."""
        self.now += seconds
        while self._sleepers and self._sleepers[0][0] <= self.now + 1e-9:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    async def wait_sleepers(self, count: int = 1) -> None:
        """Wait until at least `count` tasks sleep, so that an advance cannot come too early."""
        async with asyncio.timeout(SLEEPER_TIMEOUT):
            while self.sleeping < count:
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
