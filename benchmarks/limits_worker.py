"""The child processes of `benchmarks limits`: a client with callers that always have a text, and the server.

`benchmarks.worker` imports this file for them. The server needs the test dependencies of the checkout, the client only
what its own environment has.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from benchmarks.clients import LIMIT_CONTENDERS, LimitedSetting, contender_named

if TYPE_CHECKING:
    from tests.support.faults import RateLimited

LATENCY_S: Final = 0.3
_SENTENCE: Final = "lorem ipsum dolor sit amet "
_TEXT_SIZE: Final = 400
"""Bytes, of which the server makes 100 tokens: the limit of requests is the narrower one."""

Report = dict[str, Any]
Write = Callable[[Report], object]
Embed = Callable[[str], Awaitable[object]]


# ---- a client


async def serve_client(task: Report, write: Write, version: Callable[[Any], str]) -> None:
    """Create the client, make one call, and at the word to go call until the time is over."""
    contender = contender_named(task["contender"], LIMIT_CONTENDERS)
    setting = LimitedSetting(
        origin=task["origin"], rpm=task["rpm"], tpm=task["tpm"], in_flight=task["workers"]
    )
    embed: Embed = contender.create(setting)
    # What is imported at the first call is imported before the time begins.
    await embed("warm up")
    write({"ready": True, "version": version(contender)})
    sys.stdin.readline()
    callers = Callers(embed, time.monotonic() + task["seconds"])
    cpu = time.process_time()
    await asyncio.gather(*(callers.work() for _ in range(task["workers"])))
    write({"done": callers.done, "errors": callers.errors, "cpu": time.process_time() - cpu})
    # Threads of a client that still retries would hold up the end of the process.
    os._exit(0)


class Callers:
    """Makes calls until a moment, and counts their results. A call that this moment interrupts is not counted."""

    def __init__(self, embed: Embed, until: float) -> None:
        self._embed = embed
        self._until = until
        self._number = 0
        self.done = 0
        self.errors: dict[str, int] = {}

    async def work(self) -> None:
        """One caller."""
        while (left := self._until - time.monotonic()) > 0:
            self._number += 1
            text = f"{os.getpid()} {self._number} "
            text = (text + _SENTENCE * (_TEXT_SIZE // len(_SENTENCE) + 1))[:_TEXT_SIZE]
            try:
                await asyncio.wait_for(self._embed(text), left)
                self.done += 1
            except Exception as error:  # noqa: BLE001 # every error is a result
                if time.monotonic() >= self._until:
                    return
                name = type(error).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
                await asyncio.sleep(0)


# ---- the server


async def serve_limits(task: Report, write: Write) -> None:
    """Serve with the limits of a case, and follow orders: "begin", "measure" and "report"."""
    from tests.support.faults import Answer, FaultServer, RateLimited, Request, Script, Send, Wait

    case = task["case"]
    limited = RateLimited(
        rpm=case["rpm"], tpm=case["tpm"], burst=case["burst"], headers=case["headers"], hint="headers"
    )

    def respond(request: Request) -> Answer | Script:
        reply = limited(request)
        assert isinstance(reply, Answer)
        return reply if reply.status != 200 else Script([Wait(LATENCY_S), Send(bytes(reply))])

    async with FaultServer() as server:
        server.default(respond)
        write({"port": server.port})
        judge = Judge(limited, case)
        loop = asyncio.get_running_loop()
        orders = {"begin": judge.begin, "measure": judge.measure}
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            server.requests.clear()
            if order["do"] == "report":
                await asyncio.sleep(judge.began + order["at"] - time.monotonic())
                write(judge.report())
            else:
                write(orders[order["do"]]())


class Judge:
    """What the server's own books say of a run."""

    def __init__(self, limited: RateLimited, case: Report) -> None:
        self._limited = limited
        self._case = case

    def begin(self) -> Report:
        """Fill the buckets as the case wants it, and measure from now on."""
        self.began = time.monotonic()
        for bucket in self._limited.buckets.values():
            bucket.fill(self._case["filled"], self.began)
        self._limited.refusals.clear()
        self._limited.grants.clear()
        return self.measure()

    def measure(self) -> Report:
        """Measure from now on."""
        self._since = time.monotonic()
        self._levels = self._limited.levels()
        if self._case["steady"]:
            self._levels = dict.fromkeys(self._levels, 0.0)
        return {}

    def report(self) -> Report:
        """What was admitted and refused."""
        share = self._limited.share_of_possible(self._since, time.monotonic(), self._levels)
        return {
            "share": share,
            "refused": len(self._limited.refusals),
            "admitted": len(self._limited.grants),
        }
