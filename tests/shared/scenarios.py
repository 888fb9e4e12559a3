"""Scenarios of several clients over one simulated store, for `tests.limits.simulation`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from llmopt.testing import SimulatedClock, SimulatedStore
from llmopt.values.events import Event

SECRET: Final = "LLMOPT_SHARED_SECRET"


@define
class Store:
    """The store of one run, and what happens to it; pass `options` to the scenario.

    Attributes:
        delay_s: see `SimulatedStore`, and so the next two.
        loss: likewise.
        skew_s: likewise.
        stops_at: when it stops answering, None for never.
        starts_at: when it answers again, None for never.
        hangs: whether it never answers meanwhile, instead of refusing.
        keeps: whether it still has its data then.
        server: the store, once the run has begun.
        events: what the clients reported.
    """

    delay_s: tuple[float, float] = (0.001, 0.01)
    loss: float = 0.0
    skew_s: float = 0.0
    stops_at: float | None = None
    starts_at: float | None = None
    hangs: bool = False
    keeps: bool = False
    server: SimulatedStore = field(init=False)
    events: list[Event] = field(factory=list, init=False)

    def options(self, number: int, clock: SimulatedClock) -> Mapping[str, Any]:
        """The arguments of a client."""
        os.environ.setdefault(SECRET, "one secret for all")
        if number == 0:
            self.server = SimulatedStore(clock, delay_s=self.delay_s, loss=self.loss, skew_s=self.skew_s)
            loop = asyncio.get_running_loop()
            if self.stops_at is not None:
                loop.call_later(self.stops_at, lambda: self.server.stop(hangs=self.hangs))
            if self.starts_at is not None:
                loop.call_later(self.starts_at, lambda: self.server.start(keep=self.keeps))
        return {"shared": self.server.connect(), "on_event": self.events.append}
