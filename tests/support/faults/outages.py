"""Providers with outages by the clock, random failures, and exchanged answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable

from tests.support.faults.openai import answer_openai, error_answer
from tests.support.faults.request import Request
from tests.support.faults.response import Answer
from tests.support.faults.script import Close, Playable, Reply, Respond, Responder, Script, Wait, reply_of
from tests.support.faults.server import FaultServer

OVERLOADED = error_answer(
    503, "The server is overloaded.", kind="service_unavailable_error", code="server_is_overloaded"
)
BROKEN = error_answer(500, "The server had an error processing your request.", kind="server_error")


class OutageSchedule:
    """Answers with `down` during the outages, pairs of start and end in seconds after it was made."""

    def __init__(
        self,
        outages: Iterable[tuple[float, float]],
        inner: Responder = answer_openai,
        *,
        down: Playable = OVERLOADED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outages = tuple(outages)
        self._inner = inner
        self._down = down
        self._clock = clock
        self._start = clock()

    @property
    def is_down(self) -> bool:
        """Whether this is a moment of outage; the end of an outage is not."""
        now = self._clock() - self._start
        return any(start <= now < end for start, end in self.outages)

    def __call__(self, request: Request) -> Reply:
        return reply_of(self._down if self.is_down else self._inner, request)


class Flaky:
    """Answers with `failing` at a probability, from its own seed."""

    def __init__(
        self,
        probability: float,
        seed: int = 0,
        inner: Responder = answer_openai,
        *,
        failing: Playable = BROKEN,
    ) -> None:
        self.failed = 0
        self._probability = probability
        self._dice = random.Random(seed)
        self._inner = inner
        self._failing = failing

    def __call__(self, request: Request) -> Reply:
        fails = self._dice.random() < self._probability
        self.failed += fails
        return reply_of(self._failing if fails else self._inner, request)


class CloseAfter:
    """Closes each connection right after its n-th answer, without an announcement in that answer."""

    def __init__(self, count: int, inner: Responder = answer_openai) -> None:
        self._count = count
        self._inner = inner

    def __call__(self, request: Request) -> Reply:
        reply = self._inner(request)
        return Script([Respond(reply), Close()]) if request.nth >= self._count else reply


class Crossed:
    """Gives each of two concurrent requests the other's answer: it holds the first until the second arrives."""

    def __init__(self, inner: Callable[[Request], Answer] = answer_openai) -> None:
        self._inner = inner
        self._held: tuple[Request, list[Request], asyncio.Event] | None = None

    def __call__(self, request: Request) -> Reply:
        if self._held is None:
            other: list[Request] = []
            event = asyncio.Event()
            self._held = (request, other, event)
            return Script([Wait(event), Respond(lambda _: self._inner(other[0]))])
        first, other, event = self._held
        self._held = None
        other.append(request)
        event.set()
        return self._inner(first)


async def flap(
    server: FaultServer,
    cycles: int,
    *,
    up: float = 1.0,
    down: float = 1.0,
    reset: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Stop and start a running server `cycles` times, and leave it up; it keeps its port."""
    for _ in range(cycles):
        await sleep(up)
        await server.stop(reset=reset)
        await sleep(down)
        await server.start()
