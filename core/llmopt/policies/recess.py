"""Where those wait whose circuit is open: until it may admit somebody again, at the latest for so long.

Who waits behind somebody else's probe is woken when that ends, and does not look again and again. All are
woken: whether one may go is for the circuit to say, and it admits one at a time.
"""

from __future__ import annotations

import asyncio
from typing import Final

from llmopt.policies.clock import Clock


class Recess:
    """The waiting room of one client, for any number of event loops, one after the other or at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._waiting: Final[dict[asyncio.Future[None], None]] = {}

    def __repr__(self) -> str:
        return f"Recess({len(self._waiting)} waiting)"

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, seconds: float) -> None:
        """Wait until `over` is called, at most for so long."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        timer = self._clock.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            del self._waiting[future]

    def over(self) -> None:
        """Wake everybody: some circuit may admit a request now."""
        here = _running_loop()
        for future in tuple(self._waiting):
            loop = future.get_loop()
            if loop is here:
                _wake(future)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
